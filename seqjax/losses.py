"""Losses. Each returns ``(sum, weight)``: the caller divides once, over the global batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from seqjax.errors import InputError
from seqjax.types import Array


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    where: Array | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
) -> tuple[Array, Array]:
    """Cross-entropy of integer targets, in nats, with label smoothing and z-loss.

        lse  = log Σ_v exp(logits_v)
        loss = lse - (1 - s) logits_target - s mean_v(logits_v) + z lse²

    which is the cross-entropy to ``(1 - s) onehot(target) + s/V`` (Szegedy et al. 2016) plus the penalty that keeps
    ``lse`` near 0 (Devlin et al. 2014; the name is PaLM's, Chowdhery et al. 2022). Computed in float32, or in float64
    for float64 logits.

    Args:
      logits: ``[..., V]``.
      targets: integers in ``[0, V)``, ``[...]``; one outside of it gives NaN, unless its ``where`` is 0.
      where: ``[...]``, bool (True = keep) or weights. Where it is 0, logits and targets may be anything, NaN included.
      label_smoothing: s, a scalar, traced or not.
      z_loss: z, a scalar, traced or not.

    Returns:
      ``(Σ where·loss, Σ where)``.

    Raises:
      InputError: targets are not integers, or the shapes do not fit.

    >>> total, weight = cross_entropy(jnp.zeros((2, 3, 8)), jnp.zeros((2, 3), int))
    >>> print(f"{total / weight:.4f} = log 8 = {math.log(8):.4f}")
    2.0794 = log 8 = 2.0794
    """
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise InputError(f"targets must be integers, not {targets.dtype}: pass class ids, not one-hot vectors")
    if logits.ndim == 0 or logits.shape[:-1] != targets.shape:
        raise InputError(
            f"logits {logits.shape} do not fit targets {targets.shape}: pass logits [..., V] and targets [...]"
        )
    if where is not None and where.shape != targets.shape:
        raise InputError(f"where {where.shape} must have the shape of targets {targets.shape}: broadcast it first")

    # numpy's promote_types: jax's refuses to mix dtypes under strict promotion.
    dtype = np.promote_types(logits.dtype, np.float32)
    smoothing, z = jnp.asarray(label_smoothing, dtype), jnp.asarray(z_loss, dtype)
    weight = jnp.ones_like(targets, dtype) if where is None else where.astype(dtype)
    keep = weight != 0

    # Masked logits are replaced before the first operation, not only after the last: 0 · NaN is NaN in the gradient.
    kept = jnp.where(keep[..., None], logits, jnp.zeros_like(logits)).astype(dtype)
    lse = jax.nn.logsumexp(kept, axis=-1)
    # A negative index would count from the end; V is out of range and gives NaN.
    index = jnp.where(keep, jnp.where(targets < 0, logits.shape[-1], targets), 0)
    # Taken from `logits`, since a gather from `kept` would write that array out.
    target = jnp.take_along_axis(logits, index[..., None], axis=-1, mode="fill", fill_value=jnp.nan).squeeze(-1)
    target = jnp.where(keep, target, jnp.zeros_like(target)).astype(dtype)
    # Without smoothing, a logit of -inf must not meet 0 · -inf.
    uniform = jnp.where(smoothing == 0, 0, smoothing * jnp.mean(kept, axis=-1))

    loss = lse - (1 - smoothing) * target - uniform + z * jnp.square(lse)
    return jnp.sum(weight * loss), jnp.sum(weight)


def bits(nats: ArrayLike) -> ArrayLike:
    """Convert nats to bits.

    >>> bits(math.log(8))
    3.0
    """
    return nats / math.log(2)


def perplexity(nats: ArrayLike) -> Array:
    """Perplexity of a mean loss in nats per token, ``exp(nats)``.

    >>> print(f"{perplexity(math.log(50)):.2f}")
    50.00
    """
    return jnp.exp(nats)
