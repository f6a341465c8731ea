"""Normalization of features. Statistics are at least float32; results have the dtype of x."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.cells.base import rows
from seqjax.errors import InputError
from seqjax.types import Array, Float, wide


class BatchStats(NamedTuple):
    """Running statistics of ``batch_norm``."""

    mean: Float[Array, "D"]
    var: Float[Array, "D"]


def layer_norm(x: Float[Array, "*B D"], g: Array, b: Array | None = None, *, epsilon: float = 1e-5) -> Array:
    """Layer normalization over the last axis (Ba et al., 2016).

        y = g ∘ (x - mean(x)) / √(var(x) + ε) + b

    Args:
      x: ``[..., D]``.
      g: gain, ``[D]``.
      b: ``[D]``; None is 0.
      epsilon: ε.

    Returns:
      y, ``[..., D]``.

    Raises:
      InputError: g or b is not ``[D]``.

    >>> print(layer_norm(jnp.array([1.0, 3.0]), jnp.ones(2), jnp.ones(2)).round(3))
    [0. 2.]
    """
    _check(x, g=g, b=b)
    z = x.astype(wide(x.dtype))
    z = z - jnp.mean(z, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(z), axis=-1, keepdims=True)
    y = rows(g, z) * (z * jax.lax.rsqrt(variance + epsilon))
    return (y if b is None else y + rows(b, z)).astype(x.dtype)


def rms_norm(x: Float[Array, "*B D"], g: Array, *, epsilon: float = 1e-6) -> Array:
    """Root mean square normalization over the last axis (Zhang and Sennrich, 2019).

        y = g ∘ x / √(mean(x²) + ε)

    Args:
      x: ``[..., D]``.
      g: gain, ``[D]``.
      epsilon: ε.

    Returns:
      y, ``[..., D]``.

    Raises:
      InputError: g is not ``[D]``.

    >>> print(np.asarray(rms_norm(jnp.array([1.0, 7.0]), jnp.ones(2))).round(3))
    [0.2 1.4]
    """
    _check(x, g=g)
    z = x.astype(wide(x.dtype))
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(z), axis=-1, keepdims=True) + epsilon)
    return (rows(g, z) * (z * scale)).astype(x.dtype)


def batch_stats(d: int) -> BatchStats:
    """The running statistics of ``batch_norm`` before the first batch: mean 0, variance 1, in float32.

    >>> print(batch_stats(2))
    BatchStats(mean=Array([0., 0.], dtype=float32), var=Array([1., 1.], dtype=float32))
    """
    return BatchStats(jnp.zeros(d, jnp.float32), jnp.ones(d, jnp.float32))


def batch_norm(
    x: Float[Array, "*B D"],
    g: Array,
    b: Array,
    stats: BatchStats,
    *,
    train: bool,
    where: Array | None = None,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Array, BatchStats]:
    """Batch normalization over all axes but the last (Ioffe and Szegedy, 2015).

        mean, var  = those of the n entries to keep (train), or stats
        y          = g ∘ (x - mean) / √(var + ε) + b
        stats.mean = m stats.mean + (1 - m) mean
        stats.var  = m stats.var + (1 - m) var n/(n - 1)

    torch calls 1 - m the momentum. With n = 0 stats stay as they are, with n = 1 the variance does.

    Args:
      x: ``[..., D]``.
      g: gain, ``[D]``.
      b: ``[D]``.
      stats: from ``batch_stats`` or the call before.
      train: whether to take the batch's statistics and update stats.
      where: ``[...]``, True = keep; None keeps all. Elsewhere x may be anything, NaN included, and y is 0.
      momentum: m.
      epsilon: ε.
      axis_name: axes of ``shard_map`` or ``vmap`` that hold further parts of the batch, which may keep different
        numbers of entries. A batch that is sharded by ``jit`` needs no name.

    Returns:
      ``(y, stats)``, y ``[..., D]``.

    Raises:
      InputError: g, b or stats are not ``[D]``, or where is not bool ``[...]``.

    >>> y, stats = batch_norm(jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.ones(1), batch_stats(1), train=True)
    >>> print(y.round(3).tolist(), stats)
    [[0.0], [2.0]] BatchStats(mean=Array([0.2], dtype=float32), var=Array([1.1], dtype=float32))
    """
    _check(x, g=g, b=b, **{"stats.mean": stats.mean, "stats.var": stats.var})
    if where is None:
        where = jnp.ones_like(x[..., 0], bool)
    elif where.shape != x.shape[:-1] or where.dtype != bool:
        raise InputError(f"where {where.shape} {where.dtype} does not fit x {x.shape}: pass bool [...] for x [..., D]")
    keep = jnp.broadcast_to(where[..., None], x.shape)
    # Replaced before the first operation, not only after the last: 0 · NaN is NaN in the gradient.
    z = jnp.where(keep, x, jnp.zeros_like(x)).astype(wide(x.dtype))
    if train:

        def total(entries: Array) -> Array:
            entries = jnp.sum(entries, axis=tuple(range(where.ndim)))
            return entries if axis_name is None else jax.lax.psum(entries, axis_name)

        def updated(old: Array, new: Array, known: Array) -> Array:
            return jnp.where(known, momentum * old + (1 - momentum) * new.astype(old.dtype), old)

        n = total(where.astype(np.int32))
        mean = total(z) / jnp.maximum(n, 1).astype(z.dtype)
        centred = jnp.where(keep, z - rows(mean, z), 0)
        squares = total(jnp.square(centred))
        var = squares / jnp.maximum(n, 1).astype(z.dtype)
        unbiased = squares / jnp.maximum(n - 1, 1).astype(z.dtype)
        stats = BatchStats(updated(stats.mean, mean, n > 0), updated(stats.var, unbiased, n > 1))
    else:
        mean, var = stats
        centred = z - rows(mean, z)
    scale = rows(jax.lax.rsqrt(var + epsilon), z)
    y = rows(g, z) * (centred * scale) + rows(b, z)
    return jnp.where(keep, y, 0).astype(x.dtype), stats


def _check(x: Array, **vectors: Array | None):
    for name, vector in vectors.items():
        if vector is not None and vector.shape != x.shape[-1:]:
            raise InputError(f"{name} {vector.shape} does not fit x {x.shape}: pass [D] for x [..., D]")
