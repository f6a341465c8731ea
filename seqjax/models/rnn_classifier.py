"""Recurrent text classifier, in one direction or in two, maybe with attention (Yang et al., 2016).

    x_t = dropout(E[token_t])
    h_t = stack of cells, dropout between layers
    v   = last, mean, maximum or weighted mean of h                   `seqjax.pooling`
    p(label | text) = softmax(dropout(v) W + b)

The names of its embedding and, in one direction, of its layers are those of `seqjax.models.rnn_lm`.
"""

from dataclasses import dataclass

import jax
from flax import nnx

from seqjax.cells import CELLS
from seqjax.errors import InputError
from seqjax.models.text_parts import Pool, Pooling, check, drop_words
from seqjax.nn import Bidirectional, Dense, Embed, Recurrent
from seqjax.transformer import dropper
from seqjax.types import Array, Float, Int, PRNGKey, Scalar


@dataclass(frozen=True)
class RNNClassifierConfig:
    """Shape of a recurrent classifier."""

    cell: str = "gru"
    """Any cell of seqjax.CELLS, such as lstm, gru or elman."""
    d_embed: int = 128
    d_hidden: int = 128
    """Of both directions together."""
    n_layers: int = 1
    bidirectional: bool = True
    pooling: Pooling = "max"
    """Of the states of all words; concat is last, maximum and mean."""
    word_dropout: float = 0.0
    """The rate at which words become <unk> in training."""

    def __post_init__(self):
        check(self, "d_embed", "d_hidden", "n_layers")
        if self.cell not in CELLS:
            raise InputError(f"model.cell={self.cell!r} is unknown; choose from {', '.join(sorted(CELLS))}.")
        if self.bidirectional and self.d_hidden % 2:
            raise InputError(f"model.d_hidden={self.d_hidden}: two directions have half of it each; make it even.")


class RNNClassifier(nnx.Module):
    """Embedding, stacked cells, pooling, output layer."""

    def __init__(self, config: RNNClassifierConfig, vocab_size: int, n_labels: int, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embed(vocab_size, config.d_embed, rngs=rngs)
        layers = Bidirectional if config.bidirectional else Recurrent
        self.rnn = layers(CELLS[config.cell], config.d_embed, config.d_hidden, config.n_layers, rngs=rngs)
        self.pool = Pool(config.pooling, config.d_hidden, bidirectional=config.bidirectional, rngs=rngs)
        self.out = Dense(self.pool.d_out, n_labels, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B C"]:
        """The scores of labels; dropout of any kind acts only where ``key`` is given."""
        key_drop, *keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        drop = dropper(dropout, key_drop)
        pooled, _ = self._read(tokens, lengths, drop, dropout, *keys)
        return self.out(drop(pooled))

    def weights(self, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]) -> Float[Array, "B T"]:
        """How much attention each word has, of a model that pools by attention."""
        weights = self._read(tokens, lengths, lambda x: x, 0.0, None, None)[1]
        assert weights is not None, f"pooling {self.config.pooling!r} has no weights"
        return weights

    def _read(self, tokens, lengths, drop, dropout, key_words, key_rnn):
        xs = drop(self.embed(drop_words(tokens, self.config.word_dropout, key_words)))
        _, hs = self.rnn(xs, lengths=lengths, dropout=dropout, key=key_rnn)
        return self.pool(hs, lengths)
