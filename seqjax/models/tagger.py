"""Tagger: words and their spelling, an encoder, and softmax or a CRF (Lample et al., 2016; Ma and Hovy, 2016).

    c_t = relu(max over places of a convolution over the letters of word_t)   "cnn"    `seqjax.convolution`
        | the last states of both directions of a cell over the letters       "rnn"
    x_t = dropout([E[word_t], c_t, state of a language model at the end of word_t])  with a trunk (Akbik et al., 2018)
    h   = both directions of stacked cells over x, dropout between layers     "rnn"
        | Transformer encoder over dropout(x W + b + positions)               "transformer"
    scores_t = dropout(h_t) W + b
    p(tags | words) = Π_t softmax(scores_t)[tags_t]                           "softmax"
                    | exp(Σ_t scores_t[tags_t] + transitions) / Z             "crf"    `seqjax.crf`

The names of its embedding, layers and the norm after them are those of `seqjax.models.rnn_classifier` and
`seqjax.models.transformer_classifier`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax import convolution, crf, losses, pooling, transformer
from seqjax.cells import CELLS
from seqjax.convolution import init_filters, max_over_time
from seqjax.errors import InputError, check_least
from seqjax.layers import dropout as apply_dropout
from seqjax.models.finetuned import without_output
from seqjax.nn import Bidirectional, Dense, Embed
from seqjax.text import UNK
from seqjax.transformer import Style, dropper, init_layer, init_norm, read, values
from seqjax.types import Array, Bool, Float, Int, PRNGKey, Scalar

STYLE = Style("layer", "pre")
"""How the sublayers of a Transformer are wrapped."""


@dataclass(frozen=True)
class TaggerConfig:
    """Shape of a tagger."""

    encoder: Literal["rnn", "transformer"] = "rnn"
    output: Literal["softmax", "crf"] = "crf"
    cell: str = "lstm"
    """Any cell of seqjax.CELLS, such as lstm, gru or sru."""
    d_embed: int = 100
    """Size of the embeddings of words."""
    letters: Literal["cnn", "rnn", "none"] = "cnn"
    """How spelling is read; letters are bytes of UTF-8."""
    d_letter: int = 30
    """Size of the embeddings of letters."""
    max_letters: int = 16
    """Of longer words, the first and the last letters are read."""
    d_spelling: int = 50
    """Features of a word's spelling."""
    width: int = 3
    """Letters that a filter of "cnn" sees."""
    d_hidden: int = 256
    """Of both directions together."""
    n_layers: int = 1
    n_heads: int = 4
    """Of a Transformer."""
    positions: Literal["rotary", "sinusoidal", "alibi", "none"] = "rotary"
    """Of a Transformer; in all of them, texts have any length."""
    locked: bool = True
    """One mask of dropout for all words of a sentence (Gal and Ghahramani, 2016), before and after the encoder."""
    unknown: float = 0.5
    """The rate at which words that occur once become <unk> in training, so that it is learned."""

    n_kv_heads = None  # each head of a Transformer has its own

    @property
    def d_model(self) -> int:
        """What a Transformer calls d_hidden."""
        return self.d_hidden

    @property
    def style(self) -> Style:
        """How the sublayers of a Transformer are wrapped."""
        return STYLE

    def __post_init__(self):
        sizes = ("d_embed", "d_letter", "d_spelling", "max_letters", "width", "d_hidden", "n_layers", "n_heads")
        check_least(self, "model.", **dict.fromkeys(sizes, 1))
        if not 0 <= self.unknown <= 1:
            raise InputError(f"model.unknown={self.unknown}; it must be between 0 and 1.")
        if self.cell not in CELLS:
            raise InputError(f"model.cell={self.cell!r} is unknown; choose from {', '.join(sorted(CELLS))}.")
        if self.encoder == "transformer":
            transformer.check_sizes(self)
        for name, halved in {"d_hidden": self.encoder, "d_spelling": self.letters}.items():
            if halved == "rnn" and getattr(self, name) % 2:
                raise InputError(
                    f"model.{name}={getattr(self, name)}: two directions have half of it each; make it even."
                )


class Potentials(NamedTuple):
    """The scores of tags, and those of pairs of them, which a softmax does without."""

    scores: Float[Array, "B T Y"]
    transitions: crf.CRF | None


class Tagger(nnx.Module):
    """Embeddings of words and letters, encoder, output layer, transitions."""

    def __init__(self, config: TaggerConfig, vocab_size: int, n_tags: int, *, trunk: Any = None, rngs: nnx.Rngs):
        self.config = config
        self.trunk, d_trunk = (None, 0) if trunk is None else without_output(trunk)
        self.embed = Embed(vocab_size, config.d_embed, rngs=rngs)
        cell, spelled = CELLS[config.cell], config.letters != "none"
        sizes = config.d_letter, config.d_spelling
        self.letters = Embed(256, config.d_letter, rows="hidden", rngs=rngs) if spelled else None
        widths = (config.width,) if config.letters == "cnn" else ()
        self.filters = nnx.List([nnx.Param(init_filters(rngs.params(), width, *sizes)) for width in widths])
        self.speller = Bidirectional(cell, *sizes, rngs=rngs) if config.letters == "rnn" else None
        d = config.d_embed + spelled * config.d_spelling + d_trunk

        if config.encoder == "rnn":
            self.rnn = Bidirectional(cell, d, config.d_hidden, config.n_layers, rngs=rngs)
        else:
            gain = 1 / math.sqrt(2 * config.n_layers)
            self.enter = Dense(d, config.d_hidden, rngs=rngs)
            sizes = config.d_hidden, config.n_heads
            layers = [init_layer(rngs.params(), *sizes, style=STYLE, gain=gain) for _ in range(config.n_layers)]
            self.layers = nnx.List([nnx.Param(layer) for layer in layers])
            g, b = init_norm(STYLE, config.d_hidden)
            self.g, self.b = nnx.Param(g), nnx.Param(b)
        self.out = Dense(config.d_hidden, n_tags, rngs=rngs)
        self.transitions = nnx.Param(crf.init(rngs.params(), n_tags)) if config.output == "crf" else None

    @property
    def axes(self) -> dict[str, Any]:
        """See `seqjax.nn.logical_axes`."""
        axes = {"filters": convolution.AXES, "transitions": crf.AXES}
        return axes | {"layers": transformer.AXES, "g": P("embed"), "b": P("embed")}

    def __call__(
        self,
        words: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        letters: Int[Array, "B T W"] | Int[Array, "U W"],
        places: Int[Array, "B T"] | None = None,
        rare: Bool[Array, "B T"] | None = None,
        tokens: Int[Array, "B S"] | None = None,
        ends: Int[Array, "B T"] | None = None,
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Potentials:
        """What `tag_loss` and `best_tags` take.

        Args:
          words: ids.
          lengths: of the sentences.
          letters: of each word, 0 past its end; or of U different words, and ``places`` says which of them each is: so
            a word that comes often is spelled once.
          places: see letters.
          rare: words that become <unk> at the rate ``model.unknown``, where there is a ``key``.
          tokens: what the trunk reads (`seqjax.models.finetuned`).
          ends: of each word, the place of its last token.
          dropout: acts only where there is a ``key``.
          key: randomness.
        """
        before, within, after, hide = (None,) * 4 if key is None else jax.random.split(key, 4)

        def drop(x, key):
            return x if key is None else apply_dropout(key, x, dropout, shared_axis=1 if self.config.locked else None)

        if hide is not None and rare is not None and self.config.unknown > 0:
            hidden = rare & jax.random.bernoulli(hide, self.config.unknown, words.shape)
            words = jnp.where(hidden, jnp.asarray(UNK, words.dtype), words)
        xs = self.embed(words)
        if self.letters is not None:
            xs = jnp.concatenate([xs, self.spell(letters, places)], axis=-1)
        if self.trunk is not None:
            assert ends is not None, "there is something to read for the trunk"
            own = {} if key is None else {"dropout": dropout, "key": jax.random.fold_in(key, 4)}
            hs = jnp.take_along_axis(self.trunk.hidden(tokens, jnp.max(ends, axis=1) + 1, **own), ends[..., None], 1)
            xs = jnp.concatenate([xs, hs.astype(xs.dtype)], axis=-1)
        xs = drop(xs, before)
        if self.config.encoder == "rnn":
            _, hs = self.rnn(xs, lengths=lengths, dropout=dropout, key=within)
        else:
            hs = self._attend(xs, lengths, dropout, within)
        transitions = None if self.transitions is None else self.transitions.get_value()
        return Potentials(self.out(drop(hs, after)), transitions)

    def spell(
        self, letters: Int[Array, "B T W"] | Int[Array, "U W"], places: Int[Array, "B T"] | None = None
    ) -> Float[Array, "B T C"]:
        """What the letters of each word say about it."""
        assert self.letters is not None, "there are letters"
        spelled = letters.reshape(-1, letters.shape[-1])
        n = jnp.sum(spelled != 0, axis=1, dtype=jnp.int32)
        xs = self.letters(spelled)
        if self.speller is None:
            features = max_over_time(xs, [f.get_value() for f in self.filters], n)
        else:
            features = pooling.last(self.speller(xs, lengths=n)[1], n, bidirectional=True)
        return features.reshape(*letters.shape[:-1], -1) if places is None else features[places]

    def _attend(self, xs, lengths, dropout, key):
        layers, norm = values(*self.layers), (self.g.get_value(), self.b.get_value())
        return read(self.config, layers, self.enter(xs), lengths, dropper(dropout, key), norm=norm)


def tag_loss(
    potentials: Potentials, tags: Int[Array, "B T"], lengths: Int[Array, "B"], *, label_smoothing: Scalar = 0.0
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """``(sum, weight)`` of -log p(tags | words), nats a word. Labels are smoothed where there are no transitions.

    >>> total, weight = tag_loss(Potentials(jnp.zeros((1, 3, 2)), None), jnp.zeros((1, 3), int), jnp.array([2]))
    >>> print(f"{total / weight:.4f} of {weight:.0f}")
    0.6931 of 2
    """
    scores, transitions = potentials
    if transitions is None:
        where = pooling.kept(lengths, scores.shape[1])
        return losses.cross_entropy(scores, tags, where=where, label_smoothing=label_smoothing)
    return crf.negative_log_likelihood(transitions, jnp.swapaxes(scores, 0, 1), tags.T, lengths)


def best_tags(potentials: Potentials, lengths: Int[Array, "B"], allowed: crf.CRF | None = None) -> Int[Array, "B T"]:
    """The likeliest tags, of those that are ``allowed`` (`seqjax.crf.allowed_transitions`); 0 past the lengths.

    >>> scores = Potentials(jnp.array([[[1.0, 0.0], [0.0, 1.0]]]), None)
    >>> may = crf.allowed_transitions(["O", "I-PER"])  # no span may begin with I
    >>> print(best_tags(scores, jnp.array([2])), best_tags(scores, jnp.array([2]), may))
    [[0 1]] [[0 0]]
    """
    scores, transitions = potentials
    if transitions is None and allowed is None:
        found = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        return jnp.where(pooling.kept(lengths, scores.shape[1]), found, jnp.zeros_like(found))
    if transitions is None:
        n_tags = scores.shape[2]
        transitions = crf.CRF(jnp.zeros((n_tags, n_tags)), jnp.zeros(n_tags), jnp.zeros(n_tags))
    if allowed is not None:
        transitions = crf.constrain(transitions, allowed)
    return crf.viterbi(transitions, jnp.swapaxes(scores, 0, 1), lengths)[0].T
