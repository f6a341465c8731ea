"""Key-value caches: attention to what was read before, for decoding token by token.

A cache holds the last S tokens of each row, in a ring. `prefill` reads prompts of different lengths and leaves every
row aligned to the right, so that from then on all rows write the same column: a step is one slice written in place, and
how long ago a column was written is the same for all rows.

    age_c = (cursor - 1 - c) mod S      column c is read where age_c < length
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from seqjax.attention import dot_product_attention, softmax
from seqjax.errors import InputError
from seqjax.types import Array, Bool, Float, Int, PyTree, Size, wide


class Cache(NamedTuple):
    """Keys and values of one layer, ``[B, K, S, H]``."""

    k: Array
    v: Array


class BeamCache(NamedTuple):
    """The cache of W hypotheses of each row, which stays where it is when beam search reorders them.

    ``k``, ``v`` ``[B, K, S·W, H]``: place c W + w was written, with column c, by the hypothesis that was then the w-th
    of its row; ``rows [B·W, S]`` are the w at which a hypothesis finds its own past. W has no axis of its own: if it
    had, XLA:CPU would copy the caches at every step.
    """

    k: Array
    v: Array
    rows: Array

    @classmethod
    def of(cls, cache: Cache, width: int) -> "BeamCache":
        """``width`` hypotheses that have all read the same; the axis after the first may be that of an ensemble."""
        k, v = (jnp.repeat(x, width, axis=-2) for x in cache)
        rows = jnp.arange(k.shape[0] * width, dtype=jnp.int32) % width
        rows = rows.reshape(-1, *(1 for _ in k.shape[1:-2]))
        return cls(k, v, jnp.broadcast_to(rows, (rows.shape[0], *k.shape[1:-3], columns(cache))))


class Places(NamedTuple):
    """Where the rows are, for all layers: ``lengths [B]``, tokens read; ``cursor []``, the column to write next."""

    lengths: Array
    cursor: Array


class Shared(NamedTuple):
    """A part of a decoding state that belongs to the source and is only read, such as what an encoder made of it.

    Beam search leaves it as it is, with one row a source, where it makes W rows of all else. So a model's step asks
    W = tokens.shape[0] // B, and has the W hypotheses of a source look at the same row.
    """

    value: PyTree


def start(batch: Size) -> Places:
    """Nothing read yet."""
    return Places(jnp.zeros(batch, jnp.int32), jnp.zeros((), jnp.int32))


def empty(batch: Size, n_kv_heads: int, length: int, d_head: int, dtype) -> Cache:
    """A cache of ``length`` columns."""
    shape = batch, n_kv_heads, length, d_head
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))  # two buffers, so that both can be donated


def columns(cache: Cache | BeamCache) -> int:
    """S, how many tokens of a row a cache holds."""
    return cache.rows.shape[-1] if isinstance(cache, BeamCache) else cache.k.shape[-2]


def advance(places: Places, n_columns: int, lengths: Int[Array, "B"] | None) -> Places:
    """The places after a step (lengths None), or after a prefill of ``lengths`` tokens."""
    if lengths is None:
        return Places(places.lengths + 1, (places.cursor + 1) % n_columns)
    return Places(places.lengths + lengths, jnp.zeros_like(places.cursor))


def attend(
    cache: Cache | BeamCache,
    places: Places,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    lengths: Int[Array, "B"] | None = None,
    *,
    score_mod: Callable | None = None,
    score_args: tuple = (),
) -> tuple[Float[Array, "B T N H"], Cache | BeamCache]:
    """Causal attention of new tokens to the last S tokens, themselves included: ``(y, cache)``.

    Args:
      cache: what was read before; a BeamCache takes steps only.
      places: where the rows were before these tokens.
      q: queries of the new tokens, as in `dot_product_attention`.
      k: their keys.
      v: their values.
      lengths: int [B], how many of the T tokens each row has; None is a step, of one token in each row.
      score_mod: as in `dot_product_attention`; it may add to the scores what depends on distances.
      score_args: its arrays.

    Raises:
      InputError: several tokens, and no lengths.
    """
    if lengths is not None and isinstance(cache, BeamCache):
        raise InputError("the cache of a beam search takes one token a row; read prompts before")
    if lengths is None and q.shape[1] != 1:
        raise InputError(f"a step reads one token a row, not {q.shape[1]}; give lengths to read several")
    if isinstance(cache, BeamCache):
        return _beam_step(cache, places, q, k, v, score_mod, score_args)
    if lengths is None:
        return _step(cache, places, q, k, v, score_mod, score_args)
    return _prefill(cache, places, q, k, v, lengths, score_mod, score_args)


def look(
    memory: Cache, mask: Bool[Array, "B S"], q: Float[Array, "Q 1 N H"]
) -> tuple[Float[Array, "Q 1 N H"], Float[Array, "Q N S"]]:
    """Attention of a step to what an encoder made of the sources: ``(y, weights)``.

    Args:
      memory: its keys and values, made once.
      mask: True = keep.
      q: queries, W of them to each of the B sources, Q = B W.
    """
    batch, n_kv, _, d_head = memory.k.shape
    grouped = jnp.moveaxis(q.reshape(batch, -1, n_kv, q.shape[2] // n_kv, d_head), 1, 3)  # [B, K, G, W, H]
    dtype = wide(q.dtype)
    z = jnp.einsum("bkgqh,bksh->bkgqs", grouped, memory.k, preferred_element_type=dtype) / math.sqrt(d_head)
    weights = softmax(z, mask[:, None, None, None])
    y = jnp.einsum("bkgqs,bksh->bkgqh", weights.astype(q.dtype), memory.v)
    weights = jnp.moveaxis(weights, 3, 1).reshape(q.shape[0], q.shape[2], -1)
    return jnp.moveaxis(y, 3, 1).reshape(q.shape), weights


def _step(cache, places, q, k, v, score_mod, score_args):
    """Write the token over the oldest one, then attend to all columns: products [H] x [H, S] without a copy."""
    n_columns = cache.k.shape[2]
    cache = Cache(
        *(
            lax.dynamic_update_slice_in_dim(old, jnp.moveaxis(new, 1, 2).astype(old.dtype), places.cursor, axis=2)
            for old, new in zip(cache, (k, v), strict=True)
        )
    )
    age = (places.cursor - jnp.arange(n_columns, dtype=jnp.int32)) % n_columns
    # Not `kernels.attention.scores`: its axis of queries, here of length 1, costs a fifth of the speed of generation.
    grouped = q.reshape(q.shape[0], k.shape[2], -1, q.shape[3])
    dtype = wide(q.dtype)
    z = jnp.einsum("bkgh,bksh->bkgs", grouped, cache.k, preferred_element_type=dtype) / math.sqrt(q.shape[3])
    if score_mod is not None:
        heads = z.reshape(z.shape[0], -1, 1, n_columns)
        z = score_mod(heads, jnp.zeros(1, jnp.int32), -age, *score_args).astype(dtype).reshape(z.shape)
    weights = softmax(z, (age[None] <= places.lengths[:, None])[:, None, None])
    return jnp.einsum("bkgs,bksh->bkgh", weights.astype(v.dtype), cache.v).reshape(q.shape), cache


def _beam_step(cache, places, q, k, v, score_mod, score_args):
    """The W hypotheses of a row attend to what any of them has written, masked to that of their own ancestors."""
    n_columns, (batch, n_kv, _, d_head) = columns(cache), cache.v.shape
    width, at = q.shape[0] // batch, places.cursor

    def write(old, new):
        new = jnp.moveaxis(new.reshape(batch, width, n_kv, d_head), 1, 2)
        return lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at * width, axis=2)

    own = (jnp.arange(batch * width, dtype=jnp.int32) % width)[:, None]
    cache = BeamCache(
        write(cache.k, k), write(cache.v, v), lax.dynamic_update_slice_in_dim(cache.rows, own, at, axis=1)
    )
    age = (at - jnp.arange(n_columns, dtype=jnp.int32)) % n_columns
    mine = cache.rows[:, :, None] == jnp.arange(width, dtype=jnp.int32)[None, None]
    mine &= (age[None] <= places.lengths[:, None])[:, :, None]
    grouped = jnp.moveaxis(q.reshape(batch, width, n_kv, -1, d_head), 1, 3)  # [B, K, G, W, H]
    dtype = wide(q.dtype)
    # Keys first: XLA:CPU transposes the other factor.
    z = jnp.einsum("bkch,bkgqh->bkcgq", cache.k, grouped, preferred_element_type=dtype) / math.sqrt(d_head)
    z = jnp.moveaxis(z, 2, -1)
    if score_mod is not None:
        heads = z.reshape(batch, -1, width, n_columns * width)
        ages = jnp.repeat(-age, width)
        z = score_mod(heads, jnp.zeros(width, jnp.int32), ages, *score_args).astype(dtype).reshape(z.shape)
    weights = softmax(z, mine.reshape(batch, 1, 1, width, n_columns * width))
    y = jnp.einsum("bkgqc,bkch->bkgqh", weights.astype(v.dtype), cache.v)
    return jnp.moveaxis(y, 3, 1).reshape(q.shape), cache


def _prefill(cache, places, q, k, v, lengths, score_mod, score_args):
    """Attend to the old columns, oldest first, and to the new ones; keep the last S tokens of each row."""
    attend = partial(dot_product_attention, window=cache.k.shape[2], score_mod=score_mod, score_args=score_args)
    n_columns, n_new = cache.k.shape[2], q.shape[1]
    columns = jnp.arange(n_columns, dtype=jnp.int32)[None]
    oldest_first = (places.cursor + columns[0]) % n_columns
    new_k, new_v = k, v
    k, v = (
        jnp.concatenate([jnp.moveaxis(jnp.take(old, oldest_first, axis=2), 2, 1), new.astype(old.dtype)], axis=1)
        for old, new in zip(cache, (k, v), strict=True)
    )
    known = columns >= n_columns - places.lengths[:, None]
    real = jnp.arange(n_new, dtype=jnp.int32)[None] < lengths[:, None]
    mask = jnp.concatenate([known, real], axis=1)[:, None, None]
    # A first prompt does not look at the empty columns, which may be many more than its own.
    y = lax.cond(
        jnp.any(places.lengths > 0),
        lambda: attend(q, k, v, mask=mask, q_offset=n_columns),
        lambda: attend(q, new_k, new_v),
    )
    last = lengths[:, None] + columns
    kept = (jnp.take_along_axis(x, last[:, :, None, None], axis=1, mode="clip") for x in (k, v))
    return y, Cache(*(jnp.moveaxis(x, 1, 2) for x in kept))
