"""Transformer text classifier: an encoder (Vaswani et al., 2017) and one vector for the text.

    x_t = dropout(E[token_t] + position_t)
    x   = x + dropout(attention(norm(x)))         for each layer, to the whole text; "post" is x = norm(x + f(x))
    x   = x + dropout(mlp(norm(x)))
    v   = mean, maximum, weighted mean or last of norm(x)             `seqjax.pooling`
    p(label | text) = softmax(dropout(v) W + b)

The names of embedding, layers and the norm after them are those of `seqjax.models.transformer_lm`; ``causal`` as there,
a word sees only those before it.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax import transformer
from seqjax.models.text_parts import Pool, Pooling, check, drop_words
from seqjax.nn import Dense, Embed
from seqjax.transformer import Style, dropper, init_layer_of, init_norm, read, values
from seqjax.types import Array, Float, Int, PRNGKey, Scalar


@dataclass(frozen=True)
class TransformerClassifierConfig:
    """Shape of a Transformer classifier."""

    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int | None = None
    """Fewer than n_heads: grouped-query attention."""
    n_layers: int = 2
    d_ff: int | None = None
    """Hidden size of the MLP; without one, 4 d_model."""
    context: int = 512
    """With "learned" positions, no text can be longer."""
    positions: transformer.Positions = "rotary"
    norm: Literal["layer", "rms"] = "layer"
    norm_place: Literal["pre", "post", "none"] = "pre"
    bias: bool = True
    causal: bool = False
    """A word sees only itself and those before it."""
    pooling: Pooling = "mean"
    """Of the states of all words; concat is last, maximum and mean."""
    word_dropout: float = 0.0
    """The rate at which words become <unk> in training."""

    @property
    def style(self) -> Style:
        """How the sublayers are wrapped."""
        return Style(self.norm, self.norm_place)

    @property
    def longest(self) -> int | None:
        """The longest text the model reads; None is any."""
        return self.context if self.positions == "learned" else None

    def __post_init__(self):
        transformer.check_sizes(self)
        check(self)


class TransformerClassifier(nnx.Module):
    """Embedding, layers, pooling, output layer."""

    def __init__(self, config: TransformerClassifierConfig, vocab_size: int, n_labels: int, *, rngs: nnx.Rngs):
        self.config, d = config, config.d_model
        self.embed = Embed(vocab_size, d, rngs=rngs)
        gain = 1 / math.sqrt(2 * config.n_layers)
        self.layers = nnx.List([nnx.Param(init_layer_of(config, rngs.params(), gain)) for _ in range(config.n_layers)])
        g, b = init_norm(config.style, d, bias=config.bias) if config.norm_place == "pre" else (None, None)
        self.g, self.b = None if g is None else nnx.Param(g), None if b is None else nnx.Param(b)
        learned, t5 = config.positions == "learned", config.positions == "t5"
        self.learned = Embed(config.context, d, rows="position", rngs=rngs) if learned else None
        self.table = nnx.Param(transformer.init_t5(rngs.params(), config.n_heads)) if t5 else None
        self.pool = Pool(config.pooling, d, rngs=rngs)
        self.out = Dense(self.pool.d_out, n_labels, rngs=rngs)

    @property
    def axes(self) -> dict[str, Any]:
        """See `seqjax.nn.logical_axes`."""
        return {"layers": transformer.AXES, "g": P("embed"), "b": P("embed"), "table": transformer.T5_AXES}

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B C"]:
        """The scores of labels; dropout of any kind acts only where ``key`` is given."""
        key_words, key_drop = (None, None) if key is None else jax.random.split(key)
        drop = dropper(dropout, key_drop)
        pooled, _ = self._read(drop_words(tokens, self.config.word_dropout, key_words), lengths, drop)
        return self.out(drop(pooled))

    def weights(self, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]) -> Float[Array, "B T"]:
        """How much attention each word has, of a model that pools by attention."""
        weights = self._read(tokens, lengths, lambda x: x)[1]
        assert weights is not None, f"pooling {self.config.pooling!r} has no weights"
        return weights

    def _read(self, tokens, lengths, drop):
        g, b, learned, table = values(self.g, self.b, self.learned and self.learned.w, self.table)
        options = {"causal": self.config.causal, "norm": (g, b), "learned": learned, "table": table}
        return self.pool(read(self.config, values(*self.layers), self.embed(tokens), lengths, drop, **options), lengths)
