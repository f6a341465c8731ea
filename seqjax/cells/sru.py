"""The simple recurrent unit (Lei et al., 2018), without its recurrent vectors v, so that it is linear in its state.

    f, r, n, s = split(x_t w_x + b)
    h_t = σ(f) h_{t-1} + (1 - σ(f)) n
    y_t = σ(r) h_t + (1 - σ(r)) s

``h`` is the paper's memory c and ``y`` its output h. The gates do not see the memory (the paper adds v_f ∘ c_{t-1} to
f and v_r ∘ c_{t-1} to r), hence h_t = a_t h_{t-1} + u_t. The highway carries s, a projection of x_t where the paper
has α x_t, so D and H may differ; the factor α = √3 is in the initial weights of s.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, zeros
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of a simple recurrent unit; gates f r n s, s being the highway."""

    w_x: Float[Array, "D 4*H"] | None
    b: Float[Array, "4*H"]


class Carry(NamedTuple):
    """State of a simple recurrent unit: its memory, which is not its output."""

    h: Float[Array, "*B H"]


AXES = Params._make((P("embed", "gates"), P("gates")))  # w_x, b


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, those of the highway times √3 to keep the variance of the input; zero bias."""
    w_x = input_matrix(key, d_in, d_hidden, 4, dtype)
    return Params(w_x=w_x.at[:, 3 * d_hidden :].multiply(3**0.5), b=jnp.zeros(4 * d_hidden, dtype))


def initial(params: Params, zx_t: Float[Array, "*B GH"]) -> Carry:
    """The zero state."""
    return Carry(zeros(zx_t, params.b.shape[0] // 4))


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The state itself, though no matrix multiplies it."""
    return carry.h


def linear(rest: Params, zx: Float[Array, "*B GH"]) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """a = σ(f), u = (1 - σ(f)) n."""
    f, _, n, _ = jnp.split(zx.astype(wide(zx.dtype)), 4, axis=-1)
    return jax.nn.sigmoid(f), jax.nn.sigmoid(-f) * n


def pointwise(rest: Params, carry: Carry, zx: Float[Array, "*B GH"], zh: None):
    """h = a h + u."""
    a, u = linear(rest, zx)
    h = a * carry.h + u
    return Carry(h), h.astype(zx.dtype)


def readout(params: Params, ys: Float[Array, "*B H"], zx: Float[Array, "*B GH"]) -> Float[Array, "*B H"]:
    """The highway: y = σ(r) h + (1 - σ(r)) s, from the states ``ys``."""
    state = wide(zx.dtype)
    _, r, _, s = jnp.split(zx.astype(state), 4, axis=-1)
    return (jax.nn.sigmoid(r) * ys.astype(state) + jax.nn.sigmoid(-r) * s).astype(zx.dtype)


CELL = Cell("sru", init, initial, hidden, pointwise, AXES, linear=linear, readout=readout)
