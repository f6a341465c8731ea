"""The parts of a Transformer, as pure functions: a layer's weights, MLP, where norm and residual stand, positions."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from seqjax import attention, positions
from seqjax.attention import MultiHead, init_multi_head, keys_values, merged, queries
from seqjax.errors import InputError
from seqjax.layers import affine
from seqjax.layers import dropout as apply_dropout
from seqjax.normalization import layer_norm, rms_norm
from seqjax.pooling import kept
from seqjax.types import Array, Float, Int, PRNGKey, Scalar

Positions = Literal["rotary", "learned", "sinusoidal", "alibi", "t5", "none"]
"""How a Transformer knows where a token stands; see `add_positions`, `rotate` and `position_bias`."""

_both_ways = partial(positions.t5_bias, bidirectional=True)  # made once: another one is another function to jit


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


NORM_AXES = P("embed"), P("embed")
T5_AXES = P(None, "heads")
AXES = Layer._make((attention.AXES, *NORM_AXES, *NORM_AXES, P("embed", "mlp"), P("mlp"), P("mlp", "embed"), P("embed")))
"""What the axes mean, see `seqjax.nn.logical_axes`; above, those of g and b of any norm, of the table of `init_t5`."""


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


def init_layer_of(config, key: PRNGKey, gain: float) -> Layer:
    """`init_layer` with the sizes and the style of a model's configuration."""
    return init_layer(
        key,
        config.d_model,
        config.n_heads,
        n_kv_heads=config.n_kv_heads,
        d_ff=config.d_ff,
        style=config.style,
        bias=config.bias,
        gain=gain,
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


def attend_within(
    config, params: Layer, x: Float[Array, "B T D"], at: Array, attend: Callable, drop: Callable[[Array], Array]
) -> Float[Array, "B T D"]:
    """The sublayer of attention to x itself: ``attend(q, k, v)`` of tokens at places ``at``, [T] or [B, T]."""

    def heads(x):
        q, (k, v) = queries(params.attention, x), keys_values(params.attention, x)
        q, k = (rotate(config.positions, x, at) for x in (q, k))
        return drop(merged(params.attention, attend(q, k, v)))

    return sublayer(config.style, heads, x, params.g_attention, params.b_attention)


def feed_forward(
    config, params: Layer, x: Float[Array, "B T D"], drop: Callable[[Array], Array]
) -> Float[Array, "B T D"]:
    """The sublayer of the MLP."""
    return sublayer(config.style, lambda x: drop(mlp(params, x)), x, params.g_mlp, params.b_mlp)


def encode(
    config,
    layers: Sequence[Layer],
    x: Float[Array, "B T D"],
    at: Array,
    attend: Callable,
    drop: Callable[[Array], Array],
) -> Float[Array, "B T D"]:
    """All layers, each with ``attend(q, k, v)`` of tokens at places ``at``, [T] or [B, T]."""
    for params in layers:
        x = feed_forward(config, params, attend_within(config, params, x, at, attend, drop), drop)
    return x


def read(
    config,
    layers: Sequence[Layer],
    x: Float[Array, "B T D"],
    lengths: Int[Array, "B"] | None,
    drop: Callable[[Array], Array],
    *,
    causal: bool = False,
    norm: tuple[Array | None, Array | None] = (None, None),
    learned: Float[Array, "P D"] | None = None,
    table: Float[Array, "C N"] | None = None,
) -> Float[Array, "B T D"]:
    """What all layers make of whole texts: x + positions, dropout, layers, and the norm after them if there is one.

    Args:
      config: of the model.
      layers: weights.
      x: embeddings.
      lengths: of the texts; None is all of T.
      drop: see `dropper`.
      causal: whether a place sees only itself and those before it.
      norm: its g and b; without g there is none.
      learned: vectors of "learned" positions.
      table: of "t5" positions.
    """
    at = jnp.arange(x.shape[1], dtype=jnp.int32)
    bias = position_bias(config.positions, config.n_heads, table, bidirectional=not causal)
    mask = None if lengths is None else kept(lengths, x.shape[1])[:, None, None]
    attend = partial(attention.dot_product_attention, mask=mask, causal=causal, **bias)
    x = drop(add_positions(config.positions, x, at, learned).astype(getattr(config, "dtype", x.dtype)))
    x = encode(config, layers, x, at, attend, drop)
    return x if norm[0] is None else normalize(config.style, x, *norm)


def values(*parameters) -> list:
    """The arrays of `nnx.Param`s, None where there is none."""
    return [None if parameter is None else parameter.get_value() for parameter in parameters]


def dropper(rate: Scalar, key: PRNGKey | None) -> Callable[[Array], Array]:
    """Dropout with another key at every call; without a key the identity."""
    if key is None:
        return lambda x: x
    calls = itertools.count()
    return lambda x: apply_dropout(jax.random.fold_in(key, next(calls)), x, rate)


def check_sizes(config) -> None:
    """Raise `InputError` for a model configuration whose sizes do not fit its heads and positions."""
    for name in ("d_model", "n_heads", "n_kv_heads", "n_layers", "n_decoder_layers", "d_ff", "context"):
        if (value := getattr(config, name, None)) is not None and value < 1:
            raise InputError(f"model.{name}={value}; it must be at least 1.")
    if config.d_model % config.n_heads:
        raise InputError(f"model.n_heads={config.n_heads} must divide model.d_model={config.d_model}.")
    if config.n_heads % (config.n_kv_heads or config.n_heads):
        raise InputError(f"model.n_kv_heads={config.n_kv_heads} must divide model.n_heads={config.n_heads}.")
    if config.positions == "rotary" and config.d_model // config.n_heads % 2:
        raise InputError(f"rotary positions need heads of even size, not {config.d_model // config.n_heads}.")
    if config.positions == "sinusoidal" and config.d_model % 2:
        raise InputError(f"sinusoidal positions need an even model.d_model, not {config.d_model}.")


def init_t5(key: PRNGKey, n_heads: int) -> Float[Array, "32 N"]:
    """A small table of biases for `position_bias`."""
    return 0.02 * jax.random.normal(key, (32, n_heads))


def add_positions(
    kind: Positions, x: Float[Array, "B T D"], at: Array, learned: Float[Array, "P D"] | None
) -> Float[Array, "B T D"]:
    """Embeddings of tokens at places ``at``, [T] or [B, T], with what "learned" and "sinusoidal" positions add.

        "learned":    x + learned[at]
        "sinusoidal": √D x + pe(at)      (Vaswani et al., 2017)

    Raises:
      InputError: more tokens than ``learned`` has rows. A place beyond them gives NaN.
    """
    if kind == "learned":
        assert learned is not None, "a model with learned positions has a table of them"
        if at.shape[-1] > learned.shape[0]:
            raise InputError(
                f"{at.shape[-1]} tokens do not fit into learned positions for {learned.shape[0]}; "
                "shorten the text, or train with a larger model.context or other model.positions"
            )
        return x + jnp.broadcast_to(learned.at[at].get(mode="fill", fill_value=jnp.nan), x.shape)
    if kind == "sinusoidal":
        return math.sqrt(x.shape[-1]) * x + jnp.broadcast_to(positions.sinusoidal_at(at, x.shape[-1]), x.shape)
    return x


def rotate(kind: Positions, x: Float[Array, "B T N H"], at: Array) -> Float[Array, "B T N H"]:
    """Queries or keys, turned by their places where positions are "rotary"."""
    return positions.rotary(x, at) if kind == "rotary" else x


def position_bias(
    kind: Positions, n_heads: int, t5: Float[Array, "C N"] | None = None, *, bidirectional: bool = False
) -> dict:
    """The options of attention by which "alibi" and "t5" change its scores."""
    if kind == "alibi":
        return {"score_mod": positions.alibi, "score_args": (positions.alibi_slopes(n_heads),)}
    if kind == "t5":
        return {"score_mod": _both_ways if bidirectional else positions.t5_bias, "score_args": (t5,)}
    return {}
