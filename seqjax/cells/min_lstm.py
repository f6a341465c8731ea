"""The minimal LSTM (Feng et al., 2024, "Were RNNs all we needed?"): gates and candidate see the input only.

    f, i, n = split(x_t w_x + b)
    f' = σ(f) / (σ(f) + σ(i)),  i' = σ(i) / (σ(f) + σ(i))
    h_t = f' h_{t-1} + i' n

Linear in the state, h_t = a_t h_{t-1} + u_t with a = f' and u = i' n. Since f' + i' = 1, its scale does not depend
on time. The candidate has no nonlinearity, as in the paper's main text; its log-space variant, which needs a positive
candidate, is another function.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, zeros
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of a minimal LSTM; gates f i n."""

    w_x: Float[Array, "D 3*H"] | None
    b: Float[Array, "3*H"]


class Carry(NamedTuple):
    """State of a minimal LSTM."""

    h: Float[Array, "*B H"]


AXES = Params._make((P("embed", "gates"), P("gates")))  # w_x, b


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, forget bias 1."""
    return Params(
        w_x=input_matrix(key, d_in, d_hidden, 3, dtype),
        b=jnp.zeros(3 * d_hidden, dtype).at[:d_hidden].set(1),
    )


def initial(params: Params, zx_t: Float[Array, "*B GH"]) -> Carry:
    """The zero state."""
    return Carry(zeros(zx_t, params.b.shape[0] // 3))


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The state itself, though no matrix multiplies it."""
    return carry.h


def linear(rest: Params, zx: Float[Array, "*B GH"]) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """a = f', u = i' n."""
    f, i, n = jnp.split(zx.astype(wide(zx.dtype)), 3, axis=-1)
    # f' = 1 / (1 + σ(i) / σ(f)) = σ(log σ(f) - log σ(i)): the quotient itself is 0 / 0 where both gates are closed.
    log_ratio = jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)
    return jax.nn.sigmoid(log_ratio), jax.nn.sigmoid(-log_ratio) * n


def pointwise(rest: Params, carry: Carry, zx: Float[Array, "*B GH"], zh: None):
    """h = a h + u."""
    a, u = linear(rest, zx)
    h = a * carry.h + u
    return Carry(h), h.astype(zx.dtype)


CELL = Cell("min_lstm", init, initial, hidden, pointwise, AXES, linear=linear)
