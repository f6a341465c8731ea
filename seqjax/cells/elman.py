"""The simple recurrent network (Elman, 1990, "Finding structure in time").

    h_t = φ(x_t w_x + b + h_{t-1} w_h)

``CELL`` has φ = tanh; ``make`` builds the cell with any other nonlinearity.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, recurrent_matrix, zeros
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of an Elman cell."""

    w_x: Float[Array, "D H"] | None
    w_h: Float[Array, "H H"] | None
    b: Float[Array, "H"]


class Carry(NamedTuple):
    """State of an Elman cell."""

    h: Float[Array, "*B H"]


AXES = Params._make((P("embed", "gates"), P("hidden", "gates"), P("gates")))  # w_x, w_h, b


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, orthogonal recurrent weights, zero bias."""
    key_x, key_h = jax.random.split(key)
    return Params(
        w_x=input_matrix(key_x, d_in, d_hidden, 1, dtype),
        w_h=recurrent_matrix(key_h, d_hidden, 1, dtype),
        b=jnp.zeros(d_hidden, dtype),
    )


def initial(params: Params, zx_t: Float[Array, "*B H"]) -> Carry:
    """The zero state."""
    return Carry(zeros(zx_t, params.b.shape[0]))


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The state itself is what the recurrent matrix multiplies."""
    return carry.h


@functools.cache
def make(nonlinearity: Callable[[Array], Array] = jnp.tanh, name: str = "elman") -> Cell:
    """The Elman cell with the given nonlinearity φ; the same arguments give the same Cell, so nothing recompiles."""

    def pointwise(rest, carry, zx, zh):
        """h = φ(zx + zh)."""
        state = wide(zx.dtype)
        h = nonlinearity(zx.astype(state) + zh.astype(state))
        return Carry(h), h.astype(zx.dtype)

    return Cell(name, init, initial, hidden, pointwise, AXES)


CELL = make()
