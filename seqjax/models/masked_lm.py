"""Masked language model: a Transformer encoder that guesses words that it does not see (Devlin et al., 2019).

    x_t = dropout(E[token_t] + position_t)
    x   = x + dropout(attention(norm(x)))         for each layer, to the whole text; "post" is x = norm(x + f(x))
    x   = x + dropout(mlp(norm(x)))
    p(token_t | the others) = softmax(norm(x_t) W + b),   W is Eᵀ when ``tied``

In training a part of the tokens of each row is chosen, and only these are guessed; of them 80 % are replaced by
``MASK``, 10 % by another token, and 10 % stay (``mask``). The names of embedding, layers and the norm after them are
those of `seqjax.models.transformer_lm`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax import transformer
from seqjax.nn import Dense, Embed
from seqjax.text import SOS, SPECIALS
from seqjax.transformer import Style, dropper, init_layer_of, init_norm, read, values
from seqjax.types import Array, Bool, Float, Int, PRNGKey, Scalar, Size

MASK = SOS
"""The token that stands for a hidden one: no text has it."""


@dataclass(frozen=True)
class MaskedLMConfig:
    """Shape of a masked language model."""

    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int | None = None
    """Fewer than n_heads: grouped-query attention."""
    n_layers: int = 2
    d_ff: int | None = None
    """Hidden size of the MLP; without one, 4 d_model."""
    context: int = 64
    """With "learned" positions, no text can be longer."""
    positions: transformer.Positions = "rotary"
    norm: Literal["layer", "rms"] = "layer"
    norm_place: Literal["pre", "post", "none"] = "pre"
    bias: bool = True
    tied: bool = True
    """Use the embedding table as output matrix."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the products; weights, norms, softmax and the loss stay float32."""

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


class MaskedLM(nnx.Module):
    """Embedding, layers, output layer."""

    def __init__(self, config: MaskedLMConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config, d = config, config.d_model
        self.embed = Embed(vocab_size, d, rngs=rngs)
        gain = 1 / math.sqrt(2 * config.n_layers)
        self.layers = nnx.List([nnx.Param(init_layer_of(config, rngs.params(), gain)) for _ in range(config.n_layers)])
        g, b = init_norm(config.style, d, bias=config.bias) if config.norm_place == "pre" else (None, None)
        self.g, self.b = None if g is None else nnx.Param(g), None if b is None else nnx.Param(b)
        self.out = None if config.tied else Dense(d, vocab_size, outputs="vocab", rngs=rngs)
        learned, t5 = config.positions == "learned", config.positions == "t5"
        self.learned = Embed(config.context, d, rows="position", rngs=rngs) if learned else None
        self.table = nnx.Param(transformer.init_t5(rngs.params(), config.n_heads)) if t5 else None

    @property
    def axes(self) -> dict[str, Any]:
        """See `seqjax.nn.logical_axes`."""
        return {"layers": transformer.AXES, "g": P("embed"), "b": P("embed"), "table": transformer.T5_AXES}

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"] | None = None,
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B T V"]:
        """The scores of what stands at each place; dropout acts only where ``key`` is given."""
        return self.scores(self.hidden(tokens, lengths, dropout=dropout, key=key))

    def scores(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The output layer, of all places or some."""
        return self.embed.attend(x) if self.out is None else self.out(x)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"] | None = None,
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B T D"]:
        """norm(x), of which the scores are made."""
        g, b, learned, table = values(self.g, self.b, self.learned and self.learned.w, self.table)
        options = {"norm": (g, b), "learned": learned, "table": table}
        return read(self.config, values(*self.layers), self.embed(tokens), lengths, dropper(dropout, key), **options)

    def initial_carry(self, batch: Size) -> tuple:
        """What training carries from one window to the next: nothing."""
        return ()


class Masked(NamedTuple):
    """What the model sees, and what it has to guess."""

    tokens: Int[Array, "B T"]
    at: Int[Array, "B K"]  # the places of the tokens that are guessed
    where: Bool[Array, "B K"]  # whether there is a token


def mask(key: PRNGKey, tokens: Int[Array, "B T"], where: Bool[Array, "B T"], *, rate: float, vocab_size: int) -> Masked:
    """Choose a share of the tokens ``where`` of each row to be guessed, at least one, and draw what is seen instead.

    There is room for K = rate · T of them, whatever a row has, so that the scores of other tokens need not be computed.

    >>> tokens = jnp.arange(5, 15)[None]
    >>> masked = mask(jax.random.key(0), tokens, tokens < 10, rate=0.3, vocab_size=20)
    >>> masked.at.shape, bool(jnp.all(tokens[0, masked.at] < 10))
    ((1, 3), True)
    """
    choose, replace, draw = jax.random.split(key, 3)
    n = max(1, round(rate * tokens.shape[1]))
    order = jnp.argsort(jnp.where(where, jax.random.uniform(choose, tokens.shape), 1.0), axis=1)
    chosen = jnp.maximum(
        1, jnp.round(rate * jnp.sum(where, axis=1, keepdims=True, dtype=jnp.float32)).astype(jnp.int32)
    )
    guessed = (jnp.argsort(order, axis=1) < chosen) & where
    u = jax.random.uniform(replace, tokens.shape)
    others = jax.random.randint(draw, tokens.shape, len(SPECIALS), vocab_size, tokens.dtype)
    seen = jnp.where(u < 0.8, jnp.asarray(MASK, tokens.dtype), jnp.where(u < 0.9, others, tokens))
    at = order[:, :n].astype(jnp.int32)
    return Masked(jnp.where(guessed, seen, tokens), at, jnp.take_along_axis(guessed, at, axis=1))
