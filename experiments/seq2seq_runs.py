"""How the experiments from sequence to sequence train; no experiment itself.

Their texts are in `experiments.seq2seq_texts`, what a trained model writes in `experiments.seq2seq_writer`, and their
sub-commands in `experiments.seq2seq_commands`.

An experiment adds a configuration with the fields ``seed``, ``model``, ``hyper``, ``loop``, ``optimizer``,
``schedule``, ``warmup``, ``batches``, ``search`` and ``report``, its presets, where its texts come from, and how they
are measured. A run directory has, beside what every run has:

    tokenizer.json      the vocabulary of both sides; or source_tokenizer.json and target_tokenizer.json
    corpus/*.jsonl      the texts of each split
    shapes.json         those of the batches
    predictions.txt     what the trained model wrote for the test split, line by line
    attention/*.png     where it looked meanwhile, for the first texts
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from experiments.lm_runs import data_seed, make_optimizer, reading, start
from experiments.seq2seq_texts import Corpus, Example, Texts, digest, load_texts
from experiments.seq2seq_writer import Model, Search, Writer, one_line
from seqjax import decoding, losses, nn, sharding, train
from seqjax.checkpoint import Checkpoints
from seqjax.config import Run, read_config
from seqjax.data import PairBuckets, batches, bucket_shapes, evaluation_batches
from seqjax.errors import InputError, check_least, check_seeds
from seqjax.models import rnn_seq2seq, transformer_seq2seq

MODULES: dict[type, Callable[..., nnx.Module]] = {
    rnn_seq2seq.RNNSeq2SeqConfig: rnn_seq2seq.RNNSeq2Seq,
    transformer_seq2seq.TransformerSeq2SeqConfig: transformer_seq2seq.TransformerSeq2Seq,
}
"""The model of each type of configuration: ``module(config, source_vocab, target_vocab, rngs=…)``."""

ModelConfig = rnn_seq2seq.RNNSeq2SeqConfig | transformer_seq2seq.TransformerSeq2SeqConfig


Measure = Callable[[list[str], list[list[str]]], dict[str, float]]
"""``(hypotheses, references) -> metrics`` of a task; the references of each hypothesis are a list."""


# --- configuration


@dataclass(frozen=True)
class Batching:
    """How pairs become batches."""

    tokens: int = 2048
    """The most tokens of either side of a batch, padding included."""
    n_buckets: int = 4
    """Shapes of batches, each compiled once."""
    max_source: int = 100
    """Tokens of the longest source, <eos> included; longer ones are cut."""
    max_target: int = 100

    def __post_init__(self):
        check_least(self, tokens=1, n_buckets=1, max_source=2, max_target=2)


def check(config: Any) -> None:
    """Raise `InputError` for a configuration whose parts do not fit."""
    check_seeds(config)
    check_least(config, warmup=0)
    train.check_unused(config.hyper, "embed_lr", "layer_lr")
    model, limits = config.model, config.batches
    if getattr(model, "attention", "") == "none" and config.search.coverage_penalty > 0:
        raise InputError("search.coverage_penalty needs a model with attention.")
    if isinstance(model, rnn_seq2seq.RNNSeq2SeqConfig):
        if model.attention == "location" and limits.max_source > model.longest:
            raise InputError(
                f"batches.max_source={limits.max_source}; this model has location scores for {model.longest} tokens "
                "(model.longest)."
            )
        return
    if config.hyper.scheduled_sampling > 0:
        raise InputError(
            f"hyper.scheduled_sampling={config.hyper.scheduled_sampling}: only recurrent models have it; leave it 0."
        )
    longest = max(limits.max_source, limits.max_target, config.search.max_length or 0)
    if model.longest is not None and longest > model.longest:
        raise InputError(
            f"batches.max_source, batches.max_target and search.max_length reach {longest}; this model has learned "
            f"positions for {model.longest} tokens (model.context)."
        )


# --- model


def build(config: Any, texts: Texts) -> Model:
    """The model of a configuration as pure functions."""
    module = MODULES[type(config)]
    sizes = texts.source.vocab_size, texts.target.vocab_size

    def make(key):
        return module(config, *sizes, rngs=nnx.Rngs(key))

    init, apply = nn.purify(make)

    @partial(jax.jit, static_argnames="max_length")
    def read(params, source, lengths, max_length):
        state = apply(params, source.shape[0], max_length, method="init_state")
        return apply(params, state, source, lengths, method="prefill")

    return Model(init, apply, read, partial(apply, method="step"), partial(nn.logical_axes, make))


def ensemble(model: Model) -> Model:
    """The model for several sets of weights, ``[M, …]``, whose probabilities and attention are averaged."""

    def apply(params, *batch):
        attention, logits = jax.vmap(lambda params: model.apply(params, *batch))(params)
        return jnp.mean(attention, axis=0), decoding.mixture(logits)

    prefill = decoding.ensemble(partial(model.apply, method="prefill"))

    @partial(jax.jit, static_argnames="max_length")
    def read(params, source, lengths, max_length):
        n_members = len(jax.tree.leaves(params)[0])
        one = jax.tree.map(lambda a: a[0], params)
        state = model.apply(one, source.shape[0], max_length, method="init_state")
        state = jax.tree.map(lambda a: jnp.stack([a] * n_members, axis=1) if a.ndim else a, state)
        return prefill(params, state, source, lengths)

    return model._replace(apply=apply, read=read, step=decoding.ensemble(model.step))


def make_loss(config: Any, model: Model) -> Callable:
    """Cross-entropy of the next token; what the loss carries is a digest of the vocabulary, for `load` to compare."""

    def loss_fn(params, extra, batch, key, hyper):
        # Rates of 0 that are not traced draw no random numbers.
        options = {"dropout": hyper.dropout if config.hyper.dropout > 0 else 0.0, "key": key}
        if config.hyper.scheduled_sampling > 0:
            options["sampling"] = hyper.scheduled_sampling
        attention, logits = model.apply(params, batch.source, batch.source_lengths, batch.inputs, **options)
        loss, weight = losses.cross_entropy(
            logits, batch.targets, where=batch.where, label_smoothing=hyper.label_smoothing
        )
        if getattr(config, "coverage_loss", 0) > 0:
            loss += config.coverage_loss * losses.coverage(attention, where=batch.where)[0]
        return (loss, weight), (extra, {})

    return loss_fn


def initial(config: Any, model: Model, texts: Texts, key: jax.Array) -> train.State:
    """The state before the first step."""
    key_init, key_train = jax.random.split(key)
    optimizer = make_optimizer(config)
    return train.init_state(model.init(key_init), jnp.asarray(digest(texts)), key_train, optimizer(config.hyper))


def shapes_of(config: Any, model: Model, texts: Texts) -> train.State:
    """The shapes of a run's state, to restore its checkpoints."""
    return jax.eval_shape(partial(initial, config, model, texts), jax.random.key(0))


@partial(jax.jit, static_argnames="apply")
def _evaluate_batch(apply, params, carried, batch):
    _, logits = apply(params, batch.source, batch.source_lengths, batch.inputs)
    loss = losses.cross_entropy(logits, batch.targets, where=batch.where)
    correct = jnp.sum((jnp.argmax(logits, -1) == batch.targets) & batch.where).astype(jnp.float32)
    return carried, {"loss": loss, "accuracy": (correct, loss[1])}


def teacher_forced(model: Model, pairs: Sequence, shapes: Sequence) -> train.Evaluation:
    """Loss (nats a token), perplexity and accuracy of the next token, each with the right tokens before it."""
    return train.Evaluation(
        init=lambda params: (),
        step=partial(_evaluate_batch, model.apply),
        batches=lambda: (batch for _, batch in evaluation_batches(pairs, shapes)),
        finish=lambda values: values | {"perplexity": float(losses.perplexity(values["loss"]))},
    )


# --- training


def training_shapes(batches: Batching, pairs: Sequence) -> tuple:
    """The shapes of batches that pad these pairs the least."""
    limits = batches.max_source, batches.max_target
    return bucket_shapes(pairs, tokens_per_batch=batches.tokens, n_buckets=batches.n_buckets, max_lengths=limits)


def reach(batches: Batching, shapes: tuple) -> tuple:
    """The shapes, and another one for texts that are longer than any in training."""
    limits = batches.max_source, batches.max_target
    longest = shapes if limits == shapes[-1][1:] else (*shapes, (max(1, batches.tokens // max(limits)), *limits))
    return tuple(longest)


class Task(NamedTuple):
    """What an experiment adds: its name, how texts are measured, and what a user gives and gets."""

    name: str
    config_type: type
    measure: Measure
    clean: Callable[[Any, str], str] = lambda config, line: line.strip()
    """``(config, line) -> source``: what is done to a line before it is read, as in training."""
    every_target: bool = False
    """Learn all targets of an example, not the first alone."""


def training_pairs(task: Task, corpus: Corpus) -> list[tuple[Example, int]]:
    """What is learned: examples, each with the number of its target."""
    return [(e, i) for e in corpus["train"] for i in range(len(e.targets) if task.every_target else 1)]


def training_buckets(config: Any, task: Task, texts: Texts, corpus: Corpus, mesh: Mesh | None = None) -> PairBuckets:
    """The batches of training; on a mesh, with those rows that are read here."""
    if getattr(config.model, "n_extra", 0) != texts.n_extra:
        raise InputError(
            f"model.n_extra={config.model.n_extra}: here a source's own words have no ids of their own; leave it 0."
        )
    learned, seed = training_pairs(task, corpus), data_seed(config)
    rate = getattr(config.data, "bpe_dropout", 0.0)

    def encode(epoch: int):
        dropout = (rate, np.random.default_rng([seed, epoch])) if rate else None
        return [texts.encode(example, which=i, dropout=dropout) for example, i in learned]

    pairs = encode(0)
    shapes, multiple = training_shapes(config.batches, pairs), 1 if mesh is None else mesh.shape.get("data", 1)
    options = {"encode": encode if rate else None, "multiple": multiple, **reading(mesh)}
    return PairBuckets(pairs, shapes, seed=seed, **options)


def setup(config: Any, task: Task, directory: Path, texts: Texts, corpus: Corpus) -> train.Setup:
    """What trains a model and measures it with teacher forcing."""
    buckets = training_buckets(config, task, texts, corpus)
    save_shapes(directory, reach(config.batches, buckets.shapes))
    return _setup(config, build(config.model, texts), texts, buckets, corpus)


def save_shapes(directory: Path, shapes: tuple) -> None:
    """Write shapes.json of a run."""
    if jax.process_index() == 0:
        (directory / "shapes.json").write_text(json.dumps(shapes) + "\n")


def _setup(config: Any, model: Model, texts: Texts, buckets: PairBuckets, corpus: Corpus) -> train.Setup:
    validation = [texts.encode(example) for example in corpus["validation"]]
    return train.Setup(
        init=partial(initial, config, model, texts),
        train_step=train.make_step(make_loss(config, model), make_optimizer(config)),
        batches=lambda start, stop: batches(buckets, start=start, stop=stop),
        evaluation=teacher_forced(model, validation, reach(config.batches, buckets.shapes)),
    )


def fit(config: Any, run: Run, task: Task, texts: Texts, corpus: Corpus) -> tuple[Writer, dict[str, float]]:
    """Train, then measure: the trained model, and its metrics on each split but the training one."""
    model, buckets = build(config.model, texts), training_buckets(config, task, texts, corpus, run.mesh)
    parts = _setup(config, model, texts, buckets, corpus)
    state = start(parts.init, config, run.mesh, model.axes)
    if run.resume:
        check_vocabulary(run.directory, state, digest(texts))
    n_weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"run {run.directory}: {len(training_pairs(task, corpus)):,} pairs, {buckets.steps_per_epoch:,} batches an "
        f"epoch of shapes {buckets.shapes}, vocabularies of {texts.source.vocab_size:,} and "
        f"{texts.target.vocab_size:,}, {n_weights:,} weights, on {jax.default_backend()}"
    )
    if buckets.cut_sources or buckets.cut_targets:
        limits = config.batches.max_source, config.batches.max_target
        print(
            f"warning: {buckets.cut_sources} sources and {buckets.cut_targets} targets are longer than {limits} tokens "
            "and were cut",
            file=sys.stderr,
        )
    shapes = reach(config.batches, buckets.shapes)
    save_shapes(run.directory, shapes)
    validation = corpus["validation"]
    judged = validation[:: -(-len(validation) // config.report.texts)]  # from all over: it may be in some order

    with_teacher = train.make_evaluate(parts.evaluation, run.mesh)

    def evaluate(params):
        greedy = Search(beam_size=1, batch_size=config.search.batch_size)
        written = measure(task, Writer(model, params, texts, shapes), judged, greedy, quiet=True)
        return with_teacher(params) | written

    times = 1 if run.mesh is None else sharding.shares(run.mesh)
    state = train.fit(
        config.loop,
        parts.train_step,
        state,
        config.hyper,
        parts.batches,
        directory=run.directory,
        evaluate=evaluate,
        tokens_per_step=lambda batch: round(times * batch.where.sum()),
        place=run.mesh and sharding.place(run.mesh),
        resume=run.resume,
    )
    params = train.best_params(run.directory, state)
    writer, values = Writer(model, params, texts, shapes), {}
    for split in sorted(set(corpus) - {"train"}, reverse=True):  # validation, then the others
        pairs = [texts.encode(example) for example in corpus[split]]
        found = train.make_evaluate(teacher_forced(model, pairs, shapes), run.mesh)(params)
        found |= measure(task, writer, corpus[split], config.search, run.directory if split == "test" else None)
        print(f"{split}:", "  ".join(f"{name} {value:.4f}" for name, value in found.items()))
        values |= {f"{name}_{split}": value for name, value in found.items()}
    train.summarise(run.directory, values)
    return writer, values


def measure(
    task: Task,
    writer: Writer,
    examples: Sequence[Example],
    search: Search,
    directory: Path | None = None,
    *,
    quiet: bool = False,
) -> dict[str, float]:
    """The task's metrics of what is written for the examples, which goes to predictions.txt in ``directory``."""
    written = writer.write([example.source for example in examples], search, quiet=quiet)
    hypotheses = [found[0].text for found in written]
    if directory is not None and jax.process_index() == 0:
        (directory / "predictions.txt").write_text(
            "".join(f"{one_line(text)}\n" for text in hypotheses), encoding="utf-8"
        )
    return task.measure(hypotheses, [list(example.targets) for example in examples])


# --- runs


def check_vocabulary(directory: Path, template: train.State, digest: np.ndarray) -> bool:
    """Whether a run has a checkpoint; raise `InputError` if it is one of other vocabularies, or of another model."""
    with Checkpoints(directory / "checkpoints") as checkpoints:
        try:
            restored = checkpoints.restore(template)
        except InputError as error:
            raise InputError(
                f"{directory}: config.json and the tokenizer files are not those that the checkpoint was trained with; "
                f"put its own back ({error})."
            ) from error
    if restored is not None and not np.array_equal(restored.tree.extra, digest):
        raise InputError(
            f"{directory}: the vocabulary is not the one that the checkpoint was trained with; put its own tokenizer "
            "files back."
        )
    return restored is not None


def load(directory: Path, config_type: type, *, average: int = 1) -> tuple[Any, Writer]:
    """The configuration and the trained model of a run; ``average`` > 1 takes the mean of so many checkpoints."""
    config = read_config(directory, config_type)
    texts = load_texts(directory, getattr(config.model, "n_extra", 0), config.batches.max_source)
    model = build(config.model, texts)
    template = shapes_of(config, model, texts)
    try:
        shapes = json.loads((directory / "shapes.json").read_text())
    except FileNotFoundError:
        shapes = None
    if shapes is None or not check_vocabulary(directory, template, digest(texts)):
        raise InputError(f"{directory} holds no checkpoint yet; train it further with --run {directory} --resume")
    if average > 1:
        with Checkpoints(directory / "checkpoints") as checkpoints:
            params = train.average_checkpoints(checkpoints, template, average)
    else:
        params = train.best_params(directory, template)
    return config, Writer(model, params, texts, tuple(map(tuple, shapes)))


def load_together(directories: Sequence[Path], config_type: type, *, average: int = 1) -> tuple[Any, Writer]:
    """As `load`, of one run; of several, the configuration of the first, and a writer with the weights of all."""
    (config, first), *others = (load(directory, config_type, average=average) for directory in directories)
    if not others:
        return config, first
    for directory, (other, writer) in zip(directories[1:], others, strict=True):
        if other.model != config.model or not np.array_equal(digest(writer.texts), digest(first.texts)):
            raise InputError(
                f"ensemble={directory}: its model or its vocabulary is not that of {directories[0]}; give runs that "
                "differ in their seed or their training only."
            )
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), first.params, *(writer.params for _, writer in others))
    return config, first._replace(model=ensemble(first.model), params=params)
