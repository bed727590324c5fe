"""The commands in the report train the same run again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import segmentation_run

from hpc_tumor.config import Experiment
from hpc_tumor.models import MODELS
from hpc_tumor.results.compare.origin import commands_of, read_origin
from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.settings import merge, parse_assignments, resolve

CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "recipe": st.fixed_dictionaries(
            {},
            optional={
                "epochs": st.integers(1, 500),
                "learning_rate": st.floats(1e-7, 1, allow_subnormal=False),
                "augment": st.booleans(),
                "clip_gradients": st.none() | st.floats(1e-3, 10),
                "class_weights": st.none() | st.just("balanced"),
            },
        ),
        "data": st.fixed_dictionaries(
            {}, optional={"fold": st.none() | st.integers(0, 4), "image_size": st.none() | st.just(64)}
        ),
        "seed": st.integers(0, 2**31 - 1),
        "hardware": st.fixed_dictionaries({}, optional={"gpus": st.integers(1, 4)}),
        "keep_every": st.none() | st.integers(1, 9),
    },
)


@given(
    model=st.sampled_from(sorted(MODELS)),
    changes=CHANGES,
    store=st.sampled_from(["a.zarr", "with space/b.zarr", "-x'$y"]),
)
@settings(max_examples=150, deadline=None)
def test_what_is_typed_gives_the_same_settings(model: str, changes: dict[str, object], store: str) -> None:
    experiment = resolve(merge(changes, {"model": {"name": model}, "data": {"store": store}}))
    config = json.loads(json.dumps(experiment.model_dump(mode="json")))
    checkout, line = commands_of(config, {"commit": "0123abc"})
    assert checkout == "git checkout 0123abc"
    assert typed(line) == experiment


def typed(line: str) -> Experiment:
    """The experiment that the command submits."""
    words = shlex.split(line)
    assert words[:2] == ["hpc-tumor", "submit"]
    pairs = list(zip(words[2::2], words[3::2], strict=True))
    options = {name: value for name, value in pairs if name != "--set"}
    overrides = parse_assignments([value for name, value in pairs if name == "--set"])
    given = {
        "model": {"name": options["--model"]}, "data": {"store": options["--data"]},
        "hardware": {"gpus": int(options["--gpus"])},
    }  # fmt: skip
    return resolve(merge(overrides, given))


LATER = {"model": {"name": "unet"}, "data": {"store": "a"}, "task": "segmentation", "later": 1}


@pytest.mark.parametrize("config", [{}, {"model": "x"}, {"model": {"name": "none"}, "data": {"store": "a"}}, LATER])
def test_settings_of_another_version_give_no_command(config: dict[str, object]) -> None:
    assert commands_of(config, {}) == []


def test_facts_that_are_there(tmp_path: Path) -> None:
    run = segmentation_run(tmp_path, "20250101-120000-unet-aaaaaa", [(0.9, 0.8, 0.7), (0.5, 0.6, 0.7)])
    run.provenance.write_text(
        json.dumps({"host": "node7", "git": {"commit": "abc", "dirty": True}, "command": ["hpc-tumor", "a b"]})
    )
    (result,) = collect_runs([run]).results
    facts = dict(read_origin(result, "unet").facts)
    assert facts["host"] == "node7"
    assert facts["commit"].startswith("abc with uncommitted changes")
    assert facts["command"] == "hpc-tumor 'a b'"
    run.provenance.write_text("{")
    assert "host" not in dict(read_origin(result, "unet").facts)
