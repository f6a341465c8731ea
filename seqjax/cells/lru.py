"""The linear recurrent unit (Orvieto et al., 2023): a complex diagonal recurrence, here in real and imaginary parts.

    b_re, b_im, s = split(x_t w_x)
    λ = exp(-exp(b_nu) + i exp(b_theta))
    h_t + i h_imag_t = λ (h_{t-1} + i h_imag_{t-1}) + exp(b_gamma) (b_re + i b_im)
    y_t = [h_t, h_imag_t] w_o + s

``w_x`` holds the paper's B and D, ``w_o`` its C: Re(C h) = [h, h_imag] w_o has the real part of C above and minus the
imaginary part below. The skip is a matrix, where the paper's is a vector, so D and H may differ. |λ| < 1 for every
value of ``b_nu``; exp(b_gamma) is the paper's γ. No array has a complex dtype.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax.cells.base import Cell, input_matrix, rows, zeros
from seqjax.types import Array, Float, PRNGKey, wide


class Params(NamedTuple):
    """Weights of a linear recurrent unit: B_re, B_im and the skip in ``w_x``, C in ``w_o``; logarithms of ν, θ, γ."""

    w_x: Float[Array, "D 3*H"] | None
    w_o: Float[Array, "2*H H"] | None
    b_nu: Float[Array, "H"]
    b_theta: Float[Array, "H"]
    b_gamma: Float[Array, "H"]


class Carry(NamedTuple):
    """State of a linear recurrent unit: real and imaginary part."""

    h: Float[Array, "*B H"]
    h_imag: Float[Array, "*B H"]


AXES = Params._make(  # w_x, w_o, b_nu, b_theta, b_gamma
    (P("embed", "gates"), P("gates", "embed"), P("gates"), P("gates"), P("gates"))
)


def init(
    key: PRNGKey,
    d_in: int,
    d_hidden: int,
    *,
    dtype=jnp.float32,
    r_min: float = 0.0,
    r_max: float = 1.0,
    max_phase: float = 2 * jnp.pi,
) -> Params:
    """Eigenvalues uniform on the ring r_min <= |λ| <= r_max with phases in [0, max_phase); γ = √(1 - |λ|²).

    B, C and the skip are scaled by their fan-in, so that h and C h have the variance of x. The defaults are the
    paper's; for long sequences it takes r_min near 0.9, r_max near 0.999 and max_phase near π / 10.
    """
    key_x, key_o, key_nu, key_theta = jax.random.split(key, 4)
    eps = jnp.finfo(dtype).eps  # keeps the logarithms finite
    squared_radius = r_min**2 + (r_max**2 - r_min**2) * jax.random.uniform(key_nu, (d_hidden,), dtype, minval=eps)
    nu = -0.5 * jnp.log(jnp.minimum(squared_radius, 1 - eps))
    theta = jax.random.uniform(key_theta, (d_hidden,), dtype, minval=eps, maxval=max_phase)
    # B has two parts of half the variance each.
    w_x = input_matrix(key_x, d_in, d_hidden, 3, dtype).at[:, : 2 * d_hidden].multiply(0.5**0.5)
    return Params(
        w_x=w_x,
        w_o=jax.random.normal(key_o, (2 * d_hidden, d_hidden), dtype) * d_hidden**-0.5,
        b_nu=jnp.log(nu),
        b_theta=jnp.log(theta),
        b_gamma=0.5 * jnp.log(-jnp.expm1(-2 * nu)),
    )


def initial(params: Params, zx_t: Float[Array, "*B GH"]) -> Carry:
    """The zero state."""
    d_hidden = params.b_nu.shape[0]
    return Carry(zeros(zx_t, d_hidden), zeros(zx_t, d_hidden))  # two arrays: either may be donated


def hidden(carry: Carry) -> Float[Array, "*B H"]:
    """The real part, though no matrix multiplies it."""
    return carry.h


def project(params: Params, xs: Float[Array, "*B D"]) -> Float[Array, "*B GH"]:
    """zx = x w_x, without bias."""
    assert params.w_x is not None
    return xs @ params.w_x.astype(xs.dtype)


def linear(rest: Params, zx: Float[Array, "*B GH"]):
    """a = λ, u = γ B x, each a pair (real part, imaginary part)."""
    state = wide(zx.dtype)
    real, imag, _ = jnp.split(zx.astype(state), 3, axis=-1)
    radius = jnp.exp(-jnp.exp(rest.b_nu.astype(state)))
    theta = jnp.exp(rest.b_theta.astype(state))
    gamma = rows(jnp.exp(rest.b_gamma.astype(state)), real)
    a = rows(radius * jnp.cos(theta), real), rows(radius * jnp.sin(theta), real)
    return a, (gamma * real, gamma * imag)


def pointwise(rest: Params, carry: Carry, zx: Float[Array, "*B GH"], zh: None):
    """h = a h + u, a complex product; the output is [h, h_imag]."""
    (a, a_imag), (u, u_imag) = linear(rest, zx)
    h = a * carry.h - a_imag * carry.h_imag + u
    h_imag = a * carry.h_imag + a_imag * carry.h + u_imag
    return Carry(h, h_imag), jnp.concatenate([h, h_imag], axis=-1).astype(zx.dtype)


def readout(params: Params, ys: Float[Array, "*B n"], zx: Float[Array, "*B GH"]) -> Float[Array, "*B H"]:
    """y = [h, h_imag] w_o + s, from the states ``ys``."""
    assert params.w_o is not None
    _, _, s = jnp.split(zx, 3, axis=-1)
    return ys @ params.w_o.astype(ys.dtype) + s


CELL = Cell("lru", init, initial, hidden, pointwise, AXES, project=project, linear=linear, readout=readout)
