"""Question answering by a span of the text: BiDAF (Seo et al., 2017) with the features of DrQA (Chen et al., 2017).

    x_t = [E[word_t], char_t];  char_t = relu(max over places of a convolution over the bytes of word_t)
    aligned_s = Σ_t softmax_t(relu(x_s W) · relu(q_t W)) q_t            of words x_s of the text, q_t of the question
    h = both directions of a cell over [x, aligned, same];  k = … over [q, same]
    z_st = h_s · w_1 + k_t · w_2 + Σ (h_s * w_3 * k_t)
    a_s = Σ_t softmax_t(z_st) k_t;  c = Σ_s softmax_s(max_t z_st) h_s
    g_s = relu([h_s, a_s, h_s * a_s, h_s * c] W + b)
    m = … over g;  n = … over [g, m];  start_s = m_s · w + b;  end_s = n_s · w + b

``same`` says in which of F forms, such as its lower-case one, a word occurs on the other side.
"""

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax.cells import CELLS
from seqjax.convolution import AXES, init_filters, max_over_time
from seqjax.errors import InputError, check_least
from seqjax.kernels.attention import softmax
from seqjax.layers import dropout as apply_dropout
from seqjax.nn import Bidirectional, Dense, Embed
from seqjax.pooling import kept
from seqjax.types import Array, Bool, Float, Int, PRNGKey, PyTree, Scalar

NEVER = -1e30
"""The score of a place beyond the text: finite, so that a text of no words has a loss."""


@dataclass(frozen=True)
class SpanReaderConfig:
    """Shape of a reader of spans."""

    cell: str = "lstm"
    """Any cell of seqjax.CELLS, such as lstm, gru or sru."""
    d_embed: int = 100
    d_char: int = 16
    """Size of the embeddings of bytes."""
    n_filters: int = 64
    """Features of the spelling of a word; 0 reads no spelling."""
    width: int = 5
    """Bytes that a filter sees."""
    d_hidden: int = 256
    """Of both directions together."""

    def __post_init__(self):
        if self.cell not in CELLS:
            raise InputError(f"model.cell={self.cell!r} is unknown; choose from {', '.join(CELLS)}.")
        check_least(self, "model.", d_embed=1, d_char=1, n_filters=0, width=1, d_hidden=2)
        if self.d_hidden % 2:
            raise InputError(f"model.d_hidden={self.d_hidden}: two directions have half of it each; make it even.")


class Words(NamedTuple):
    """A batch of texts, or of questions."""

    ids: Any  # [B, T]
    spelling: Any  # [B, T, C], the first C bytes of each word; 0 where it has none
    forms: Any  # [B, T, F]; in a form, two words are the same where these numbers are
    lengths: Any  # [B]

    @property
    def mask(self) -> Bool[Array, "B T"]:
        """Where there are words."""
        return kept(self.lengths, self.ids.shape[1])


class Spans(NamedTuple):
    """Scores of where an answer starts and ends [B, S], and the attention of the text to the question [B, S, Q]."""

    starts: Float[Array, "B S"]
    ends: Float[Array, "B S"]
    attention: Float[Array, "B S Q"]


def same(forms: Int[Array, "B T F"], others: Int[Array, "B U F"], mask: Bool[Array, "B U"]) -> Bool[Array, "B T F"]:
    """In which forms a word is among the others.

    >>> same(jnp.array([[[1], [2]]]), jnp.array([[[2], [1]]]), jnp.array([[True, False]])).tolist()
    [[[False], [True]]]
    """
    return jnp.any((forms[:, :, None] == others[:, None]) & mask[:, None, :, None], axis=2)


def best_spans(
    starts: Float[Array, "B S"], ends: Float[Array, "B S"], *, longest: int
) -> tuple[Int[Array, "B"], Int[Array, "B"], Float[Array, "B"]]:
    """``(first, last, score)``: argmax of starts_i + ends_j over i ≤ j < i + longest.

    >>> [int(a[0]) for a in best_spans(jnp.array([[0.0, 2.0, 1.0]]), jnp.array([[3.0, 0.0, 2.0]]), longest=2)]
    [1, 2, 4]
    """
    n = starts.shape[1]
    reach = jnp.pad(ends, ((0, 0), (0, longest - 1)), constant_values=-jnp.inf)
    window = jnp.arange(n, dtype=jnp.int32)[:, None] + jnp.arange(longest, dtype=jnp.int32)[None]
    scores = (starts[:, :, None] + reach[:, window]).reshape(starts.shape[0], -1)
    best = jnp.argmax(scores, axis=1).astype(jnp.int32)
    first = best // longest
    return first, first + best % longest, jnp.max(scores, axis=1)


def span_loss(
    spans: Spans, starts: Bool[Array, "B S"], ends: Bool[Array, "B S"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """``(sum, weight)`` of -log Σ_{s in starts} p(s) - log Σ_{s in ends} p(s) (Clark and Gardner, 2018).

    Which of an answer's occurrences is meant is not known, so all together count. A row without any weighs nothing.
    """

    def one(z, places):
        found = jax.nn.logsumexp(jnp.where(places, z, NEVER), axis=1)
        return jax.nn.logsumexp(z, axis=1) - found

    known = jnp.any(starts, axis=1) & jnp.any(ends, axis=1)
    loss = one(spans.starts, starts) + one(spans.ends, ends)
    return jnp.sum(jnp.where(known, loss, 0)), jnp.sum(known).astype(loss.dtype)


class SpanReader(nnx.Module):
    """Embedding, encoder, attention both ways, two recurrent layers, scores."""

    def __init__(self, config: SpanReaderConfig, vocab_size: int, n_forms: int, *, rngs: nnx.Rngs):
        self.config, h = config, config.d_hidden
        d = config.d_embed + config.n_filters

        def recurrent(d_in):
            return Bidirectional(CELLS[config.cell], d_in, h, rngs=rngs)

        self.words = Embed(vocab_size, config.d_embed, rngs=rngs)
        self.bytes = Embed(256, config.d_char, rows="hidden", rngs=rngs) if config.n_filters else None
        filters = init_filters(rngs.params(), config.width, config.d_char, config.n_filters)
        self.filters = nnx.Param(filters) if config.n_filters else None
        self.align = Dense(d, h, rngs=rngs)
        self.read_text = recurrent(2 * d + n_forms)
        self.read_question = recurrent(d + n_forms)
        self.w_text, self.w_question = Dense(h, 1, rngs=rngs), Dense(h, 1, rngs=rngs)
        self.w_both = nnx.Param(jnp.ones(h) / jnp.sqrt(float(h)))
        self.merge = Dense(4 * h, h, rngs=rngs)
        self.find_start, self.find_end = recurrent(h), recurrent(2 * h)
        self.start, self.end = Dense(h, 1, rngs=rngs), Dense(h, 1, rngs=rngs)

    @property
    def axes(self) -> dict[str, PyTree]:
        """See `seqjax.nn.logical_axes`."""
        return {"w_both": P(None), "filters": AXES}

    def __call__(self, text: Words, question: Words, *, dropout: Scalar = 0.0, key: PRNGKey | None = None) -> Spans:
        """Where answers start and end.

        ``dropout`` acts only with a ``key``, on the inputs of layers, with one mask for all words of a text (Gal and
        Ghahramani, 2016).
        """
        drop = _variational(dropout, key)
        xs, qs = (drop(self._embed(words)) for words in (text, question))
        met = same(text.forms, question.forms, question.mask), same(question.forms, text.forms, text.mask)
        met = tuple(m.astype(xs.dtype) for m in met)

        keys = jax.nn.relu(self.align(qs))
        z = jnp.einsum("bsd,btd->bst", jax.nn.relu(self.align(xs)), keys)
        aligned, _ = _gather(z, question.mask, qs)
        _, h = self.read_text(jnp.concatenate([xs, aligned, met[0]], axis=-1), lengths=text.lengths)
        _, k = self.read_question(jnp.concatenate([qs, met[1]], axis=-1), lengths=question.lengths)
        h, k = drop(h), drop(k)

        g, weights = self._attend(h, k, text.mask, question.mask)
        g = drop(g)
        _, m = self.find_start(g, lengths=text.lengths)
        m = drop(m)
        _, n = self.find_end(jnp.concatenate([g, m], axis=-1), lengths=text.lengths)
        scores = self.start(m)[..., 0], self.end(drop(n))[..., 0]
        starts, ends = (jnp.where(text.mask, z, NEVER) for z in scores)
        return Spans(starts, ends, weights)

    def _embed(self, words: Words):
        x = self.words(words.ids)
        if self.bytes is None or self.filters is None:
            return x
        spelling = words.spelling.reshape(-1, words.spelling.shape[2])
        used = jnp.sum(spelling != 0, axis=1, dtype=jnp.int32)
        seen = max_over_time(self.bytes(spelling), [self.filters.get_value()], used)
        return jnp.concatenate([x, seen.reshape(*words.ids.shape, -1)], axis=-1)

    def _attend(self, h, k, text_mask, question_mask):
        """What each word of the text and the question make of each other [B, S, H], and z after softmax over t."""
        both = jnp.einsum("bsh,bth->bst", h * self.w_both.get_value()[None, None], k)
        z = both + self.w_text(h) + jnp.swapaxes(self.w_question(k), 1, 2)
        a, weights = _gather(z, question_mask, k)
        top = jnp.max(jnp.where(question_mask[:, None], z, NEVER), axis=2)
        c, _ = _gather(top[:, None], text_mask, h)
        g = jnp.concatenate([h, a, h * a, h * c], axis=-1)
        return jax.nn.relu(self.merge(g)), weights


def _gather(z, mask, values):
    """The values, weighted by softmax(z [B, S, T]) over those of the mask [B, T]; and the weights."""
    weights = softmax(z, mask[:, None])
    return jnp.einsum("bst,btd->bsd", weights, values), weights


def _variational(rate: Scalar, key: PRNGKey | None):
    """Dropout along time, with another mask at every call; without a key the identity."""
    calls = itertools.count()

    def drop(x):
        return x if key is None else apply_dropout(jax.random.fold_in(key, next(calls)), x, rate, shared_axis=1)

    return drop
