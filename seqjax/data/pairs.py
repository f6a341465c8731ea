"""Batches of pairs of sequences: buckets of shapes [B, S, T], see `seqjax.data.buckets`.

A pair is two vectors of ids without specials. A source of n ids has length n + 1, its `<eos>` included, and so has a
target.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from seqjax.data.buckets import EPOCHS, Plan, bucket_of, cut, each_once, plan_shapes, read_part, shuffled
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
    """`plan_shapes` of pairs: their lengths, and ``max_lengths``, include ``<eos>``.

    Where they are encoded anew every epoch, give those of one epoch.

    Raises:
      InputError: there are no pairs, or a bound is too small.

    >>> pairs = [([4] * n, [5] * n) for n in (1, 2, 2, 7, 9)]
    >>> bucket_shapes(pairs, tokens_per_batch=20, n_buckets=2, max_lengths=(50, 50))
    ((3, 3, 3), (2, 10, 10))
    """
    if min(max_lengths) < 2:
        raise InputError(f"max_lengths: {max_lengths} leaves no room beside <eos>; give 2 or more for each side.")
    options = {"tokens_per_batch": tokens_per_batch, "n_buckets": n_buckets, "max_lengths": max_lengths}
    return tuple((b, s, t) for b, s, t in plan_shapes(_lengths(pairs), **options))


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
        self.steps_per_epoch = len(cut(bucket_of(_lengths(pairs), shapes), np.arange(len(pairs)), shapes))
        self.cut_sources, self.cut_targets = count_cut(pairs, shapes)
        self._encode, self._multiple, self._rows = encode or (lambda epoch: pairs), multiple, rows
        self._epoch = lru_cache(EPOCHS)(self._read)

    def __getitem__(self, step: int) -> PairBatch:
        step = operator.index(step)
        if step < 0:
            raise IndexError(f"step {step} is negative")
        epoch, index = divmod(step, self.steps_per_epoch)
        pairs, plan = self._epoch(epoch)
        bucket, rows = plan[index % len(plan)]
        return read_part(partial(_batch, pairs), rows, self.shapes[bucket], self._multiple, self._rows)

    def _read(self, epoch: int) -> tuple[Sequence[Pair], Plan]:
        """The pairs of an epoch and its batches in order."""
        pairs = self._encode(epoch)
        return pairs, shuffled(bucket_of(_lengths(pairs), self.shapes), self.shapes, self.seed, epoch)


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
    return each_once(_lengths(pairs), shapes, partial(_batch, pairs))


def count_cut(pairs: Sequence[Pair], shapes: Sequence[Shape]) -> tuple[int, int]:
    """How many sources and how many targets the last bucket cannot hold."""
    sources, targets = (_lengths(pairs) > shapes[-1][1:]).sum(axis=0).tolist()
    return sources, targets


def _lengths(pairs: Sequence[Pair]) -> np.ndarray:
    """Lengths with `<eos>` [N, 2]."""
    if not len(pairs):
        raise InputError("pairs: there are none; give a corpus that is not empty.")
    return np.array([(len(source) + 1, len(target) + 1) for source, target in pairs])


def _batch(pairs: Sequence[Pair], rows: np.ndarray, shape: Sequence[int]) -> PairBatch:
    n_rows, n_source, n_target = shape
    source = np.full((n_rows, n_source), PAD, np.int32)
    inputs, targets = (np.full((n_rows, n_target), PAD, np.int32) for _ in range(2))
    lengths, where = np.ones(n_rows, np.int32), np.zeros((n_rows, n_target), bool)
    inputs[:, 0] = SOS
    for row, (ids, answer) in enumerate(pairs[i] for i in rows):
        lengths[row] = min(len(ids) + 1, n_source)
        source[row, : lengths[row] - 1] = ids[: lengths[row] - 1]
        length = min(len(answer) + 1, n_target)
        inputs[row, 1:length] = answer[: length - 1]
        targets[row, : min(len(answer), n_target)] = answer[:n_target]
        targets[row, len(answer) : length] = EOS
        where[row, :length] = True
    source[np.arange(n_rows), lengths - 1] = EOS
    return PairBatch(source, lengths, inputs, targets, where)
