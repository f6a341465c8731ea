"""Random numbers of word2vec: which words are left out of the text, and which are drawn as negatives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
    stays = (jax.random.uniform(key, ids.shape) < keep[words]) & (jnp.arange(len(ids)) < n)
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
    return jnp.where(jax.random.uniform(coin, shape) < accept[column], column, alias[column])
