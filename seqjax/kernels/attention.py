"""Attention by blocks: softmax(scores) v in memory linear in the length, with its own derivative.

A block of queries meets one block of keys after the other and keeps the running maximum m, the sum l of exponentials
and the weighted sum of values (online softmax: Milakov and Gimelshein, 2018; Rabe and Staats, 2021; Dao et al., 2022):

    m' = max(m, max_s z)     e = exp(z - m')     l' = exp(m - m') l + Σ_s e     a' = exp(m - m') a + e v
    y  = a / l               lse = m + log l

Blocks that a causal or sliding-window mask empties are not visited. The backward pass knows lse, so it recomputes the
probabilities p = exp(z - lse) of a block without a maximum; what z is made of (products, bias, score_mod) it
differentiates by `jax.vjp` of the function that made it.

Here batch and heads lead: q [B, K, G, T, D] with G query heads for each of the K key heads, k and v [B, K, S, D].
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqjax.types import Array, wide

# On 2 CPU cores (AVX-512) 256 beat 512 everywhere, and 128 for long sequences.
BLOCK = 256


class Static(NamedTuple):
    """What is known before tracing."""

    causal: bool
    window: int | None
    scale: float
    score_mod: Callable | None
    block_q: int
    block_k: int
    n_keys: int  # S without padding


class Fixed(NamedTuple):
    """What has no derivative: masks, segments and the position of the first query."""

    mask: Array | None  # [B|1, K|1, G|1, T|1, S|1]
    segments: tuple[Array, Array] | None  # ids of queries [B, T] and keys [B, S]
    q_offset: Array  # int32 scalar


class Inputs(NamedTuple):
    """What has one."""

    q: Array
    k: Array
    v: Array
    bias: Array | None  # [B|1, K|1, G|1, T|1, S|1]
    score_args: tuple


def scores(
    static: Static, q_at: Array, k_at: Array, q: Array, k: Array, bias: Array | None, score_args: tuple
) -> Array:
    """z [B, K, G, t, s] for queries at q_at [t] and keys at k_at [s]: scale q·k, then score_mod, then bias."""
    return modified(static, q_at, k_at, product(static, q, k), bias, score_args)


def product(static: Static, q: Array, k: Array) -> Array:
    """scale q·k."""
    return static.scale * jnp.einsum("bkgtd,bksd->bkgts", q, k, preferred_element_type=wide(q.dtype))


def modified(static: Static, q_at: Array, k_at: Array, z: Array, bias: Array | None, score_args: tuple) -> Array:
    """score_mod(z) + bias."""
    if static.score_mod is not None:
        heads = z.reshape(z.shape[0], -1, *z.shape[3:])
        z = static.score_mod(heads, q_at, k_at, *score_args).astype(z.dtype).reshape(z.shape)
    return z if bias is None else z + jnp.broadcast_to(bias.astype(z.dtype), z.shape)


def kept(static: Static, fixed: Fixed, q_at: Array, k_at: Array) -> Array | None:
    """What masks and segments keep, [B|1, K|1, G|1, t|1, s|1]; None is everything. True = keep."""
    parts = []
    if static.causal:
        parts.append((k_at[None, :] <= q_at[:, None])[None, None, None])
    if static.window is not None:
        parts.append((k_at[None, :] > q_at[:, None] - static.window)[None, None, None])
    if fixed.mask is not None:
        parts.append(fixed.mask)
    if fixed.segments is not None:
        q_ids, k_ids = fixed.segments
        parts.append((q_ids[:, :, None] == k_ids[:, None, :])[:, None, None])
    return reduce(lambda a, b: jnp.logical_and(*jnp.broadcast_arrays(a, b)), parts) if parts else None


def masked(z: Array, keep: Array | None) -> Array:
    """z where kept, else -inf."""
    return z if keep is None else jnp.where(jnp.broadcast_to(keep, z.shape), z, -jnp.inf)


def softmax(z: Array, keep: Array | None = None) -> Array:
    """Softmax over the last axis of what ``keep`` keeps; a row that keeps nothing gives 0, not NaN.

    >>> print(softmax(jnp.zeros((2, 2)), jnp.array([[True, False], [False, False]])))
    [[1. 0.]
     [0. 0.]]
    """
    z = masked(z, keep)
    top = jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    e = jnp.exp(z - jnp.where(top == -jnp.inf, 0, top))
    total = jnp.sum(e, axis=-1, keepdims=True)
    return e / jnp.where(total == 0, 1, total)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked(static: Static, inputs: Inputs, fixed: Fixed) -> Array:
    """y [B, K, G, T, D] of inputs whose T and S are multiples of the blocks."""
    return _forward(static, inputs, fixed)[0]


def _forward(static, inputs, fixed):
    n_queries, n_keys = inputs.q.shape[3] // static.block_q, inputs.k.shape[2] // static.block_k

    def queries(_, i):
        q = _cut(inputs.q, 3, i, static.block_q)
        row = jnp.zeros_like(q[..., 0], wide(q.dtype))

        def keys(j, carry):
            m, total, sums = carry
            z = scores(static, *_positions(static, fixed, i, j), *_block(static, inputs, i, j))
            z = masked(z, _mask(static, fixed, i, j))
            top = jnp.maximum(m, jnp.max(z, axis=-1))
            # A row that has met no key so far has the maximum -inf, and -inf - -inf is NaN.
            base = jnp.where(top == -jnp.inf, 0, top)
            e, fade = jnp.exp(z - base[..., None]), jnp.exp(m - base)
            v = _cut(inputs.v, 2, j, static.block_k)
            more = jnp.einsum("bkgts,bksd->bkgtd", e.astype(v.dtype), v, preferred_element_type=row.dtype)
            return top, fade * total + jnp.sum(e, axis=-1), fade[..., None] * sums + more

        sums = jnp.broadcast_to(row[..., None], (*row.shape, inputs.v.shape[-1]))
        m, total, sums = lax.fori_loop(*_keys_of(static, fixed, i, n_keys), keys, (row - jnp.inf, row, sums))
        # A row that keeps nothing: y = 0, and any lse will do, since exp(-inf - lse) is 0.
        total, m = jnp.where(total == 0, 1, total), jnp.where(total == 0, 0, m)
        return None, ((sums / total[..., None]).astype(inputs.v.dtype), m + jnp.log(total))

    _, (y, lse) = lax.scan(queries, None, jnp.arange(n_queries, dtype=jnp.int32))
    return _joined(y, 3), _joined(lse, 3)


def _forward_rule(static, inputs, fixed):
    y, lse = _forward(static, inputs, fixed)
    return y, (inputs, fixed, y, lse)


def _backward_rule(static, residuals, dy):
    inputs, fixed, y, lse = residuals
    n_queries, n_keys = inputs.q.shape[3] // static.block_q, inputs.k.shape[2] // static.block_k
    # Σ_s p dp, which the derivative of the softmax subtracts.
    inner = jnp.sum(dy.astype(lse.dtype) * y.astype(lse.dtype), axis=-1)

    def keys(carry, j):
        v = _cut(inputs.v, 2, j, static.block_k)

        def queries(i, carry):
            (dq, dbias, dargs), dk, dv = carry
            q, k, bias, args = _block(static, inputs, i, j)
            here = partial(modified, static, *_positions(static, fixed, i, j))
            z, derivative = jax.vjp(here, product(static, q, k), bias, args)
            z = masked(z, _mask(static, fixed, i, j))
            p = jnp.exp(z - _cut(lse, 3, i, static.block_q)[..., None])
            d = _cut(dy, 3, i, static.block_q)
            dv = dv + jnp.einsum("bkgts,bkgtd->bksd", p.astype(d.dtype), d, preferred_element_type=dv.dtype)
            dp = jnp.einsum("bkgtd,bksd->bkgts", d, v, preferred_element_type=p.dtype)
            dz, more_bias, more_args = derivative(p * (dp - _cut(inner, 3, i, static.block_q)[..., None]))
            # Products in the dtype of the inputs, as forward.
            dz = (static.scale * dz).astype(q.dtype)
            more = jnp.einsum("bkgts,bksd->bkgtd", dz, k, preferred_element_type=dq.dtype)
            dq = _add(dq, more, {3: i * static.block_q})
            dk = dk + jnp.einsum("bkgts,bkgtd->bksd", dz, q, preferred_element_type=dk.dtype)
            dbias = None if dbias is None else _add(dbias, more_bias, {3: i * static.block_q, 4: j * static.block_k})
            dargs = jax.tree.map(lambda total, part: total + part.astype(total.dtype), dargs, more_args)
            return (dq, dbias, dargs), dk, dv

        zeros = jnp.zeros_like(_cut(inputs.k, 2, j, static.block_k), lse.dtype), jnp.zeros_like(v, lse.dtype)
        carry, *grads = lax.fori_loop(*_queries_of(static, fixed, j, n_queries), queries, (carry, *zeros))
        return carry, tuple(grads)

    wide = jax.tree.map(lambda x: jnp.zeros_like(x, lse.dtype), (inputs.q, inputs.bias, inputs.score_args))
    (dq, dbias, dargs), (dk, dv) = lax.scan(keys, wide, jnp.arange(n_keys, dtype=jnp.int32))
    grads = Inputs(dq, _joined(dk, 2), _joined(dv, 2), dbias, dargs)
    return jax.tree.map(lambda x, dx: dx.astype(x.dtype), inputs, grads), None


chunked.defvjp(_forward_rule, _backward_rule)


def _block(static, inputs, i, j):
    """What the scores of query block i and key block j are made of."""
    q, k = _cut(inputs.q, 3, i, static.block_q), _cut(inputs.k, 2, j, static.block_k)
    bias = None if inputs.bias is None else _cut(_cut(inputs.bias, 3, i, static.block_q), 4, j, static.block_k)
    return q, k, bias, inputs.score_args


def _positions(static, fixed, i, j):
    q_at = fixed.q_offset + i * static.block_q + jnp.arange(static.block_q, dtype=jnp.int32)
    return q_at, j * static.block_k + jnp.arange(static.block_k, dtype=jnp.int32)


def _mask(static, fixed, i, j):
    """`kept` of a block, the padding of the keys left out."""
    mask, segments = fixed.mask, fixed.segments
    q_at, k_at = _positions(static, fixed, i, j)
    if mask is not None:
        mask = _cut(_cut(mask, 3, i, static.block_q), 4, j, static.block_k)
    if segments is not None:
        segments = _cut(segments[0], 1, i, static.block_q), _cut(segments[1], 1, j, static.block_k)
    keep = kept(static, Fixed(mask, segments, fixed.q_offset), q_at, k_at)
    if static.n_keys % static.block_k == 0:
        return keep
    real = (k_at < static.n_keys)[None, None, None, None]
    return real if keep is None else jnp.logical_and(*jnp.broadcast_arrays(keep, real))


def _keys_of(static, fixed, i, n_keys):
    """The blocks of keys that query block i can see: first, last + 1."""
    if n_keys == 1:  # a loop that XLA can remove
        return jnp.int32(0), jnp.int32(1)
    q_first = fixed.q_offset + i * static.block_q
    first, last = jnp.int32(0), jnp.int32(n_keys)
    if static.causal:
        last = jnp.clip((q_first + static.block_q - 1) // static.block_k + 1, 0, n_keys)
    if static.window is not None:
        first = jnp.maximum((q_first - static.window + 1) // static.block_k, 0)
    return first, last


def _queries_of(static, fixed, j, n_queries):
    """The blocks of queries that can see key block j: first, last + 1."""
    if n_queries == 1:
        return jnp.int32(0), jnp.int32(1)
    k_first = j * static.block_k - fixed.q_offset
    first, last = jnp.int32(0), jnp.int32(n_queries)
    if static.causal:
        first = jnp.maximum(k_first // static.block_q, 0)
    if static.window is not None:
        last = jnp.clip((k_first + static.block_k - 1 + static.window - 1) // static.block_q + 1, 0, n_queries)
    return first, last


def _cut(x, axis, i, size):
    """Block i along an axis; an axis of length 1 broadcasts."""
    return x if x.shape[axis] == 1 else lax.dynamic_slice_in_dim(x, i * size, size, axis)


def _add(total, part, starts):
    """total with part added at `starts`, axis -> index; an axis of length 1 begins at 0."""
    zero = jnp.int32(0)
    index = [starts.get(axis, zero) if size != 1 else zero for axis, size in enumerate(total.shape)]
    block = lax.dynamic_slice(total, index, part.shape)
    return lax.dynamic_update_slice(total, block + part.astype(total.dtype), index)


def _joined(blocks, axis):
    """[n, …] -> n blocks one after the other along `axis` of a block."""
    blocks = jnp.moveaxis(blocks, 0, axis)
    return blocks.reshape(*blocks.shape[:axis], -1, *blocks.shape[axis + 2 :])
