"""Temporal convolutional network (Bai et al., 2018, "An empirical evaluation of generic convolutional and recurrent
networks for sequence modeling").

    conv_d(x)_t = Σ_k x_(t - (K - 1 - k) d) w_k + b,   w = g v / ‖v‖      causal, dilated, weights normalised
    f(x)        = dropout(relu(conv_d(dropout(relu(conv_d(x))))))
    x           = relu(f(x) + x),   d = 1, 2, 4, … from layer to layer    x w + b for x where sizes differ
    y           = x W + b of the last or of every place

An output sees (K - 1)(2^(L + 1) - 2) places before its own.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax import pooling
from seqjax.layers import affine, biased
from seqjax.models.series import Readout, check_sizes, read_out
from seqjax.nn import Dense
from seqjax.transformer import dropper
from seqjax.types import Array, Float, Int, PRNGKey, Scalar


class Filters(NamedTuple):
    """F filters over K places, each a direction and a length (Salimans and Kingma, 2016)."""

    w: Array  # [K, D, F]
    g: Array  # [F]
    b: Array  # [F]


class Block(NamedTuple):
    """Two convolutions, and what makes the input as wide as their output, or None."""

    first: Filters
    second: Filters
    w_skip: Array | None  # [D, F]
    b_skip: Array | None


_FILTERS = Filters._make((P(None, "embed", "hidden"), P("hidden"), P("hidden")))
AXES = Block._make((_FILTERS, _FILTERS, P("embed", "hidden"), P("hidden")))
"""What the axes mean, see `seqjax.nn.logical_axes`."""


@dataclass(frozen=True)
class TCNConfig:
    """Shape of a TCN."""

    d_hidden: int = 30
    n_layers: int = 8
    """Blocks of two convolutions; each sees twice as far as the one before."""
    kernel: int = 7
    """Places that a filter sees."""
    readout: Readout = "last"
    """One output from the last place or from the mean of all; or frames, one for each."""

    def __post_init__(self):
        check_sizes(self, "d_hidden", "n_layers", "kernel")


class TCN(nnx.Module):
    """Blocks of dilated convolutions and an output layer."""

    def __init__(self, config: TCNConfig, d_in: int, d_out: int, *, rngs: nnx.Rngs):
        self.config, d = config, config.d_hidden
        sizes = [d_in] + [d] * (config.n_layers - 1)
        self.blocks = nnx.List([nnx.Param(init_block(rngs.params(), config.kernel, size, d)) for size in sizes])
        self.out = Dense(d, d_out, rngs=rngs)

    @property
    def axes(self) -> dict[str, Any]:
        """See `seqjax.nn.logical_axes`."""
        return {"blocks": AXES}

    def __call__(
        self,
        inputs: Float[Array, "B T D"],
        lengths: Int[Array, "B"],
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B *T C"]:
        """[B, C], or [B, T, C] of frames, whatever padding holds; dropout acts only where ``key`` is given."""
        drop = dropper(dropout, key)
        x = jnp.where(pooling.kept(lengths, inputs.shape[1])[..., None], inputs, jnp.zeros_like(inputs))
        for i, params in enumerate(self.blocks):
            x = block(params.get_value(), x, 2**i, drop)
        return self.out(read_out(self.config.readout, x, lengths))


def init_block(key: PRNGKey, kernel: int, d_in: int, d_hidden: int) -> Block:
    """Filters of variance 2/fan-in, whose g is their own length; biases 0."""

    def filters(key, d_in):
        w = jax.random.normal(key, (kernel, d_in, d_hidden)) * jnp.sqrt(2.0 / (kernel * d_in))
        return Filters(w, jnp.sqrt(jnp.sum(w**2, axis=(0, 1))), jnp.zeros(d_hidden))

    keys = jax.random.split(key, 3)
    skips = d_in != d_hidden
    w_skip = jax.random.normal(keys[2], (d_in, d_hidden)) / jnp.sqrt(float(d_in)) if skips else None
    return Block(filters(keys[0], d_in), filters(keys[1], d_hidden), w_skip, jnp.zeros(d_hidden) if skips else None)


def block(params: Block, x: Float[Array, "B T D"], dilation: int, drop) -> Float[Array, "B T F"]:
    """Two convolutions around which the input passes."""
    y = x
    for filters in (params.first, params.second):
        y = drop(jax.nn.relu(convolve(filters, y, dilation)))
    return jax.nn.relu(y + (x if params.w_skip is None else affine(x, params.w_skip, params.b_skip)))


def convolve(params: Filters, x: Float[Array, "B T D"], dilation: int) -> Float[Array, "B T F"]:
    """Σ_k x_(t - (K - 1 - k) dilation) w_k + b, where x is 0 before it begins.

    One product of all places with all filters, whose parts are then added with shifts: on a CPU much faster than XLA's
    convolution (`seqjax.convolution`).

    >>> moving_sum = Filters(jnp.ones((2, 1, 1)), jnp.sqrt(jnp.full(1, 2.0)), jnp.zeros(1))
    >>> print(convolve(moving_sum, jnp.array([[[1.0], [3.0], [9.0]]]), 2).round(2)[0, :, 0])
    [ 1.  3. 10.]
    """
    kernel, _, n = params.w.shape
    w = params.w * jnp.broadcast_to(params.g / jnp.sqrt(jnp.sum(params.w**2, axis=(0, 1))), params.w.shape)
    responses = affine(x, jnp.concatenate(list(w), axis=-1))
    y = jnp.zeros((), x.dtype)
    for k in range(kernel):
        shift = (kernel - 1 - k) * dilation
        y += jnp.pad(responses[..., k * n : (k + 1) * n], ((0, 0), (shift, 0), (0, 0)))[:, : x.shape[1]]
    return biased(y, params.b)
