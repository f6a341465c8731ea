"""The real-gated linear recurrent unit of Griffin and RecurrentGemma (De et al., 2024).

    r, i, n = split(x_t w_x + b)
    a_t = exp(-8 softplus(g_a) σ(r))
    h_t = a_t h_{t-1} + √(1 - a_t²) (σ(i) n)

``g_a`` is the paper's Λ in the sign of its published code; 8 is its constant c. In Griffin gates and input read one
tensor x, through block-diagonal matrices; here each of the three is a projection of x_t. The first step is scaled like
all others, as in the paper; the published code does not scale it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, rows, zeros
from seqjax.types import Array, Float, PRNGKey, wide

SHARPNESS = 8.0  # the paper's c


class Params(NamedTuple):
    """Weights of a real-gated linear recurrent unit; gates r i n."""

    w_x: Float[Array, "D 3*H"] | None
    b: Float[Array, "3*H"]
    g_a: Float[Array, "H"]


class Carry(NamedTuple):
    """State of a real-gated linear recurrent unit."""

    h: Float[Array, "*B H"]


AXES = Params._make((P("embed", "gates"), P("gates"), P("gates")))  # w_x, b, g_a


def init(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> Params:
    """Fan-in scaled input weights, zero bias, ``g_a`` such that a is uniform in [0.9, 0.999) where the gate is open."""
    key_x, key_a = jax.random.split(key)
    # In bfloat16, 0.999 would be 1.
    a = jax.random.uniform(key_a, (d_hidden,), wide(dtype), minval=0.9, maxval=0.999)
    return Params(
        w_x=input_matrix(key_x, d_in, d_hidden, 3, dtype),
        b=jnp.zeros(3 * d_hidden, dtype),
        g_a=jnp.log(jnp.expm1(-jnp.log(a) / SHARPNESS)).astype(dtype),  # the inverse of softplus
    )


def initial(params: Params, zx_t: Float[Array, "*B GH"]) -> Carry:
    """The zero state."""
    return Carry(zeros(zx_t, params.b.shape[0] // 3))


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The state itself, though no matrix multiplies it."""
    return carry.h


def linear(rest: Params, zx: Float[Array, "*B GH"]) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """a = exp(-8 softplus(g_a) σ(r)), u = √(1 - a²) (σ(i) n)."""
    state = wide(zx.dtype)
    r, i, n = jnp.split(zx.astype(state), 3, axis=-1)
    log_a = rows(-SHARPNESS * jax.nn.softplus(rest.g_a.astype(state)), r) * jax.nn.sigmoid(r)
    # 1 - a² by expm1, for a is close to 1; kept above 0, where the root has no derivative.
    room = jnp.maximum(-jnp.expm1(2 * log_a), jnp.finfo(state).tiny)
    return jnp.exp(log_a), jnp.sqrt(room) * (jax.nn.sigmoid(i) * n)


def pointwise(rest: Params, carry: Carry, zx: Float[Array, "*B GH"], zh: None):
    """h = a h + u."""
    a, u = linear(rest, zx)
    h = a * carry.h + u
    return Carry(h), h.astype(zx.dtype)


CELL = Cell("rglru", init, initial, hidden, pointwise, AXES, linear=linear)
