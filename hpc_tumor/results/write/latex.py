"""Write tables as LaTeX floats with booktabs rules; cells may contain any text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from hpc_tumor.table import NOTHING, Column, Table

SPANNING = 5  # columns above which a table spans both columns of a two-column paper
MOST_WAITING = 15  # floats before a page break; LaTeX fails with more than 18 (52 since 2015) pending

_HEAD = r"""% Written by hpc-tumor; the next comparison written to this folder replaces it.
%
% In a paper: \input{comparison}, with these two lines in the preamble. graphicx is needed only for tables wider than
% the line, which are scaled down. \ref{tab:hpc-tumor-1} is the number of the first table.
%
%   \usepackage{booktabs}
%   \usepackage{graphicx}
%
% Standalone: pdflatex comparison.tex. The following lines are skipped inside a document.
\expandafter\ifx\csname @nodocument\endcsname\relax
  \let\hpctumorend\relax
\else
  \documentclass{article}
  \usepackage{booktabs}
  \usepackage{graphicx}
  \begin{document}
  \def\hpctumorend{\end{document}}
\fi
"""

# \string because some languages of babel make > an active character.
_FIT = r"  \ifdim\wd0\string>\linewidth \resizebox{\linewidth}{!}{\usebox{0}}\else \usebox{0}\fi"

_ASCII = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "{''}",  # babel's German makes a plain one a command
    "`": r"\textquoteleft{}",
    # At the start of a row these would be read as arguments of the row break above.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}
_BREAK = "\u200b"  # zero-width space: allows a line break
_BEYOND_ASCII = {
    "–": "--", "—": "---", "−": "$-$", "‐": "-", "‑": "-", "“": "``", "”": "''", "‘": "`", "’": "'", "…": r"\dots{}",
    "·": r"\textperiodcentered{}", "•": r"\textbullet{}", "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}",
    "§": r"\S{}", "¶": r"\P{}", "°": r"$^{\circ}$", "µ": r"$\mu$",
    "×": r"$\times$", "÷": r"$\div$", "±": r"$\pm$", "∓": r"$\mp$", "≥": r"$\geq$", "≤": r"$\leq$", "≈": r"$\approx$",
    "≠": r"$\neq$", "∞": r"$\infty$",
    "→": r"$\rightarrow$", "←": r"$\leftarrow$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "√": r"$\surd$",
    "∑": r"$\sum$", "∈": r"$\in$", "∪": r"$\cup$", "∩": r"$\cap$", "¬": r"$\neg$",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\epsilon$", "ζ": r"$\zeta$",
    "η": r"$\eta$", "θ": r"$\theta$", "ι": r"$\iota$", "κ": r"$\kappa$", "λ": r"$\lambda$", "μ": r"$\mu$",
    "ν": r"$\nu$", "ξ": r"$\xi$", "π": r"$\pi$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$", "υ": r"$\upsilon$",
    "φ": r"$\phi$", "χ": r"$\chi$", "ψ": r"$\psi$", "ω": r"$\omega$",
    "Γ": r"$\Gamma$", "Δ": r"$\Delta$", "Θ": r"$\Theta$", "Λ": r"$\Lambda$", "Ξ": r"$\Xi$", "Π": r"$\Pi$",
    "Σ": r"$\Sigma$", "Φ": r"$\Phi$", "Ψ": r"$\Psi$", "Ω": r"$\Omega$",
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}",
    "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "å": r"\aa{}", "Å": r"\AA{}",
    "⁰": "$^{0}$", "¹": "$^{1}$", "²": "$^{2}$", "³": "$^{3}$", "⁴": "$^{4}$", "⁵": "$^{5}$", "⁶": "$^{6}$",
    "⁷": "$^{7}$", "⁸": "$^{8}$", "⁹": "$^{9}$",
    "₀": "$_{0}$", "₁": "$_{1}$", "₂": "$_{2}$", "₃": "$_{3}$", "₄": "$_{4}$", "₅": "$_{5}$", "₆": "$_{6}$",
    "₇": "$_{7}$", "₈": "$_{8}$", "₉": "$_{9}$",
    "\u00a0": "~", "\u2007": "~", "\u2009": r"\,", "\u202f": r"\,",
    _BREAK: r"\allowbreak{}",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip


def latex_document(tables: Sequence[Table]) -> str:
    r"""Return the text of comparison.tex: all tables, to \input into a paper or to compile with pdflatex."""
    floats = []
    for number, table in enumerate(tables, 1):
        floats.append(latex_table(table, f"tab:hpc-tumor-{number}"))
        if number % MOST_WAITING == 0:
            floats.append("\\clearpage\n")
    # pdflatex writes no file for a document without pages.
    return "\n".join([_HEAD, *(floats or ["No results.\n"]), r"\hpctumorend", ""])


def latex_table(table: Table, label: str = "") -> str:
    r"""Return one float: caption, rules and rows, notes below; strong cells in bold.

    Tables wider than the line are scaled down: with 125 characters a row (see Table.width), letters are 6 points high
    in an article's line of 345 points. `label` is the target of \ref.
    """
    name = "table*" if len(table.columns) > SPANNING else "table"
    lines = [rf"\begin{{{name}}}[tbp]", r"  \centering", rf"  \caption{{{latex_text(_breakable(table.title))}}}"]
    if label:
        lines.append(rf"  \label{{{label}}}")
    if table.columns:
        lines += [r"  \par\smallskip", r"  \footnotesize\setlength{\tabcolsep}{2.5pt}%", *_tabular(table), _FIT]
    if table.notes:
        lines += [r"  \par\smallskip", r"  {\scriptsize\raggedright"]
        lines += [rf"  {latex_text(_breakable(note))}\par" for note in table.notes]
        lines.append("  }")
    return "\n".join([*lines, rf"\end{{{name}}}", ""])


def latex_text(text: str) -> str:
    """Escape `text` for plain pdflatex.

    Characters beyond ASCII become commands that need no package; those without a command are shown by code point.
    """
    result = ""
    for character in unicodedata.normalize("NFC", text):
        piece = _character(character)
        if result and result[-1] == piece[0] and piece[0] in "-',`":  # two of these form a ligature
            result += "{}"
        result += piece
    return re.sub(r"([?!])(?=`)", r"\1{}", result)


def _character(character: str) -> str:
    if character.isspace() and character not in _BEYOND_ASCII:
        return " "
    if character in _ASCII:
        return _ASCII[character]
    if character in _BEYOND_ASCII:
        return _BEYOND_ASCII[character]
    if " " <= character <= "~":
        return character
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in _ACCENTS:
        return rf"\{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    return rf"\textbf{{{{[}}U+{ord(character):04X}{{]}}}}"


def _tabular(table: Table) -> list[str]:
    """Return rules and rows in box 0, so that their width can be measured."""
    wrapping = sum(column.wrap for column in table.columns)
    share = f"p{{{(0.9 if wrapping == len(table.columns) else 0.5) / max(1, wrapping):.2f}\\linewidth}}"
    kinds = "".join(share if column.wrap else column.align[0] for column in table.columns)
    end = r"\tabularnewline" if wrapping else r"\\"  # \raggedright has another meaning for \\
    lines = [r"  \sbox{0}{%", rf"  \begin{{tabular}}{{@{{}}{kinds}@{{}}}}", r"    \toprule"]
    lines += [_line((_cell(column.title, column) for column in table.columns), end), r"    \midrule"]
    for number, row in enumerate(table.rows):
        cells = [_cell(text, column) for text, column in zip(row, table.columns, strict=True)]
        strong = (
            rf"\textbf{{{cell}}}" if (number, index) in table.strong else cell for index, cell in enumerate(cells)
        )
        lines.append(_line(strong, end))
    return [*lines, r"    \bottomrule", r"  \end{tabular}}%"]


def _line(cells: Iterable[str], end: str) -> str:
    return rf"    {' & '.join(cells)} {end}"


def _cell(text: str, column: Column) -> str:
    if column.wrap:
        return rf"\raggedright {latex_text(_breakable(text))}"
    return latex_text(re.sub(r"^-(?=\.?\d)", "−", text.strip() or NOTHING))


def _breakable(text: str) -> str:
    """Allow line breaks within paths, names and very long words."""
    text = re.sub(r"(?<=\S)([/_]+)(?=\S)", rf"\1{_BREAK}", text)
    return re.sub(r"[^\s\u200b-]{31,}", lambda word: re.sub(r"(.{10})(?=.)", rf"\1{_BREAK}", word[0]), text)
