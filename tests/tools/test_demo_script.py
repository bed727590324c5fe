"""`tools/demo.sh` with a stand-in for the command: what it asks for at the end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "tools" / "demo.sh"
STAND_IN = f"""#!{sys.executable}
import json, pathlib, sys
command, *given = sys.argv[1:]
if command == "phantom":
    for number in range(4):
        folder = pathlib.Path(given[0], f"patient-{{number}}")
        folder.mkdir(parents=True)
        (folder / f"patient-{{number}}_flair.nii.gz").touch()
if command == "submit":
    for model in [after for before, after in zip(given, given[1:]) if before == "--model"]:
        run = pathlib.Path("demo/runs", f"20260101-000000-{{model}}-000000")
        run.mkdir(parents=True)
        (run / "result.json").touch()
        test = "patient-2" if model == "improved-unet" else "patient-0"
        (run / "split.json").write_text(json.dumps({{"parts": {{"train": ["patient-0"], "test": [test]}}}}))
if command == "predict":
    pathlib.Path("predicted.json").write_text(json.dumps(given))
"""


def test_the_demo_predicts_a_patient_that_its_run_tested(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "tools").mkdir()
    shutil.copy(DEMO, tmp_path / "tools" / DEMO.name)
    (tmp_path / "tools" / "environment.sh").write_text('environment() { :; }\nsay() { echo "$*" >&2; }\n')
    (programs / "hpc-tumor").write_text(STAND_IN)
    (programs / "hpc-tumor").chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    done = subprocess.run(
        ["bash", str(tmp_path / "tools" / DEMO.name)], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    given = json.loads((tmp_path / "predicted.json").read_text())
    assert given[:2] == ["improved-unet", "demo/raw/brats/patient-2"]
