"""Recurrent language model (Mikolov et al., 2010; Zaremba et al., 2014).

    x_t = dropout(E[token_t])
    h_t = stack of cells, dropout between layers
    p(token_{t+1} | tokens ≤ t) = softmax(dropout(h_t) W + b)

W is Eᵀ when ``tied`` (Press and Wolf, 2017; Inan et al., 2017). As in AWD-LSTM (Merity et al., 2018), where chosen:

    variational     each dropout has one mask a sequence, the same at every t (Gal and Ghahramani, 2016)
    word_dropout    E ← E · m / (1 - p) in x_t, one m_v in {0, 1} a word v: all that words that are drawn vanish
    weight_drop     w_h ← w_h · m / (1 - p), one m_ij a weight, in every layer (DropConnect: Wan et al., 2013)

All masks are drawn once a call from its ``key``; without one none is.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.cells import CELLS
from seqjax.errors import InputError, check_least
from seqjax.layers import dropout as apply_dropout
from seqjax.nn import Dense, Embed, Recurrent
from seqjax.types import Array, Bool, Float, Int, PRNGKey, Scalar, Size


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
    variational: bool = False
    """Dropout with one mask a sequence instead of one a step."""
    word_dropout: float = 0.0
    """The rate at which words of the vocabulary vanish from the input, each wherever it stands."""
    weight_drop: float = 0.0
    """The rate of dropout on the recurrent matrix w_h."""

    def __post_init__(self):
        if self.cell not in CELLS:
            raise InputError(f"model.cell={self.cell!r} is unknown; choose from {', '.join(sorted(CELLS))}.")
        if self.tied and self.d_embed != self.d_hidden:
            raise InputError(
                f"model.tied needs d_embed = d_hidden, not {self.d_embed} and {self.d_hidden}; make them equal."
            )
        check_least(self, "model.", d_embed=1, d_hidden=1, n_layers=1)
        for name in ("word_dropout", "weight_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"model.{name}={getattr(self, name)}; it must be at least 0 and below 1.")
        if self.weight_drop > 0 and "w_h" not in CELLS[self.cell].axes._fields:
            raise InputError(
                f"model.weight_drop={self.weight_drop}: cell {self.cell!r} has no recurrent matrix w_h; set it to 0."
            )


class RNNLM(nnx.Module):
    """Embedding, stacked cells, output layer."""

    def __init__(self, config: Config, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embed(vocab_size, config.d_embed, rngs=rngs)
        self.rnn = Recurrent(CELLS[config.cell], config.d_embed, config.d_hidden, config.n_layers, rngs=rngs)
        self.out = None if config.tied else Dense(config.d_hidden, vocab_size, outputs="vocab", rngs=rngs)

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
        """``(carry, logits)``: the scores of each next token; dropout of any kind acts only where ``key`` is given."""
        carry, hs, drop = self._read(tokens, carry, lengths, resets, dropout, key)
        return carry, self.scores(drop(hs))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"] | None = None,
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B T H"]:
        """h_t of whole texts, before the last dropout; for models that are trained further."""
        return self._read(tokens, None, lengths, None, dropout, key)[1]

    def _read(self, tokens, carry, lengths, resets, dropout, key):
        """``(carry, hs, drop)``: the states of the last layer, and the dropout that comes after it."""
        xs, config = self.embed(tokens), self.config
        if key is None:
            carry, hs = self.rnn(xs.astype(config.dtype), carry, lengths=lengths, resets=resets)
            return carry, hs, lambda hs: hs
        drop = partial(apply_dropout, rate=dropout, shared_axis=1 if config.variational else None)
        key_in, key_rnn, key_out = jax.random.split(key, 3)
        if config.word_dropout > 0:
            words = jnp.ones_like(self.embed.w.get_value()[:, 0])
            words = apply_dropout(jax.random.fold_in(key_in, 1), words, config.word_dropout)
            xs = xs * words[tokens][..., None]
        carry, hs = self.rnn(
            drop(key_in, xs.astype(config.dtype)),
            carry,
            lengths=lengths,
            resets=resets,
            dropout=dropout,
            variational=config.variational,
            weight_drop=config.weight_drop,
            key=key_rnn,
        )
        return carry, hs, partial(drop, key_out)

    def scores(self, h: Float[Array, "*B H"]) -> Float[Array, "*B V"]:
        """The output layer."""
        return self.embed.attend(h) if self.out is None else self.out(h)

    def init_state(self, batch: Size) -> tuple:
        """The decoding state before the first token: a carry for each layer."""
        return self.rnn.initial(jnp.zeros((batch, self.config.d_embed), self.config.dtype))

    initial_carry = init_state  # training, too, carries the state from one window to the next

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
