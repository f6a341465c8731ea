"""The minimal gated unit (Zhou et al., 2016, "Minimal gated unit for recurrent neural networks").

    f, x_n = split(x_t w_x + b),  f + h_{t-1} w_h
    f = σ(f)
    h̃ = tanh(x_n + (f ∘ h_{t-1}) w_g)
    h_t = (1 - f) h_{t-1} + f h̃

One gate does the work of a GRU's two. It acts before the second product, as in ``gru_cho``: two products a step, one
after the other. Flax's MGUCell multiplies by it after the product instead, as torch's GRU does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, recurrent_matrix, zeros
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of a minimal gated unit; gates f n in ``w_x`` and ``b``, f in ``w_h``, n in ``w_g``."""

    w_x: Float[Array, "D 2*H"] | None
    w_h: Float[Array, "H H"] | None
    w_g: Float[Array, "H H"] | None
    b: Float[Array, "2*H"]


class Carry(NamedTuple):
    """State of a minimal gated unit."""

    h: Float[Array, "*B H"]


AXES = Params._make((P("embed", "gates"), P("hidden", "gates"), P("hidden", "gates"), P("gates")))  # w_x, w_h, w_g, b


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, orthogonal recurrent weights, zero bias."""
    key_x, key_h, key_g = jax.random.split(key, 3)
    return Params(
        w_x=input_matrix(key_x, d_in, d_hidden, 2, dtype),
        w_h=recurrent_matrix(key_h, d_hidden, 1, dtype),
        w_g=recurrent_matrix(key_g, d_hidden, 1, dtype),
        b=jnp.zeros(2 * d_hidden, dtype),
    )


def initial(params: Params, zx_t: Float[Array, "*B GH"]) -> Carry:
    """The zero state."""
    return Carry(zeros(zx_t, params.b.shape[0] // 2))


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The state itself is what the recurrent matrix multiplies."""
    return carry.h


def _gate(zx, zh):
    """f = σ(zx_f + zh), and x_n."""
    state = wide(zx.dtype)
    x_f, x_n = jnp.split(zx.astype(state), 2, axis=-1)
    return jax.nn.sigmoid(x_f + zh.astype(state)), x_n


def second(rest: Params, carry: Carry, zx: Float[Array, "*B GH"], zh: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """The left operand of the second product: f ∘ h."""
    f, _ = _gate(zx, zh)
    return f * carry.h


def pointwise(
    rest: Params,
    carry: Carry,
    zx: Float[Array, "*B GH"],
    zh: Float[Array, "*B H"],
    zg: Float[Array, "*B H"],
):
    """h = (1 - f) h + f tanh(x_n + zg)."""
    f, x_n = _gate(zx, zh)
    h = (1 - f) * carry.h + f * jnp.tanh(x_n + zg.astype(x_n.dtype))
    return Carry(h), h.astype(zx.dtype)


CELL = Cell("mgu", init, initial, hidden, pointwise, AXES, second=second)
