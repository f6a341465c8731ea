"""Attention with any score function: the attention of recurrent encoder-decoders.

A score function says how well each key fits a query, ``(q [B, T, D], keys [B, S, E]) -> [B, T, S]``. Six are here, as
functions and, for their parameters, in `SCORES`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.errors import InputError
from seqjax.kernels.attention import softmax
from seqjax.layers import affine
from seqjax.types import Array, Float, PRNGKey, wide


def attend(
    q: Float[Array, "B T D"],
    k: Float[Array, "B S E"],
    v: Float[Array, "B S F"] | None = None,
    *,
    score: Callable[[Array, Array], Array] | None = None,
    mask: Array | None = None,
) -> tuple[Float[Array, "B T F"], Float[Array, "B T S"]]:
    """One head of attention with any score function: ``(contexts, weights)`` (Bahdanau et al., 2015).

        weights = softmax over the kept keys (score(q, k))
        contexts = weights v

    Args:
      q: queries, such as the states of a decoder.
      k: keys, such as the states of an encoder, or what `Score.keys` makes of them.
      v: values, by default the keys.
      score: any ``(q, k) -> [B, T, S]``; None is `scaled_dot`. With parameters: ``partial(general, w=w)``.
      mask: bool ``[B|1, T|1, S|1]``, True = keep. A query that keeps no key gets 0.

    Raises:
      InputError: the mask is not bool, or does not fit.

    >>> contexts, weights = attend(jnp.ones((1, 2, 3)), jnp.ones((1, 4, 3)), score=dot)
    >>> contexts.shape, weights.shape
    ((1, 2, 3), (1, 2, 4))
    """
    z = (score or scaled_dot)(q, k)
    if mask is not None and mask.dtype != bool:
        raise InputError(f"mask must be bool (True = keep), not {mask.dtype}")
    if mask is not None and (mask.ndim != 3 or any(n not in (1, m) for n, m in zip(mask.shape, z.shape, strict=True))):
        raise InputError(f"mask {mask.shape} does not fit scores {z.shape}: each axis has that length, or 1")
    z = z.astype(wide(z.dtype))
    weights = softmax(z, mask)
    v = k if v is None else v
    return jnp.einsum("bts,bsf->btf", weights.astype(v.dtype), v), weights


def dot(q: Float[Array, "B T D"], keys: Float[Array, "B S D"]) -> Float[Array, "B T S"]:
    """q · k, accumulated in at least float32 (Luong et al., 2015)."""
    return jnp.einsum("btd,bsd->bts", q, keys, preferred_element_type=wide(q.dtype))


def scaled_dot(q: Float[Array, "B T D"], keys: Float[Array, "B S D"]) -> Float[Array, "B T S"]:
    """q · k / √D (Vaswani et al., 2017)."""
    return dot(q, keys) / math.sqrt(q.shape[-1])


def cosine(
    q: Float[Array, "B T D"], keys: Float[Array, "B S D"], *, g: Float[Array, ""] | float = 1.0
) -> Float[Array, "B T S"]:
    """g q · k / (|q| |k|), with a sharpness g (Graves et al., 2014); 1e-12 is added to the squares of both norms."""
    z = dot(_unit(q), _unit(keys))
    return jnp.asarray(g, z.dtype) * z


def general(q: Float[Array, "B T D"], keys: Float[Array, "B S E"], *, w: Float[Array, "D E"]) -> Float[Array, "B T S"]:
    """q w k, the bilinear score (Luong et al., 2015)."""
    return dot(q @ w.astype(q.dtype), keys)


def additive(
    q: Float[Array, "B T D"],
    keys: Float[Array, "B S A"],
    *,
    w_q: Float[Array, "D A"],
    b: Float[Array, "A"],
    w_score: Float[Array, "A"],
) -> Float[Array, "B T S"]:
    """tanh(q w_q + keys + b) · w_score, of keys that are projected already: k w_k (Bahdanau et al., 2015)."""
    h = affine(q, w_q, b)[:, :, None]
    shape = (*h.shape[:2], *keys.shape[1:])
    return jnp.tanh(jnp.broadcast_to(h, shape) + jnp.broadcast_to(keys[:, None], shape)) @ w_score.astype(q.dtype)


def location(
    q: Float[Array, "B T D"], keys: Float[Array, "B S E"], *, w: Float[Array, "D P"], b: Float[Array, "P"]
) -> Float[Array, "B T S"]:
    """q w + b, a score a place, whatever the keys hold; for at most P of them (Luong et al., 2015).

    Raises:
      InputError: there are more than P keys.
    """
    n = keys.shape[1]
    if n > b.shape[0]:
        raise InputError(f"location scores were made for {b.shape[0]} keys, not {n}; init them with a greater length")
    return affine(q, w[:, :n], b[:n])


def _unit(x):
    # 1e-12: padded states are 0, and there the derivative must be finite.
    z = x.astype(wide(x.dtype))
    return (z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-12)).astype(x.dtype)


class Score(NamedTuple):
    """A score function with its parameters, a dict of arrays.

    ``init(key, d_query, d_key, d_score, length) -> params``, where d_score is the size of `additive`'s hidden layer and
    length the most keys `location` is made for; ``project(params, k) -> keys`` is made once for a sequence; then
    ``score(params, q, keys) -> [B, T, S]``.
    """

    init: Callable[[PRNGKey, int, int, int, int], dict[str, Array]]
    project: Callable[[dict[str, Array], Array], Array]
    score: Callable[[dict[str, Array], Array, Array], Array]


def _score(function, init, project=lambda params, k: k) -> Score:
    return Score(init, project, lambda params, q, k: function(q, k, **params))


def _normal(key, fan_in, *shape):
    return jax.random.normal(key, shape) / math.sqrt(fan_in)


def _same_size(d_query, d_key):
    if d_query != d_key:
        raise InputError(f"this score needs queries and keys of one size, not {d_query} and {d_key}; try 'general'")
    return {}


def _init_additive(key, d_query, d_key, d_score, length):
    keys = jax.random.split(key, 3)
    return {
        "w_q": _normal(keys[0], d_query, d_query, d_score),
        "w_k": _normal(keys[1], d_key, d_key, d_score),
        "b": jnp.zeros(d_score),
        "w_score": _normal(keys[2], d_score, d_score),
    }


SCORES: dict[str, Score] = {
    "dot": _score(dot, lambda key, d_query, d_key, d_score, length: _same_size(d_query, d_key)),
    "scaled_dot": _score(scaled_dot, lambda key, d_query, d_key, d_score, length: _same_size(d_query, d_key)),
    "cosine": _score(
        cosine,
        lambda key, d_query, d_key, d_score, length: {**_same_size(d_query, d_key), "g": jnp.array(10.0, jnp.float32)},
    ),
    "general": _score(general, lambda key, d_query, d_key, d_score, length: {"w": _normal(key, d_key, d_query, d_key)}),
    "additive": Score(
        _init_additive,
        lambda params, k: k @ params["w_k"].astype(k.dtype),
        lambda params, q, k: additive(q, k, w_q=params["w_q"], b=params["b"], w_score=params["w_score"]),
    ),
    "location": _score(
        location,
        lambda key, d_query, d_key, d_score, length: {
            "w": _normal(key, d_query, d_query, length),
            "b": jnp.zeros(length),
        },
    ),
}
