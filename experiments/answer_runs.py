"""How the experiment ``answer`` trains what `experiments.answer_tasks` describes; no experiment itself.

A run directory has, beside what every run has:

    tokenizer.json      the vocabulary
    shapes.json         those of the batches
    predictions.json    id -> answer for the test questions, as the official script for SQuAD reads it
    attention/*.png     where the model looked, for the first validation questions
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.answer_tasks import Answer, Corpus, Question, SpanFound, Task, clean, span_task, story_task
from experiments.lm_runs import data_seed, make_optimizer, reading, start
from experiments.seq2seq_runs import save_shapes
from seqjax import distributed, sharding, train
from seqjax.config import Run, read_config
from seqjax.data import Buckets, batches, each_once, plan_shapes
from seqjax.errors import InputError, check_least
from seqjax.metrics import squad_scores
from seqjax.models import span_reader, story_reader
from seqjax.reporting import attention_map
from seqjax.text import Tokenizer, load_tokenizer, save_tokenizer, train_tokenizer

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
    parts, buckets = make_setup(config, make_task(config, vocabulary(config, directory, corpus)), corpus)
    save_shapes(directory, reach(config.batches, buckets.shapes))
    return parts


def fit(config: Any, run: Run, corpus: Corpus) -> None:
    """Train, then measure, and show where the model looks."""
    tokenizer = vocabulary(config, run.directory, corpus)
    task = make_task(config, tokenizer)
    parts, buckets = make_setup(config, task, corpus, run.mesh)
    state = start(parts.init, config, run.mesh, task.axes)
    shapes = reach(config.batches, buckets.shapes)
    save_shapes(run.directory, shapes)
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
