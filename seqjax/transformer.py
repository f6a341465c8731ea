"""The parts of a Transformer layer, as pure functions: weights, MLP, and where norm and residual stand."""

import itertools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.attention import MultiHead, init_multi_head
from seqjax.layers import affine
from seqjax.layers import dropout as apply_dropout
from seqjax.normalization import layer_norm, rms_norm
from seqjax.types import Array, Float, PRNGKey, Scalar


class Style(NamedTuple):
    """How a sublayer f is wrapped.

        "pre":  x + f(norm(x))      (Baevski and Auli, 2019; Radford et al., 2019)
        "post": norm(x + f(x))      (Vaswani et al., 2017)
        "none": x + f(x)

    Without ``residual`` "x +" is left out.
    """

    norm: Literal["layer", "rms"] = "layer"
    place: Literal["pre", "post", "none"] = "pre"
    residual: bool = True


class Layer(NamedTuple):
    """Weights of one layer; what its style or ``bias`` leaves out is None."""

    attention: MultiHead
    g_attention: Array | None  # [D]
    b_attention: Array | None
    g_mlp: Array | None  # [D]
    b_mlp: Array | None
    w_in: Array  # [D, F]
    b_in: Array | None
    w_out: Array  # [F, D]
    b_out: Array | None


def init_layer(
    key: PRNGKey,
    d_model: int,
    n_heads: int,
    *,
    n_kv_heads: int | None = None,
    d_ff: int | None = None,
    style: Style,
    bias: bool = True,
    gain: float = 1.0,
) -> Layer:
    """Matrices with variance 1/fan-in, those that write to the residual stream times ``gain``; d_ff is 4 d_model.

    A gain of 1/√(2 L) keeps the variance of the stream the same for any number L of layers (Radford et al., 2019).
    """
    d_ff = d_ff or 4 * d_model
    keys = jax.random.split(key, 3)
    heads = init_multi_head(keys[0], d_model, n_heads, n_kv_heads=n_kv_heads, bias=bias)

    def zeros(n):
        return jnp.zeros(n) if bias else None

    return Layer(
        heads._replace(w_o=gain * heads.w_o),
        *init_norm(style, d_model, bias=bias),
        *init_norm(style, d_model, bias=bias),
        jax.random.normal(keys[1], (d_model, d_ff)) / math.sqrt(d_model),
        zeros(d_ff),
        jax.random.normal(keys[2], (d_ff, d_model)) * (gain / math.sqrt(d_ff)),
        zeros(d_model),
    )


def init_norm(style: Style, d_model: int, *, bias: bool = True) -> tuple[Array | None, Array | None]:
    """``(g, b)`` of a norm: 1 and 0; None for what the style does not use."""
    if style.place == "none":
        return None, None
    return jnp.ones(d_model), jnp.zeros(d_model) if bias and style.norm == "layer" else None


def mlp(params: Layer, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """gelu(x w_in + b_in) w_out + b_out (Hendrycks and Gimpel, 2016, in its tanh form)."""
    return affine(jax.nn.gelu(affine(x, params.w_in, params.b_in)), params.w_out, params.b_out)


def normalize(style: Style, x: Float[Array, "B T D"], g: Array | None, b: Array | None) -> Float[Array, "B T D"]:
    """Layer norm or RMS norm, which has no b."""
    assert g is not None, "init_norm gives a gain to every style with a norm"
    return layer_norm(x, g, b) if style.norm == "layer" else rms_norm(x, g)


def sublayer(
    style: Style, f: Callable[[Array], Array], x: Float[Array, "B T D"], g: Array | None, b: Array | None
) -> Float[Array, "B T D"]:
    """f between norm and residual, as `Style` says."""
    y = f(normalize(style, x, g, b) if style.place == "pre" else x)
    y = x + y if style.residual else y
    return normalize(style, y, g, b) if style.place == "post" else y


def dropper(rate: Scalar, key: PRNGKey | None) -> Callable[[Array], Array]:
    """Dropout with another key at every call; without a key the identity."""
    if key is None:
        return lambda x: x
    calls = itertools.count()
    return lambda x: apply_dropout(jax.random.fold_in(key, next(calls)), x, rate)
