"""Transformer encoder-decoder (Vaswani et al., 2017).

    m = E_s[source] + positions                           encoder: for each layer
        m = m + dropout(attention(norm(m)))               to the whole source
        m = m + dropout(mlp(norm(m)))
    y = E_t[tokens before t] + positions                  decoder: for each layer
        y = y + dropout(attention(norm(y)))               causal
        y = y + dropout(attention(norm(y), norm(m)))      to the source
        y = y + dropout(mlp(norm(y)))
    p(token_t | tokens before t, source) = softmax(norm(y_t) W + b)

"post" is x = norm(x + f(x)); it has no norm at the end. W is E_tᵀ, and E_s is E_t, as ``tied`` says.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax import attention, caching, transformer
from seqjax.attention import MultiHead
from seqjax.caching import Cache, Shared
from seqjax.errors import InputError
from seqjax.nn import Dense, Embed
from seqjax.text import SOS
from seqjax.transformer import (
    Layer,
    Style,
    attend_within,
    dropper,
    encode,
    feed_forward,
    init_layer_of,
    init_norm,
    normalize,
    sublayer,
)
from seqjax.types import Array, Float, Int, PRNGKey, Scalar, Size


@dataclass(frozen=True)
class TransformerSeq2SeqConfig:
    """Shape of a Transformer encoder-decoder."""

    d_model: int = 256
    n_heads: int = 4
    n_kv_heads: int | None = None
    """Fewer than n_heads: grouped-query attention."""
    n_layers: int = 3
    n_decoder_layers: int | None = None
    """Without one, as many as the encoder has."""
    d_ff: int | None = None
    """Hidden size of the MLP; without one, 4 d_model."""
    context: int = 256
    """The longest target that decoding keeps keys and values for; with "learned", no text can be longer."""
    positions: transformer.Positions = "sinusoidal"
    norm: Literal["layer", "rms"] = "layer"
    norm_place: Literal["pre", "post", "none"] = "pre"
    bias: bool = True
    tied: Literal["none", "output", "all"] = "output"
    """output: the output matrix is the target's embedding; all: so is the source's, where the vocabulary is joint."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the products; weights, norms, softmax and the loss stay float32."""

    @property
    def style(self) -> Style:
        """How the sublayers are wrapped."""
        return Style(self.norm, self.norm_place)

    @property
    def longest(self) -> int | None:
        """The longest text the model reads or writes; None is any."""
        return self.context if self.positions == "learned" else None

    def __post_init__(self):
        transformer.check_sizes(self)


class DecoderLayer(NamedTuple):
    """A layer with attention to the source."""

    own: Layer
    cross: MultiHead
    g_cross: Array | None  # [D]
    b_cross: Array | None


class State(NamedTuple):
    """Keys and values of the target so far, those of the source, and the weights of the last step (None before it)."""

    caches: tuple[caching.Cache | caching.BeamCache, ...]
    places: caching.Places
    memory: Shared  # a tuple of Cache, one for each layer, and the mask [B, S]
    attention: Array | None  # [B, S]: of the last layer, the mean of the heads


class TransformerSeq2Seq(nnx.Module):
    """Embeddings, encoder, decoder, output layer."""

    def __init__(self, config: TransformerSeq2SeqConfig, source_vocab: int, target_vocab: int, *, rngs: nnx.Rngs):
        if config.tied == "all" and source_vocab != target_vocab:
            raise InputError(
                f"model.tied='all' needs one vocabulary, not {source_vocab} and {target_vocab} tokens; make it joint."
            )
        self.config = config
        d, n_decoder = config.d_model, config.n_decoder_layers or config.n_layers
        self.target = Embed(target_vocab, d, rngs=rngs)
        self.source = None if config.tied == "all" else Embed(source_vocab, d, rngs=rngs)
        gain = 1 / math.sqrt(2 * config.n_layers)
        self.encoder = nnx.List([nnx.Param(init_layer_of(config, rngs.params(), gain)) for _ in range(config.n_layers)])
        self.decoder = nnx.List([nnx.Param(_init_decoder_layer(config, rngs.params())) for _ in range(n_decoder)])
        n_norms = 2 if config.norm_place == "pre" else 0  # at the end of the encoder and of the decoder
        self.norms = nnx.List([nnx.Param(init_norm(config.style, d, bias=config.bias)) for _ in range(n_norms)])
        self.out = Dense(d, target_vocab, outputs="vocab", rngs=rngs) if config.tied == "none" else None
        learned = config.positions == "learned"
        self.learned = Embed(config.context, d, rows="position", rngs=rngs) if learned else None
        n_tables = 2 if config.positions == "t5" else 0
        self.tables = nnx.List([nnx.Param(transformer.init_t5(rngs.params(), config.n_heads)) for _ in range(n_tables)])

    @property
    def axes(self) -> dict[str, Any]:
        """See `seqjax.nn.logical_axes`."""
        decoder = DecoderLayer._make((transformer.AXES, attention.AXES, *transformer.NORM_AXES))
        return {
            "encoder": transformer.AXES,
            "decoder": decoder,
            "norms": transformer.NORM_AXES,
            "tables": transformer.T5_AXES,
        }

    def __call__(
        self,
        source: Int[Array, "B S"],
        source_lengths: Int[Array, "B"],
        inputs: Int[Array, "B T"],
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> tuple[Float[Array, "B T S"], Float[Array, "B T V"]]:
        """``(attention, logits)`` with the right tokens before each one (teacher forcing).

        ``inputs`` begin with <sos>; dropout acts only where ``key`` is given. The attention, the mean of the last
        layer's heads, is computed only where it is used.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        mask = _mask(source, source_lengths)
        memory = self._encode(source, mask, dropout, keys[0])
        seen = []

        def attend(i, q, k, v, **bias):
            return attention.dot_product_attention(q, k, v, causal=True, **bias)

        def cross(i, q):
            k, v = attention.keys_values(self.decoder[i].get_value().cross, memory)
            seen.append(attention.attention_weights(q, k, mask=mask[:, None, None]))
            return attention.dot_product_attention(q, k, v, mask=mask[:, None, None])

        at = jnp.arange(inputs.shape[1], dtype=jnp.int32)
        logits = self._decode(inputs, at, attend, cross, dropout, keys[1])
        return jnp.mean(seen[-1], axis=1), logits

    def init_state(self, batch: Size, max_length: int | None = None) -> State:
        """The decoding state before the source is read, with room for ``max_length`` tokens."""
        config = self.config
        sizes = config.n_kv_heads or config.n_heads, max_length or config.context, config.d_model // config.n_heads
        caches = tuple(caching.empty(batch, *sizes, config.dtype) for _ in self.decoder)
        return State(caches, caching.start(batch), Shared(None), None)

    def prefill(
        self, state: State, source: Int[Array, "B S"], lengths: Int[Array, "B"]
    ) -> tuple[State, Float[Array, "B V"]]:
        """Read sources of different lengths, and <sos>: the state, and the scores of the first token."""
        mask = _mask(source, lengths)
        memory = self._encode(source, mask, 0.0, None)
        pairs = (attention.keys_values(layer.get_value().cross, memory) for layer in self.decoder)
        caches = tuple(Cache(jnp.moveaxis(k, 2, 1), jnp.moveaxis(v, 2, 1)) for k, v in pairs)
        return self.step(state._replace(memory=Shared((caches, mask))), jnp.full_like(source[:, 0], SOS))

    def step(self, state: State, tokens: Int[Array, "B"]) -> tuple[State, Float[Array, "B V"]]:
        """Read one token a row: the next state and the scores of the token after it."""
        caches, places = list(state.caches), state.places
        memories, mask = state.memory.value
        seen = []

        def attend(i, q, k, v, **bias):
            y, caches[i] = caching.attend(caches[i], places, q, k, v, **bias)
            return y

        def cross(i, q):
            y, weights = caching.look(memories[i], mask, q)
            seen.append(weights)
            return y

        logits = self._decode(tokens[:, None], places.lengths[:, None], attend, cross, 0.0, None)[:, 0]
        places = caching.advance(places, caching.columns(caches[0]), None)
        return State(tuple(caches), places, state.memory, jnp.mean(seen[-1], axis=1)), logits

    def _encode(self, source, mask, dropout, key) -> Float[Array, "B S D"]:
        config, drop = self.config, dropper(dropout, key)
        at = jnp.arange(source.shape[1], dtype=jnp.int32)
        table = self.tables[0].get_value() if self.tables else None
        bias = transformer.position_bias(config.positions, config.n_heads, table, bidirectional=True)
        x = drop(self._embedded(self.target if self.source is None else self.source, source, at))
        attend = partial(attention.dot_product_attention, mask=mask[:, None, None], **bias)
        x = encode(config, [layer.get_value() for layer in self.encoder], x, at, attend, drop)
        return normalize(config.style, x, *self.norms[0].get_value()) if self.norms else x

    def _decode(self, tokens, at, attend, cross, dropout, key) -> Float[Array, "B T V"]:
        """The decoder, with ``attend(layer, q, k, v)`` to the target and ``cross(layer, q)`` to the source."""
        config, drop = self.config, dropper(dropout, key)
        table = self.tables[1].get_value() if self.tables else None
        bias = transformer.position_bias(config.positions, config.n_heads, table)
        x = drop(self._embedded(self.target, tokens, at))
        for i, layer in enumerate(self.decoder):
            params = layer.get_value()

            def look(x, i=i, params=params.cross):
                return drop(attention.merged(params, cross(i, attention.queries(params, x))))

            x = attend_within(config, params.own, x, at, partial(attend, i, **bias), drop)
            x = sublayer(config.style, look, x, params.g_cross, params.b_cross)
            x = feed_forward(config, params.own, x, drop)
        x = normalize(config.style, x, *self.norms[1].get_value()) if self.norms else x
        return self.target.attend(x) if self.out is None else self.out(x)

    def _embedded(self, embed, tokens, at):
        learned = None if self.learned is None else self.learned.w.get_value()
        return transformer.add_positions(self.config.positions, embed(tokens), at, learned).astype(self.config.dtype)


def _mask(source, lengths):
    return jnp.arange(source.shape[1], dtype=lengths.dtype)[None] < lengths[:, None]


def _init_decoder_layer(config, key) -> DecoderLayer:
    own, cross = jax.random.split(key)
    heads = attention.init_multi_head(
        cross, config.d_model, config.n_heads, n_kv_heads=config.n_kv_heads, bias=config.bias
    )
    gain = 1 / math.sqrt(3 * (config.n_decoder_layers or config.n_layers))
    own = init_layer_of(config, own, gain)
    return DecoderLayer(
        own, heads._replace(w_o=gain * heads.w_o), *init_norm(config.style, config.d_model, bias=config.bias)
    )
