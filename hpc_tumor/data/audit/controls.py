"""Controls of a classifier: predictions without a network, trained and tested on the parts of a split.

They are the nearest neighbour (see memoriser.py) and two shortcut controls, logistic regressions: on the facts of the
files, and on ten statistics of the grey levels. A network that is not better than these has shown nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.audit.images import ImageScan
from hpc_tumor.data.audit.memoriser import nearest
from hpc_tumor.data.audit.shortcuts import file_facts
from hpc_tumor.data.store.store import Store

PENALTY = 1.0  # of half the squared weights, beside the sum of the log losses
_ITERATIONS = 1000

_Floats = NDArray[np.float64]
_Numbers = NDArray[np.int64]


def control_answers(store: Store, scan: ImageScan, test: _Numbers, known: _Numbers) -> dict[str, _Numbers]:
    """Predict the classes of the images `test` from those of `known`, by each of vocabulary.CONTROLS."""
    place, _ = nearest(scan.thumbnails[test], scan.thumbnails[known])
    return {"nearest": store.label[known[place]], **shortcut_answers(store, scan, test, known)}


def shortcut_answers(store: Store, scan: ImageScan, test: _Numbers, known: _Numbers) -> dict[str, _Numbers]:
    """Predict the classes of the images `test` by the two shortcut controls, trained on `known`."""
    facts = {
        "file_facts": np.concatenate([values for _, _, values in file_facts(store, scan)], axis=1),
        "intensities": scan.intensities.astype(np.float64),
    }
    return {
        name: classify(values[known], store.label[known], values[test], len(store.classes))
        for name, values in facts.items()
    }


def classify(seen: _Floats, label: _Numbers, values: _Floats, classes: int) -> _Numbers:
    """Fit a multinomial logistic regression to `(n, facts)` and predict the classes of `values`.

    Facts are standardised; weights, not intercepts, are penalised (L2). The fit starts at 0 and is deterministic.
    """
    from scipy.optimize import minimize

    mean, deviation = seen.mean(axis=0), seen.std(axis=0)
    varies = deviation > 1e-9 * np.maximum(np.abs(mean), 1)
    x, new = ((rows[:, varies] - mean[varies]) / deviation[varies] for rows in (seen, values))
    truth = np.eye(classes)[label]

    def loss(flat: _Floats) -> tuple[float, _Floats]:
        weights = flat.reshape(-1, classes)
        logits = x @ weights[:-1] + weights[-1]
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        total = chances.sum(axis=1, keepdims=True)
        value = (np.log(total[:, 0]) - (truth * logits).sum(axis=1)).sum() + PENALTY / 2 * (weights[:-1] ** 2).sum()
        error = chances / total - truth
        slope = np.concatenate([x.T @ error + PENALTY * weights[:-1], error.sum(axis=0, keepdims=True)])
        return float(value) / len(x), slope.ravel() / len(x)

    fit = minimize(
        loss, np.zeros((x.shape[1] + 1) * classes), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS}
    )
    weights = fit.x.reshape(-1, classes)
    return np.asarray((new @ weights[:-1] + weights[-1]).argmax(axis=1))
