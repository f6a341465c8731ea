"""Batches of pairs of sequences, in few shapes, each a pure function of the step.

A compiled program has one shape, so sequences of different lengths are padded. To pad little, pairs of like length
share a batch: every pair belongs to the first bucket that holds both its sides, and a bucket has one shape [B, S, T].
There are few buckets, so there are few compilations.

A pair is two vectors of ids without specials. A source of n ids has length n + 1, its `<eos>` included, and so has a
target.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from seqjax.errors import InputError
from seqjax.text import EOS, PAD, SOS
from seqjax.types import Array

Pair = tuple[np.ndarray | Sequence[int], np.ndarray | Sequence[int]]
"""Ids of the source and of the target, without `<sos>` and `<eos>`."""

Shape = tuple[int, int, int]
"""B, S, T."""


class PairBatch(NamedTuple):
    """Pairs of like length. Rows that only fill the batch have a lone `<eos>` as source, and `where` False."""

    source: np.ndarray | Array  # [B, S] int32: ids, then <eos>
    source_lengths: np.ndarray | Array  # [B] int32, <eos> included
    inputs: np.ndarray | Array  # [B, T] int32: <sos>, then ids
    targets: np.ndarray | Array  # [B, T] int32: ids, then <eos>; the token after each input
    where: np.ndarray | Array  # [B, T] bool: count this target in the loss


def bucket_shapes(
    pairs: Sequence[Pair], *, tokens_per_batch: int, n_buckets: int, max_lengths: tuple[int, int]
) -> tuple[Shape, ...]:
    """The shapes (B, S, T) of at most ``n_buckets`` buckets, shortest first, that pad these pairs the least.

    Pairs are ordered by the longer side, and cut into buckets where the sum of S + T over all pairs is least, by
    dynamic programming over the lengths that occur; S and T are the longest sides up to there. B is the greatest
    with ``B max(S, T) <= tokens_per_batch``, but at least 1, and not above the number of pairs in the bucket.

    Args:
      pairs: those of the training set; where they are encoded anew every epoch, those of one epoch.
      tokens_per_batch: the bound on a batch, padding included, of either side.
      n_buckets: how many shapes, and so compilations, there may be.
      max_lengths: the longest source and the longest target, ``<eos>`` included; longer ones will be cut.

    Raises:
      InputError: there are no pairs, or a bound is too small.

    >>> pairs = [([4] * n, [5] * n) for n in (1, 2, 2, 7, 9)]
    >>> bucket_shapes(pairs, tokens_per_batch=20, n_buckets=2, max_lengths=(50, 50))
    ((3, 3, 3), (2, 10, 10))
    """
    for name, value in (("tokens_per_batch", tokens_per_batch), ("n_buckets", n_buckets)):
        if value < 1:
            raise InputError(f"{name}: {value} is below 1.")
    if min(max_lengths) < 2:
        raise InputError(f"max_lengths: {max_lengths} leaves no room beside <eos>; give 2 or more for each side.")
    lengths = np.minimum(_lengths(pairs), max_lengths)
    lengths = lengths[np.argsort(lengths.max(axis=1), kind="stable")]
    borders, counts = np.unique(lengths.max(axis=1), return_counts=True)
    upto = np.concatenate([[0], np.cumsum(counts)])
    widths = np.maximum.accumulate(lengths, axis=0)[upto[1:] - 1]  # S and T of a bucket that ends at this border
    ends = _ends(upto, widths.sum(axis=1), min(n_buckets, len(borders)))
    shapes = []
    for begin, end in zip([0, *ends], ends, strict=False):
        source, target = widths[end - 1].tolist()
        batch = min(tokens_per_batch // max(source, target), int(upto[end] - upto[begin]))
        shapes.append((max(batch, 1), source, target))
    return tuple(shapes)


def _ends(upto: np.ndarray, width: np.ndarray, n: int) -> list[int]:
    """Where n buckets end so that the padded size is least; `upto` [K+1] pairs come before each of K+1 borders.

    least_n(k) = min_{i < k} least_{n-1}(i) + (upto_k - upto_i) width_k,    least_0(0) = 0
    """
    sizes = (upto[1:, None] - upto[None, :-1]) * width[:, None]
    sizes = np.where(np.arange(len(width))[:, None] >= np.arange(len(width)), sizes, np.inf)  # [k - 1, i]
    least = np.where(upto == 0, 0.0, np.inf)
    begins = []
    for _ in range(n):
        total = least[:-1] + sizes
        begins.append(np.argmin(total, axis=1))
        least = np.concatenate([[np.inf], total.min(axis=1)])
    ends = [len(width)]
    for begin in reversed(begins[1:]):
        ends.append(int(begin[ends[-1] - 1]))
    return ends[::-1]


class PairBuckets:
    """Training batches by step: `buckets[step]` for any step >= 0, the same whenever and wherever it is asked for.

    In every epoch the pairs are shuffled anew, each bucket is cut into batches, the last of them filled up, and the
    batches of all buckets are shuffled. So each pair comes once an epoch.

    With `encode`, a pure function, the pairs of an epoch are `encode(epoch)`, for texts that are cut anew each time, as
    by BPE dropout. The shapes stay, and so does the number of steps, that of `pairs`: where an epoch has more batches
    than steps some are left out, a different choice each time, and where it has fewer it begins again. BPE dropout
    makes sequences longer, so there let `pairs` be those of `encode(0)`, for the shapes too.

    A source too long for the last bucket is cut, and ends with `<eos>`; a target is cut before its `<eos>`, so that
    nothing is learned about its end. `cut_sources` and `cut_targets` count those among `pairs`.

    For several devices and processes each batch gets rows that fill it up to a `multiple`, and is read in part:
    `rows(n)` [m] says which of its n rows, as `seqjax.sharding.local_rows` does. The pairs of a step stay the same.

    Raises InputError if there are no pairs, the seed is negative, or the shapes do not grow.

    >>> pairs = [([4, 5], [6]), ([7], [8, 9])]
    >>> batch = PairBuckets(pairs, [(2, 3, 3)], seed=0)[0]
    >>> batch.source.tolist(), batch.source_lengths.tolist()
    ([[4, 5, 3], [7, 3, 0]], [3, 2])
    >>> batch.inputs.tolist(), batch.targets.tolist()
    ([[2, 6, 0], [2, 8, 9]], [[6, 3, 0], [8, 9, 3]])
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        shapes: Sequence[Shape],
        *,
        seed: int,
        encode: Callable[[int], Sequence[Pair]] | None = None,
        multiple: int = 1,
        rows: Callable[[int], np.ndarray] = np.arange,
    ):
        if seed < 0:
            raise InputError(f"seed: {seed} is negative; give 0 or more.")
        self.shapes, self.seed = tuple(shapes), seed
        self.steps_per_epoch = len(_cut(_bucket_of(pairs, shapes), np.arange(len(pairs)), shapes))
        self.cut_sources, self.cut_targets = count_cut(pairs, shapes)
        self._encode, self._multiple, self._rows = encode or (lambda epoch: pairs), multiple, rows
        self._latest = (-1, [], [])  # what the last batch needed, since the next one will be of the same epoch

    def __getitem__(self, step: int) -> PairBatch:
        step = operator.index(step)
        if step < 0:
            raise IndexError(f"step {step} is negative")
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._latest[0] != epoch:
            self._latest = (epoch, *self._epoch(epoch))
        _, pairs, plan = self._latest
        bucket, rows = plan[index % len(plan)]
        n_rows, n_source, n_target = self.shapes[bucket]
        mine = self._rows(n_rows + -n_rows % self._multiple)
        return _batch([pairs[row] for row in rows[mine[mine < len(rows)]]], (len(mine), n_source, n_target))

    def _epoch(self, epoch: int) -> tuple[Sequence[Pair], list[tuple[int, np.ndarray]]]:
        """The pairs of an epoch and its batches in order, each a bucket and rows."""
        pairs = self._encode(epoch)
        # Sorting raw words shuffles, and they never change between NumPy versions; a Generator's permutation may.
        words = np.random.SeedSequence(self.seed, spawn_key=(epoch,)).generate_state(2 * len(pairs), np.uint64)
        order = np.argsort(words[: len(pairs)], kind="stable")
        plan = _cut(_bucket_of(pairs, self.shapes), order, self.shapes)
        mixed = np.argsort(words[len(pairs) :][: len(plan)], kind="stable")
        return pairs, [plan[i] for i in mixed]


def evaluation_batches(pairs: Sequence[Pair], shapes: Sequence[Shape]) -> Iterator[tuple[np.ndarray, PairBatch]]:
    """Every pair once, in batches of the given shapes: ``(index [B], batch)``, index -1 for rows that fill.

    Row b is ``pairs[index[b]]``, so ``results[index[index >= 0]] = of_rows[index >= 0]`` puts results in order. To
    decode sources that have no targets, give ``(source, ())`` for pairs. What the last bucket cannot hold is cut as
    in training; `count_cut` tells how much that is.

    Raises InputError if there are no pairs or the shapes do not grow.

    >>> for index, batch in evaluation_batches([([4, 5], ()), ([6], ()), ([7], ())], [(2, 2, 1), (1, 3, 1)]):
    ...     print(index.tolist(), batch.source.tolist())
    [1, 2] [[6, 3], [7, 3]]
    [0] [[4, 5, 3]]
    """
    for bucket, rows in _cut(_bucket_of(pairs, shapes), np.arange(len(pairs)), shapes):
        index = np.full(shapes[bucket][0], -1)
        index[: len(rows)] = rows
        yield index, _batch([pairs[row] for row in rows], shapes[bucket])


def count_cut(pairs: Sequence[Pair], shapes: Sequence[Shape]) -> tuple[int, int]:
    """How many sources and how many targets the last bucket cannot hold."""
    sources, targets = (_lengths(pairs) > shapes[-1][1:]).sum(axis=0).tolist()
    return sources, targets


def _lengths(pairs: Sequence[Pair]) -> np.ndarray:
    """Lengths with `<eos>` [N, 2]."""
    if not len(pairs):
        raise InputError("pairs: there are none; give a corpus that is not empty.")
    return np.array([(len(source) + 1, len(target) + 1) for source, target in pairs])


def _bucket_of(pairs: Sequence[Pair], shapes: Sequence[Shape]) -> np.ndarray:
    """The first bucket that holds a pair, or the last if none does [N]."""
    if not shapes or np.min(shapes) < 1 or (np.diff(np.array(shapes)[:, 1:], axis=0) < 0).any():
        raise InputError(f"shapes: {tuple(shapes)} must be (B, S, T), S and T growing; take those of bucket_shapes.")
    lengths = _lengths(pairs)
    sources, targets = (np.searchsorted([shape[side] for shape in shapes], lengths[:, side - 1]) for side in (1, 2))
    return np.minimum(np.maximum(sources, targets), len(shapes) - 1)


def _cut(bucket_of: np.ndarray, order: np.ndarray, shapes: Sequence[Shape]) -> list[tuple[int, np.ndarray]]:
    """Batches bucket by bucket, the rows of each in the given order; the last of a bucket may have fewer."""
    plan = []
    for bucket, (batch, _, _) in enumerate(shapes):
        rows = order[bucket_of[order] == bucket]
        plan += [(bucket, rows[i : i + batch]) for i in range(0, len(rows), batch)]
    return plan


def _batch(pairs: Sequence[Pair], shape: Shape) -> PairBatch:
    n_rows, n_source, n_target = shape
    source = np.full((n_rows, n_source), PAD, np.int32)
    inputs, targets = (np.full((n_rows, n_target), PAD, np.int32) for _ in range(2))
    lengths, where = np.ones(n_rows, np.int32), np.zeros((n_rows, n_target), bool)
    inputs[:, 0] = SOS
    for row, (ids, answer) in enumerate(pairs):
        lengths[row] = min(len(ids) + 1, n_source)
        source[row, : lengths[row] - 1] = ids[: lengths[row] - 1]
        length = min(len(answer) + 1, n_target)
        inputs[row, 1:length] = answer[: length - 1]
        targets[row, : min(len(answer), n_target)] = answer[:n_target]
        targets[row, len(answer) : length] = EOS
        where[row, :length] = True
    source[np.arange(n_rows), lengths - 1] = EOS
    return PairBatch(source, lengths, inputs, targets, where)
