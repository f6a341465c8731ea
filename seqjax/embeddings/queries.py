"""Queries to a table of word vectors for a whole batch at once, on the device: pure functions over arrays.

    V words of the table    Q queries    W words or vectors that make up a query    E words that are no answer to it

The table's rows may have any length: everything is compared by the cosine, and a vector of zeros has the cosine 0 to
all others. Scores against the whole vocabulary would be ``[Q, V]``. They are computed from ``chunk`` rows of the
table at a time, of which only the best are kept, so that memory grows with ``Q * chunk`` (``Q * W * chunk`` in
`cos_mul`). Products are full float32 on every device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from seqjax.errors import InputError
from seqjax.types import Array, Bool, Float, Int, wide

CHUNK = 8192
_GROUP = 32


class Neighbours(NamedTuple):
    """The best words for each query, by falling score; equal scores by rising id.

    Where fewer than k words are left to answer with, the score is -inf and the id -1.
    """

    scores: Array  # float32 [Q, k]
    ids: Array  # int32 [Q, k]


@jax.jit
def unit(x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
    """Vectors scaled to length 1, in float32 or wider; vectors of zeros remain so.

    >>> print(unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
    [[0.6 0.8]
     [0.  0. ]]
    """
    x = x.astype(wide(x.dtype))
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1)


@jax.jit
def cosine(a: Float[Array, "*shape D"], b: Float[Array, "*shape D"]) -> Float[Array, "*shape"]:
    """The cosine between the vectors of each pair.

    >>> print(cosine(jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[3.0, 4.0], [1.0, 2.0]])))
    [0.6 0. ]
    """
    return jnp.sum(unit(a) * unit(b), axis=-1)


@jax.jit
def centrality(vectors: Float[Array, "*shape W D"], where: Bool[Array, "*shape W"]) -> Float[Array, "*shape W"]:
    """The cosine between each vector of a group and the mean of the group's directions; the outlier has the smallest.

    Only vectors where ``where`` is True belong to the group, the others get inf.
    """
    directions = jnp.where(where[..., None], unit(vectors), 0)
    mean = jnp.sum(directions, axis=-2, keepdims=True)
    return jnp.where(where, cosine(directions, jnp.broadcast_to(mean, directions.shape)), jnp.inf)


@partial(jax.jit, static_argnames=("k", "restrict_vocab", "chunk"))
def nearest(
    table: Float[Array, "V D"],
    queries: Float[Array, "Q D"],
    *,
    k: int = 10,
    excluded: Int[Array, "Q E"] | None = None,
    restrict_vocab: int | None = None,
    chunk: int = CHUNK,
) -> Neighbours:
    """The k rows of the table with the largest cosine to each query.

    Args:
      table: the word vectors.
      queries: vectors.
      k: how many answers a query; no more than there are rows.
      excluded: ids that are no answer, for each query; -1 fills up a row.
      restrict_vocab: answer with the first so many rows, the most frequent words; None: with all.
      chunk: how many rows of the table are compared at a time.

    Raises:
      InputError: k, restrict_vocab or chunk is not at least 1.

    >>> table = jnp.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    >>> nearest(table, jnp.array([[3.0, 0.0]]), k=2, excluded=jnp.array([[0]])).ids
    Array([[2, 1]], dtype=int32)
    """
    queries = unit(queries)
    return _search(partial(_product, "qd,cd->qc", queries), table, k, excluded, restrict_vocab, chunk)


@partial(jax.jit, static_argnames=("k", "restrict_vocab", "chunk"))
def cos_add(
    table: Float[Array, "V D"],
    terms: Float[Array, "Q W D"],
    weights: Float[Array, "Q W"],
    *,
    k: int = 10,
    excluded: Int[Array, "Q E"] | None = None,
    restrict_vocab: int | None = None,
    chunk: int = CHUNK,
) -> Neighbours:
    """3CosAdd, "king - man + woman": the k rows nearest to a weighted sum of vectors (Mikolov et al. 2013).

        score_v = cos(x_v, Σ_w weight_w term_w)

    ``terms`` are summed as they are: pass unit vectors for all to count alike, `unit(table[ids])`. A weight of 0 fills
    up a row. Otherwise as `nearest`.
    """
    return nearest(
        table,
        _product("qw,qwd->qd", weights, terms),
        k=k,
        excluded=excluded,
        restrict_vocab=restrict_vocab,
        chunk=chunk,
    )


@partial(jax.jit, static_argnames=("k", "restrict_vocab", "chunk"))
def cos_mul(
    table: Float[Array, "V D"],
    terms: Float[Array, "Q W D"],
    weights: Float[Array, "Q W"],
    *,
    k: int = 10,
    excluded: Int[Array, "Q E"] | None = None,
    restrict_vocab: int | None = None,
    chunk: int = CHUNK,
) -> Neighbours:
    """3CosMul (Levy and Goldberg 2014): as `cos_add`, but no term outweighs the others.

        sim_vw  = (1 + cos(x_v, term_w)) / 2
        score_v = Π_{w: weight_w > 0} sim_vw / (Π_{w: weight_w < 0} sim_vw + 1e-6)

    Of the weights only the sign matters; 0 fills up a row.
    """
    terms = unit(terms)

    def score(rows):
        similarity = (1 + _product("qwd,cd->qwc", terms, rows)) / 2
        wanted = jnp.prod(jnp.where(weights[..., None] > 0, similarity, 1), axis=1)
        return wanted / (jnp.prod(jnp.where(weights[..., None] < 0, similarity, 1), axis=1) + 1e-6)

    return _search(score, table, k, excluded, restrict_vocab, chunk)


METHODS = {"add": cos_add, "mul": cos_mul}


@partial(jax.jit, static_argnames="chunk")
def rank(
    table: Float[Array, "V D"],
    queries: Float[Array, "Q D"],
    targets: Int[Array, " Q"],
    *,
    excluded: Int[Array, "Q E"] | None = None,
    chunk: int = CHUNK,
) -> Int[Array, " Q"]:
    """The place of word ``targets[q]`` among the neighbours of ``queries[q]``; the nearest word has rank 1.

    Words of ``excluded`` are not counted.

    >>> table = jnp.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> rank(table, table[:1], jnp.array([1]), excluded=jnp.array([[0]]))
    Array([2], dtype=int32)
    """
    queries = unit(queries)
    limit = cosine(queries, table[targets])[:, None]
    # The target itself too: in another product its cosine may come out larger by one rounding.
    skipped = targets[:, None] if excluded is None else jnp.concatenate([targets[:, None], excluded], axis=1)

    def closer(rows, ids, new):
        counted = new[None, :] & jnp.all(ids[None, None, :] != skipped[:, :, None].astype(ids.dtype), axis=1)
        return jnp.sum(counted & (_product("qd,cd->qc", queries, rows) > limit), axis=1, dtype=jnp.int32)

    return 1 + jnp.sum(_over_chunks(closer, table, len(table), chunk), axis=0, dtype=jnp.int32)


def in_blocks(function: Callable[..., Any], *arrays: np.ndarray, block: int = 1024) -> Any:
    """``function`` of host arrays ``[Q, …]``, called on ``block`` rows at a time; its results as NumPy arrays.

    Blocks are filled up with zeros to a power of two, at least 8, so that few shapes are compiled.
    """
    results = []
    for start in range(0, max(len(arrays[0]), 1), block):
        rows = [array[start : start + block] for array in arrays]
        n = len(rows[0])
        filled = 1 << max(n - 1, 7).bit_length()
        rows = [np.pad(array, [(0, filled - n), *[(0, 0)] * (array.ndim - 1)]) for array in rows]
        results.append(jax.tree.map(lambda x: np.asarray(x)[:n], function(*rows)))  # noqa: B023
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def _product(equation, a, b):
    # GPUs and TPUs round the factors to 10 or 7 bits by default, which reorders near neighbours.
    return jnp.einsum(equation, a, b.astype(a.dtype), precision=lax.Precision.HIGHEST)


def _search(score, table, k, excluded, restrict_vocab, chunk) -> Neighbours:
    """The k best rows by ``score(unit rows [C, D]) -> [Q, C]``."""
    n = len(table) if restrict_vocab is None else min(restrict_vocab, len(table))
    for name, value in {"k": k, "restrict_vocab": n, "chunk": chunk}.items():
        if value < 1:
            raise InputError(f"{name} is {value}: pass at least 1, and a table that has rows")
    k = min(k, n)
    # Enough candidates for k to be left whatever is excluded: cheaper than to mask words in every chunk.
    kept = min(k if excluded is None else k + excluded.shape[1], chunk, n)

    def best(rows, ids, new):
        scores, at = _top_k(jnp.where(new[None, :], score(rows), -jnp.inf), kept)
        return scores, ids[at]

    found = _over_chunks(best, table, n, chunk)
    scores, ids = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in found)  # [Q, chunks * kept]
    if excluded is not None:
        scores = jnp.where(
            jnp.any(ids[:, :, None] == excluded[:, None, :].astype(ids.dtype), axis=-1), -jnp.inf, scores
        )
    scores, at = lax.top_k(scores, k)
    return Neighbours(scores, jnp.where(scores > -jnp.inf, jnp.take_along_axis(ids, at, axis=1), -1))


def _over_chunks(function, table, n, chunk):
    """``function(unit rows [C, D], ids [C], new [C])`` of each chunk of the first n rows, stacked.

    The last chunk begins early enough to be whole; ``new`` is False for those of its rows that were seen before.
    """
    chunk = min(chunk, n)

    def at(start):
        first = jnp.minimum(start, n - chunk)
        ids = first + jnp.arange(chunk, dtype=jnp.int32)
        return function(unit(lax.dynamic_slice_in_dim(table, first, chunk)), ids, ids >= start)

    return lax.map(at, jnp.arange(0, n, chunk, dtype=jnp.int32))


def _top_k(scores, k):
    """``lax.top_k`` in less time: it has to look only at the k groups of 32 neighbours that have the largest maxima."""
    rows, width = scores.shape
    if width % _GROUP or k * _GROUP >= width:
        return lax.top_k(scores, k)
    groups = scores.reshape(rows, width // _GROUP, _GROUP)
    _, best = lax.top_k(jnp.max(groups, axis=-1), k)
    best = jnp.sort(best, axis=-1)  # so that of equal scores the first remains the first
    scores, at = lax.top_k(jnp.take_along_axis(groups, best[:, :, None], axis=1).reshape(rows, k * _GROUP), k)
    return scores, jnp.take_along_axis(best, at // _GROUP, axis=1) * _GROUP + at % _GROUP
