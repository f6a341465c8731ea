"""LSTM with peepholes (Gers and Schmidhuber, 2000, "Recurrent nets that time and count"): the gates see the memory.

    i, f, g, o = split(x_t w_x + b + h_{t-1} w_h)
    c_t = σ(f + p_f ∘ c_{t-1}) c_{t-1} + σ(i + p_i ∘ c_{t-1}) tanh(g)
    h_t = σ(o + p_o ∘ c_t) tanh(c_t)

Gates in torch's order; the output gate sees the new memory. A peephole is a weight for each unit, so each gate sees
its own unit's memory only. The paper's memory has no tanh on the way out; here it has one, as in Greff et al. (2017).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, recurrent_matrix, rows, zeros
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of an LSTM with peepholes; gates i f g o."""

    w_x: Float[Array, "D 4*H"] | None
    w_h: Float[Array, "H 4*H"] | None
    b: Float[Array, "4*H"]
    p_i: Float[Array, "H"]
    p_f: Float[Array, "H"]
    p_o: Float[Array, "H"]


class Carry(NamedTuple):
    """State of an LSTM: output h and memory c."""

    h: Float[Array, "*B H"]
    c: Float[Array, "*B H"]


AXES = Params._make(  # w_x, w_h, b, p_i, p_f, p_o
    (P("embed", "gates"), P("hidden", "gates"), P("gates"), P("gates"), P("gates"), P("gates"))
)


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, orthogonal recurrent weights, forget bias 1, peepholes 0: at first a plain LSTM."""
    key_x, key_h = jax.random.split(key)
    return Params(
        w_x=input_matrix(key_x, d_in, d_hidden, 4, dtype),
        w_h=recurrent_matrix(key_h, d_hidden, 4, dtype),
        b=jnp.zeros(4 * d_hidden, dtype).at[d_hidden : 2 * d_hidden].set(1),
        p_i=jnp.zeros(d_hidden, dtype),
        p_f=jnp.zeros(d_hidden, dtype),
        p_o=jnp.zeros(d_hidden, dtype),
    )


def initial(params: Params, zx_t: Float[Array, "*B GH"]) -> Carry:
    """The zero state."""
    d_hidden = params.b.shape[0] // 4
    return Carry(zeros(zx_t, d_hidden), zeros(zx_t, d_hidden))  # two arrays: either may be donated


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The output is what the recurrent matrix multiplies."""
    return carry.h


def pointwise(rest: Params, carry: Carry, zx: Float[Array, "*B GH"], zh: Float[Array, "*B GH"]):
    """c = σ(f + p_f c) c + σ(i + p_i c) tanh(g); h = σ(o + p_o c) tanh(c)."""
    state = wide(zx.dtype)
    i, f, g, o = jnp.split(zx.astype(state) + zh.astype(state), 4, axis=-1)
    i = jax.nn.sigmoid(i + rows(rest.p_i, i) * carry.c)
    f = jax.nn.sigmoid(f + rows(rest.p_f, f) * carry.c)
    c = f * carry.c + i * jnp.tanh(g)
    h = jax.nn.sigmoid(o + rows(rest.p_o, o) * c) * jnp.tanh(c)
    return Carry(h, c), h.astype(zx.dtype)


CELL = Cell("lstm_peephole", init, initial, hidden, pointwise, AXES)
