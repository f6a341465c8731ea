"""Long short-term memory (Hochreiter and Schmidhuber, 1997) with a forget gate (Gers et al., 2000).

    i, f, g, o = split(x_t w_x + b + h_{t-1} w_h)
    c_t = σ(f) c_{t-1} + σ(i) tanh(g)
    h_t = σ(o) tanh(c_t)

Gates in torch's order. There is one bias and no hidden "+1": the forget gate's bias starts at 1 instead
(Jozefowicz et al., 2015), so that a fresh cell remembers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, recurrent_matrix, zeros
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of an LSTM; gates i f g o."""

    w_x: Float[Array, "D 4*H"] | None
    w_h: Float[Array, "H 4*H"] | None
    b: Float[Array, "4*H"]


class Carry(NamedTuple):
    """State of an LSTM: output h and memory c."""

    h: Float[Array, "*B H"]
    c: Float[Array, "*B H"]


AXES = Params._make((P("embed", "gates"), P("hidden", "gates"), P("gates")))  # w_x, w_h, b


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, orthogonal recurrent weights, forget bias 1."""
    key_x, key_h = jax.random.split(key)
    return Params(
        w_x=input_matrix(key_x, d_in, d_hidden, 4, dtype),
        w_h=recurrent_matrix(key_h, d_hidden, 4, dtype),
        b=jnp.zeros(4 * d_hidden, dtype).at[d_hidden : 2 * d_hidden].set(1),
    )


def initial(params: Params, zx_t: Float[Array, "*B GH"]) -> Carry:
    """The zero state."""
    d_hidden = params.b.shape[0] // 4
    return Carry(zeros(zx_t, d_hidden), zeros(zx_t, d_hidden))  # two arrays: either may be donated


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The output is what the recurrent matrix multiplies."""
    return carry.h


def pointwise(rest: Params, carry: Carry, zx: Float[Array, "*B GH"], zh: Float[Array, "*B GH"]):
    """c = σ(f) c + σ(i) tanh(g); h = σ(o) tanh(c)."""
    state = wide(zx.dtype)
    i, f, g, o = jnp.split(zx.astype(state) + zh.astype(state), 4, axis=-1)
    c = jax.nn.sigmoid(f) * carry.c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return Carry(h, c), h.astype(zx.dtype)


CELL = Cell("lstm", init, initial, hidden, pointwise, AXES)
