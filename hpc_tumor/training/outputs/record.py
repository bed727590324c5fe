"""Write the outputs of a complete run: scores of each test case, and result.json."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from hpc_tumor.console import log
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.data.splits.units import known_units
from hpc_tumor.errors import DataError
from hpc_tumor.models import count_parameters
from hpc_tumor.run_dir import Damage
from hpc_tumor.system import atomic, devices
from hpc_tumor.system.resources import own_share
from hpc_tumor.training.average import scoring_weights
from hpc_tumor.training.checkpoints.resume import load_best
from hpc_tumor.training.checkpoints.saving import save_weights, wait_until_saved
from hpc_tumor.training.outputs.pictures import make_pictures
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.evaluate import Evaluation, evaluate
from hpc_tumor.training.scoring.surfaces import method_description
from hpc_tumor.training.scoring.testing import Controls, FinalTest, StopError, Tested, predict_controls
from hpc_tumor.training.scoring.volumes import Watch
from hpc_tumor.training.state import TrainingState, best_score, free_gpu, training_seconds
from hpc_tumor.training.watch.heartbeat import Heartbeat
from hpc_tumor.training.watch.memory import peak_memory_gb
from hpc_tumor.vocabulary import RunStatus

Scored = tuple[Evaluation, Tested, Damage | None]  # of the last and the best weights; damage if the best are lost


def write_result(
    state: TrainingState, heartbeat: Heartbeat, stop: Callable[[], str | None], released: Callable[[], None]
) -> bool:
    """Score the test part with the last and the best weights; write cases.csv, and result.json last.

    Return False if stopped before the scores were complete; a resume from the last checkpoint scores again.

    Args:
        released: called on rank 0 once no rank needs its GPU any more.
    """
    heartbeat.write(RunStatus.EVALUATING)
    distributed = state.distributed
    seconds, memory_gb = training_seconds(state), max(distributed.gather(peak_memory_gb(distributed.device)))

    def check_stop() -> None:
        if distributed.any(stop() is not None)[0]:
            raise StopError

    try:
        scored = _score(state, Watch(heartbeat.alive, check_stop), released)
    except StopError:
        return False
    wait_until_saved(state)
    if distributed.is_main:
        _write_result(state, heartbeat, scored, seconds, memory_gb)
    distributed.barrier()
    return True


def _score(state: TrainingState, watch: Watch, released: Callable[[], None]) -> Scored:
    """Score the test part with the last weights and with the best, which the network has afterwards.

    If those of the best epoch are lost, the last ones replace them, and the damage is returned. The pictures are made
    here, too: all that needs a GPU comes first, so that it is free while the cases are measured.
    """
    network, distributed = state.network, state.distributed
    last, lost = None, None
    weights: AbstractContextManager[None] = scoring_weights(network, state.average, distributed)
    if state.parts.val is None:
        save_weights(state, state.run.best_weights)
    elif state.progress.best_epoch != state.progress.epoch:
        with scoring_weights(network, state.average, distributed):
            last = evaluate(network, state.parts.test, state.spec, distributed, alive=watch.alive, final=True)
            watch.check_stop()
        if (lost := load_best(state)) is None:
            weights = nullcontext()
        else:
            _go_without_best(state, lost[1])
    with FinalTest(state, watch) as test:
        with weights:
            plain = test.predict()
            tested = test.finish() if test.cleans else None  # the pictures are of the best and worst cases after it
            write_pictures = make_pictures(state, tested.final if tested else plain) if distributed.is_main else None
        if devices.is_gpu(distributed.device):
            free_gpu(state)
            distributed.barrier()
            if distributed.is_main:
                released()
        if write_pictures is not None:
            write_pictures()
        tested = tested or test.finish()
    return (tested.plain if last is None or lost else last), tested, lost[0] if lost else None


def _go_without_best(state: TrainingState, lost: str) -> None:
    """Use the last weights as the best, saved in a separate file so that the damaged one stays."""
    progress = state.progress
    if state.distributed.is_main:
        instead = f"Scores are those of the last epoch, {progress.epoch}, not of epoch {progress.best_epoch}."
        log(f"warning: {lost} {instead}")
        state.run.add_event("best weights lost", epoch=progress.best_epoch, reason=lost)
    progress.best_epoch, progress.best_score, progress.best_loss = progress.epoch, None, None
    save_weights(state, state.run.last_weights)


def _write_result(state: TrainingState, heartbeat: Heartbeat, scored: Scored, seconds: float, memory_gb: float) -> None:
    (_, best, lost), main_score = scored, state.experiment.main_score
    controls = _controls(state, heartbeat) if state.spec.classes is not None else None
    _write_cases(state, best.final, controls)
    atomic.write_json(state.run.result, _result(state, scored, seconds, memory_gb))
    state.run.add_event("finished", epoch=state.progress.epoch, seconds=seconds)
    heartbeat.write(RunStatus.FINISHED)
    score = best.final.scores[main_score]
    reason = f" (the last, as the best weights are {lost})" if lost else ""
    log(f"finished: test {main_score} {score:.3f} with the weights of epoch {state.progress.best_epoch}{reason}")


def _result(state: TrainingState, scored: Scored, seconds: float, memory_gb: float) -> dict[str, Any]:
    last, best, lost = scored
    experiment, distributed, parts, progress = state.experiment, state.distributed, state.parts, state.progress
    gpu = devices.is_gpu(distributed.device)
    training = [line for line in state.run.read_metrics() if line["part"] == "train"]
    technical = ("epoch", "part", "seconds", "rate", "learning_rate", "data_wait", "memory_gb")
    train_scores = {key: value for key, value in (training[-1] if training else {}).items() if key not in technical}
    return {
        "run": state.run.name,
        "model": experiment.model.name,
        "task": experiment.task,
        "dataset": parts.store.dataset,
        "seed": experiment.seed,
        "split": parts.split.kind,
        "split_seed": parts.split.seed,
        "split_leaks": parts.split.leaks,
        "split_leakage": parts.split.leakage.as_json() if parts.split.leakage else None,
        "left_out": parts.split.excluded,
        "fold": experiment.data.fold,
        "store": str(experiment.data.store),
        "fingerprint": parts.store.fingerprint,
        "parameters": count_parameters(state.network),
        "gflop_per_sample": forward_gflop(state.network, state.spec.forward.channels, parts.image_size),
        "gpus": distributed.world_size,
        "nodes": distributed.nodes,
        "device": distributed.device_name if gpu else "cpu",
        "precision": state.spec.forward.precision.name,
        "epochs": progress.epoch,
        "batch_size": experiment.recipe.batch_size,
        "image_size": list(parts.image_size),
        "limit_batches": experiment.limit_batches,
        "seconds": seconds,
        "gpu_hours": seconds / 3600 * distributed.world_size * own_share() if gpu else 0.0,
        **({"share": own_share()} if own_share() < 1 else {}),  # of the GPUs, beside other runs
        "restarts": progress.restarts,
        "samples_per_second": sum(line["rate"] for line in training) / len(training) if training else None,
        "data_wait": sum(line["data_wait"] for line in training) / len(training) if training else None,
        "peak_memory_gb": memory_gb,
        "cases": parts.counts(),
        "class_counts": parts.class_counts(),
        "skipped_steps": progress.skipped,
        "stopped_early": progress.epoch < experiment.recipe.epochs,
        "compiled": state.objective.compiled is not None,
        "surfaces": method_description() if best.final.surfaces is not None else None,
        "cleaning": asdict(best.cleaning) if best.cleaning else None,
        "flips": experiment.scoring.flips,
        "chosen_by": f"val {experiment.main_score}" if parts.val is not None and lost is None else "last epoch",
        "weights_lost": lost,  # then all scores below, including "best", are of the last epoch
        "best": {
            "epoch": progress.best_epoch,
            "val": best_score(state),
            "test": best.final.scores,
            **({"test_before_cleaning": best.plain.scores} if best.cleaning else {}),
        },
        "last": {"epoch": progress.epoch, "train": train_scores, "test": last.scores},
    }


def forward_gflop(network: nn.Module, channels: int, image_size: tuple[int, int]) -> float | None:
    """Count the 10⁹ floating-point operations of a forward pass of one `(1, channels, *image_size)` sample.

    A multiply-add counts as two. Includes convolutions, matrix products and attention by definition, regardless of
    faster implementations; excludes norms, activations and resizing. Runs on meta tensors, without changing the
    network. None if the operations cannot be counted.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    was_training = network.training
    network.eval()
    try:
        weights = {
            name: torch.empty_like(tensor, device="meta")
            for name, tensor in (*network.named_parameters(), *network.named_buffers())
        }
        sample = torch.empty(1, channels, *image_size, device="meta")
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            functional_call(network, weights, (sample,))
        return float(counter.get_total_flops()) / 1e9
    except Exception:  # a missing number must not fail the run
        return None
    finally:
        network.train(was_training)


def _controls(state: TrainingState, heartbeat: Heartbeat) -> Controls | None:
    """Return the classes by the controls; None if the images cannot be read, which must not fail the run."""
    try:
        return predict_controls(state.parts, heartbeat.alive)
    except DataError as error:
        log(f"warning: controls without a network left out: {error}")
        state.run.add_event("controls left out", reason=str(error))
        return None


def _write_cases(state: TrainingState, best: Evaluation, controls: Controls | None) -> None:
    scored = best.counted > 0
    names = [name for name, counted in zip(state.parts.test_names, scored, strict=True) if counted]
    if state.spec.classes is None:
        surfaces = None if best.surfaces is None else best.surfaces[scored]
        rows = metrics.segmentation_rows(best.details[scored], names, best.counted[scored], surfaces)
    else:
        rows = _image_rows(state, best.details, [int(index) for index in scored.nonzero()[0]], controls)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["case"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic.write_text(state.run.cases, text.getvalue())


def _image_rows(
    state: TrainingState, probabilities: Any, positions: list[int], controls: Controls | None
) -> list[dict[str, object]]:
    part, classes, store = state.parts.test.part, state.spec.classes or [], state.parts.store
    assert not isinstance(part, SlicePart)
    patients = store.patients if store.names_patients else None
    units = known_units(store)
    rows: list[dict[str, object]] = []
    for position in positions:
        row, label = probabilities[position], int(part.classes[position])  # type: ignore[attr-defined]
        known: dict[str, object] = {}
        predicted, image = int(row.argmax()), int(part.indices[position])  # type: ignore[attr-defined]
        if patients is not None:
            known = {"patient": patients[image], "unit": int(units[image])}
        if controls is not None:
            answers = {name: classes[answer[position]] for name, answer in controls.answers.items()}
            known |= {"known": int(controls.known[position]), **answers}
        rows.append({
            "case": state.parts.test_names[position], "label": classes[label], "prediction": classes[predicted],
            "correct": int(predicted == label), "confidence": float(row.max()),
            "group": int(store.group[image]),
            **known,
            **{f"p_{name}": float(probability) for name, probability in zip(classes, row, strict=True)},
        })  # fmt: skip
    return rows
