"""How the experiments that read words train, classifiers and taggers; no experiment itself.

Their texts are in `experiments.text_corpora`. Each of them adds a configuration with the fields ``seed``,
``data_seed``, ``data``, ``model``, ``hyper``, ``loop``, ``optimizer``, ``schedule``, ``warmup`` and ``batches``, its
presets, where its texts come from, and a `Task`: what is learned of them and how that is measured. A run directory has,
beside what every run has:

    tokenizer.json     the words
    labels.json        the labels
    corpus/*.jsonl     the words and labels of each split
    vectors.npy        given vectors of the words; NaN where there is none
    shapes.json        those of the batches

and, if it was started from a language model, what `experiments.trunk_runs` says. Of ``hyper``, ``embed_lr`` is a factor
of the updates of the embedding, and 0 freezes it.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from experiments import trunk_runs
from experiments.lm_runs import ExportOptions, data_seed, reading, start, write_bundle
from experiments.seq2seq_runs import check_vocabulary, save_shapes
from experiments.text_corpora import Corpus, Example, Texts, digest, load_corpus, load_texts
from seqjax import export, nn, sharding, train
from seqjax.config import Run, newest_run, read_config
from seqjax.data import Buckets, Shape, batches, each_once, plan_shapes, read_lines, standard_input
from seqjax.errors import InputError, check_least, check_seeds


class Batch(NamedTuple):
    """Examples of like length."""

    inputs: tuple  # what the model is called with: tokens [B, T], lengths [B], …
    targets: Any  # what is learned
    where: Any  # [B] or [B, T] bool: count it in the loss


class Encoded(NamedTuple):
    """Examples as numbers."""

    lengths: np.ndarray  # [N], of words; or [N, 2], with those of the tokens of a trunk
    collate: Callable[[np.ndarray, Shape], Batch]  # (rows, shape) -> batch, see `seqjax.data.Buckets`


# --- configuration


@dataclass(frozen=True)
class Batching:
    """How examples become batches."""

    rows: int = 64
    """The most examples of a batch."""
    tokens: int = 16384
    """The most words of a batch, padding included."""
    n_buckets: int = 4
    """Shapes of batches, each compiled once."""
    max_length: int = 400
    """Words of the longest text; longer ones are cut."""

    def __post_init__(self):
        check_least(self, "batches.", rows=1, tokens=1, n_buckets=1, max_length=1)


def check(config: Any) -> None:
    """Raise `InputError` for a configuration whose parts do not fit."""
    check_seeds(config)
    check_least(config, warmup=0, thaw=0)
    longest = getattr(config.model, "longest", None) if config.start is None else None
    if longest is not None and config.batches.max_length > longest:
        raise InputError(
            f"batches.max_length={config.batches.max_length}; this model has learned positions for {longest} words "
            "(model.context)."
        )


def with_given(params: Any, given: Mapping[str, np.ndarray]) -> Any:
    """Weights in place of which given ones stand, by dotted names; where those are NaN, or have fewer rows, ours stay.

    Raises:
      InputError: there is no such weight, or it has other sizes.
    """
    named = export.flatten(params)
    for name, values in given.items():
        if name not in named:
            raise InputError(f"this model has no {name} to start with; choose another model.")
        own = named[name]
        if values.shape[1:] != own.shape[1:] or values.shape[0] > own.shape[0]:
            raise InputError(
                f"{name} is {tuple(own.shape)} here and given as {values.shape}; make the sizes equal, such as "
                f"model.d_embed={values.shape[-1]}."
            )
        if values.shape == own.shape and not np.isnan(values).any():
            named[name] = jnp.asarray(values, own.dtype)
            continue
        first = own[: len(values)]
        named[name] = own.at[: len(values)].set(jnp.where(np.isnan(values), first, jnp.asarray(values, own.dtype)))
    return export.restore(params, named)


# --- model


class Kind(NamedTuple):
    """A type of model: ``module(config, vocab_size, n_labels, rngs=…)``, called with the inputs of a batch."""

    module: Callable[..., nnx.Module]
    features: Callable[..., np.ndarray] | None = None  # (ids, config, vocab_size) -> ids that the model reads
    make_step: Callable[..., Callable] | None = None  # (apply, loss, schedule) -> train_step of its own
    statistics: Callable[..., dict] | None = None  # (config, rows, labels, vocab_size) -> given weights


class Model(NamedTuple):
    """The pure functions of a model."""

    init: Callable  # key -> params
    apply: Callable  # (params, *inputs, dropout=, key=) -> outputs, and other methods by name
    axes: Callable  # () -> what the axes of each parameter mean, see `nn.logical_axes`


class Task(NamedTuple):
    """What an experiment adds."""

    name: str
    config_type: type
    kinds: Mapping[type, Kind]
    """Of each type of ``config.model``."""
    encode: Callable[[Any, Texts, Sequence[Example]], Encoded]
    loss: Callable
    """``(outputs, batch, hyper) -> (sum, weight)``, of what the model returns."""
    measure: Callable
    """``(outputs, batch) -> {name: (sum, weight)}`` of a split, the loss among them."""
    predict: Callable
    """``(apply, config, params, batch) -> arrays [B, …]``: what is shown of examples."""
    report: Callable
    """``(predictor, examples, directory) -> {name: value}``; writes and prints more if there is a directory."""
    started: Callable
    """``config -> (module, its configuration)``, a module that takes a ``trunk``."""
    scores: Callable | None = None
    """``(predictor, examples) -> {name: value}``: what is measured on the host at each evaluation."""


def kind_of(config: Any, task: Task) -> Kind:
    """What is known of the type of its model."""
    return task.kinds[type(config.model)] if config.start is None else Kind(task.started(config)[0])


@cache  # the same functions each time, so that what is compiled for them is found again
def build(module: Callable, model_config: Any, vocab_size: int, n_labels: int, trunk: tuple | None = None) -> Model:
    """The model of a configuration as pure functions, maybe with the trunk of a `trunk_runs.Trunk.key`."""

    def make(key):
        rngs = nnx.Rngs(key)
        parts = {} if trunk is None else {"trunk": trunk_runs.make(trunk, rngs)}
        return module(model_config, vocab_size, n_labels, **parts, rngs=rngs)

    return Model(*nn.purify(make), partial(nn.logical_axes, make))


def model_of(config: Any, task: Task, texts: Texts) -> Model:
    """`build` for the words and labels of a run."""
    sizes = texts.tokenizer.vocab_size, len(texts.labels)
    if texts.trunk is not None:
        return build(*task.started(config), *sizes, texts.trunk.key)
    return build(kind_of(config, task).module, config.model, *sizes)


def read_ids(config: Any, task: Task, texts: Texts, examples: Iterable[Example]) -> list[np.ndarray]:
    """What the model reads of each example: the ids of its words, or features that it makes of them."""
    if texts.trunk is not None:
        return [ids for ids, _ in trunk_runs.cut(texts.trunk, (example.words for example in examples))]
    features = kind_of(config, task).features
    if features is None:
        return [texts.ids(example.words) for example in examples]
    rows = (texts.ids(example.words[: config.batches.max_length]) for example in examples)
    return [features(ids, config.model, texts.tokenizer.vocab_size) for ids in rows]


def most_tokens(config: Any) -> int:
    """Of the longest text: words, or tokens of a trunk, or features: of n-grams as many begin with each word."""
    return config.batches.max_length * (getattr(config.model, "n_grams", 1) if config.start is None else 1)


def given_weights(config: Any, task: Task, directory: Path, texts: Texts, examples: Sequence[Example]) -> dict:
    """What some weights begin with, by their dotted names: vectors of words, statistics of the training texts."""
    given, statistics = {}, kind_of(config, task).statistics
    if (directory / "vectors.npy").exists():
        given["embed.w"] = np.load(directory / "vectors.npy")
    if texts.trunk is not None and not config.start_random:
        given |= trunk_runs.weights(directory)
    if statistics is not None:
        rows = read_ids(config, task, texts, examples)
        has = np.array([np.isin(texts.labels, example.labels) for example in examples])
        given |= statistics(config.model, rows, has, texts.tokenizer.vocab_size)
    return given


# --- training


def make_optimizer(config: Any, task: Task) -> Callable:
    """``hyper -> optax chain``; none for a model with a step of its own."""
    if kind_of(config, task).make_step is not None:
        return lambda hyper: optax.identity()
    schedule = train.unit_schedule(config.schedule, config.loop.steps, config.warmup)
    then = embedding_factor if config.start is None else both(embedding_factor, trunk_runs.layer_factors(config.thaw))
    return train.make_optimizer(config.optimizer, schedule, average=config.hyper.ema > 0, then=then)


def both(first: Callable, second: Callable) -> Callable:
    """``hyper ->`` one transformation after the other."""
    return lambda hyper: optax.chain(first(hyper), second(hyper))


def embedding_factor(hyper: train.Hyper) -> optax.GradientTransformation:
    """Updates of what is called ``embed`` times ``hyper.embed_lr``."""

    def factor(path, update):
        return update * jnp.asarray(hyper.embed_lr, update.dtype) if path[0].key == "embed" else update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(factor, updates))


def make_step(config: Any, task: Task, model: Model) -> Callable:
    """``train_step(state, batch, hyper)``; what it carries is a digest of the vocabulary, for `load` to compare."""
    if (own := kind_of(config, task).make_step) is not None:
        schedule = train.unit_schedule(config.schedule, config.loop.steps, config.warmup)
        return own(model.apply, task.loss, schedule)

    def loss_fn(params, extra, batch, key, hyper):
        if config.hyper.embed_lr == 0 and "embed" in params:  # its gradient need not be computed
            params = {**params, "embed": jax.lax.stop_gradient(params["embed"])}
        if config.hyper.layer_lr == 0 and "trunk" in params:
            params = {**params, "trunk": jax.lax.stop_gradient(params["trunk"])}
        # A dropout of 0 that is not traced draws no random numbers.
        dropout = hyper.dropout if config.hyper.dropout > 0 else 0.0
        outputs = model.apply(params, *batch.inputs, dropout=dropout, key=key)
        return task.loss(outputs, batch, hyper), (extra, {})

    return train.make_step(loss_fn, make_optimizer(config, task))


def initial(config: Any, task: Task, texts: Texts, given: Mapping[str, np.ndarray], key: jax.Array) -> train.State:
    """The state before the first step."""
    key_init, key_train = jax.random.split(key)
    params = with_given(model_of(config, task, texts).init(key_init), given)
    return train.init_state(params, jnp.asarray(digest(texts)), key_train, make_optimizer(config, task)(config.hyper))


def evaluation(
    config: Any, task: Task, texts: Texts, examples: Sequence[Example], shapes: Sequence
) -> train.Evaluation:
    """The measures of a task over a split."""
    apply, encoded = model_of(config, task, texts).apply, task.encode(config, texts, examples)
    return train.Evaluation(
        init=lambda params: (),
        step=partial(_measure_batch, apply, task.measure),
        batches=lambda: (batch for _, batch in each_once(encoded.lengths, shapes, encoded.collate)),
        finish=lambda values: values,
    )


@partial(jax.jit, static_argnames=("apply", "measure"))  # compiled once for all splits
def _measure_batch(apply, measure, params, carried, batch):
    return carried, measure(apply(params, *batch.inputs), batch)


def training_buckets(
    config: Any, task: Task, texts: Texts, examples: Sequence[Example], mesh: Mesh | None = None
) -> Buckets:
    """The batches of training; on a mesh, with those rows that are read here."""
    limits, encoded = config.batches, task.encode(config, texts, examples)
    lengths, *others = np.atleast_2d(encoded.lengths.T)
    planned = plan_shapes(
        lengths, tokens_per_batch=limits.tokens, n_buckets=limits.n_buckets, max_lengths=most_tokens(config)
    )
    shapes: list[Shape] = [(min(rows, limits.rows), *longest) for rows, *longest in planned]
    for other in others:  # as long as those of the texts in the bucket, or in one before it
        widths = [max(other[lengths <= longest], default=1) for _, longest, *_ in shapes[:-1]]
        shapes = [(*shape, int(width)) for shape, width in zip(shapes, [*widths, max(other)], strict=True)]
    multiple = 1 if mesh is None else mesh.shape.get("data", 1)
    return Buckets(encoded.lengths, shapes, encoded.collate, seed=data_seed(config), multiple=multiple, **reading(mesh))


def reach(config: Any, texts: Texts, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """The shapes, and another one for texts that are longer than any in training."""
    limits, (_, longest, *others) = config.batches, shapes[-1]
    bound = texts.trunk and texts.trunk.longest
    most = most_tokens(config)
    most = most if others or not bound else min(most, bound)
    if longest >= most:
        return tuple(shapes)
    wider = (-(-other * most // longest) for other in others)
    return (*shapes, (min(limits.rows, max(1, limits.tokens // most)), most, *(min(w, bound or w) for w in wider)))


def check_used(config: Any, task: Task, model: Model) -> None:
    """Raise `InputError` for options that the model of a configuration has no use for."""
    train.check_unused(config.hyper, "scheduled_sampling")
    # The factor first: to see what a model has takes a trace of it.
    if config.hyper.embed_lr != 1 and "embed" not in jax.eval_shape(model.init, jax.random.key(0)):
        train.check_unused(config.hyper, "embed_lr")
    if config.start is None:
        train.check_unused(config.hyper, "layer_lr")
        if config.thaw or config.start_random:
            raise InputError(f"thaw={config.thaw}, start_random={config.start_random}: they need --start.")
    if kind_of(config, task).make_step is not None:  # plain SGD
        train.check_unused(config.hyper, "weight_decay", "clip", "b1", "b2", "ema")


def _setup(config: Any, task: Task, directory: Path, texts: Texts, corpus: Corpus, buckets: Buckets) -> train.Setup:
    model, shapes = model_of(config, task, texts), reach(config, texts, buckets.shapes)
    check_used(config, task, model)
    save_shapes(directory, shapes)
    given = given_weights(config, task, directory, texts, corpus["train"])
    return train.Setup(
        init=partial(initial, config, task, texts, given),
        train_step=make_step(config, task, model),
        batches=lambda start, stop: batches(buckets, start=start, stop=stop),
        evaluation=evaluation(config, task, texts, corpus["validation"], shapes),
    )


def setup(config: Any, task: Task, directory: Path, texts: Texts, corpus: Corpus) -> train.Setup:
    """What trains a model and measures it."""
    buckets = training_buckets(config, task, texts, corpus["train"])
    return _setup(config, task, directory, texts, corpus, buckets)


def fit(config: Any, run: Run, task: Task, texts: Texts, corpus: Corpus) -> tuple["Predictor", dict[str, float]]:
    """Train, then measure: the trained model, and its metrics on each split but the training one."""
    buckets = training_buckets(config, task, texts, corpus["train"], run.mesh)
    parts, model = _setup(config, task, run.directory, texts, corpus, buckets), model_of(config, task, texts)
    state = start(parts.init, config, run.mesh, model.axes)
    if run.resume:
        check_vocabulary(run.directory, state, digest(texts))
    n_weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"run {run.directory}: {len(corpus['train']):,} texts, {buckets.steps_per_epoch:,} batches an epoch of shapes "
        f"{buckets.shapes}, {texts.tokenizer.vocab_size:,} words, {len(texts.labels)} labels, {n_weights:,} weights, "
        f"on {jax.default_backend()}"
    )
    shapes = reach(config, texts, buckets.shapes)
    assert parts.evaluation is not None, "_setup has one"
    measure, times = (
        train.make_evaluate(parts.evaluation, run.mesh),
        1 if run.mesh is None else sharding.shares(run.mesh),
    )

    def evaluate(params):
        predictor = Predictor(config, task, model, params, texts, shapes)
        return measure(params) | (task.scores(predictor, corpus["validation"]) if task.scores else {})

    state = train.fit(
        config.loop,
        parts.train_step,
        state,
        config.hyper,
        parts.batches,
        directory=run.directory,
        evaluate=evaluate,
        tokens_per_step=lambda batch: round(times * batch.inputs[1].sum()),
        place=run.mesh and sharding.place(run.mesh),
        resume=run.resume,
    )
    predictor = Predictor(config, task, model, train.best_params(run.directory, state), texts, shapes)
    values = {}
    for name in sorted(set(corpus) - {"train"}, reverse=True):  # validation, then the others
        found = predictor.evaluate(corpus[name], run.directory if name == "test" else None, run.mesh)
        print(f"{name}:", "  ".join(f"{key} {value:.4f}" for key, value in found.items()))
        values |= {f"{key}_{name}": value for key, value in found.items()}
    train.summarise(run.directory, values)
    return predictor, values


# --- a trained model


class Predictor(NamedTuple):
    """A trained model with all it needs to read texts."""

    config: Any
    task: Task
    model: Model
    params: Any
    texts: Texts
    shapes: tuple  # of batches: the lengths that programs are compiled for

    def evaluate(
        self, examples: Sequence[Example], directory: Path | None = None, mesh: Mesh | None = None
    ) -> dict[str, float]:
        """The measures and the report of a task on examples; the report's files go to ``directory``."""
        parts = evaluation(self.config, self.task, self.texts, examples, self.shapes)
        return train.make_evaluate(parts, mesh)(self.params) | self.task.report(self, examples, directory)

    def predict(self, examples: Sequence[Example]) -> list[tuple]:
        """What ``task.predict`` finds for each example, as NumPy arrays."""
        if not examples:
            return []
        encoded = self.task.encode(self.config, self.texts, examples)
        found: list[Any] = [None] * len(examples)
        for index, batch in each_once(encoded.lengths, self.shapes, encoded.collate):
            outputs = _predict_batch(self.task.predict, self.model.apply, self.config, self.params, batch)
            outputs = sharding.fetch(outputs)
            for row in np.flatnonzero(index >= 0).tolist():
                found[index[row]] = jax.tree.map(lambda array, row=row: array[row], outputs)
        return found


@partial(jax.jit, static_argnums=(0, 1, 2))
def _predict_batch(predict, apply, config, params, batch):
    return predict(apply, config, params, batch)


def load(directory: Path, task: Task) -> Predictor:
    """The trained model of a run."""
    config, texts = read_config(directory, task.config_type), load_texts(directory)
    # The shapes of what is restored do not depend on what the weights began with.
    template = jax.eval_shape(partial(initial, config, task, texts, {}), jax.random.key(0))
    try:
        shapes = json.loads((directory / "shapes.json").read_text())
    except FileNotFoundError:
        shapes = None
    if shapes is None or not check_vocabulary(directory, template, digest(texts)):
        raise InputError(f"{directory} holds no checkpoint yet; train it further with --run {directory} --resume")
    model, params = model_of(config, task, texts), train.best_params(directory, template)
    return Predictor(config, task, model, params, texts, tuple(map(tuple, shapes)))


# --- sub-commands


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``evaluate``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    split: Literal["train", "validation", "test"] = "test"


@dataclass(frozen=True)
class PredictOptions:
    """Options of ``predict``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    text: str | None = None
    """A text; without one, each line of ``input``."""
    input: Path | None = None
    """A UTF-8 file with a text in each line, .gz too; without one, the standard input."""
    html: Path | None = None
    """A file for the texts, highlighted."""
    highlight: Literal["auto", "always", "never"] = "auto"
    """Highlight words on the screen; auto does on a terminal."""

    def texts(self) -> list[str]:
        """What is to be read."""
        if self.text is not None:
            return [self.text]
        return read_lines(self.input) if self.input else standard_input()

    @property
    def highlights(self) -> bool:
        """Whether to highlight words on the screen."""
        return self.highlight == "always" or (self.highlight == "auto" and sys.stdout.isatty())


def commands(task: Task, predict: Callable[[Predictor, PredictOptions], None]) -> dict[str, tuple[type, Callable]]:
    """The sub-commands ``evaluate``, ``predict`` and ``export``, for `run_experiment`."""

    def evaluate(options: EvaluateOptions) -> None:
        """Print the measures of a run on one split; figures and predictions go to the run directory, or RUN/SPLIT."""
        directory = options.run or newest_run(task.name)
        predictor, corpus = load(directory, task), load_corpus(directory)
        if options.split not in corpus:
            raise InputError(f"split={options.split!r}: this corpus has {', '.join(corpus)}.")
        place = directory if options.split == "test" else directory / options.split
        place.mkdir(exist_ok=True)
        values = predictor.evaluate(corpus[options.split], place)
        print(f"{directory} {options.split}:", "  ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def predict_texts(options: PredictOptions) -> None:
        """Read a text, or each line of a file or of the standard input."""
        predict(load(options.run or newest_run(task.name), task), options)

    def export_run(options: ExportOptions) -> None:
        """Write a run as files that load and run without seqjax's models: programs, weights, words and labels."""
        directory = options.run or newest_run(task.name)
        predictor = load(directory, task)
        texts = predictor.texts
        functions = {"apply": exported(predictor)}
        about = {"kind": task.name, "labels": list(texts.labels), "several": texts.several, "lower": texts.lower}
        about |= trunk_runs.about(texts.trunk)
        if (features := kind_of(predictor.config, task).features) is not None:
            about["tokens"] = f"{features.__module__}.features of the ids of words, with the model of config.json"
        write_bundle(task.name, directory, options.to, functions, predictor.params, **about)

    return {
        "evaluate": (EvaluateOptions, evaluate),
        "predict": (PredictOptions, predict_texts),
        "export": (ExportOptions, export_run),
    }


def exported(predictor: Predictor) -> export.Function:
    """``apply(params, tokens [B, T], lengths [B]) -> logits`` for a bundle."""
    trunk = predictor.texts.trunk
    longest = trunk.longest if trunk else getattr(predictor.config.model, "longest", None)
    limits = () if longest is None else (f"t <= {longest}",)
    b, t = jax.export.symbolic_shape("b, t", constraints=limits)
    ints = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    arguments = {"tokens": ints((b, t)), "lengths": ints((b,))}
    return export.Function(predictor.model.apply, arguments, ("logits",), True, limits)
