"""Classes that were found and missed: confusion, precision, recall and F1, for one label a text or several."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from seqjax.errors import InputError

Classes = Sequence | np.ndarray | jax.Array


class Scores(NamedTuple):
    """Shares between 0 and 1; 0 where nothing was predicted (precision) or there is nothing to find (recall)."""

    precision: float
    recall: float
    f1: float
    support: int  # how many there are to find


class ClassificationReport(NamedTuple):
    """The scores of each class and their averages."""

    classes: dict[str, Scores]
    micro: Scores  # of all classes counted together; for one label a text all three are the accuracy
    macro: Scores  # the mean of the classes
    weighted: Scores  # the mean of the classes, weighted by their support
    accuracy: float  # the share of texts whose labels are all right


def count_scores(correct: int, predicted: int, gold: int) -> Scores:
    """``precision = correct / predicted``, ``recall = correct / gold``, ``f1 = 2 correct / (predicted + gold)``.

    >>> count_scores(1, 2, 4)
    Scores(precision=0.5, recall=0.25, f1=0.3333333333333333, support=4)
    """
    shares = ((correct, predicted), (correct, gold), (2 * correct, predicted + gold))
    return Scores(*(part / whole if whole else 0.0 for part, whole in shares), support=gold)


def confusion_matrix(gold: Classes, predicted: Classes, n_classes: int) -> np.ndarray:
    """How often class i was taken for class j, in row i and column j.

    Args:
      gold: ids of the right classes [N].
      predicted: ids of the classes that were found [N].
      n_classes: C.

    Returns:
      counts [C, C].

    Raises:
      InputError: the shapes differ, there are no ids, or one is none of 0 … C-1.

    >>> confusion_matrix([0, 0, 1, 2], [0, 1, 1, 1], 3)
    array([[1, 1, 0],
           [0, 1, 0],
           [0, 1, 0]])
    """
    gold, predicted = _pair(gold, predicted)
    _check_ids(gold, predicted, n_classes)
    cells = gold.astype(np.int64) * n_classes + predicted.astype(np.int64)  # more than a narrow type can count
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def classification_report(gold: Classes, predicted: Classes, labels: Sequence[str]) -> ClassificationReport:
    """Precision, recall and F1 of each class, their averages and the accuracy; scikit-learn's, with 0 for 0 / 0.

    Args:
      gold: ids of the right classes [N]; or, where a text may have several or none, bool [N, C].
      predicted: what was found, of the same shape.
      labels: the names of the C classes.

    Returns:
      a `ClassificationReport`. All classes count in its averages, with those that do not occur.

    Raises:
      InputError: the shapes differ or do not fit the labels; there is nothing to measure; an id is none of 0 … C-1; two
        labels are equal.

    >>> report = classification_report([0, 0, 1, 1], [0, 1, 1, 1], ["neg", "pos"])
    >>> report.classes["neg"], report.accuracy
    (Scores(precision=1.0, recall=0.5, f1=0.6666666666666666, support=2), 0.75)
    """
    gold, predicted = _pair(gold, predicted)
    n_classes = len(labels)
    if len(set(labels)) < n_classes:
        raise InputError(f"labels={list(labels)!r}: two are equal; give each class its own name.")
    if gold.ndim == 2:
        if gold.shape[1] != n_classes or gold.dtype != bool or predicted.dtype != bool:
            raise InputError(
                f"gold, predicted: {gold.dtype} and {predicted.dtype} {gold.shape} are not bool [N, {n_classes}]; give "
                "one column a label."
            )
        counts = [table.sum(axis=0) for table in (gold & predicted, predicted, gold)]
        accuracy = np.all(gold == predicted, axis=1).mean()
    else:
        _check_ids(gold, predicted, n_classes)
        right = gold == predicted
        counts = [np.bincount(ids, minlength=n_classes) for ids in (gold[right], predicted, gold)]
        accuracy = right.mean()
    each = [count_scores(*row) for row in np.stack(counts, axis=1).tolist()]
    support = counts[2]
    return ClassificationReport(
        classes=dict(zip(labels, each, strict=True)),
        micro=count_scores(*(int(count.sum()) for count in counts)),
        macro=_mean(each, np.ones(n_classes)),
        weighted=_mean(each, support),
        accuracy=float(accuracy),
    )


def score_table(rows: Mapping[str, Scores]) -> str:
    """Scores by name as a table: those of classes or of the types of spans, and their averages.

    >>> print(score_table({"neg": count_scores(1, 2, 4)}))
         precision  recall      F1  support
    neg     0.5000  0.2500  0.3333        4
    """
    width = max(map(len, rows), default=0)
    lines = (
        f"{name:{width}}  {of.precision:9.4f}  {of.recall:6.4f}  {of.f1:6.4f}  {of.support:7,}"
        for name, of in rows.items()
    )
    return "\n".join([f"{'':{width}}  precision  recall      F1  support", *lines])


def _mean(each: Sequence[Scores], weights: np.ndarray) -> Scores:
    shares = np.array([scores[:3] for scores in each])
    means = (weights @ shares / max(weights.sum(), 1)).tolist()
    return Scores(*means, support=sum(scores.support for scores in each))


def _pair(gold: Classes, predicted: Classes) -> tuple[np.ndarray, np.ndarray]:
    gold, predicted = np.asarray(gold), np.asarray(predicted)
    if gold.shape != predicted.shape or gold.ndim not in (1, 2):
        raise InputError(f"gold {gold.shape} and predicted {predicted.shape} are not both [N] or both [N, C].")
    if not gold.size:
        raise InputError("gold=[]; there is nothing to measure.")
    return gold, predicted


def _check_ids(gold: np.ndarray, predicted: np.ndarray, n_classes: int) -> None:
    for name, ids in (("gold", gold), ("predicted", predicted)):
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"{name}: {ids.dtype} {ids.shape} are no ids; give integers [N].")
        if ids.min() < 0 or ids.max() >= n_classes:
            raise InputError(f"{name}: has ids from {ids.min()} to {ids.max()}, but there are {n_classes} classes.")
