"""Small parts every model needs."""

import jax
import jax.numpy as jnp

from seqjax.types import Array, Float, PRNGKey, Scalar


def dropout(key: PRNGKey, x: Float[Array, "*shape"], rate: Scalar) -> Float[Array, "*shape"]:
    """Zero each entry with probability ``rate``, scale the others by 1 / (1 - rate) (Srivastava et al., 2014).

    The rate may be traced. At rate 1 everything is 0.
    """
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    mask = jax.random.bernoulli(key, keep, x.shape)
    scale = jnp.where(keep > 0, 1 / jnp.where(keep > 0, keep, 1), 0).astype(x.dtype)
    return jnp.where(mask, x * scale, jnp.zeros_like(x))
