"""Pooling: one vector for each sequence of a batch, whatever its padding holds, NaN included.

A sequence without tokens, of length 0, gives zeros. The gradient to padding is 0.
"""

import jax.numpy as jnp

from seqjax.kernels.attention import softmax
from seqjax.types import Array, Bool, Float, Int, Size, wide


def within(lengths: Int[Array, "B"], time: Size) -> Int[Array, "B"]:
    """Lengths as int32, since narrower ones cannot count every place, and none beyond the sequence."""
    return jnp.clip(lengths.astype(jnp.int32), 0, time)


def kept(lengths: Int[Array, "B"], time: Size) -> Bool[Array, "B T"]:
    """Which places are no padding.

    >>> print(kept(jnp.array([1, 3]), 3))
    [[ True False False]
     [ True  True  True]]
    """
    return jnp.arange(time, dtype=jnp.int32)[None] < within(lengths, time)[:, None]


def last(xs: Float[Array, "B T D"], lengths: Int[Array, "B"], *, bidirectional: bool = False) -> Float[Array, "B D"]:
    """x_length, what a recurrent network knows when it has read everything.

    Of ``bidirectional`` outputs, forward and backward side by side, the half that goes back has read everything at the
    first place.

    >>> xs = jnp.arange(6.0).reshape(1, 3, 2)
    >>> print(last(xs, jnp.array([2])), last(xs, jnp.array([2]), bidirectional=True))
    [[2. 3.]] [[2. 1.]]
    """
    lengths = within(lengths, xs.shape[1])
    x = jnp.take_along_axis(xs, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    if bidirectional:
        half = xs.shape[-1] // 2
        x = jnp.concatenate([x[:, :half], xs[:, 0, half:]], axis=-1)
    return jnp.where(lengths[:, None] > 0, x, jnp.zeros_like(x))


def mean(xs: Float[Array, "B T D"], lengths: Int[Array, "B"]) -> Float[Array, "B D"]:
    """Σ_t x_t / length, summed in at least float32.

    >>> print(mean(jnp.array([[[1.0], [3.0], [9.0]]]), jnp.array([2])))
    [[2.]]
    """
    lengths = within(lengths, xs.shape[1])
    total = jnp.sum(_without_padding(xs, lengths), axis=1, dtype=wide(xs.dtype))
    return (total / jnp.maximum(lengths, 1)[:, None].astype(total.dtype)).astype(xs.dtype)


def maximum(xs: Float[Array, "B T D"], lengths: Int[Array, "B"]) -> Float[Array, "B D"]:
    """max_t x_t of each feature, max over time (Collobert et al., 2011).

    >>> print(maximum(jnp.array([[[1.0], [3.0], [9.0]]]), jnp.array([2])))
    [[3.]]
    """
    top = jnp.max(jnp.where(kept(lengths, xs.shape[1])[..., None], xs, jnp.full_like(xs, -jnp.inf)), axis=1)
    return jnp.where(lengths[:, None] > 0, top, jnp.zeros_like(top))


def attention(
    xs: Float[Array, "B T D"], scores: Float[Array, "B T"], lengths: Int[Array, "B"]
) -> tuple[Float[Array, "B D"], Float[Array, "B T"]]:
    """Σ_t a_t x_t with a = softmax(scores) over the tokens (Yang et al., 2016; Lin et al., 2017): ``(pooled, a)``.

    >>> xs = jnp.array([[[1.0], [3.0], [9.0]]])
    >>> pooled, weights = attention(xs, jnp.zeros((1, 3)), jnp.array([2]))
    >>> print(pooled, weights)
    [[2.]] [[0.5 0.5 0. ]]
    """
    scores = scores.astype(wide(scores.dtype))
    weights = softmax(scores, kept(lengths, xs.shape[1]))
    return jnp.einsum("bt,btd->bd", weights.astype(xs.dtype), _without_padding(xs, lengths)), weights


def _without_padding(xs, lengths):
    # Before the first product: 0 times NaN is NaN.
    return jnp.where(kept(lengths, xs.shape[1])[..., None], xs, jnp.zeros_like(xs))
