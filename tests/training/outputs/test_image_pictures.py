"""Images that a classifier is surest of, its filters, and where a ViT looks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import build_state_again, new_run, read_cases, read_pictures, train_here

from hpc_tumor.models import build_model
from hpc_tumor.models.vit import rollout
from hpc_tumor.training.outputs.case_pictures import as_bytes
from hpc_tumor.training.outputs.image_pictures import choose_images
from hpc_tumor.training.outputs.pictures import make_pictures
from hpc_tumor.training.scoring.evaluate import Evaluation


@pytest.mark.slow
def test_images_are_those_that_the_network_is_surest_of(tmp_path: Path, image_store: Path) -> None:
    run = new_run(tmp_path, image_store, "cnn")
    train_here(run)
    arrays, about = read_pictures(run)
    state, _ = build_state_again(run)
    said = read_cases(run)
    wrong = sorted((row for row in said.values() if row["correct"] == "0"), key=lambda row: -float(row["confidence"]))
    assert len(wrong) > 0
    assert len(about["wrong"]) == min(12, len(wrong)) == len(arrays["wrong_images"])
    for found, row in zip(about["wrong"], wrong, strict=False):
        assert found["label"] != found["prediction"]
        assert found["confidence"] == pytest.approx(float(row["confidence"]))
    for found in (*about["wrong"], *about["samples"]):
        row = said[found["case"]]
        assert (found["label"], found["prediction"]) == (row["label"], row["prediction"])
    right = [row for row in said.values() if row["correct"] == "1"]
    surest = {row["label"]: max(float(one["confidence"]) for one in right if one["label"] == row["label"])
              for row in right}  # fmt: skip
    assert {found["label"]: found["confidence"] for found in about["samples"]} == pytest.approx(surest)
    assert len(arrays["sample_images"]) == len(surest) > 0
    part = state.parts.test.part
    for kind, key in (("sample", "samples"), ("wrong", "wrong")):
        for image, found in zip(arrays[f"{kind}_images"], about[key], strict=True):
            request = part.rows.request(np.array([state.parts.test_names.index(found["case"])]))
            request.wait()
            assert np.array_equal(image, as_bytes(part.deliver(request)[0][0, 0].numpy()))
    first = state.network.features[0].weight.detach().numpy()
    assert arrays["filters"].dtype == np.float16
    assert np.array_equal(arrays["filters"], first.astype(np.float16))
    assert about["classes"] == state.spec.classes
    assert set(arrays) == {"filters", "sample_images", "wrong_images"}


def test_which_images_are_chosen() -> None:
    chances = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.9, 0.1, 0], [0.3, 0.7, 0], [0.2, 0.8, 0], [0.05, 0.95, 0]])
    labels = np.array([0, 1, 1, 1, 2, 1])
    counted = np.array([1, 1, 1, 1, 1, 0])
    samples, wrong = choose_images(Evaluation({}, chances, counted), labels)
    assert samples.tolist() == [0, 3]  # the network is right about no image of the third class; one was not scored
    assert wrong.tolist() == [2, 4, 1]


@pytest.mark.slow
def test_a_vit_shows_where_it_looks(tmp_path: Path, image_store: Path) -> None:
    state, best = build_state_again(new_run(tmp_path, image_store, "vit"), best=False)
    make_pictures(state, best)()
    arrays, about = read_pictures(state.run)
    assert arrays["wrong_attention"].shape == (len(about["wrong"]), 8, 8)
    assert arrays["sample_attention"].shape == (len(about["samples"]), 8, 8)
    assert (arrays["wrong_attention"].max((1, 2)) == 255).all()
    assert "filters" not in arrays
    part = state.parts.test.part
    request = part.rows.request(np.array([state.parts.test_names.index(about["wrong"][0]["case"])]))
    request.wait()
    with torch.inference_mode():
        _, weights = state.network.eval()(part.deliver(request)[0].expand(-1, 3, -1, -1), return_attention=True)
    joint = np.eye(65)
    for layer in weights:
        mixed = layer[0].numpy().astype(float).mean(0) + np.eye(65)
        joint = mixed / mixed.sum(1, keepdims=True) @ joint
    patches = joint[0, 1:].reshape(8, 8)
    assert np.abs(arrays["wrong_attention"][0] - patches / patches.max() * 255).max() <= 0.6


def test_rollout_sums_to_one_and_follows_the_residual() -> None:
    model = build_model("vit", image_size=48).eval()
    with torch.inference_mode():
        _, weights = model(torch.rand(2, 3, 48, 48), return_attention=True)
    joint = rollout(weights)
    assert joint.shape == (2, 10, 10)
    torch.testing.assert_close(joint.sum(-1), torch.ones(2, 10))
    uniform = [torch.full((1, 8, 5, 5), 1 / 5)] * 3  # each of three layers leaves half of a token where it is
    torch.testing.assert_close(rollout(uniform)[0], torch.eye(5) / 8 + torch.full((5, 5), 7 / 8 / 5))
    first, last = torch.eye(3)[[1, 1, 2]], torch.eye(3)[[2, 1, 2]]  # token 0 takes from 1 first, then from 2
    found = rollout([first.expand(1, 1, 3, 3), last.expand(1, 1, 3, 3)])[0, 0]
    torch.testing.assert_close(found, torch.tensor([0.25, 0.25, 0.5]))
