"""Tables as LaTeX: what is written, and that pdflatex takes it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import program

from hpc_tumor.results.write.latex import latex_document, latex_table, latex_text
from hpc_tumor.table import Column, Table

SCORES = ("params", "Dice", "95 % CI", "NCR", "ED", "ET", "WT", "TC", "HD95, mm", "NSD", "IoU", "precision", "recall")
MODELS = ("cnn", "alexnet", "vgg16", "vit", "unet, 3 seeds: mean ± sd", "improved-unet", "attention-unet: published")
PAPER = Table(
    "Segmentation · BraTS 2020 0123456789ab · split patient (no patient on two sides)",
    (Column("model", "left"), *(Column(title) for title in SCORES)),
    tuple(
        (model, "5,496,451", "0.861", "0.853–0.912", *["0.853"] * 4, "–", "12.35", *["0.912"] * 4) for model in MODELS
    ),
    (
        "Scores: means over the test patients, with the weights of the best epoch; last: weights of the last epoch.",
        "GPUs: “2 CPU” means two processes on CPUs. † HD95 ≥ 0 mm, 3×240×240.",
        "20250101-120000-attention-unet-aaaaaa: " + "/a/very/long/path/without/a/blank_" * 8,
    ),
)
SMALL = Table("Small", (Column("model", "left"), Column("Dice")), (("unet", "0.9"), ("vit", "")))

# Every way in which a character that TeX would act on may stand in the result, by what it stands for.
COMMANDS = {
    r"\textbackslash{}": "\\",
    r"\textasciicircum{}": "^",
    r"\textasciitilde{}": "~",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textquoteleft{}": "`",
    "{''}": '"',
    "{[}": "[",
    "{]}": "]",
    "{*}": "*",
    "{}": "",
    **{f"\\{character}": character for character in "{}$&#%_"},
}
ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126))
KNOWN = {
    "times",
    "pm",
    "geq",
    "leq",
    "dots",
    "textdagger",
    "textbf",
    "allowbreak",
    "alpha",
    "neq",
    "ss",
    "S",
    "textbar",
}


def read_back(tex: str) -> str:
    """The ASCII text that TeX would set, read with the least that TeX knows; what is not known is an error."""
    result, rest = "", tex
    while rest:
        command = next((known for known in COMMANDS if rest.startswith(known)), "")
        assert command or rest[0] not in '\\{}$&#%_^~<>|"`[]*', f"{rest!r} in {tex!r}"
        result += COMMANDS[command] if command else rest[0]
        rest = rest[len(command) or 1 :]
    return result


def compile_alone(folder: Path, tex: str, name: str = "comparison") -> str:
    """Compile `tex` with pdflatex, which must succeed, and return its output."""
    (folder / f"{name}.tex").write_text(tex, encoding="utf-8")
    command = [program("pdflatex"), "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", f"{name}.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=300)
    log = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, log[-3000:]
    assert (folder / f"{name}.pdf").stat().st_size > 1000
    return log


@given(ASCII)
def test_ascii_text_reads_back(text: str) -> None:
    assert read_back(latex_text(text)) == text


@given(st.text())
def test_any_text_is_ascii_and_without_commands_of_its_own(text: str) -> None:
    tex = latex_text(text)
    assert tex.isascii()
    assert tex.isprintable()
    plain = re.sub(r"\\[&%$#_{}]|\\[^a-zA-Z]|\\[a-zA-Z]+", "", tex)  # what TeX reads as control sequences
    plain = re.sub(r"\$(\^|_)?(\{\d?\^?\{?\}?\})?-?\$", "", plain)
    assert not re.search(r"[\\$&#%_^<>|\"]", plain)
    assert plain.count("{") == plain.count("}")


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("0.853–0.912 ± 0.1", r"0.853--0.912 $\pm$ 0.1"),
        ("“a” † ≥ 3×3 …", r"``a'' \textdagger{} $\geq$ 3$\times$3 \dots{}"),
        ("Müller, Škoda, naïve", r"M\"{u}ller, \v{S}koda, na\"{i}ve"),
        ("u\u0308", r"\"{u}"),
        ("100 % of A_B & C", r"100 \% of A\_B \& C"),
        ("a--b, ''", r"a-{}-b, '{}'"),
        ("?‘", "?{}`"),
        ("脑", r"\textbf{{[}U+8111{]}}"),
        ("\ud800", r"\textbf{{[}U+D800{]}}"),
        ("a\nb\tc\x1b", r"a b c\textbf{{[}U+001B{]}}"),
    ],
)
def test_text(text: str, tex: str) -> None:
    assert latex_text(text) == tex


def test_table_by_hand() -> None:
    tex = latex_table(replace(SMALL, strong=frozenset({(0, 1)})), label="tab:small")
    rows = r"""    \toprule
    model & Dice \\
    \midrule
    unet & \textbf{0.9} \\
    vit & -- \\
    \bottomrule
"""
    assert rows in tex
    assert r"\begin{tabular}{@{}lr@{}}" in tex
    assert tex.startswith("\\begin{table}[tbp]\n  \\centering\n  \\caption{Small}\n  \\label{tab:small}\n")
    assert latex_table(PAPER).startswith(r"\begin{table*}")


def test_negative_numbers_have_a_minus_and_other_cells_keep_their_hyphen() -> None:
    tex = latex_table(Table("t", (Column("a"), Column("b"), Column("c")), (("-0.5", "-x", "seed 0"),)))
    assert r"$-$0.5 & -x & seed 0 \\" in tex


@pytest.mark.latex
def test_alone_and_in_papers(tmp_path: Path) -> None:
    tables = [replace(PAPER, strong=frozenset({(6, 1), (0, 10)})), SMALL, Table("No finished runs", (), ())]
    tex = latex_document(tables)
    assert "Overfull" not in compile_alone(tmp_path, tex)
    packages = r"\usepackage{booktabs,graphicx}"
    for options in ("", "[twocolumn]", "[12pt,a5paper]"):
        head = rf"\documentclass{options}{{article}}{packages}\begin{{document}}"
        paper = head + r"A\input{comparison}\ref{tab:hpc-tumor-2}\end{document}"
        compile_alone(tmp_path, paper, "paper")
        log = compile_alone(tmp_path, paper, "paper")
        assert "Overfull" not in log
        assert "undefined" not in log


@pytest.mark.latex
def test_booktabs_alone_is_enough_for_what_is_narrow(tmp_path: Path) -> None:
    (tmp_path / "comparison.tex").write_text(latex_document([SMALL]))
    paper = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{comparison}\end{document}"
    compile_alone(tmp_path, paper, "paper")


@pytest.mark.latex
def test_characters_that_babel_makes_commands(tmp_path: Path) -> None:
    quoted = Table('Say "a" > <b>', (Column('"a'), Column(">")), (('"', "<"),), ('"o > <<',))
    (tmp_path / "comparison.tex").write_text(latex_document([PAPER, quoted]))
    packages = r"\documentclass{article}\usepackage{booktabs,graphicx}"
    active = "".join(rf"\catcode`\{character}=13 \def{character}{{\undefined}}" for character in '"<>')
    compile_alone(tmp_path, rf"{packages}\begin{{document}}{active}\input{{comparison}}\end{{document}}", "paper")


@pytest.mark.latex
def test_no_tables_give_a_page(tmp_path: Path) -> None:
    compile_alone(tmp_path, latex_document([]))


@pytest.mark.latex
@pytest.mark.slow
def test_hostile_text_compiles(tmp_path: Path) -> None:
    hostile = [
        r"\input{/etc/passwd}", r"\write18{id}", r"\end{document}", r"\\", "}{", "{{{", "$$", "%", "^^M", "^^41", "~",
        "[2pt]", "*", "&&&", "#1", "\\", "--", "''", "?`", "“‘’”", "\x00\x01\x7f", "é́", "\u202eabc", "🧠", "\ud800",
        "ñ Ñ ı İ ĵ ő ţ ế đ þ Ð ß ſ ĸ", "αβγ ΑΒ", "×±−≥≤≈→", "₀⁹", "a" * 400, "word " * 60, "/x" * 80, "", " ", "  ",
    ]  # fmt: skip
    hostile += [chr(code) for code in (*range(0x250), *range(0x300, 0x345), *range(0x2000, 0x2300), 0xFEFF, 0x10FFFF)]
    columns = (Column("&", "left"), Column("[x]"), Column("*", "left", wrap=True))
    tables = [Table(text, columns, ((text, text, text), ("*", text, "[")), (text,)) for text in hostile[:40]]
    for start in range(40, len(hostile), 30):
        some = hostile[start : start + 30]
        tables.append(Table("".join(some), columns, tuple((text, text + text, text) for text in some), tuple(some)))
    compile_alone(tmp_path, latex_document(tables))
    compile_alone(tmp_path, latex_document(tables))  # with the list of the first time beside it
    assert f"tab:hpc-tumor-{len(tables)}}}" in (tmp_path / "comparison.aux").read_text(errors="replace")
