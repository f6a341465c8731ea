"""Small parts every model needs."""

import jax
import jax.numpy as jnp

from seqjax.errors import InputError
from seqjax.types import Array, Float, PRNGKey, Scalar, wide


def dropout(
    key: PRNGKey, x: Float[Array, "*shape"], rate: Scalar, *, shared_axis: int | None = None
) -> Float[Array, "*shape"]:
    """Zero each entry with probability ``rate``, scale the others by 1 / (1 - rate) (Srivastava et al., 2014).

    The rate may be traced. At rate 1 everything is 0. The Python number 0 draws nothing and returns x; one outside of
    [0, 1] is an `InputError`.

    Args:
      shared_axis: an axis along which one mask holds, such as that of time: variational dropout (Gal and Ghahramani,
        2016).
    """
    if isinstance(rate, int | float):
        if not 0 <= rate <= 1:
            raise InputError(f"dropout rate={rate}; it must be from 0 to 1.")
        if rate == 0:
            return x
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    shape = list(x.shape)
    if shared_axis is not None:
        shape[shared_axis] = 1
    mask = jax.random.bernoulli(key, keep, tuple(shape))
    scale = jnp.where(keep > 0, 1 / jnp.where(keep > 0, keep, 1), 0).astype(x.dtype)
    return jnp.where(mask, x * scale, jnp.zeros_like(x))


def flat(x: Float[Array, "*B n"]) -> Float[Array, "*rows n"]:
    """All rows of an array on one axis, on a CPU and without Explicit sharding; else x.

    XLA:CPU transposes in memory to contract several axes, as the gradient of a matrix does: a third of the time of a
    small Transformer's backward pass.
    """
    if jax.default_backend() != "cpu" or any(axis is not None for axis in jax.typeof(x).sharding.spec):
        return x
    return x.reshape(-1, x.shape[-1])


def affine(x: Float[Array, "*B D"], w: Float[Array, "D E"], b: Float[Array, "E"] | None = None) -> Float[Array, "*B E"]:
    """x w + b, in the dtype of x; b None is 0."""
    y = (flat(x) @ w.astype(x.dtype)).reshape(*x.shape[:-1], w.shape[-1])
    return y if b is None else biased(y, b)


def biased(y: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """y + b for every row, y [*B, *E] and b [*E], in the dtype of y.

    The gradient of b, a sum over all rows, is made in at least float32.
    """
    dtype = wide(y.dtype)
    return (y.astype(dtype) + jnp.broadcast_to(b.astype(dtype), y.shape)).astype(y.dtype)
