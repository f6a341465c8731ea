"""Batches of examples of different lengths, in few shapes, each a pure function of the step.

A compiled program has one shape, so what is short is padded. To pad little, examples of like length share a batch:
every example belongs to the first bucket that holds all its parts, and a bucket has one shape. There are few buckets,
so there are few compilations.

An example has K parts, such as a context and a question, and a length for each; a shape is B and a length for each.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, Generic

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from seqjax.data.windows import AnyBatch
from seqjax.errors import InputError

Shape = tuple[int, ...]
"""B, then the longest length of each part."""

Plan = list[tuple[int, np.ndarray]]
"""Batches in order, each a bucket and the examples in its rows."""


_BLOCK = 256  # borders at a time: all with all would need memory for the square of their number

EPOCHS = 4  # whose plans are kept: several readers may be in different ones


def plan_shapes(
    lengths: ArrayLike, *, tokens_per_batch: int, n_buckets: int, max_lengths: int | Sequence[int]
) -> tuple[Shape, ...]:
    """The shapes of at most ``n_buckets`` buckets, shortest first, that pad examples of these lengths the least.

    Examples are ordered by their longest part, and cut into buckets where the sum of all lengths over all examples is
    least, by dynamic programming over the lengths that occur; a bucket is as long as its examples, part by part. B is
    the greatest with B times the longest part at most ``tokens_per_batch``, but at least 1, and not above the number
    of examples in the bucket.

    Args:
      lengths: of the examples of the training set, [N] or [N, K].
      tokens_per_batch: the bound on a batch, padding included, of any part.
      n_buckets: how many shapes, and so compilations, there may be.
      max_lengths: the longest of each part; longer ones will be cut.

    Raises:
      InputError: there are no examples, or a bound is too small.

    >>> plan_shapes([2, 3, 3, 8, 10], tokens_per_batch=20, n_buckets=2, max_lengths=50)
    ((3, 3), (2, 10))
    """
    for name, value in (("tokens_per_batch", tokens_per_batch), ("n_buckets", n_buckets)):
        if value < 1:
            raise InputError(f"{name}: {value} is below 1.")
    if np.min(max_lengths) < 1:
        raise InputError(f"max_lengths: {max_lengths} leaves no room; give 1 or more for each part.")
    lengths = np.maximum(np.minimum(_table(lengths), max_lengths), 1)
    lengths = lengths[np.argsort(lengths.max(axis=1), kind="stable")]
    borders, counts = np.unique(lengths.max(axis=1), return_counts=True)
    upto = np.concatenate([[0], np.cumsum(counts)])
    widths = np.maximum.accumulate(lengths, axis=0)[upto[1:] - 1]  # of a bucket that ends at this border
    ends = _ends(upto, widths.sum(axis=1), min(n_buckets, len(borders)))
    shapes = []
    for begin, end in zip([0, *ends], ends, strict=False):
        width = widths[end - 1].tolist()
        batch = min(tokens_per_batch // max(width), int(upto[end] - upto[begin]))
        shapes.append((max(batch, 1), *width))
    return tuple(shapes)


def _ends(upto: np.ndarray, width: np.ndarray, n: int) -> list[int]:
    """Where n buckets end so that the padded size is least; `upto` [K+1] examples come before each of K+1 borders.

    least_n(k) = min_{i < k} least_{n-1}(i) + (upto_k - upto_i) width_k,    least_0(0) = 0
    """
    borders = np.arange(len(width))
    blocks = [borders[at : at + _BLOCK] for at in range(0, len(borders), _BLOCK)]
    least = np.where(upto == 0, 0.0, np.inf)
    begins = []
    for _ in range(n):
        found, smallest = [], [np.array([np.inf])]
        for block in blocks:  # [k - 1, i]
            total = least[:-1] + (upto[block + 1, None] - upto[None, :-1]) * width[block, None]
            total = np.where(block[:, None] >= borders, total, np.inf)
            found.append(np.argmin(total, axis=1))
            smallest.append(total.min(axis=1))
        begins.append(np.concatenate(found))
        least = np.concatenate(smallest)
    ends = [len(width)]
    for begin in reversed(begins[1:]):
        ends.append(int(begin[ends[-1] - 1]))
    return ends[::-1]


class Buckets(Generic[AnyBatch]):
    """Training batches by step: `buckets[step]` for any step >= 0, the same whenever and wherever it is asked for.

    In every epoch the examples are shuffled anew, each bucket is cut into batches, the last of them filled up, and the
    batches of all buckets are shuffled. So each example comes once an epoch.

    `collate(rows, shape)` makes a batch of the examples `rows` [n], n at most B, in a shape: what is longer than the
    shape it cuts, and rows beyond n it fills so that they count for nothing.

    For several devices and processes each batch gets rows that fill it up to a `multiple`, and is read in part:
    `rows(n)` [m] says which of its n rows, as `seqjax.sharding.local_rows` does. The examples of a step stay the same.

    Raises InputError if there are no examples, the seed is negative, or the shapes do not grow.

    >>> words = [[4, 5], [6], [7, 8, 9]]
    >>> buckets = Buckets([2, 1, 3], [(3, 2)], lambda rows, shape: (padded([words[i] for i in rows], shape),), seed=0)
    >>> buckets[0][0].tolist()
    [[7, 8], [4, 5], [6, 0]]
    """

    def __init__(
        self,
        lengths: ArrayLike,
        shapes: Sequence[Shape],
        collate: Callable[[np.ndarray, Shape], AnyBatch],
        *,
        seed: int,
        multiple: int = 1,
        rows: Callable[[int], np.ndarray] = np.arange,
    ):
        if seed < 0:
            raise InputError(f"seed: {seed} is negative; give 0 or more.")
        self.shapes, self.seed = tuple(shapes), seed
        self._bucket_of = bucket_of(lengths, shapes)
        self.steps_per_epoch = len(cut(self._bucket_of, np.arange(len(self._bucket_of)), shapes))
        self._collate, self._multiple, self._rows = collate, multiple, rows
        self._plan = lru_cache(EPOCHS)(partial(shuffled, self._bucket_of, self.shapes, seed))

    def __getitem__(self, step: int) -> AnyBatch:
        step = operator.index(step)
        if step < 0:
            raise IndexError(f"step {step} is negative")
        epoch, index = divmod(step, self.steps_per_epoch)
        bucket, rows = self._plan(epoch)[index]
        return read_part(self._collate, rows, self.shapes[bucket], self._multiple, self._rows)


def read_part(
    collate: Callable[[np.ndarray, Shape], Any],
    rows: np.ndarray,
    shape: Shape,
    multiple: int,
    part: Callable[[int], np.ndarray],
) -> Any:
    """The batch of these examples, filled up to a ``multiple`` of rows, of which ``part(n)`` are read here."""
    n_rows, *lengths = shape
    mine = part(n_rows + -n_rows % multiple)
    return collate(rows[mine[mine < len(rows)]], (len(mine), *lengths))


def each_once(
    lengths: ArrayLike, shapes: Sequence[Shape], collate: Callable[[np.ndarray, Shape], AnyBatch]
) -> Iterator[tuple[np.ndarray, AnyBatch]]:
    """Every example once, in batches of the given shapes: ``(index [B], batch)``, index -1 for rows that fill.

    Row b is example ``index[b]``, so ``results[index[index >= 0]] = of_rows[index >= 0]`` puts results in order.

    Raises InputError if there are no examples or the shapes do not grow.

    >>> for index, _ in each_once([2, 1, 3], [(2, 2), (1, 3)], lambda rows, shape: (rows,)):
    ...     print(index.tolist())
    [0, 1]
    [2]
    """
    buckets = bucket_of(lengths, shapes)
    for bucket, rows in cut(buckets, np.arange(len(buckets)), shapes):
        index = np.full(shapes[bucket][0], -1)
        index[: len(rows)] = rows
        yield index, collate(rows, shapes[bucket])


def padded(rows: Sequence, shape: Shape, fill: int | float = 0, dtype: DTypeLike = np.int32) -> np.ndarray:
    """Rows of different lengths, and rows of such rows, as one array of a shape; what does not fit is cut.

    >>> padded([[1, 2, 3], [4]], (3, 2)).tolist()
    [[1, 2], [4, 0], [0, 0]]
    """
    array = np.full(shape, fill, dtype)
    _write(array, rows)
    return array


def _write(array: np.ndarray, rows: Any) -> None:
    if array.ndim == 1:
        array[: len(rows)] = rows[: len(array)]
        return
    for part, row in zip(array, rows, strict=False):
        _write(part, row)


def bucket_of(lengths: ArrayLike, shapes: Sequence[Shape]) -> np.ndarray:
    """The first bucket that holds an example, or the last if none does [N]."""
    if not shapes or np.min(shapes) < 1 or (np.diff(np.array(shapes)[:, 1:], axis=0) < 0).any():
        raise InputError(f"shapes: {tuple(shapes)} must be B and lengths, which grow; take those of plan_shapes.")
    lengths = _table(lengths)
    found = [np.searchsorted([shape[k + 1] for shape in shapes], part) for k, part in enumerate(lengths.T)]
    return np.minimum(np.max(found, axis=0), len(shapes) - 1)


def cut(bucket_of: np.ndarray, order: np.ndarray, shapes: Sequence[Shape]) -> Plan:
    """Batches bucket by bucket, the rows of each in the given order; the last of a bucket may have fewer."""
    plan = []
    for bucket, (batch, *_) in enumerate(shapes):
        rows = order[bucket_of[order] == bucket]
        plan += [(bucket, rows[i : i + batch]) for i in range(0, len(rows), batch)]
    return plan


def shuffled(bucket_of: np.ndarray, shapes: Sequence[Shape], seed: int, epoch: int) -> Plan:
    """The batches of an epoch: examples in random order within each bucket, then the batches of all of them mixed."""
    # Sorting raw words shuffles, and they never change between NumPy versions; a Generator's permutation may.
    n = len(bucket_of)
    words = np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(2 * n, np.uint64)
    plan = cut(bucket_of, np.argsort(words[:n], kind="stable"), shapes)
    return [plan[i] for i in np.argsort(words[n:][: len(plan)], kind="stable")]


def _table(lengths: ArrayLike) -> np.ndarray:
    """[N, K]."""
    lengths = np.asarray(lengths, np.int64)
    if not len(lengths):
        raise InputError("there are no examples; give a corpus that is not empty.")
    return lengths.reshape(len(lengths), -1)
