"""LSTM with coupled input and forget gate (CIFG of Greff et al., 2017, "LSTM: a search space odyssey").

    f, g, o = split(x_t w_x + b + h_{t-1} w_h)
    c_t = σ(f) c_{t-1} + (1 - σ(f)) tanh(g)
    h_t = σ(o) tanh(c_t)

What is forgotten makes room for what is new: i = 1 - f, three quarters of an LSTM's weights, and |c| stays below 1.
The paper's variant also has the peepholes of ``lstm_peephole``; this one has none.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, recurrent_matrix, zeros
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of an LSTM with a coupled gate; gates f g o."""

    w_x: Float[Array, "D 3*H"] | None
    w_h: Float[Array, "H 3*H"] | None
    b: Float[Array, "3*H"]


class Carry(NamedTuple):
    """State of an LSTM: output h and memory c."""

    h: Float[Array, "*B H"]
    c: Float[Array, "*B H"]


AXES = Params._make((P("embed", "gates"), P("hidden", "gates"), P("gates")))  # w_x, w_h, b


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, orthogonal recurrent weights, forget bias 1."""
    key_x, key_h = jax.random.split(key)
    return Params(
        w_x=input_matrix(key_x, d_in, d_hidden, 3, dtype),
        w_h=recurrent_matrix(key_h, d_hidden, 3, dtype),
        b=jnp.zeros(3 * d_hidden, dtype).at[:d_hidden].set(1),
    )


def initial(params: Params, zx_t: Float[Array, "*B GH"]) -> Carry:
    """The zero state."""
    d_hidden = params.b.shape[0] // 3
    return Carry(zeros(zx_t, d_hidden), zeros(zx_t, d_hidden))  # two arrays: either may be donated


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The output is what the recurrent matrix multiplies."""
    return carry.h


def pointwise(rest: Params, carry: Carry, zx: Float[Array, "*B GH"], zh: Float[Array, "*B GH"]):
    """c = σ(f) c + (1 - σ(f)) tanh(g); h = σ(o) tanh(c)."""
    state = wide(zx.dtype)
    f, g, o = jnp.split(zx.astype(state) + zh.astype(state), 3, axis=-1)
    f = jax.nn.sigmoid(f)
    c = f * carry.c + (1 - f) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return Carry(h, c), h.astype(zx.dtype)


CELL = Cell("lstm_coupled", init, initial, hidden, pointwise, AXES)
