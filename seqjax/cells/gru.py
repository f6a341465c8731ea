"""Gated recurrent unit as torch and cuDNN compute it: the reset gate acts after the recurrent product.

    r = σ(zx_r + zh_r)      zx = x_t w_x + b
    z = σ(zx_z + zh_z)      zh = h_{t-1} w_h + b_h
    n = tanh(zx_n + r zh_n)
    h_t = (1 - z) n + z h_{t-1}

Gates in torch's order r z n. The bias ``b_h`` cannot be folded into ``b``, for r multiplies its last third.
The cell of the 2014 paper, with the reset gate before the product, is ``gru_cho``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, recurrent_matrix, rows, zeros
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of a GRU; gates r z n."""

    w_x: Float[Array, "D 3*H"] | None
    w_h: Float[Array, "H 3*H"] | None
    b: Float[Array, "3*H"]
    b_h: Float[Array, "3*H"]


class Carry(NamedTuple):
    """State of a GRU."""

    h: Float[Array, "*B H"]


AXES = Params._make((P("embed", "gates"), P("hidden", "gates"), P("gates"), P("gates")))  # w_x, w_h, b, b_h


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, orthogonal recurrent weights, zero biases."""
    key_x, key_h = jax.random.split(key)
    return Params(
        w_x=input_matrix(key_x, d_in, d_hidden, 3, dtype),
        w_h=recurrent_matrix(key_h, d_hidden, 3, dtype),
        b=jnp.zeros(3 * d_hidden, dtype),
        b_h=jnp.zeros(3 * d_hidden, dtype),
    )


def initial(params: Params, zx_t: Float[Array, "*B GH"]) -> Carry:
    """The zero state."""
    return Carry(zeros(zx_t, params.b.shape[0] // 3))


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The state itself is what the recurrent matrix multiplies."""
    return carry.h


def pointwise(rest: Params, carry: Carry, zx: Float[Array, "*B GH"], zh: Float[Array, "*B GH"]):
    """h = (1 - z) n + z h."""
    state = wide(zx.dtype)
    zh = zh.astype(state)
    x_r, x_z, x_n = jnp.split(zx.astype(state), 3, axis=-1)
    h_r, h_z, h_n = jnp.split(zh + rows(rest.b_h, zh), 3, axis=-1)
    r = jax.nn.sigmoid(x_r + h_r)
    z = jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    h = (1 - z) * n + z * carry.h
    return Carry(h), h.astype(zx.dtype)


CELL = Cell("gru", init, initial, hidden, pointwise, AXES)
