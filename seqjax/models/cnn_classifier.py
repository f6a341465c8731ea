"""Convolutional sentence classifier (Kim, 2014).

x_t = E[token_t]
f   = relu(max over time of windows of 3, 4 and 5 words times filters)       `seqjax.convolution`
p(label | text) = softmax(dropout(f) W + b)
"""

from dataclasses import dataclass

import jax
from flax import nnx

from seqjax import convolution
from seqjax.convolution import init_filters, max_over_time
from seqjax.errors import InputError
from seqjax.models.text_parts import check, drop_words
from seqjax.nn import Dense, Embed
from seqjax.transformer import dropper
from seqjax.types import Array, Float, Int, PRNGKey, PyTree, Scalar


@dataclass(frozen=True)
class CNNClassifierConfig:
    """Shape of a convolutional classifier."""

    d_embed: int = 128
    widths: tuple[int, ...] = (3, 4, 5)
    """Words that a filter sees."""
    n_filters: int = 100
    """Of each width."""
    word_dropout: float = 0.0
    """The rate at which words become <unk> in training."""

    def __post_init__(self):
        check(self, "d_embed", "n_filters")
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"model.widths={self.widths}; there must be at least one, and each at least 1.")


class CNNClassifier(nnx.Module):
    """Embedding, convolution, output layer."""

    def __init__(self, config: CNNClassifierConfig, vocab_size: int, n_labels: int, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embed(vocab_size, config.d_embed, rngs=rngs)
        self.filters = nnx.List(
            [nnx.Param(init_filters(rngs.params(), k, config.d_embed, config.n_filters)) for k in config.widths]
        )
        self.out = Dense(len(config.widths) * config.n_filters, n_labels, rngs=rngs)

    @property
    def axes(self) -> dict[str, PyTree]:
        """See `seqjax.nn.logical_axes`."""
        return {"filters": convolution.AXES}

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B C"]:
        """The scores of labels; ``dropout`` of the features and word dropout act only where ``key`` is given."""
        key_words, key_drop = (None, None) if key is None else jax.random.split(key)
        xs = self.embed(drop_words(tokens, self.config.word_dropout, key_words))
        features = max_over_time(xs, [layer.get_value() for layer in self.filters], lengths)
        return self.out(dropper(dropout, key_drop)(features))
