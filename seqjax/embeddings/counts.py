"""Counting words: one-hot vectors, bags of words, TF-IDF, co-occurrence and pointwise mutual information.

The first three work on batches of ids, on the device. Co-occurrence is counted on the host: a corpus goes by in chunks,
each becomes a sorted run of (pair, weight), and runs are merged; what exceeds a bound waits in a temporary directory.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.embeddings.vocabulary import Corpus, Vocabulary, encode
from seqjax.errors import InputError
from seqjax.types import Array, Bool, Float, Int


class Cooccurrence(NamedTuple):
    """A sparse matrix: each cell once, sorted by (row, column). Rows are words, columns are contexts."""

    rows: np.ndarray  # int32[N]
    cols: np.ndarray  # int32[N]
    values: np.ndarray  # floats [N]
    shape: tuple[int, int]


Run: TypeAlias = tuple[np.ndarray, np.ndarray]  # int64[N], rising: row * V + column; float64[N]
_EMPTY: Run = np.empty(0, np.int64), np.empty(0)


def one_hot(ids: Int[Array, "..."], n: int) -> Float[Array, "... n"]:
    """The vector of each id: 1 at the id, 0 elsewhere; all 0 for an id outside of [0, n).

    >>> one_hot(jnp.array([2, 0]), 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    return jax.nn.one_hot(ids, n, dtype=jnp.float32)


def bag_of_words(
    ids: Int[Array, "B T"],
    n: int,
    *,
    lengths: Int[Array, "B"] | None = None,
    where: Bool[Array, "B T"] | Float[Array, "B T"] | None = None,
) -> Float[Array, "B n"]:
    """How often each id occurs in each row: the sum of its one-hot vectors, which are never made.

        bag[b, v] = Σ_t where[b, t] · 1[ids[b, t] = v] · 1[t < lengths[b]]

    ``where`` is True to keep, or weights. Ids outside of [0, n) do not count.

    >>> bag_of_words(jnp.array([[2, 0, 2, 2]]), 3, lengths=jnp.array([3])).tolist()
    [[1.0, 0.0, 2.0]]
    """
    weights = jnp.ones(ids.shape) if where is None else where.astype(jnp.float32)
    if lengths is not None:
        weights = jnp.where(jnp.arange(ids.shape[1])[None] < lengths[:, None], weights, 0)
    return jax.vmap(lambda weights, ids: jax.ops.segment_sum(weights, ids, n))(weights, ids)


def idf(counts: Float[Array, "B V"], *, smooth: bool = True) -> Float[Array, "V"]:
    """Inverse document frequency: how few of the B documents hold a word (Spärck Jones, 1972).

        df_v  = Σ_b 1[counts_bv > 0]
        idf_v = log((1 + B) / (1 + df_v)) + 1        smooth
                log(B / df_v) + 1                    otherwise; infinite for a word that occurs nowhere

    These are scikit-learn's; the 1 at the end keeps words that every document holds.
    """
    added = float(smooth)
    documents = jnp.sum(counts > 0, axis=0).astype(counts.dtype)
    return jnp.log((counts.shape[0] + added) / (documents + added)) + 1


def tf_idf(
    counts: Float[Array, "B V"],
    idf: Float[Array, "V"],
    *,
    sublinear: bool = False,
    norm: Literal["l2", "l1"] | None = "l2",
) -> Float[Array, "B V"]:
    """Counts weighted by the inverse document frequency, each row scaled to length 1; rows without words stay 0.

        tf = 1 + log counts  if sublinear, else counts
        x  = tf · idf,  x / ‖x‖

    ``idf`` may come from other documents than ``counts``. Equal to scikit-learn's ``TfidfTransformer``.

    >>> counts = jnp.array([[1.0, 1.0], [0.0, 2.0]])
    >>> print(np.asarray(tf_idf(counts, idf(counts))).round(3))
    [[0.815 0.58 ]
     [0.    1.   ]]
    """
    present = counts > 0
    tf = 1 + jnp.log(jnp.where(present, counts, 1)) if sublinear else counts
    x = jnp.where(present, tf * idf[None], 0)  # without jnp.where, 0 · inf for a word that occurs nowhere
    if norm is None:
        return x
    length = jnp.linalg.norm(x, ord={"l1": 1, "l2": 2}[norm], axis=1, keepdims=True)
    return x / jnp.where(length > 0, length, 1)


def cooccurrence(
    corpus: Corpus,
    vocabulary: Vocabulary,
    *,
    window: int = 5,
    weights: Literal["flat", "harmonic"] = "flat",
    contexts: Literal["both", "left", "right"] = "both",
    max_records: int = 1 << 25,
) -> Cooccurrence:
    """How often each context word occurs near each word.

        values[w, c] = Σ over positions i, j of one sentence with ids_i = w, ids_j = c, 0 < |i - j| <= window
                       of 1 (flat) or 1 / |i - j| (harmonic, as in GloVe)

    Only j < i count with ``contexts="left"``, only j > i with ``"right"``; "both" is the sum of the two and symmetric.
    Words that the vocabulary lacks are left out before distances are measured.

    Memory: about 50 bytes times ``max_records``, and the result, 16 bytes a cell. Partial counts of more than
    ``max_records`` cells go to a temporary directory. Flat counts do not depend on ``max_records``, harmonic ones in
    the last bits only.

    >>> from seqjax.embeddings.vocabulary import make_vocabulary
    >>> vocabulary = make_vocabulary({"a": 3, "b": 2}, min_count=1)
    >>> found = cooccurrence([["a", "b", "a"], ["b", "a"]], vocabulary, window=2, weights="harmonic")
    >>> [*zip(found.rows.tolist(), found.cols.tolist(), found.values.tolist())]
    [(0, 0, 1.0), (0, 1, 3.0), (1, 0, 3.0)]

    Raises:
      InputError: an option is none of those above, or window or max_records is below 1.
    """
    for name, value in (("window", window), ("max_records", max_records)):
        if value < 1:
            raise InputError(f"{name}={value}; it must be at least 1")
    if weights not in ("flat", "harmonic"):
        raise InputError(f"weights={weights!r} is unknown; choose flat or harmonic")
    if contexts not in ("both", "left", "right"):
        raise InputError(f"contexts={contexts!r} is unknown; choose both, left or right")
    n = len(vocabulary.words)
    chunk = max(1, min(max_records, 1 << 24) // window)  # tokens, so that their pairs keep within the bound
    weight = 1 / np.arange(1, window + 1) if weights == "harmonic" else np.ones(window)

    with tempfile.TemporaryDirectory(prefix="seqjax-", ignore_cleanup_errors=True) as directory:
        held: list[Run] = []
        spilled: list[Run] = []
        for ids, sentence, new in _with_left_context(encode(corpus, vocabulary, chunk=chunk), window):
            left = _count(ids, sentence, new, n, weight)
            held += [left] if contexts != "right" else []
            held += [_transpose(left, n)] if contexts != "left" else []
            if _size(held) > max_records:
                held = [_merge(held)]
                if _size(held) > max_records // 2:
                    spilled.append(_spill(held.pop(), Path(directory) / str(len(spilled))))
        merged = [_split(run, n) for run in (_EMPTY, *map(_merge, _parts(spilled + held, max_records)))]
        rows, cols, values = map(np.concatenate, zip(*merged, strict=True))
    return Cooccurrence(rows, cols, values, (n, n))


def _with_left_context(chunks: Iterator[np.ndarray], window: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """For each chunk, with the `window` words before it in front: ids, sentence numbers, where the chunk begins."""
    coded = np.empty(0, np.int32)
    for chunk in chunks:
        before = coded[-window:]
        coded = np.concatenate([before, chunk])
        yield np.where(coded < 0, ~coded, coded).astype(np.int64), np.cumsum(coded < 0), len(before)


def _count(ids: np.ndarray, sentence: np.ndarray, new: int, n: int, weight: np.ndarray) -> Run:
    """Left contexts of the words at `new` and later. Sorts keys of (word · n + context, distance)."""
    bits = len(weight).bit_length()
    keys = []
    for d in range(1, len(weight) + 1):
        word, context = slice(max(new, d), None), slice(max(new, d) - d, max(len(ids) - d, 0))
        near = sentence[word] == sentence[context]
        keys.append((ids[word][near] * n + ids[context][near]) << bits | (d - 1))
    key = np.concatenate(keys)
    key.sort()
    return _sum_equal(key >> bits, weight[key & ((1 << bits) - 1)])


def _transpose(run: Run, n: int) -> Run:
    rows, cols = np.divmod(run[0], n)
    keys = cols * n + rows
    order = np.argsort(keys)
    return keys[order], run[1][order]


def _sum_equal(keys: np.ndarray, values: np.ndarray) -> Run:
    """Sorted keys, each of them once, and the sums of their values."""
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    return keys[first], np.add.reduceat(values, first) if len(first) else values


def _merge(runs: list[Run]) -> Run:
    keys, values = map(np.concatenate, zip(*runs, strict=True))
    order = np.argsort(keys, kind="stable")  # which merges what is sorted in parts
    return _sum_equal(keys[order], values[order])


def _parts(runs: list[Run], max_records: int) -> Iterator[list[Run]]:
    """All runs cut at the same keys, so that no part is larger than max_records, or than one record a run."""
    step = max(1, max_records // max(1, len(runs)))
    while runs := [run for run in runs if len(run[0])]:
        limit = min(keys[min(step, len(keys)) - 1] for keys, _ in runs)
        cuts = [int(np.searchsorted(keys, limit, side="right")) for keys, _ in runs]
        yield [(keys[:cut], values[:cut]) for (keys, values), cut in zip(runs, cuts, strict=True)]
        runs = [(keys[cut:], values[cut:]) for (keys, values), cut in zip(runs, cuts, strict=True)]


def _size(runs: list[Run]) -> int:
    return sum(len(keys) for keys, _ in runs)


def _spill(run: Run, path: Path) -> Run:
    """The run on disk; memory-mapped."""
    names = [path.with_suffix(".keys.npy"), path.with_suffix(".values.npy")]
    for name, array in zip(names, run, strict=True):
        np.save(name, array)
    keys, values = (np.load(name, mmap_mode="r") for name in names)
    return keys, values


def _split(run: Run, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keys, values = run
    rows, cols = np.divmod(keys, n)
    return rows.astype(np.int32), cols.astype(np.int32), values


def ppmi(cooccurrence: Cooccurrence, *, smoothing: float = 0.75, shift: float = 0.0) -> Cooccurrence:
    """Positive pointwise mutual information: the cells above 0 of

        log P(w, c) / (P(w) P(c)) - shift,    P(w, c) = values / Σ values,    P(c) ∝ (Σ_w values[w, c]) ** smoothing

    ``smoothing`` below 1 keeps rare contexts from winning everywhere. ``shift = log k`` gives the matrix that
    skip-gram with k negative samples factorizes (Levy and Goldberg, 2014; Levy, Goldberg and Dagan, 2015). The values
    are float32.

    >>> counts = Cooccurrence(np.array([0, 1]), np.array([1, 0]), np.array([4.0, 4.0]), (2, 2))
    >>> ppmi(counts, smoothing=1.0).values  # log 2: each word decides which the other is
    array([0.6931472, 0.6931472], dtype=float32)
    """
    rows, cols, values, shape = cooccurrence
    words = np.bincount(rows, values, minlength=shape[0])
    contexts = np.bincount(cols, values, minlength=shape[1]) ** smoothing
    pmi = np.log(values * contexts.sum() / (words[rows] * contexts[cols])) - shift
    keep = pmi > 0
    return Cooccurrence(rows[keep], cols[keep], pmi[keep].astype(np.float32), shape)
