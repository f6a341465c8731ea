"""Recurrent language model (Mikolov et al., 2010; Zaremba et al., 2014).

    x_t = dropout(E[token_t])
    h_t = stack of cells, dropout between layers
    p(token_{t+1} | tokens ≤ t) = softmax(dropout(h_t) W + b)

W is Eᵀ when ``tied`` (Press and Wolf, 2017; Inan et al., 2017).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.cells import CELLS
from seqjax.errors import InputError
from seqjax.layers import dropout as apply_dropout
from seqjax.nn import Dense, Embed, Recurrent
from seqjax.types import Array, Bool, Float, Int, PRNGKey, Scalar


@dataclass(frozen=True)
class Config:
    """Shape of a recurrent language model."""

    cell: str = "lstm"
    """Any cell of seqjax.CELLS, such as lstm, gru or elman."""
    d_embed: int = 128
    d_hidden: int = 256
    n_layers: int = 1
    tied: bool = False
    """Use the embedding table as output matrix; needs d_embed = d_hidden."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the products; weights, cell states and the loss stay float32."""

    def __post_init__(self):
        if self.cell not in CELLS:
            raise InputError(f"model.cell={self.cell!r} is unknown; choose from {', '.join(sorted(CELLS))}.")
        if self.tied and self.d_embed != self.d_hidden:
            raise InputError(
                f"model.tied needs d_embed = d_hidden, not {self.d_embed} and {self.d_hidden}; make them equal."
            )
        for name in ("d_embed", "d_hidden", "n_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name}={getattr(self, name)}; it must be at least 1.")


class RNNLM(nnx.Module):
    """Embedding, stacked cells, output layer."""

    def __init__(self, config: Config, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embed(vocab_size, config.d_embed, rngs=rngs)
        self.rnn = Recurrent(CELLS[config.cell], config.d_embed, config.d_hidden, config.n_layers, rngs=rngs)
        self.out = None if config.tied else Dense(config.d_hidden, vocab_size, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        carry: tuple | None = None,
        *,
        lengths: Int[Array, "B"] | None = None,
        resets: Bool[Array, "B T"] | None = None,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> tuple[tuple, Float[Array, "B T V"]]:
        """``(carry, logits)``: the scores of each next token; dropout acts only where ``key`` is given."""
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        xs = self.embed(tokens).astype(self.config.dtype)
        xs = _maybe_dropout(keys[0], xs, dropout)
        carry, hs = self.rnn(xs, carry, lengths=lengths, resets=resets, dropout=dropout, key=keys[1])
        return carry, self.scores(_maybe_dropout(keys[2], hs, dropout))

    def scores(self, h: Float[Array, "*B H"]) -> Float[Array, "*B V"]:
        """The output layer."""
        return self.embed.attend(h) if self.out is None else self.out(h)

    def init_state(self, batch: int) -> tuple:
        """The decoding state before the first token: a carry for each layer."""
        return self.rnn.initial(jnp.zeros((batch, self.config.d_embed), self.config.dtype))

    def prefill(
        self, state: tuple, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
    ) -> tuple[tuple, Float[Array, "B V"]]:
        """Read prompts of different lengths (at least 1) in one call: the state after each, and its next scores."""
        xs = self.embed(tokens).astype(self.config.dtype)
        state, hs = self.rnn(xs, state, lengths=lengths)
        last = jnp.take_along_axis(hs, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return state, self.scores(last)

    def step(self, state: tuple, tokens: Int[Array, "B"]) -> tuple[tuple, Float[Array, "B V"]]:
        """Read one token a row: the next state and the scores of the token after it."""
        state, logits = self(tokens[:, None], state)
        return state, logits[:, 0]


def _maybe_dropout(key: PRNGKey | None, x: Float[Array, "*shape"], rate: Scalar) -> Float[Array, "*shape"]:
    return x if key is None else apply_dropout(key, x, rate)
