"""LSTM with layer normalization (Ba et al., 2016, "Layer normalization").

    LN(z) = (z - mean(z)) / √(var(z) + ε)
    zx = g_x ∘ LN(x_t w_x) + b
    i, f, g, o = split(zx + g_h ∘ LN(h_{t-1} w_h))
    c_t = σ(f) c_{t-1} + σ(i) tanh(g)
    h_t = σ(o) tanh(g_c ∘ LN(c_t) + b_c)

Gates in torch's order. Both products are normalized on their own, each over its 4 H numbers, all gates together.
``b`` is the sum of the paper's three biases (its b and those of the two norms), which only occur as a sum. The
statistics of x_t w_x do not depend on the carry: they are taken before the loop.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, recurrent_matrix, zeros
from seqjax.normalization import layer_norm
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of a layer-normalized LSTM; gates i f g o."""

    w_x: Float[Array, "D 4*H"] | None
    w_h: Float[Array, "H 4*H"] | None
    b: Float[Array, "4*H"]
    g_x: Float[Array, "4*H"]
    g_h: Float[Array, "4*H"]
    g_c: Float[Array, "H"]
    b_c: Float[Array, "H"]


class Carry(NamedTuple):
    """State of an LSTM: output h and memory c, which is kept as it is before its norm."""

    h: Float[Array, "*B H"]
    c: Float[Array, "*B H"]


AXES = Params._make(  # w_x, w_h, b, g_x, g_h, g_c, b_c
    (P("embed", "gates"), P("hidden", "gates"), P("gates"), P("gates"), P("gates"), P("gates"), P("gates"))
)


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, orthogonal recurrent weights, gains 1, forget bias 1."""
    key_x, key_h = jax.random.split(key)
    return Params(
        w_x=input_matrix(key_x, d_in, d_hidden, 4, dtype),
        w_h=recurrent_matrix(key_h, d_hidden, 4, dtype),
        b=jnp.zeros(4 * d_hidden, dtype).at[d_hidden : 2 * d_hidden].set(1),
        g_x=jnp.ones(4 * d_hidden, dtype),
        g_h=jnp.ones(4 * d_hidden, dtype),
        g_c=jnp.ones(d_hidden, dtype),
        b_c=jnp.zeros(d_hidden, dtype),
    )


def initial(params: Params, zx_t: Float[Array, "*B GH"]) -> Carry:
    """The zero state."""
    d_hidden = params.g_c.shape[0]
    return Carry(zeros(zx_t, d_hidden), zeros(zx_t, d_hidden))  # two arrays: either may be donated


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The output is what the recurrent matrix multiplies."""
    return carry.h


def project(params: Params, xs: Float[Array, "*B D"]) -> Float[Array, "*B GH"]:
    """zx = g_x ∘ LN(x w_x) + b, in the dtype of xs."""
    assert params.w_x is not None
    zx = xs @ params.w_x.astype(xs.dtype)
    return layer_norm(zx, params.g_x, params.b)


def pointwise(rest: Params, carry: Carry, zx: Float[Array, "*B GH"], zh: Float[Array, "*B GH"]):
    """c = σ(f) c + σ(i) tanh(g); h = σ(o) tanh(g_c LN(c) + b_c)."""
    state = wide(zx.dtype)
    i, f, g, o = jnp.split(zx.astype(state) + layer_norm(zh.astype(state), rest.g_h), 4, axis=-1)
    c = jax.nn.sigmoid(f) * carry.c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(layer_norm(c, rest.g_c, rest.b_c))
    return Carry(h, c), h.astype(zx.dtype)


CELL = Cell("lstm_layernorm", init, initial, hidden, pointwise, AXES, project=project)
