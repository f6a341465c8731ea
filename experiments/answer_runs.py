"""What readers of stories and readers of spans share in the experiment ``answer``; no experiment itself.

A `Task` is a kind of model as functions: how questions become arrays, the loss, and how arrays become answers. A run
directory has, beside what every run has:

    tokenizer.json      the vocabulary
    shapes.json         those of the batches
    predictions.json    id -> answer for the test questions, as the official script for SQuAD reads it
    attention/*.png     where the model looked, for the first validation questions
"""

import hashlib
import json
import re
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from experiments.lm_runs import data_seed, make_optimizer, reading, start
from seqjax import distributed, export, losses, nn, sharding, train
from seqjax.config import Run, read_config
from seqjax.data import Buckets, batches, each_once, padded, plan_shapes
from seqjax.errors import InputError, check_least
from seqjax.metrics import squad_scores
from seqjax.models import span_reader, story_reader
from seqjax.models.span_reader import Words
from seqjax.reporting import attention_map
from seqjax.text import PAD, UNK, Tokenizer, load_tokenizer, save_tokenizer, train_tokenizer


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


# --- configuration


@dataclass(frozen=True)
class Batching:
    """How questions become batches."""

    tokens: int = 1024
    """The most words of the texts of a batch, padding included; of stories, the most facts."""
    n_buckets: int = 1
    """Shapes of batches, each compiled once."""
    max_text: int = 400
    """Words of the longest text, which is cut behind them; of stories, the facts that are read, the newest."""
    max_question: int = 32
    """Words of the longest question, and of the longest fact."""
    max_answer: int = 16
    """Words of the longest span."""
    n_bytes: int = 16
    """Of a word's spelling, that are read."""

    def __post_init__(self):
        check_least(self, "batches.", tokens=1, n_buckets=1, max_text=1, max_question=1, max_answer=1, n_bytes=1)


@dataclass(frozen=True)
class Report:
    """What a run shows of itself."""

    questions: int = 2000
    """Validation questions that are answered at each evaluation."""
    maps: int = 4
    """Pictures of attention."""
    samples: int = 5
    """Answers on the screen at the end."""

    def __post_init__(self):
        check_least(self, "report.", questions=1, maps=0, samples=0)


def make_task(config: Any, tokenizer: Tokenizer) -> Task:
    """The task of a configuration."""
    if isinstance(config.model, span_reader.SpanReaderConfig):
        limits = config.batches
        return span_task(config.model, tokenizer, longest=limits.max_answer, n_bytes=limits.n_bytes)
    return story_task(config.model, tokenizer, linear_steps=config.linear_steps)


# --- training


class Reader(NamedTuple):
    """A model with all it needs to answer questions."""

    task: Task
    params: Any
    shapes: tuple  # of batches: what programs are compiled for
    mesh: Mesh | None = None


def vocabulary(config: Any, directory: Path, corpus: Corpus) -> Tokenizer:
    """The words of the training questions, collected once, then read from the run."""
    path = directory / "tokenizer.json"

    def make():
        if path.exists():
            return
        training = corpus["train"]
        texts = [*dict.fromkeys(q.text for q in training), *(q.question for q in training)]
        words = [clean(text) for text in texts]
        if isinstance(config.model, story_reader.StoryReaderConfig):
            words += [answer.lower() for q in training for answer in q.answers]
        save_tokenizer(train_tokenizer("space", words, min_count=config.data.min_count), path)

    distributed.on_first(make)
    return load_tokenizer(path)


def initial(config: Any, task: Task, key: jax.Array) -> train.State:
    """The state before the first step; what the loss carries is the number of the step."""
    key_init, key_train = jax.random.split(key)
    optimizer = make_optimizer(config)(config.hyper)
    return train.init_state(task.init(key_init), jnp.zeros((), jnp.int32), key_train, optimizer)


def make_loss(config: Any, task: Task) -> Callable:
    """The loss of a task; ``extra`` counts the steps."""

    def loss_fn(params, extra, batch, key, hyper):
        # A dropout of 0 that is not traced draws no random numbers.
        dropout = hyper.dropout if config.hyper.dropout > 0 else 0.0
        return task.loss(params, batch, extra, dropout, key), (extra + 1, {})

    return loss_fn


def training_shapes(batches: Batching, lengths: np.ndarray) -> tuple:
    """The shapes of batches that pad these questions the least."""
    limits = [batches.max_text, *[batches.max_question] * (lengths.shape[1] - 1)]
    options = {"tokens_per_batch": batches.tokens, "n_buckets": batches.n_buckets}
    return plan_shapes(lengths, max_lengths=limits, **options)


def reach(batches: Batching, shapes: tuple) -> tuple:
    """The shapes, and another one for questions that are longer than any in training."""
    most = (batches.max_text, *[batches.max_question] * (len(shapes[-1]) - 2))
    if shapes[-1][1:] == most:
        return shapes
    return (*shapes, (min(shapes[-1][0], max(1, batches.tokens // max(most))), *most))


def make_setup(config: Any, task: Task, corpus: Corpus, mesh: Mesh | None = None) -> tuple[train.Setup, Buckets]:
    """What trains a model and measures it, and the batches by step."""
    encoded = task.encode(corpus["train"])
    shapes = training_shapes(config.batches, encoded.lengths)
    longer = reach(config.batches, shapes)
    multiple = 1 if mesh is None else mesh.shape.get("data", 1)
    options = {"seed": data_seed(config), "multiple": multiple, **reading(mesh)}
    buckets = Buckets(encoded.lengths, shapes, encoded.collate, **options)
    judged = task.encode(sample(corpus["validation"], config.report.questions))
    evaluation = train.Evaluation(
        init=lambda params: (),
        step=lambda params, carried, batch: (carried, task.read(params, batch)[1]),
        batches=lambda: (batch for _, batch in each_once(judged.lengths, longer, judged.collate)),
        finish=lambda values: values,
    )
    parts = train.Setup(
        init=partial(initial, config, task),
        train_step=train.make_step(make_loss(config, task), make_optimizer(config)),
        batches=lambda start, stop: batches(buckets, start=start, stop=stop),
        evaluation=evaluation,
    )
    return parts, buckets


def sample(questions: Sequence[Question], n: int) -> Sequence[Question]:
    """About n of the questions, from all over."""
    return questions[:: -(-len(questions) // n)]


def setup(config: Any, directory: Path, corpus: Corpus) -> train.Setup:
    """What trains and measures a model."""
    return make_setup(config, make_task(config, vocabulary(config, directory, corpus)), corpus)[0]


def fit(config: Any, run: Run, corpus: Corpus) -> None:
    """Train, then measure, and show where the model looks."""
    tokenizer = vocabulary(config, run.directory, corpus)
    task = make_task(config, tokenizer)
    parts, buckets = make_setup(config, task, corpus, run.mesh)
    state = start(parts.init, config, run.mesh, task.axes)
    shapes = reach(config.batches, buckets.shapes)
    if jax.process_index() == 0:
        (run.directory / "shapes.json").write_text(json.dumps(shapes) + "\n")
    n_weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"run {run.directory}: {', '.join(f'{len(found):,} {split}' for split, found in corpus.items())} questions, "
        f"{buckets.steps_per_epoch:,} batches an epoch of shapes {buckets.shapes}, vocabulary "
        f"{tokenizer.vocab_size:,}, {n_weights:,} weights, on {jax.default_backend()}",
        flush=True,
    )
    judged = sample(corpus["validation"], config.report.questions)
    times = 1 if run.mesh is None else sharding.shares(run.mesh)
    state = train.fit(
        config.loop,
        parts.train_step,
        state,
        config.hyper,
        parts.batches,
        directory=run.directory,
        evaluate=lambda params: examine(Reader(task, params, shapes, run.mesh), judged)[0],
        tokens_per_step=lambda batch: round(times * task.size(batch)),
        place=run.mesh and sharding.place(run.mesh),
        resume=run.resume,
    )
    reader = Reader(task, train.best_params(run.directory, state), shapes, run.mesh)
    values = {}
    for split in ("validation", "test"):
        found, given = examine(reader, corpus[split])
        print(f"{split}:", shown(found), flush=True)
        values |= {f"{name}_{split}": value for name, value in found.items()}
        if split == "test" and jax.process_index() == 0:
            predictions = {q.id: answer.text for q, answer in zip(corpus[split], given, strict=True)}
            (run.directory / "predictions.json").write_text(json.dumps(predictions, indent=0) + "\n")
    train.summarise(run.directory, values)
    show(reader, corpus["validation"], config.report, run.directory)


def shown(values: Mapping[str, float]) -> str:
    """Metrics on a line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())


def answers(reader: Reader, questions: Sequence[Question]) -> list[Answer]:
    """An answer to each question."""
    return _pass(reader, questions)[1]


def examine(reader: Reader, questions: Sequence[Question]) -> tuple[dict[str, float], list[Answer]]:
    """Loss, accuracy, exact match and F1, and the answers, without the attention of spans."""
    metrics, given = _pass(reader, questions, attention=False)
    exact, f1 = squad_scores([answer.text for answer in given], [q.answers for q in questions])
    return train.averages(metrics) | {"exact_match": exact, "f1": f1}, given


def is_cut(reader: Reader, question: Question) -> bool:
    """Whether a text or a question is too long to be read to its end."""
    return bool(np.any(reader.task.encode([question]).lengths > reader.shapes[-1][1:]))


def _pass(reader: Reader, questions: Sequence[Question], *, attention: bool = True) -> tuple[dict, list[Answer]]:
    task, params, shapes, mesh = reader
    encoded, given, total = task.encode(questions), {}, None
    place = (lambda batch: batch) if mesh is None else sharding.place_whole(mesh)
    with nullcontext() if mesh is None else jax.set_mesh(mesh):
        for index, batch in each_once(encoded.lengths, shapes, encoded.collate):
            found, metrics = task.read(params, place(batch))
            total = metrics if total is None else jax.tree.map(jnp.add, total, metrics)
            if not attention and isinstance(found, SpanFound):  # of many long texts it is large
                found = found._replace(attention=found.attention[:, :, :0])
            found = sharding.fetch(found)
            for row, i in enumerate(index[index >= 0].tolist()):  # the first rows
                given[i] = task.answer(questions[i], jax.tree.map(lambda a, row=row: a[row], found))
    return total or {}, [given[i] for i in range(len(questions))]


def looks(answer: Answer, n: int = 3) -> list[str]:
    """For each query the keys that it looked at most, as lines."""

    def most(weights):
        best = np.argsort(-weights, kind="stable")[:n]
        return ", ".join(f"{answer.keys[i]} ({weights[i]:.2f})" for i in best if weights[i] >= 0.05)

    lines = zip(answer.queries, map(most, answer.weights), strict=True)
    return [f"{query}: {found}" for query, found in lines if found]


def draw(answer: Answer, path: Path) -> None:
    """A picture of the attention, where there is any."""
    if answer.weights.size and jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        attention_map(answer.weights, answer.keys, answer.queries, path)


def show(reader: Reader, questions: Sequence[Question], report: Report, directory: Path) -> None:
    """Print answers to the first questions, and draw where the model looked into ``directory``."""
    asked = sample(questions, max(report.maps, report.samples, 1))
    for number, (question, answer) in enumerate(zip(asked, answers(reader, asked), strict=True)):
        if number < report.maps:
            draw(answer, directory / "attention" / f"{number}.png")
        if number < report.samples:
            print(f"\n  {question.question}\n  right: {' | '.join(dict.fromkeys(question.answers))}")
            print(f"  given: {answer.text}")


def load(directory: Path, config_type: type) -> tuple[Any, Reader]:
    """The configuration and the trained model of a run."""
    config = read_config(directory, config_type)
    if not (directory / "shapes.json").exists():
        raise InputError(f"{directory} holds no checkpoint yet; train it further with --run {directory} --resume")
    shapes = tuple(map(tuple, json.loads((directory / "shapes.json").read_text())))
    task = make_task(config, load_tokenizer(directory / "tokenizer.json"))
    params = train.best_params(directory, jax.eval_shape(partial(initial, config, task), jax.random.key(0)))
    return config, Reader(task, params, shapes)
