"""Runs whose weights do not say what they are, or are of another network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trained_runs import untrained_run

from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.prediction import trained
from hpc_tumor.prediction.options import Options
from hpc_tumor.prediction.trained import load_network
from hpc_tumor.training.checkpoints.files import load_weights


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"model": None}, "does not describe its weights: 'model'' is missing"), ({"filters": 8}, "does not fit unet")],
)
def test_weights_that_do_not_fit_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], words: str
) -> None:
    run = untrained_run(tmp_path / "runs", "unet", 32, filters=4)

    def load(path: Path) -> tuple[Any, dict[str, Any]]:
        weights, about = load_weights(path)
        return weights, {key: value for key, value in {**about, **changed}.items() if value is not None}

    monkeypatch.setattr(trained, "load_weights", load)
    with pytest.raises(DataError, match=words.replace("'model''", r"KeyError\('model'\)")):
        load_network(run)


@pytest.mark.parametrize(
    ("cleaning", "known"),
    [({"component_mm3": 1, "enhancing_mm3": 2}, True), ({"component_mm3": "x"}, False), ([1], False), (None, False)],
)
def test_thresholds_of_cleaning_are_read_where_they_are_sound(tmp_path: Path, cleaning: object, known: bool) -> None:
    run = untrained_run(tmp_path / "runs", "unet", 32, filters=4)
    run.result.write_text(json.dumps({"cleaning": cleaning}))
    assert (load_network(run)[0].cleaning is not None) is known


def test_weights_that_were_removed_after_the_run(tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "runs", "unet", 32, filters=4)
    run.result.write_text("{}")
    run.best_weights.unlink()
    with pytest.raises(UsageError, match=r"is missing: it was removed\. Train again"):
        load_network(run)


@pytest.mark.parametrize("option", [{"clean": True}, {"labels": "brats-2023"}, {"probabilities": True}])
def test_options_that_images_do_not_have(option: dict[str, Any]) -> None:
    Options().check_images()
    with pytest.raises(UsageError, match=f"--{next(iter(option))} is for patients only"):
        Options(**option).check_images()
