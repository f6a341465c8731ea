"""The original gated recurrent unit (Cho et al., 2014): the reset gate acts before the recurrent product.

    r, z, x_n = split(x_t w_x + b),  r and z each + h_{t-1} w_h
    r = σ(r),  z = σ(z)
    h̃ = tanh(x_n + (r ∘ h_{t-1}) w_g)
    h_t = z h_{t-1} + (1 - z) h̃

The second product depends on r, hence two products a step, one after the other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, recurrent_matrix, zeros
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of Cho's GRU; gates r z n in ``w_x`` and ``b``, r z in ``w_h``, n in ``w_g``."""

    w_x: Float[Array, "D 3*H"] | None
    w_h: Float[Array, "H 2*H"] | None
    w_g: Float[Array, "H H"] | None
    b: Float[Array, "3*H"]


class Carry(NamedTuple):
    """State of Cho's GRU."""

    h: Float[Array, "*B H"]


AXES = Params._make((P("embed", "gates"), P("hidden", "gates"), P("hidden", "gates"), P("gates")))  # w_x, w_h, w_g, b


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, orthogonal recurrent weights, zero bias."""
    key_x, key_h, key_g = jax.random.split(key, 3)
    return Params(
        w_x=input_matrix(key_x, d_in, d_hidden, 3, dtype),
        w_h=recurrent_matrix(key_h, d_hidden, 2, dtype),
        w_g=recurrent_matrix(key_g, d_hidden, 1, dtype),
        b=jnp.zeros(3 * d_hidden, dtype),
    )


def initial(params: Params, zx_t: Float[Array, "*B GH"]) -> Carry:
    """The zero state."""
    return Carry(zeros(zx_t, params.b.shape[0] // 3))


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The state itself is what the recurrent matrix multiplies."""
    return carry.h


def _gates(zx, zh):
    """r = σ(zx_r + zh_r), z = σ(zx_z + zh_z), and x_n."""
    state = wide(zx.dtype)
    x_r, x_z, x_n = jnp.split(zx.astype(state), 3, axis=-1)
    h_r, h_z = jnp.split(zh.astype(state), 2, axis=-1)
    return jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z), x_n


def second(rest: Params, carry: Carry, zx: Float[Array, "*B GH"], zh: Float[Array, "*B RH"]) -> Float[Array, "*B H"]:
    """The left operand of the second product: r ∘ h."""
    r, _, _ = _gates(zx, zh)
    return r * carry.h


def pointwise(
    rest: Params,
    carry: Carry,
    zx: Float[Array, "*B GH"],
    zh: Float[Array, "*B RH"],
    zg: Float[Array, "*B H"],
):
    """h = z h + (1 - z) tanh(x_n + zg)."""
    _, z, x_n = _gates(zx, zh)
    h = z * carry.h + (1 - z) * jnp.tanh(x_n + zg.astype(x_n.dtype))
    return Carry(h), h.astype(zx.dtype)


CELL = Cell("gru_cho", init, initial, hidden, pointwise, AXES, second=second)
