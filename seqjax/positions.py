"""Where a token stands: encodings that are added, rotations of queries and keys, biases of attention's scores.

``alibi``, ``t5_bias`` and ``soft_cap`` change the scores of attention: ``(scores [B, N, T, S], q_positions [T],
k_positions [S], *arguments) -> scores``. They are functions of a module, so attention may take them as static.
"""

import math
from bisect import bisect_left
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.errors import InputError
from seqjax.types import Array, Float, Int, Scalar, wide


def sinusoidal(length: int, dim: int) -> Float[Array, "T D"]:
    """The first ``length`` sinusoidal encodings (Vaswani et al., 2017).

        w_i       = 10000^(-2i/D)
        pe_t,2i   = sin(t w_i)
        pe_t,2i+1 = cos(t w_i)

    Computed in float64, rounded to float32.

    Raises:
      InputError: ``length`` is below 1, or ``dim`` is not even.

    >>> print(sinusoidal(2, 4).round(3))
    [[0.    1.    0.    1.   ]
     [0.841 0.54  0.01  1.   ]]
    """
    if length < 1:
        raise InputError(f"length={length} must be at least 1: pass the number of positions")
    angles = np.arange(length)[:, None] * _frequencies(dim)
    return jnp.asarray(np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, dim), jnp.float32)


def sinusoidal_shift(k: int, dim: int) -> Float[Array, "D D"]:
    """The matrix that moves sinusoidal encodings by k positions, whichever they are (Vaswani et al., 2017).

        pe(t + k) = pe(t) @ shift

    It is a rotation of each pair of sine and cosine by the angle k w_i. k may be negative.

    Raises:
      InputError: ``dim`` is not even.

    >>> pe = sinusoidal(10, 4)
    >>> print(jnp.abs(pe[3:] - pe[:-3] @ sinusoidal_shift(3, 4)).max() < 1e-6)
    True
    """
    angles = k * _frequencies(dim)
    shift = np.zeros((dim, dim))
    sines, cosines = np.arange(0, dim, 2), np.arange(1, dim, 2)
    shift[sines, sines] = shift[cosines, cosines] = np.cos(angles)
    shift[cosines, sines] = np.sin(angles)
    shift[sines, cosines] = -np.sin(angles)
    return jnp.asarray(shift, jnp.float32)


def sinusoidal_at(positions: Array, dim: int) -> Float[Array, "*P D"]:
    """The sinusoidal encodings of any positions, traced or not: for decoding past the end of every table.

    The rows of ``sinusoidal`` to within 1e-6 for positions up to 10^8, where the product of position and frequency
    in float32 would be wrong by whole turns.

    Args:
      positions: integers, ``[...]``.
      dim: D.

    Raises:
      InputError: positions are not integers, or ``dim`` is not even.

    >>> print(jnp.abs(sinusoidal_at(jnp.arange(10), 4) - sinusoidal(10, 4)).max() < 1e-6)
    True
    """
    angles = _angles(positions, _frequencies(dim), np.float32)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, dim)


def rotary(
    x: Float[Array, "B T N D"],
    positions: Array,
    *,
    layout: Literal["half", "interleaved"] = "half",
    base: float = 10000.0,
) -> Float[Array, "B T N D"]:
    """Rotate the pairs of features of queries or keys by angles that grow with the position (Su et al., 2021).

        θ_t,i      = position_t base^(-2i/D)
        (a_i, b_i) = (a_i cos θ - b_i sin θ, a_i sin θ + b_i cos θ)

    so that the product of a query and a key depends on the difference of their positions only. A pair is ``(x_i,
    x_{i + D/2})`` with layout "half" (GPT-NeoX, Llama), ``(x_2i, x_2i+1)`` with "interleaved" (the paper, GPT-J).
    Computed in at least float32; the result has the dtype of x. Angles are as exact as those of ``sinusoidal_at``.

    Args:
      x: ``[B, T, N, D]``.
      positions: integers, ``[T]`` or ``[B, T]``, traced or not.
      layout: which features are a pair.
      base: a number, not traced.

    Raises:
      InputError: D is not even, the layout is unknown, or positions are no integers ``[T]`` or ``[B, T]``.

    >>> x = jnp.ones((1, 2, 1, 4))
    >>> print(np.asarray(rotary(x, jnp.arange(2))[0, 1, 0]).round(3))
    [-0.301  0.99   1.382  1.01 ]
    """
    if layout not in ("half", "interleaved"):
        raise InputError(f"layout={layout!r} is unknown: choose half or interleaved")
    if positions.shape not in (x.shape[1:2], x.shape[:2]):
        raise InputError(f"positions {positions.shape} do not fit x {x.shape}: pass [T] or [B, T] for x [B, T, N, D]")
    dtype = wide(x.dtype)
    angles = _angles(positions, _frequencies(x.shape[-1], base), dtype)
    angles = angles.reshape(*positions.shape, 1, x.shape[-1] // 2)  # [T, 1, D/2] or [B, T, 1, D/2]
    angles = angles if positions.ndim == 2 else angles[None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    # The two halves of a pair along an axis of their own: before the pairs, or behind.
    half = x.shape[-1] // 2
    split, axis = ((2, half), -2) if layout == "half" else ((half, 2), -1)
    a, b = jnp.unstack(x.astype(dtype).reshape(*x.shape[:-1], *split), axis=axis)
    rotated = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=axis)
    return rotated.reshape(x.shape).astype(x.dtype)


def alibi_slopes(n_heads: int) -> Float[Array, "N"]:
    """The slopes of ``alibi`` for each head (Press et al., 2022).

        slope_n = 2^(-8n/N), n = 1 … N

    if N is a power of two. Otherwise the slopes for the next lower power of two, followed by every second of those for
    the next higher one, as in the authors' code.

    Raises:
      InputError: ``n_heads`` is below 1.

    >>> print(alibi_slopes(3))
    [0.0625     0.00390625 0.25      ]
    """
    if n_heads < 1:
        raise InputError(f"n_heads={n_heads} must be at least 1: pass the number of heads")
    lower = 1 << (n_heads.bit_length() - 1)
    steps = np.append(np.arange(1, lower + 1) / lower, np.arange(1, 2 * lower, 2) / (2 * lower))
    return jnp.asarray(2.0 ** (-8 * steps[:n_heads]), jnp.float32)


def t5_buckets(
    distances: Array, *, bidirectional: bool, n_buckets: int = 32, max_distance: int = 128
) -> Int[Array, "*shape"]:
    """The bucket of a distance, whose bias is learned (Raffel et al., 2020).

        bucket(n) = n                                          if n < E
                    min(E + ⌊R log(n/E) / log(M/E)⌋, C - 1)    otherwise

    for ``n = -distance``, or 0 for keys behind the query; C is ``n_buckets``, M ``max_distance``, E = ⌊C/2⌋, R = C - E.
    If bidirectional, C is half of ``n_buckets``, n = ``|distance|``, and keys behind the query have buckets from C on.
    Borders are decided in integers, so that no rounding moves them.

    Args:
      distances: position of the key minus position of the query, integers ``[...]``.
      bidirectional: whether keys behind the query have buckets of their own.
      n_buckets: of both directions together.
      max_distance: distances from here on share a bucket.

    Returns:
      Integers in ``[0, n_buckets)``, ``[...]``.

    Raises:
      InputError: distances are not integers, or the buckets are too few or too many for ``max_distance``.

    >>> print(t5_buckets(jnp.array([-1000, -20, -3, 0, 3]), bidirectional=False))
    [31 17  3  0  0]
    """
    if not jnp.issubdtype(distances.dtype, jnp.integer):
        raise InputError(f"distances must be integers, not {distances.dtype}: subtract integer positions")
    count, odd = divmod(n_buckets, 2) if bidirectional else (n_buckets, 0)
    if count < 2 or odd:
        least = "even and at least 4 if bidirectional" if bidirectional else "at least 2"
        raise InputError(f"n_buckets={n_buckets} must be {least}")
    if max_distance <= count // 2:
        raise InputError(
            f"max_distance={max_distance} must exceed {count // 2}, the buckets for one distance each: "
            "raise it or lower n_buckets"
        )
    bucket = jnp.asarray(_bucket_table(count, max_distance))
    near = jnp.clip(distances, -max_distance, max_distance)
    if not bidirectional:
        return bucket[jnp.maximum(-near, 0)]
    return bucket[jnp.abs(near)] + count * (near > 0).astype(bucket.dtype)


def alibi(
    scores: Float[Array, "B N T S"], q_positions: Int[Array, "T"], k_positions: Int[Array, "S"], slopes: Array
) -> Float[Array, "B N T S"]:
    """Attention with linear biases (Press et al., 2022).

        scores - slope_n |q_position - k_position|

    Args:
      scores: ``[B, N, T, S]``.
      q_positions: ``[T]``.
      k_positions: ``[S]``.
      slopes: ``[N]``, those of ``alibi_slopes`` or learned ones.

    Raises:
      InputError: there is not one slope for each head.

    >>> print(alibi(jnp.zeros((1, 1, 1, 3)), jnp.array([2]), jnp.arange(3), jnp.array([0.5])))
    [[[[-1.  -0.5  0. ]]]]
    """
    if slopes.shape != scores.shape[1:2]:
        raise InputError(f"slopes {slopes.shape} do not fit scores {scores.shape}: pass [N] for scores [B, N, T, S]")
    distances = jnp.abs(k_positions[None, :] - q_positions[:, None]).astype(scores.dtype)
    return scores - slopes.astype(scores.dtype)[None, :, None, None] * distances[None, None]


def t5_bias(
    scores: Float[Array, "B N T S"],
    q_positions: Int[Array, "T"],
    k_positions: Int[Array, "S"],
    table: Array,
    *,
    bidirectional: bool = False,
    max_distance: int = 128,
) -> Float[Array, "B N T S"]:
    """A learned bias for each head and bucket of distances (Raffel et al., 2020).

        scores + table[t5_buckets(k_position - q_position), n]

    By default for causal attention. For an encoder make ``functools.partial(t5_bias, bidirectional=True)`` once, since
    each new partial object is a new function to jit.

    Args:
      scores: ``[B, N, T, S]``. T5 does not divide them by √D.
      q_positions: ``[T]``.
      k_positions: ``[S]``.
      table: ``[n_buckets, N]``.
      bidirectional: see ``t5_buckets``.
      max_distance: see ``t5_buckets``.

    Raises:
      InputError: the table has not one column for each head, or a number of rows that ``t5_buckets`` refuses.

    >>> table = jnp.arange(4.0)[:, None]
    >>> print(t5_bias(jnp.zeros((1, 1, 1, 3)), jnp.array([2]), jnp.arange(3), table, max_distance=8))
    [[[[2. 1. 0.]]]]
    """
    if table.ndim != 2 or table.shape[1] != scores.shape[1]:
        raise InputError(
            f"table {table.shape} does not fit scores {scores.shape}: pass [n_buckets, N] for scores [B, N, T, S]"
        )
    distances = k_positions[None, :] - q_positions[:, None]
    buckets = t5_buckets(distances, bidirectional=bidirectional, n_buckets=table.shape[0], max_distance=max_distance)
    return scores + table.astype(scores.dtype).T[:, buckets][None]


def soft_cap(
    scores: Float[Array, "B N T S"], q_positions: Int[Array, "T"], k_positions: Int[Array, "S"], cap: Scalar
) -> Float[Array, "B N T S"]:
    """Bound the scores smoothly (Bello et al., 2016; Gemma 2, 2024). Positions do not matter.

        cap tanh(scores / cap)

    Args:
      scores: ``[B, N, T, S]``.
      q_positions: ``[T]``.
      k_positions: ``[S]``.
      cap: a positive scalar, traced or not.

    >>> print(soft_cap(jnp.array([[[[0.0, 1000.0]]]]), jnp.arange(1), jnp.arange(2), 50.0))
    [[[[ 0. 50.]]]]
    """
    cap = jnp.asarray(cap, scores.dtype)
    return cap * jnp.tanh(scores / cap)


def _frequencies(dim: int, base: float = 10000.0) -> np.ndarray:
    """base^(-2i/D), i = 0 … D/2 - 1, in float64."""
    if dim < 2 or dim % 2:
        raise InputError(f"dim={dim} must be even and at least 2: features are rotated in pairs")
    return base ** (-np.arange(0, dim, 2) / dim)


def _angles(positions: Array, frequencies: np.ndarray, dtype) -> Float[Array, "*P F"]:
    """positions · frequencies, [..., F], in float32 modulo 2π.

    A product of 10^5 and a frequency in float32 is off by up to 0.005, and that of 10^8 by some radians. So angles are
    counted in turns instead: a frequency is a fraction of a turn, an integer over 2^64 in two words of 32 bits, and
    the product with the position drops whole turns by itself, as integers do when they overflow.
    """
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise InputError(f"positions must be integers, not {positions.dtype}: pass jnp.arange(T) or the like")
    frequencies = frequencies.reshape((1,) * positions.ndim + (-1,))
    if dtype == np.float64:
        return positions[..., None].astype(dtype) * frequencies
    rest, _ = np.modf(frequencies / (2 * math.pi))
    rest, high = np.modf(rest * 2.0**32)
    high, low = high.astype(np.uint32), np.floor(rest * 2.0**32).astype(np.uint32)
    position = jax.lax.bitcast_convert_type(positions.astype(np.int32), np.uint32)[..., None]
    # The upper 32 bits of position · low, from the products of their halves of 16 bits: 3/2^32 of a turn too small at
    # most. A negative position is one that is 2^32 too large, so its low word counted once too often.
    p1, p0, l1, l0 = position >> 16, position & 0xFFFF, low >> 16, low & 0xFFFF
    turns = position * high + p1 * l1 + (p1 * l0 >> 16) + (p0 * l1 >> 16) - jnp.where(p1 >> 15 == 1, low, 0)
    return jax.lax.bitcast_convert_type(turns, np.int32).astype(dtype) * (2 * math.pi / 2**32)


def _bucket_table(count: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance in 0 … max_distance, of ``count`` buckets.

    R log(n/E) / log(M/E) ≥ j where n^R E^j ≥ M^j E^R: exact in Python's integers, whereas a logarithm
    on a border may round down.
    """
    exact = count // 2
    wide = count - exact
    starts = [
        bisect_left(range(max_distance), max_distance**j * exact**wide, key=lambda n, j=j: n**wide * exact**j)
        for j in range(wide)
    ]
    return np.searchsorted([*range(1, exact), *starts], np.arange(max_distance + 1), side="right").astype(np.int32)
