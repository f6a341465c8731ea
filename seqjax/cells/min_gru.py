"""The minimal GRU (Feng et al., 2024, "Were RNNs all we needed?"): gate and candidate see the input only.

    z, n = split(x_t w_x + b)
    h_t = (1 - σ(z)) h_{t-1} + σ(z) n

Linear in the state, h_t = a_t h_{t-1} + u_t with a = 1 - σ(z) and u = σ(z) n. The candidate has no nonlinearity, as
in the paper's main text; its log-space variant, which needs a positive candidate, is another function.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, zeros
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of a minimal GRU; gates z n."""

    w_x: Float[Array, "D 2*H"] | None
    b: Float[Array, "2*H"]


class Carry(NamedTuple):
    """State of a minimal GRU."""

    h: Float[Array, "*B H"]


AXES = Params._make((P("embed", "gates"), P("gates")))  # w_x, b


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, zero bias."""
    return Params(w_x=input_matrix(key, d_in, d_hidden, 2, dtype), b=jnp.zeros(2 * d_hidden, dtype))


def initial(params: Params, zx_t: Float[Array, "*B GH"]) -> Carry:
    """The zero state."""
    return Carry(zeros(zx_t, params.b.shape[0] // 2))


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The state itself, though no matrix multiplies it."""
    return carry.h


def linear(rest: Params, zx: Float[Array, "*B GH"]) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """a = 1 - σ(z), u = σ(z) n."""
    z, n = jnp.split(zx.astype(wide(zx.dtype)), 2, axis=-1)
    return jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * n


def pointwise(rest: Params, carry: Carry, zx: Float[Array, "*B GH"], zh: None):
    """h = a h + u."""
    a, u = linear(rest, zx)
    h = a * carry.h + u
    return Carry(h), h.astype(zx.dtype)


CELL = Cell("min_gru", init, initial, hidden, pointwise, AXES, linear=linear)
