"""Convolution over time with max pooling: features of windows of words, or of characters.

XLA's convolution is eight times slower on a CPU than one product of all places with all filters, whose parts are then
added with shifts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax import pooling
from seqjax.layers import affine, biased
from seqjax.types import Array, Float, Int, PRNGKey


class Filters(NamedTuple):
    """F filters that see K places each."""

    w: Array  # [K, D, F]
    b: Array  # [F]


AXES = Filters._make((P(None, "embed", "hidden"), P("hidden")))
"""What the axes mean, see `seqjax.nn.logical_axes`."""


def init_filters(key: PRNGKey, width: int, d_in: int, n_filters: int) -> Filters:
    """Variance 1/fan-in, biases 0."""
    w = jax.random.normal(key, (width, d_in, n_filters)) / jnp.sqrt(float(width * d_in))
    return Filters(w, jnp.zeros(n_filters))


def max_over_time(
    xs: Float[Array, "B T D"], filters: Sequence[Filters], lengths: Int[Array, "B"]
) -> Float[Array, "B F"]:
    """The strongest response of every filter anywhere in a sequence (Collobert et al., 2011; Kim, 2014).

        z_p = Σ_k x_(p - K + 1 + k) w_k,     p = 0 … length + K - 2
        f   = relu(max_p z_p + b)

    Beyond the sequence x is 0, so that its first and last places are seen as often as the others. What padding holds,
    NaN included, does not matter. The filters of all widths stand side by side in the result.

    >>> one = Filters(jnp.ones((2, 1, 1)), jnp.zeros(1))
    >>> print(max_over_time(jnp.array([[[1.0], [3.0], [9.0]]]), [one], jnp.array([2])))
    [[4.]]
    """
    lengths = pooling.within(lengths, xs.shape[1])
    xs = jnp.where(pooling.kept(lengths, xs.shape[1])[..., None], xs, jnp.zeros_like(xs))
    taps = [tap for f in filters for tap in f.w]  # [D, F] each
    responses = affine(xs, jnp.concatenate(taps, axis=-1))
    pooled, begin = [], 0
    for w, b in filters:
        width, _, n = w.shape
        z = jnp.zeros((), xs.dtype)
        for k in range(width):
            z += jnp.pad(responses[..., begin : begin + n], ((0, 0), (width - 1 - k, k), (0, 0)))
            begin += n
        top = pooling.maximum(z, jnp.where(lengths > 0, lengths + width - 1, 0))
        pooled.append(jax.nn.relu(biased(top, b)))
    return jnp.concatenate(pooled, axis=-1)
