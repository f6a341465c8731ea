"""A chunk of text for word2vec: which words are left out, which are drawn as negatives, and its blocks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from seqjax.types import Array, Float, Int, PRNGKey


def keep_probability(counts: Int[np.ndarray, "V"], sample: float) -> Float[np.ndarray, "V"]:
    """With what probability an occurrence of a word stays: ``min(1, √(sample / f) + sample / f)``, f its share."""
    if sample == 0:
        return np.ones(len(counts))
    ratio = sample * counts.sum() / counts
    return np.minimum(1, np.sqrt(ratio) + ratio)


def alias_table(p: Float[np.ndarray, "V"]) -> tuple[Float[np.ndarray, "V"], Int[np.ndarray, "V"]]:
    """Walker's alias table (1977): take a column at random, keep it with probability accept, else take its alias.

    >>> alias_table(np.array([0.75, 0.25]))
    (array([1. , 0.5]), array([0, 0]))
    """
    scaled = (p / p.sum() * len(p)).tolist()
    accept, alias = np.ones(len(p)), np.arange(len(p))
    small = [i for i, q in enumerate(scaled) if q < 1]
    large = [i for i, q in enumerate(scaled) if q >= 1]
    while small and large:
        i, j = small.pop(), large[-1]
        accept[i], alias[i] = scaled[i], j
        scaled[j] -= 1 - scaled[i]
        if scaled[j] < 1:
            small.append(large.pop())
    return accept, alias


class Text(NamedTuple):
    """The words of a chunk that stay, moved together, and which sentence each is of (-1: none, padding)."""

    ids: Array  # int32[N + block + 2 window], the first word at `window`
    sentence: Array
    n: Array  # int32


def subsample(
    ids: Int[Array, "N"], n: Array, keep: Float[Array, "V"], key: PRNGKey, *, window: int, block: int
) -> Text:
    """Leave out frequent words of the first ``n`` ids at random; ``ids`` are as `encode` gives them."""
    begins = ids < 0
    words = jnp.where(begins, ~ids, ids)
    stays = (jax.random.uniform(key, ids.shape, jnp.float32) < keep[words]) & (jnp.arange(len(ids)) < n)
    place = jnp.cumsum(stays, dtype=jnp.int32)
    length = len(ids) + block + 2 * window
    at = jnp.where(stays, place - 1 + window, length)
    moved = jnp.zeros(length, jnp.int32).at[at].set(words, mode="drop")
    sentence = jnp.full(length, -1, jnp.int32).at[at].set(jnp.cumsum(begins, dtype=jnp.int32), mode="drop")
    return Text(moved, sentence, place[-1])


def draw(accept: Float[Array, "V"], alias: Int[Array, "V"], key: PRNGKey, shape: tuple[int, ...]) -> Int[Array, "..."]:
    """Ids drawn from the distribution of an `alias_table`, int32."""
    column, coin = jax.random.split(key)
    column = jax.random.randint(column, shape, 0, len(accept))
    return jnp.where(jax.random.uniform(coin, shape, jnp.float32) < accept[column], column, alias[column])


class Chunk(NamedTuple):
    """A chunk of text, its blocks, and the random numbers of each of them: for one at a time they would cost more."""

    text: Text
    blocks: Array  # int32, how many there are
    places: Array  # int32[G, R], where the words in reach of each tile are in what `read_block` gives
    negatives: Array  # int32[blocks at most, G, M]
    sizes: Array  # int32[blocks at most, G, 1, C], of the centres' windows


def make_chunk(
    ids: Int[Array, "N"],
    n: Array,
    keep: Float[Array, "V"],
    accept: Float[Array, "V"],
    alias: Int[Array, "V"],
    key: PRNGKey,
    *,
    window: int,
    block: int,
    tile: int,
    negatives: int,
) -> Chunk:
    """Subsample the first ``n`` ids, and draw ``negatives`` words a tile and the sizes of windows."""
    key_text, key_negatives, key_windows = jax.random.split(key, 3)
    text = subsample(ids, n, keep, key_text, window=window, block=block)
    most, n_tiles = -(-len(ids) // block), block // tile
    return Chunk(
        text,
        (text.n + block - 1) // block,
        jnp.asarray(np.arange(n_tiles)[:, None] * tile + np.arange(tile + 2 * window)[None]),
        draw(accept, alias, key_negatives, (most, n_tiles, negatives)),
        jax.random.randint(key_windows, (most, n_tiles, 1, tile), 1, window + 1),
    )


def read_block(text: Text, i: Array, *, window: int, block: int) -> tuple[Int[Array, "T"], Int[Array, "T"]]:
    """The words of block i with ``window`` words on both sides, and which sentence each is of."""
    reach = (i * block,), (block + 2 * window,)
    return lax.dynamic_slice(text.ids, *reach), lax.dynamic_slice(text.sentence, *reach)


def occurrences(
    counter: Float[Array, "V"], words: Int[Array, "T"], sentence: Int[Array, "T"]
) -> tuple[Float[Array, "T"], Float[Array, "V"]]:
    """How often each word occurs among ``words``, padding apart, and the counter, which is all zeros before and after.

    To compare each word with each, without a counter, takes as long as all else in a step.
    """
    counted = counter.at[words].add((sentence >= 0).astype(jnp.float32))
    often = counted[words]
    return often, counted.at[words].set(0.0 * often)  # the product puts the write after the read: so nothing is copied
