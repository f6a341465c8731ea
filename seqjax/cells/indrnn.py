"""The independently recurrent network (Li et al., 2018): each unit sees its own past only.

    h_t = relu(x_t w_x + b + g_h ∘ h_{t-1})

There is no recurrent matrix, so units meet in the next layer only. Over T steps a gradient grows by at most
|g_h|ᵀ; the paper clips |g_h| to 2^(1/T) after each update, which is left to the optimizer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, rows, zeros
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of an independently recurrent network; ``g_h`` is the paper's recurrent vector u."""

    w_x: Float[Array, "D H"] | None
    b: Float[Array, "H"]
    g_h: Float[Array, "H"]


class Carry(NamedTuple):
    """State of an independently recurrent network."""

    h: Float[Array, "*B H"]


AXES = Params._make((P("embed", "gates"), P("gates"), P("gates")))  # w_x, b, g_h


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, zero bias, ``g_h`` uniform in [0, 1): units with memories of every length."""
    key_x, key_h = jax.random.split(key)
    return Params(
        w_x=input_matrix(key_x, d_in, d_hidden, 1, dtype),
        b=jnp.zeros(d_hidden, dtype),
        g_h=jax.random.uniform(key_h, (d_hidden,), dtype),
    )


def initial(params: Params, zx_t: Float[Array, "*B H"]) -> Carry:
    """The zero state."""
    return Carry(zeros(zx_t, params.b.shape[0]))


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The state itself, though no matrix multiplies it."""
    return carry.h


def pointwise(rest: Params, carry: Carry, zx: Float[Array, "*B H"], zh: None):
    """h = relu(zx + g_h h)."""
    h = jax.nn.relu(zx.astype(wide(zx.dtype)) + rows(rest.g_h, carry.h) * carry.h)
    return Carry(h), h.astype(zx.dtype)


CELL = Cell("indrnn", init, initial, hidden, pointwise, AXES)
