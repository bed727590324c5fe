"""Final scores of a run: on whole volumes with surface distances, cleaned if the settings say so.

For images also the classes that controls without a network predict; see data/audit/controls.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_tumor.data.audit.controls import control_answers
from hpc_tumor.data.audit.images import scan_images
from hpc_tumor.data.feed.loader import BatchLoader
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.system import devices
from hpc_tumor.system.worker_processes import WorkerProcesses
from hpc_tumor.training.parts import Parts
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.cases import Case, count_candidates, measure
from hpc_tumor.training.scoring.cleaning import COMPONENTS, ENHANCING, Cleaning
from hpc_tumor.training.scoring.evaluate import Evaluation, evaluate
from hpc_tumor.training.scoring.volumes import Watch, whole_cases
from hpc_tumor.training.state import TrainingState
from hpc_tumor.vocabulary import MEMBERS, PREDICTIONS, TUMOUR_LABELS

_MOST_PROCESSES = 8  # of a rank, each of some 300 MB with a case of 240 × 240 × 155
_LOOK_SECONDS = 0.5  # between looks for a stop, in which ranks wait for each other


@dataclass(frozen=True)
class Tested:
    """Final scores of the test part.

    Attributes:
        plain: scores of the network's predictions.
        final: cleaned if the settings say so, with surface scores; else `plain`.
        cleaning: thresholds chosen on the validation part; None without cleaning.
    """

    plain: Evaluation
    final: Evaluation
    cleaning: Cleaning | None = None


class StopError(Exception):
    """A stop was requested before scoring was complete; raised on all ranks together."""


class FinalTest:
    """Final test of the network's current weights: `predict` needs the GPU, `finish` only CPUs. All ranks call both.

    On a GPU, processes measure each case as soon as it is predicted. On a CPU prediction uses all cores itself.
    """

    def __init__(self, state: TrainingState, watch: Watch = Watch()) -> None:
        self._state, self._watch = state, watch
        self._val = state.parts.val if state.experiment.scoring.clean else None
        part = state.parts.test.part
        cases = int(whole_cases(part).sum()) if isinstance(part, SlicePart) else 0
        on_gpu = devices.is_gpu(state.distributed.device)
        self._workers = WorkerProcesses(min(torch.get_num_threads(), _MOST_PROCESSES, cases) if on_gpu else 0)
        self._cases = 0
        self._uncleaned: list[Case] = []
        self.plain: Evaluation | None = None

    def __enter__(self) -> FinalTest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._workers.close()

    @property
    def cleans(self) -> bool:
        """True if the final scores are of predictions that are cleaned first."""
        return self._val is not None

    def predict(self) -> Evaluation:
        """Score the network's predictions of the test part as they are."""
        if self._val is not None:
            self._predict(self._val, lambda case: self._workers.call(count_candidates, case))
        self.plain = self._predict(self._state.parts.test, self._take)
        return self.plain

    def finish(self) -> Tested:
        """Return the scores of whole cases, cleaned if the settings say so; those of `predict` without whole cases."""
        assert self.plain is not None
        if not self._state.distributed.any(self._cases > 0)[0]:  # images, or single slices
            return Tested(self.plain, self.plain)
        cleaning = None
        if self._val is not None:
            cleaning = self._choose_cleaning(self._val)
            for case in self._uncleaned:
                self._workers.call(measure, case, cleaning)
        return Tested(self.plain, self._measured(self.plain), cleaning)

    def _predict(self, loader: BatchLoader, take: Callable[[Case], None]) -> Evaluation:
        state = self._state
        scored = evaluate(
            state.network, loader, state.spec, state.distributed, alive=self._watch.alive, final=True, take=take
        )
        self._watch.check_stop()
        return scored

    def _take(self, case: Case) -> None:
        self._cases += 1
        if self.cleans:
            self._uncleaned.append(case)
        else:
            self._workers.call(measure, case)

    def _results(self) -> Iterator[Any]:
        """Yield the results of this rank's cases while any rank has some to come; all ranks look for a stop alike."""
        while self._state.distributed.any(self._workers.pending > 0)[0]:
            yield from self._workers.results(_LOOK_SECONDS)
            self._watch.alive()
            self._watch.check_stop()

    def _choose_cleaning(self, loader: BatchLoader) -> Cleaning:
        part = loader.part
        assert isinstance(part, SlicePart)
        counts = np.zeros((len(part.cases), len(COMPONENTS), len(ENHANCING), TUMOUR_LABELS, PREDICTIONS), np.int64)
        for row, of_case in self._results():
            counts[row] = of_case
        self._state.distributed.sum(torch.from_numpy(counts))
        return choose_cleaning(counts)

    def _measured(self, plain: Evaluation) -> Evaluation:
        """Add surface scores of the whole cases to `plain`, and their histograms after cleaning."""
        rows = len(plain.counted)
        surfaces = np.zeros((rows, len(MEMBERS), 2))
        details, whole = np.zeros_like(plain.details), np.zeros(rows, dtype=np.int64)
        for row, counts, scores in self._results():
            details[row], surfaces[row], whole[row] = counts, scores, 1
        for array in (surfaces, details, whole):
            self._state.distributed.sum(torch.from_numpy(array))
        surfaces[whole == 0] = np.nan
        details = np.where((whole > 0)[:, None, None], details, plain.details)
        scored = plain.counted > 0
        scores = metrics.segmentation_scores(details[scored], surfaces[scored])
        return replace(plain, scores={**scores, "loss": plain.scores["loss"]}, details=details, surfaces=surfaces)


def score_test_part(state: TrainingState, watch: Watch = Watch()) -> Tested:
    """Score the network's current weights on the test part. All ranks call this together."""
    with FinalTest(state, watch) as test:
        test.predict()
        return test.finish()


def choose_cleaning(counts: np.ndarray) -> Cleaning:
    """Choose the thresholds of largest mean Dice over the whole cases, one after the other; in ties the smaller.

    Without a whole case both thresholds are 0.

    Args:
        counts: `(cases, COMPONENTS, ENHANCING, 4, 8)` of the validation part; 0 for cases that are not whole.
    """
    counts = counts[counts[:, 0, 0].sum((1, 2)) > 0]
    if not len(counts):
        return Cleaning()
    component = _best(counts[:, :, 0])
    return Cleaning(COMPONENTS[component], ENHANCING[_best(counts[:, component])])


def _best(counts: np.ndarray) -> int:
    """Return the index of the choice with the largest mean Dice of `(cases, choices, 4, 8)`, the first in ties."""
    dice = [metrics.segmentation_scores(counts[:, choice])["dice"] for choice in range(counts.shape[1])]
    return int(np.argmax(dice))


@dataclass(frozen=True)
class Controls:
    """Controls on the test images: `answers` are the classes that each predicts, by its key in vocabulary.CONTROLS;
    `known` is True for images of which a copy was trained or validated on."""

    answers: dict[str, NDArray[np.int64]]
    known: NDArray[np.bool_]


def predict_controls(parts: Parts, alive: Callable[[], None] = lambda: None) -> Controls:
    """Predict the test images by all controls, trained on the training and validation parts.

    Raises DataError if an image is damaged.
    """
    store, split = parts.store, parts.split
    known = np.concatenate([split.train, split.val])
    scan = scan_images(store, lambda *_: alive(), np.concatenate([split.test, known]))
    copied = np.isin(store.group[split.test], store.group[known])
    return Controls(control_answers(store, scan, split.test, known), copied)
