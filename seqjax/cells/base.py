"""What a cell is, and the few helpers that cell files share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.types import Array, Float, PRNGKey, wide


class Cell(NamedTuple):
    """A recurrent cell: two projections and a pointwise function, as pure functions.

        zx_t = x_t w_x + b           everything that does not depend on the carry: hoisted out of the loop
        zh_t = hidden(carry) w_h     the one product inside the loop
        carry, y_t = pointwise(rest, carry, zx_t, zh_t)

    ``rest`` is Params with the matrices ``w_x``, ``w_h``, ``w_g``, ``w_o`` set to None, so differentiating
    ``pointwise`` never touches a matrix. ``pointwise`` holds no matrix product, acts on each batch row alone, works
    along the last axis and closes over no traced value. A cell with ``second`` has a second product that depends on the
    first, ``zg = second(rest, carry, zx, zh) w_g``, which ``pointwise`` receives as a fifth argument. A cell without a
    recurrent matrix has no field ``w_h``, and its zh is None.

    A cell with ``linear`` is linear in its state: ``pointwise`` computes ``h = a h + u`` elementwise and its output is
    the new state itself. ``linear`` takes one step's zx or a whole sequence's. The carry is one array ``h``, or a real
    and an imaginary part: then a and u are pairs, the product is that of complex numbers and the output is both parts,
    one after the other. What else a cell does to its output (a gate, a matrix ``w_o``) is its ``readout``, which sees
    all steps at once after the loop and whose gradient is plain autodiff.

    A Cell is static and hashable: close over it or pass it as a static argument, never as a traced one.
    """

    name: str
    init: Callable[..., Any]  # (key, d_in, d_hidden, *, dtype=float32) -> Params, a NamedTuple
    initial: Callable[..., Any]  # (params, zx_t) -> carry of zeros, made by zeros_like
    hidden: Callable[[Any], Array]  # carry -> h [B, H]
    pointwise: Callable[..., Any]  # (rest, carry, zx, zh) -> (carry, y)
    axes: Any  # logical axis names, a PartitionSpec for each field of Params
    project: Callable[..., Array] | None = None  # (params, xs) -> zx; None is xs w_x + b
    second: Callable[..., Array] | None = None  # (rest, carry, zx, zh) -> g, with zg = g w_g
    linear: Callable[..., Any] | None = None  # (rest, zx [*T, B, n]) -> (a, u), arrays [*T, B, H] or pairs of them
    readout: Callable[..., Array] | None = None  # (params, ys [*T, B, n], zx) -> ys [*T, B, H]


def rows(vector: Float[Array, "n"], like: Float[Array, "*B n"]) -> Float[Array, "*B n"]:
    """A parameter vector, repeated for every batch row of ``like``, in the dtype of ``like``."""
    return jnp.broadcast_to(vector.astype(like.dtype), like.shape)


def zeros(zx_t: Float[Array, "*B n"], size: int) -> Float[Array, "*B size"]:
    """A carry of zeros that inherits batch shape, sharding and varying axes from a projected slice."""
    return jnp.zeros_like(zx_t[..., :size], dtype=wide(zx_t.dtype))


def input_matrix(key: PRNGKey, d_in: int, d_hidden: int, gates: int, dtype) -> Float[Array, "d_in n"]:
    """Normal entries of variance 1/d_in, so that a projected unit-variance input has unit variance."""
    return jax.nn.initializers.lecun_normal()(key, (d_in, gates * d_hidden), wide(dtype)).astype(dtype)


def recurrent_matrix(key: PRNGKey, d_hidden: int, gates: int, dtype) -> Float[Array, "d_hidden n"]:
    """One orthogonal block per gate, which keeps the norm of the state over time (Saxe et al., 2014)."""
    orthogonal = jax.nn.initializers.orthogonal()
    blocks = [orthogonal(k, (d_hidden, d_hidden), wide(dtype)) for k in jax.random.split(key, gates)]
    return jnp.concatenate(blocks, axis=1).astype(dtype)  # narrower numbers have no QR decomposition
