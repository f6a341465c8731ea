"""Language models that see the last n tokens: the bigram table, Bengio et al. (2003), a tree like WaveNet's (2016).

    x_t^0 = E[token_t]
    x_t^l = dropout(tanh(norm([x_{t-(k-1)d}^{l-1}, …, x_{t-d}^{l-1}, x_t^{l-1}] W_l + b_l))),   d = k^{l-1},   l = 1 … L
    p(token_{t+1} | token_{t-n+1}, …, token_t) = softmax(x_t^L W + b),   n = k^L

Each layer fuses k neighbours (``fuse``), which are d tokens apart.

- L = 1 is the neural probabilistic language model of Bengio et al.: all n = k vectors are fused at once.
- k = 2 is a binary tree over n = 2^L tokens. It is computed as in WaveNet (van den Oord et al., 2016): the layers are
  dilated causal convolutions, so that trees of neighbouring t share their nodes. WaveNet's gates, residual and skip
  connections are left out.
- L = 0 is n = 1 and no hidden layer: E is a table [V, V] whose rows are the scores themselves.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax.errors import check_least
from seqjax.layers import dropout as apply_dropout
from seqjax.nn import Dense, Embed
from seqjax.normalization import layer_norm
from seqjax.types import Array, Float, Int, PRNGKey, Scalar, Size


@dataclass(frozen=True)
class Config:
    """Shape of a language model of a fixed window; it sees ``window`` = fuse ** n_layers tokens."""

    fuse: int = 3
    """Neighbours that a layer makes one vector of."""
    n_layers: int = 1
    """0 is the table of bigrams, 1 the model of Bengio et al., more a tree."""
    d_embed: int = 10
    """Without effect in the table of bigrams, as d_hidden."""
    d_hidden: int = 200
    norm: bool = False
    """Layer normalisation before each tanh."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the products; weights, statistics and the loss stay float32."""

    def __post_init__(self):
        check_least(self, "model.", fuse=1, n_layers=0, d_embed=1, d_hidden=1)

    @property
    def window(self) -> int:
        """n, the tokens that a prediction sees."""
        return self.fuse**self.n_layers


class Fuse(nnx.Module):
    """tanh(norm([x_{t-(k-1)d}, …, x_t] w + b)) at each t that has k neighbours d apart."""

    def __init__(self, d_in: int, config: Config, dilation: int, *, rngs: nnx.Rngs):
        self.width, self.dilation = config.fuse, dilation
        self.dense = Dense(config.fuse * d_in, config.d_hidden, outputs="mlp", rngs=rngs)
        self.g = nnx.Param(jnp.ones(config.d_hidden)) if config.norm else None

    @property
    def axes(self) -> dict[str, P]:
        """See `seqjax.nn.logical_axes`."""
        return {"g": P("mlp")}

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B T H"]:
        """T = S - (k - 1) d: only whole windows give an output."""
        length = x.shape[1] - (self.width - 1) * self.dilation
        starts = range(0, self.width * self.dilation, self.dilation)
        z = self.dense(jnp.concatenate([x[:, i : i + length] for i in starts], axis=-1))
        return jnp.tanh(z if self.g is None else layer_norm(z, self.g.get_value()))


class FixedWindowLM(nnx.Module):
    """Embedding, layers that fuse neighbours, output layer. The state is the last n tokens, [B, n]."""

    def __init__(self, config: Config, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        sizes = [config.d_embed] + [config.d_hidden] * config.n_layers
        self.embed = Embed(vocab_size, config.d_embed if config.n_layers else vocab_size, rngs=rngs)
        self.layers = nnx.List([Fuse(sizes[i], config, config.fuse**i, rngs=rngs) for i in range(config.n_layers)])
        self.out = Dense(config.d_hidden, vocab_size, outputs="vocab", rngs=rngs) if config.n_layers else None

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        state: Int[Array, "B n"] | None = None,
        *,
        lengths: Int[Array, "B"] | None = None,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> tuple[Int[Array, "B n"], Float[Array, "B T V"]]:
        """``(state, logits)``: the scores of each next token; dropout acts only where ``key`` is given."""
        state = self.init_state(tokens.shape[0]) if state is None else state
        read = jnp.concatenate([state, tokens.astype(state.dtype)], axis=1)
        x = self._fused(read, dropout, key)
        return _last(read, self.config.window, lengths), x if self.out is None else self.out(x)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"] | None = None,
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B T H"]:
        """x_t^L of whole texts, which no padding after them changes; for models that are trained further."""
        state = self.init_state(tokens.shape[0])
        return self._fused(jnp.concatenate([state, tokens.astype(state.dtype)], axis=1), dropout, key)

    def _fused(self, read, dropout, key):
        x = self.embed(read[:, 1:]).astype(self.config.dtype)  # the oldest token of the state is in no window
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if key is not None:
                x = apply_dropout(jax.random.fold_in(key, i), x, dropout)
        return x

    def init_state(self, batch: Size) -> Int[Array, "B n"]:
        """The decoding state before the first token: a window of padding."""
        return jnp.zeros((batch, self.config.window), jnp.int32)

    initial_carry = init_state  # training, too, carries the window on

    def prefill(
        self, state: Int[Array, "B n"], tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
    ) -> tuple[Int[Array, "B n"], Float[Array, "B V"]]:
        """Read prompts of different lengths (at least 1) in one call: the state after each, and its next scores."""
        state, logits = self(tokens, state, lengths=lengths)
        return state, jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]

    def step(self, state: Int[Array, "B n"], tokens: Int[Array, "B"]) -> tuple[Int[Array, "B n"], Float[Array, "B V"]]:
        """Read one token a row: the next state and the scores of the token after it."""
        state, logits = self(tokens[:, None], state)
        return state, logits[:, 0]


def _last(read: Int[Array, "B S"], n: int, lengths: Int[Array, "B"] | None) -> Int[Array, "B n"]:
    """The n tokens before the end of each row, whose first n are the state before."""
    if lengths is None:
        return read[:, read.shape[1] - n :]
    return jnp.take_along_axis(read, lengths[:, None] + jnp.arange(n, dtype=lengths.dtype)[None], axis=1)
