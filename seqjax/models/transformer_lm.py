"""Decoder-only Transformer language model (Vaswani et al., 2017; Radford et al., 2019).

    x_t = dropout(E[token_t] + position_t)
    x = x + dropout(attention(norm(x)))         for each layer; "post" is x = norm(x + f(x)), "none" leaves norm out
    x = x + dropout(mlp(norm(x)))
    p(token_{t+1} | tokens ≤ t) = softmax(norm(x_t) W + b)

Every token sees itself and the `context` - 1 tokens before it. W is Eᵀ when ``tied``.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax import attention, caching, transformer
from seqjax.errors import InputError
from seqjax.kernels.rules import at_least
from seqjax.nn import Dense, Embed
from seqjax.transformer import Style, attend_within, dropper, feed_forward, init_layer_of, init_norm, normalize
from seqjax.types import Array, Bool, Float, Int, PRNGKey, Scalar, Size


@dataclass(frozen=True)
class TransformerConfig:  # not Config: the command line tells the members of a union apart by their names
    """Shape of a Transformer language model."""

    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int | None = None
    """Fewer than n_heads: grouped-query attention."""
    n_layers: int = 4
    d_ff: int | None = None
    """Hidden size of the MLP; without one, 4 d_model."""
    context: int = 64
    """How many tokens a prediction sees; decoding keeps so many keys and values."""
    positions: transformer.Positions = "rotary"
    """With "learned", a text can be no longer than the context."""
    norm: Literal["layer", "rms"] = "layer"
    norm_place: Literal["pre", "post", "none"] = "pre"
    residual: bool = True
    bias: bool = True
    tied: bool = True
    """Use the embedding table as output matrix."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the products; weights, norms, softmax and the loss stay float32."""

    @property
    def style(self) -> Style:
        """How the sublayers are wrapped."""
        return Style(self.norm, self.norm_place, self.residual)

    @property
    def longest(self) -> int | None:
        """The longest text the model reads or writes; None is any."""
        return self.context if self.positions == "learned" else None

    def __post_init__(self):
        transformer.check_sizes(self)


class State(NamedTuple):
    """Keys and values of the last `context` tokens, for each layer, and where the rows are."""

    caches: tuple[caching.Cache, ...]
    places: caching.Places


class TransformerLM(nnx.Module):
    """Embedding, layers, output layer."""

    def __init__(self, config: TransformerConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embed(vocab_size, config.d_model, rngs=rngs)
        gain = 1 / math.sqrt(2 * config.n_layers) if config.residual else 1.0
        self.layers = nnx.List([nnx.Param(init_layer_of(config, rngs.params(), gain)) for _ in range(config.n_layers)])
        g, b = init_norm(config.style, config.d_model, bias=config.bias) if config.norm_place == "pre" else (None, None)
        self.g, self.b = None if g is None else nnx.Param(g), None if b is None else nnx.Param(b)
        self.out = None if config.tied else Dense(config.d_model, vocab_size, outputs="vocab", rngs=rngs)
        learned, t5 = config.positions == "learned", config.positions == "t5"
        self.learned = Embed(config.context, config.d_model, rows="position", rngs=rngs) if learned else None
        self.table = nnx.Param(transformer.init_t5(rngs.params(), config.n_heads)) if t5 else None

    @property
    def axes(self) -> dict[str, Any]:
        """See `seqjax.nn.logical_axes`."""
        return {"layers": transformer.AXES, "g": P("embed"), "b": P("embed"), "table": transformer.T5_AXES}

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        state: State | tuple = (),
        *,
        lengths: Int[Array, "B"] | None = None,
        resets: Bool[Array, "B T"] | None = None,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> tuple[tuple, Float[Array, "B T V"]]:
        """``((), logits)`` of whole texts, each from its beginning: nothing is carried from one call to the next.

        Raises InputError for a state: `prefill` goes on from one.

        Args:
          tokens: ``[B, T]``.
          state: (), as the result has it.
          lengths: of no effect: no token sees the padding after it, and what is computed there means nothing.
          resets: True where a document begins; no token sees another document.
          dropout: its rate; acts only where ``key`` is given.
          key: randomness of dropout.
        """
        if state != ():
            raise InputError("a Transformer carries no state from call to call; use prefill to go on from one")
        return (), self.scores(self.hidden(tokens, lengths, resets=resets, dropout=dropout, key=key))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"] | None = None,
        *,
        resets: Bool[Array, "B T"] | None = None,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B T D"]:
        """norm(x) of whole texts, as `__call__` reads them; for models that are trained further."""
        t = tokens.shape[1]
        segments = None if resets is None else jnp.cumsum(resets, axis=1, dtype=jnp.int32)
        # A length that jax.export leaves open may be longer than the window.
        whole = at_least(t, self.config.context + 1) is False
        options = {"segment_ids": segments, **({"causal": True} if whole else {"window": self.config.context})}

        def attend(i, q, k, v, **bias):
            return attention.dot_product_attention(q, k, v, **options, **bias)

        return self._hidden(tokens, jnp.arange(t, dtype=jnp.int32), attend, dropout, key)

    def initial_carry(self, batch: Size) -> tuple:
        """What training carries from one window to the next: nothing."""
        return ()

    def init_state(self, batch: Size) -> State:
        """The decoding state before the first token."""
        config = self.config
        sizes = config.n_kv_heads or config.n_heads, config.context, config.d_model // config.n_heads
        caches = tuple(caching.empty(batch, *sizes, config.dtype) for _ in range(config.n_layers))
        return State(caches, caching.start(batch))

    def prefill(
        self, state: State, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
    ) -> tuple[State, Float[Array, "B V"]]:
        """Read prompts of different lengths (at least 1) in one call: the state after each, and its next scores."""
        state, x = self._cached(state, tokens, lengths)
        return state, self.scores(jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0])

    def step(self, state: State, tokens: Int[Array, "B"]) -> tuple[State, Float[Array, "B V"]]:
        """Read one token a row: the next state and the scores of the token after it."""
        state, x = self._cached(state, tokens[:, None], None)
        return state, self.scores(x[:, 0])

    def _cached(self, state, tokens, lengths):
        caches, places = list(state.caches), state.places

        def attend(i, q, k, v, **bias):
            y, caches[i] = caching.attend(caches[i], places, q, k, v, lengths, **bias)
            return y

        at = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        # Padding stands where the last token does: no place beyond the context, which has no position.
        at = at if lengths is None else jnp.minimum(at, lengths[:, None] - 1)
        at = places.lengths[:, None] + at
        x = self._hidden(tokens, at, attend, 0.0, None)
        return State(tuple(caches), caching.advance(places, self.config.context, lengths)), x

    def _hidden(self, tokens, at, attend, dropout, key):
        """The layers, with ``attend(layer, q, k, v)``, on tokens at positions ``at`` [T] or [B, T]."""
        config = self.config
        drop = dropper(dropout, key)
        learned, t5 = (None if p is None else p.get_value() for p in (self.learned and self.learned.w, self.table))
        x = transformer.add_positions(config.positions, self.embed(tokens), at, learned)
        x, bias = drop(x.astype(config.dtype)), transformer.position_bias(config.positions, config.n_heads, t5)
        for i, layer in enumerate(self.layers):
            params = layer.get_value()
            x = attend_within(config, params, x, at, partial(attend, i, **bias), drop)
            x = feed_forward(config, params, x, drop)
        if config.norm_place != "pre":
            return x
        g, b = (None if p is None else p.get_value() for p in (self.g, self.b))
        return normalize(config.style, x, g, b)

    def scores(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The output layer."""
        return self.embed.attend(x) if self.out is None else self.out(x)
