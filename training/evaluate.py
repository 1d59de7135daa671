"""How good the scores of a two-class model are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError

__all__ = ["evaluate"]


def evaluate(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> dict[str, float]:
    """Metrics of probabilities `scores` against `truth`, of equal length: `roc_auc` and `pr_auc` (average precision),
    where more is better, `log_loss` and `brier`, where less is better; and `base_rate`, the share of true labels.

    Raises DataError unless both classes occur: an area under a curve needs both.
    """
    from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

    base_rate = float(truth.mean()) if len(truth) else 0.0
    if not 0 < base_rate < 1:
        raise DataError(
            f"A test part needs true and false labels, got {len(truth)} rows with a share of {base_rate:g}."
        )
    return {
        "roc_auc": float(roc_auc_score(truth, scores)),
        "pr_auc": float(average_precision_score(truth, scores)),
        "log_loss": float(log_loss(truth, scores)),
        "brier": float(brier_score_loss(truth, scores)),
        "base_rate": base_rate,
    }
