"""Questions, and the two kinds of models that answer them, each as a `Task`: readers of spans and readers of stories.

A `Task` is functions: how questions become arrays, the loss, and how arrays become answers.
"""

import hashlib
import re
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seqjax import export, losses, nn
from seqjax.data import padded
from seqjax.models import span_reader, story_reader
from seqjax.models.span_reader import Words
from seqjax.text import PAD, UNK, Tokenizer


class Question(NamedTuple):
    """A question about a text, and the answers that count as right."""

    id: str
    text: str
    question: str
    answers: tuple[str, ...]
    group: str  # questions of a group, such as those about an article, are in one split


Corpus = Mapping[str, Sequence[Question]]
"""split -> questions."""


class Answer(NamedTuple):
    """An answer, its log-probability, and the attention: ``weights [T, S]`` of ``queries`` to ``keys``."""

    text: str
    score: float
    weights: np.ndarray
    queries: list[str]
    keys: list[str]


class Encoded(NamedTuple):
    """Questions as arrays."""

    lengths: np.ndarray  # [N, K]
    collate: Callable  # (rows, shape) -> batch


class Task(NamedTuple):
    """A model as pure functions, and what surrounds it."""

    init: Callable  # key -> params
    axes: Callable  # () -> what the axes of each parameter mean, see `nn.logical_axes`
    encode: Callable  # questions -> Encoded
    loss: Callable  # (params, batch, step, dropout, key) -> (sum, weight)
    read: Callable  # (params, batch) -> (found, {name: (sum, weight)}), compiled for each shape; `found` batch-first
    answer: Callable  # (question, row of `found`) -> Answer
    size: Callable  # batch -> words, or facts, that are read
    functions: Callable  # () -> the functions of a bundle


# --- words


_WORD = re.compile(r"\w+|[^\w\s]")

FORMS: tuple[Callable[[str], str], ...] = (str, str.lower, lambda word: word.lower()[:5])
"""In what two words may be the same: spelling, letters, or the first letters, which is most of a stem."""


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words and punctuation marks of a text begin and end.

    >>> word_spans("It's 5%.")
    [(0, 2), (2, 3), (3, 4), (5, 6), (6, 7), (7, 8)]
    """
    return [found.span() for found in _WORD.finditer(text)]


def split(text: str) -> list[str]:
    """The words and punctuation marks of a text."""
    return _WORD.findall(text)


def in_validation(group: str, share: float) -> bool:
    """Whether a group of questions validates: a hash decides, the same on every machine."""
    word = int.from_bytes(hashlib.blake2b(group.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    return word / 2**64 < share


# --- spans of a text


class SpanBatch(NamedTuple):
    """Texts, questions, and at which words [B, S] an occurrence of the answer starts and ends."""

    text: Words
    question: Words
    starts: Any
    ends: Any


class SpanFound(NamedTuple):
    """The best span of each row [B], its log-probability, and the attention [B, S, Q]."""

    first: Any
    last: Any
    score: Any
    attention: Any


NEAR = 20
"""Words on either side of an answer whose attention is shown."""


def occurrences(text: str, answer: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first and last word of each place where the answer stands as whole words; of none, of its first place.

    >>> occurrences("a cat, a cats", "cat", word_spans("a cat, a cats"))
    [(1, 1)]
    >>> occurrences("a cats", "cat", word_spans("a cats"))
    [(1, 1)]
    """
    begins, ends = [begin for begin, _ in spans], [end for _, end in spans]
    whole, parts, at = [], [], text.find(answer) if answer else -1
    while at >= 0:
        stop = at + len(answer)
        first, last = bisect_right(ends, at), bisect_left(begins, stop) - 1
        if first <= last:
            exact = begins[first] == at and ends[last] == stop
            (whole if exact else parts).append((first, last))
        at = text.find(answer, at + 1)
    return whole or parts[:1]


def span_task(model: span_reader.SpanReaderConfig, tokenizer: Tokenizer, *, longest: int, n_bytes: int) -> Task:
    """Answers that are spans of the text, of at most ``longest`` words."""
    init, apply, axes = _build(span_reader.SpanReader, model, tokenizer.vocab_size, len(FORMS))

    def loss(params, batch, step, dropout, key):
        spans = apply(params, batch.text, batch.question, dropout=dropout, key=key)
        return span_reader.span_loss(spans, batch.starts, batch.ends)

    return Task(
        init,
        axes,
        partial(encode_spans, tokenizer, n_bytes),
        loss,
        partial(_read_spans, apply, longest),
        _span_answer,
        lambda batch: batch.text.lengths.sum(),
        partial(_span_functions, apply, longest, n_bytes),
    )


def encode_spans(tokenizer: Tokenizer, n_bytes: int, questions: Sequence[Question]) -> Encoded:
    """Texts and questions as arrays; lengths [N, 2]."""
    types: dict[str, int] = {}

    @cache  # an article's paragraph has several questions
    def numbered(text: str) -> np.ndarray:
        return np.array([types.setdefault(word, len(types)) for word in split(text)], np.int32)

    spans = cache(word_spans)
    rows = [(numbered(q.text), numbered(q.question)) for q in questions]
    places = [[at for answer in q.answers for at in occurrences(q.text, answer, spans(q.text))] for q in questions]
    ids = np.array([_id(tokenizer, word) for word in types] or [0], np.int32)
    spelling = padded([list(word.encode("utf-8", "surrogatepass")) for word in types], (len(ids), n_bytes))
    forms = np.array([[_number(form(word)) for form in FORMS] for word in types], np.int32)

    def words(rows: list[np.ndarray], shape) -> Words:
        index = padded(rows, shape)
        lengths = padded([[min(len(row), shape[1]) for row in rows]], (1, shape[0]))[0]
        return Words(ids[index], spelling[index], forms[index], lengths)

    def collate(index: np.ndarray, shape) -> SpanBatch:
        n, n_text, n_question = shape
        edges = np.zeros((2, n, n_text), bool)
        for row, i in enumerate(index):
            for first, last in places[i]:
                if last < n_text:  # else the text is cut before its end
                    edges[0, row, first] = edges[1, row, last] = True
        text, question = zip(*(rows[i] for i in index), strict=True) if len(index) else ((), ())
        return SpanBatch(words(list(text), (n, n_text)), words(list(question), (n, n_question)), *edges)

    lengths = np.array([(len(text), len(question)) for text, question in rows]).reshape(-1, 2)
    return Encoded(lengths, collate)


def _id(tokenizer: Tokenizer, word: str) -> int:
    return int(tokenizer.encode(word.lower())[0])


def _number(text: str) -> int:
    """A number for a text: the same for the same one, and another for nearly every other."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) - 2**31


@partial(jax.jit, static_argnums=(0, 1))
def _read_spans(apply, longest, params, batch):
    spans = apply(params, batch.text, batch.question)
    log_starts, log_ends = (jax.nn.log_softmax(z, axis=1) for z in (spans.starts, spans.ends))
    first, last, score = span_reader.best_spans(log_starts, log_ends, longest=longest)
    total, weight = span_reader.span_loss(spans, batch.starts, batch.ends)
    right = _at(batch.starts, first) & _at(batch.ends, last)
    metrics = {"loss": (total, weight), "accuracy": (jnp.sum(right).astype(weight.dtype), weight)}
    return SpanFound(first, last, score, spans.attention), metrics


def _span_functions(apply, longest, n_bytes) -> dict[str, export.Function]:
    """``apply(params, text, question) -> scores of each word as first and last``, and ``spans -> the best span``."""
    ints = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    b, t, q = jax.export.symbolic_shape("b, t, q")
    arguments = {
        name: {
            **{"ids": ints((b, n)), "spelling": ints((b, n, n_bytes))},
            **{"forms": ints((b, n, len(FORMS))), "lengths": ints((b,))},
        }
        for name, n in (("text", t), ("question", q))
    }

    def scores(params, text, question):
        return tuple(apply(params, Words(**text), Words(**question))[:2])

    def best(params, text, question):
        log_starts, log_ends = (jax.nn.log_softmax(z, axis=1) for z in scores(params, text, question))
        return span_reader.best_spans(log_starts, log_ends, longest=longest)

    return {
        "apply": export.Function(scores, arguments, ("starts", "ends"), True),
        "spans": export.Function(best, arguments, ("first", "last", "score")),
    }


def _at(rows, columns):
    return jnp.take_along_axis(rows, columns[:, None], axis=1)[:, 0]


def _span_answer(question: Question, found: SpanFound) -> Answer:
    spans, asked = word_spans(question.text), split(question.question)
    read = min(len(spans), found.attention.shape[0])
    keys, queries = [question.text[a:b] for a, b in spans[:read]], asked[: found.attention.shape[1]]
    weights = found.attention[:read, : len(queries)].T
    if not read:
        return Answer("", 0.0, weights, queries, keys)
    first, last = int(found.first), int(found.last)
    near = slice(max(first - NEAR, 0), last + NEAR + 1)
    text = question.text[spans[first][0] : spans[last][1]]
    # A copy: a view would keep the attention of the whole batch.
    return Answer(text, float(found.score), weights[:, near].copy(), queries, keys[near])


# --- words as answers to stories


class StoryBatch(NamedTuple):
    """Facts [B, F, W], a question [B, Q] and its answer [B], all as ids, and which rows count."""

    facts: Any
    question: Any
    answers: Any
    where: Any


class StoryFound(NamedTuple):
    """The answer [B], its log-probability, and the attention of each hop [B, K, F]."""

    answer: Any
    score: Any
    attention: Any


def story_task(model: story_reader.StoryReaderConfig, tokenizer: Tokenizer, *, linear_steps: int) -> Task:
    """Answers that are words; for the first steps of training attention is linear."""
    init, apply, axes = _build(story_reader.StoryReader, model, tokenizer.vocab_size)

    def loss(params, batch, step, dropout, key):
        linear = step < linear_steps if linear_steps else False
        reading = apply(params, batch.facts, batch.question, linear=linear, dropout=dropout, key=key)
        return losses.cross_entropy(reading.logits, batch.answers, where=batch.where)

    return Task(
        init,
        axes,
        partial(encode_stories, tokenizer),
        loss,
        partial(_read_stories, apply),
        partial(_word, tokenizer),
        lambda batch: (batch.facts != PAD).any(axis=2).sum(),
        partial(_story_functions, apply),
    )


def encode_stories(tokenizer: Tokenizer, questions: Sequence[Question]) -> Encoded:
    """Facts, of each story the newest, questions and answers as arrays; lengths [N, 3]: facts, words a fact, words."""
    ids = cache(lambda text: tokenizer.encode(clean(text)).tolist())
    rows = [([ids(fact) for fact in q.text.splitlines()], ids(q.question)) for q in questions]
    answers = [tokenizer.encode(q.answers[0].lower())[0] if q.answers else UNK for q in questions]

    def collate(index: np.ndarray, shape) -> StoryBatch:
        n, n_facts, n_words, n_question = shape
        return StoryBatch(
            padded([rows[i][0][-n_facts:] for i in index], (n, n_facts, n_words)),
            padded([rows[i][1] for i in index], (n, n_question)),
            padded([[answers[i] for i in index]], (1, n), fill=UNK)[0],
            np.arange(n) < len(index),
        )

    sizes = [(len(facts), max(map(len, facts), default=0), len(question)) for facts, question in rows]
    return Encoded(np.array(sizes).reshape(-1, 3), collate)


def clean(text: str) -> str:
    """Lower-case words with spaces between them.

    >>> clean("Where is Mary?")
    'where is mary ?'
    """
    return " ".join(split(text)).lower()


@partial(jax.jit, static_argnums=0)
def _read_stories(apply, params, batch):
    reading = apply(params, batch.facts, batch.question)
    total, weight = losses.cross_entropy(reading.logits, batch.answers, where=batch.where)
    answer = jnp.argmax(reading.logits, axis=1)
    right = jnp.sum((answer == batch.answers) & batch.where).astype(weight.dtype)
    found = StoryFound(answer, jnp.max(jax.nn.log_softmax(reading.logits), axis=1), reading.attention)
    return found, {"loss": (total, weight), "accuracy": (right, weight)}


def _story_functions(apply) -> dict[str, export.Function]:
    """``apply(params, facts, question) -> the scores of words as answers, and the attention``."""
    ints = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    b, f, w, q = jax.export.symbolic_shape("b, f, w, q")
    arguments = {"facts": ints((b, f, w)), "question": ints((b, q))}

    def read(params, facts, question):
        return tuple(apply(params, facts, question))

    return {"apply": export.Function(read, arguments, ("logits", "attention"), True)}


def _word(tokenizer: Tokenizer, question: Question, found: StoryFound) -> Answer:
    facts = question.text.splitlines()[-found.attention.shape[1] :]
    hops = [f"hop {k}" for k in range(1, len(found.attention) + 1)]
    return Answer(tokenizer.vocab[int(found.answer)], float(found.score), found.attention[:, : len(facts)], hops, facts)


@cache  # the same functions each time, so that what is compiled for them is found again
def _build(module, *arguments) -> tuple[Callable, Callable, Callable]:
    """The model as pure functions, and the meaning of its axes."""

    def make(key):
        return module(*arguments, rngs=nnx.Rngs(key))

    return *nn.purify(make), partial(nn.logical_axes, make)
