"""What the experiments with series share: sequences of vectors, such as pixels, frames and measurements; no experiment.

Each of them adds a configuration with the fields ``seed``, ``data_seed``, ``data``, ``model``, ``hyper``, ``loop``,
``optimizer``, ``schedule``, ``warmup`` and ``batch_size``, its presets, and a `Task`: what is learned, from which data.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.lm_runs import ExportOptions, data_seed, make_optimizer, reading, start, write_bundle
from seqjax import export, losses, nn, sharding, train
from seqjax.config import Run, newest_run, read_config
from seqjax.data import Buckets, Shape, batches, each_once, plan_shapes
from seqjax.data.windows import Steps
from seqjax.errors import InputError, check_least, check_seeds
from seqjax.models.series import SeriesRNN, SeriesRNNConfig
from seqjax.models.series_transformer import SeriesTransformer, SeriesTransformerConfig
from seqjax.models.tcn import TCN, TCNConfig

ModelConfig = SeriesRNNConfig | TCNConfig | SeriesTransformerConfig
MODULES: dict[type, Callable[..., nnx.Module]] = {
    SeriesRNNConfig: SeriesRNN,
    TCNConfig: TCN,
    SeriesTransformerConfig: SeriesTransformer,
}
"""The model of each type of configuration: ``module(config, d_in, d_out, rngs=…)``."""


class Batch(NamedTuple):
    """Sequences side by side."""

    inputs: Any  # [B, T, D] float32
    lengths: Any  # [B] int32
    targets: Any  # [B, …], or [B, T, …] where each place has one
    where: Any  # [B] or [B, T] bool: count it


class Examples(NamedTuple):
    """Sequences of a split."""

    inputs: Sequence[np.ndarray]  # [T, D] each
    targets: Sequence[np.ndarray]  # [T, …] each with `frames`, else […]
    frames: bool  # each place has a target

    @property
    def lengths(self) -> np.ndarray:
        """Of all sequences."""
        return np.array([len(x) for x in self.inputs], np.int32)

    def collate(self, rows: np.ndarray, shape: Shape) -> Batch:
        """The sequences of these rows in a shape, see `seqjax.data.Buckets`."""
        n, longest = shape
        first = self.targets[0]
        inputs = np.zeros((n, longest, self.inputs[0].shape[-1]), np.float32)
        places, form = ((n, longest), first.shape[1:]) if self.frames else ((n,), first.shape)
        targets, where, lengths = np.zeros(places + form, first.dtype), np.zeros(places, bool), np.zeros(n, np.int32)
        for i, row in enumerate(rows):
            x, y = self.inputs[row][:longest], self.targets[row]
            inputs[i, : len(x)], lengths[i] = x, len(x)
            if self.frames:
                targets[i, : len(x)], where[i, : len(x)] = y[:longest], True
            else:
                targets[i], where[i] = y, True
        return Batch(inputs, lengths, targets, where)

    def shapes(self, batch_size: int, n_buckets: int = 1) -> tuple[Shape, ...]:
        """Of batches of at most so many sequences, which hold all of them whole."""
        longest = int(self.lengths.max())
        shapes = plan_shapes(
            self.lengths, tokens_per_batch=batch_size * longest, n_buckets=n_buckets, max_lengths=longest
        )
        return tuple((min(n, batch_size), length) for n, length in shapes)

    def once(self, batch_size: int, n_buckets: int = 1) -> Iterator[Batch]:
        """Each sequence once."""
        shapes = self.shapes(batch_size, n_buckets)
        return (batch for _, batch in each_once(self.lengths, shapes, self.collate))

    def epochs(self, batch_size: int, n_buckets: int = 1, **options) -> Buckets[Batch]:
        """Training batches by step; the options are those of `Buckets`."""
        return Buckets(self.lengths, self.shapes(batch_size, n_buckets), self.collate, **options)


# --- what outputs are compared with


class Measures(NamedTuple):
    """How outputs are judged; each is made once, for programs are compiled for it."""

    loss: Callable  # (outputs, batch, label_smoothing) -> (sum, weight)
    measure: Callable  # (outputs, batch) -> {name: (sum, weight)}, loss among them
    finish: Callable = lambda values: values  # {name: mean} -> {name: value}


def squared_error(outputs: jax.Array, batch: Batch, label_smoothing: Any = 0.0) -> tuple[jax.Array, jax.Array]:
    """(y - target)², the mean over whatever numbers an example has. There are no labels to smooth."""
    return _mean_over_features((outputs - batch.targets) ** 2, batch.where)


def measure_errors(outputs: jax.Array, batch: Batch) -> dict[str, tuple]:
    """Mean squared and absolute error."""
    absolute = jnp.abs(outputs - batch.targets)
    return {"loss": squared_error(outputs, batch), "mae": _mean_over_features(absolute, batch.where)}


def _mean_over_features(errors, where):
    per_place = jnp.mean(errors, axis=-1)
    return jnp.sum(jnp.where(where, per_place, jnp.zeros_like(per_place))), jnp.sum(where.astype(per_place.dtype))


def classification_loss(outputs: jax.Array, batch: Batch, label_smoothing: Any = 0.0) -> tuple[jax.Array, jax.Array]:
    """-log p(class)."""
    return losses.cross_entropy(outputs, batch.targets, where=batch.where, label_smoothing=label_smoothing)


def measure_classes(outputs: jax.Array, batch: Batch) -> dict[str, tuple]:
    """Cross-entropy and the share of right classes."""
    loss = classification_loss(outputs, batch)
    right = jnp.sum((jnp.argmax(outputs, -1) == batch.targets) & batch.where)
    return {"loss": loss, "accuracy": (right.astype(loss[1].dtype), loss[1])}


NUMBERS = Measures(squared_error, measure_errors)
CLASSES = Measures(classification_loss, measure_classes)


class Problem(NamedTuple):
    """What is learned, from which data."""

    d_in: int
    d_out: int
    training: Callable[..., Steps[Batch]]  # (seed=, multiple=, rows=) -> batches by step, see `Buckets`
    splits: Mapping[str, Callable[[], Iterable[Batch]]]  # one pass over each
    measures: Measures
    baselines: Mapping[str, Mapping[str, float]] = {}  # split -> what is reached without a model
    about: Mapping[str, Any] = {}  # what else a bundle should say


class Task(NamedTuple):
    """What an experiment adds."""

    name: str
    config_type: type
    problem: Callable[[Any], Problem]


def check(config: Any, *, frames: bool) -> None:
    """Raise `InputError` for a number out of range, or a model that does not answer what is asked.

    ``frames`` says whether there is something to be found for each place, or for a sequence.
    """
    check_seeds(config)
    check_least(config, batch_size=1, warmup=0)
    train.check_unused(config.hyper, "scheduled_sampling", "embed_lr", "layer_lr")
    if (config.model.readout == "frames") != frames:
        wanted = "frames: every place has its answer" if frames else "last or mean: a sequence has one answer"
        raise InputError(f"model.readout={config.model.readout}; here it must be {wanted}.")


# --- training


class Model(NamedTuple):
    """The pure functions of a model."""

    init: Callable  # key -> params
    apply: Callable  # (params, inputs, lengths, dropout=, key=) -> outputs
    axes: Callable  # () -> what the axes of each parameter mean, see `nn.logical_axes`


@cache  # the same functions each time, so that what is compiled for them is found again
def build(model_config: ModelConfig, d_in: int, d_out: int) -> Model:
    """The model of a configuration as pure functions."""

    def make(key):
        return MODULES[type(model_config)](model_config, d_in, d_out, rngs=nnx.Rngs(key))

    return Model(*nn.purify(make), partial(nn.logical_axes, make))


def model_of(config: Any, problem: Problem) -> Model:
    """`build` for a problem."""
    return build(config.model, problem.d_in, problem.d_out)


def make_loss(config: Any, apply: Callable, measures: Measures) -> Callable:
    """The loss of a batch; nothing is carried from one to the next."""

    def loss_fn(params, extra, batch, key, hyper):
        # A dropout of 0 that is not traced draws no random numbers.
        dropout = hyper.dropout if config.hyper.dropout > 0 else 0.0
        outputs = apply(params, batch.inputs, batch.lengths, dropout=dropout, key=key)
        return measures.loss(outputs, batch, hyper.label_smoothing), (extra, {})

    return loss_fn


def initial(config: Any, model: Model, key: jax.Array) -> train.State:
    """The state before the first step."""
    key_init, key_train = jax.random.split(key)
    return train.init_state(model.init(key_init), (), key_train, make_optimizer(config)(config.hyper))


def evaluation(model: Model, problem: Problem, split: str) -> train.Evaluation:
    """The measures of a problem over a split."""
    return train.Evaluation(
        init=lambda params: (),
        step=partial(_measure_batch, model.apply, problem.measures.measure),
        batches=problem.splits[split],
        finish=problem.measures.finish,
    )


@partial(jax.jit, static_argnames=("apply", "measure"))  # compiled once for all splits
def _measure_batch(apply, measure, params, carried, batch):
    return carried, measure(apply(params, batch.inputs, batch.lengths), batch)


def _setup(config: Any, problem: Problem, training: Steps[Batch]) -> train.Setup:
    model = model_of(config, problem)
    return train.Setup(
        init=partial(initial, config, model),
        train_step=train.make_step(make_loss(config, model.apply, problem.measures), make_optimizer(config)),
        batches=lambda start, stop: batches(training, start=start, stop=stop),
        evaluation=evaluation(model, problem, "validation"),
    )


def setup(config: Any, task: Task) -> train.Setup:
    """What trains a model and measures it."""
    problem = task.problem(config)
    return _setup(config, problem, problem.training(seed=data_seed(config)))


def fit(config: Any, run: Run, task: Task) -> tuple["Predictor", dict[str, float]]:
    """Train, then measure: the trained model, and its metrics on the validation and the test split."""
    problem, options, times = task.problem(config), {}, 1.0
    if run.mesh is not None:
        sharding.check_rows(run.mesh, "batch_size", config.batch_size)
        options = {"multiple": run.mesh.shape.get("data", 1), **reading(run.mesh)}
        times = sharding.shares(run.mesh)
    parts, model = (
        _setup(config, problem, problem.training(seed=data_seed(config), **options)),
        model_of(config, problem),
    )
    state = start(parts.init, config, run.mesh, model.axes)
    n_weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"run {run.directory}: from {problem.d_in} to {problem.d_out} numbers, {n_weights:,} weights, on "
        f"{jax.default_backend()}"
    )
    state = train.fit(
        config.loop,
        parts.train_step,
        state,
        config.hyper,
        parts.batches,
        directory=run.directory,
        evaluate=train.make_evaluate(parts.evaluation, run.mesh),
        tokens_per_step=lambda batch: round(times * batch.lengths.sum()),
        place=run.mesh and sharding.place(run.mesh),
        resume=run.resume,
    )
    predictor = Predictor(config, problem, model, train.best_params(run.directory, state))
    values = {}
    for split in ("validation", "test"):
        found = train.make_evaluate(evaluation(model, problem, split), run.mesh)(predictor.params)
        baselines = problem.baselines.get(split, {})
        show(split, found, baselines)
        values |= {f"{name}_{split}": value for name, value in (found | baselines).items()}
    train.summarise(run.directory, values)
    return predictor, values


def show(label: str, values: Mapping[str, float], baselines: Mapping[str, float]) -> None:
    """Print the measures of a split, and what is reached without a model."""
    print(f"{label}:", "  ".join(f"{name} {value:.4g}" for name, value in values.items()))
    for name, value in baselines.items():
        print(f"  {name} {value:.4g}")


# --- a trained model


class Predictor(NamedTuple):
    """A trained model and what it was trained for."""

    config: Any
    problem: Problem
    model: Model
    params: Any

    def evaluate(self, split: str) -> dict[str, float]:
        """The measures of a split."""
        return train.make_evaluate(evaluation(self.model, self.problem, split))(self.params)

    def outputs(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, np.ndarray]]:
        """Each batch, and what the model makes of it."""
        return ((batch, sharding.fetch(_apply(self.model.apply, self.params, batch))) for batch in batches)


@partial(jax.jit, static_argnames="apply")
def _apply(apply, params, batch):
    return apply(params, batch.inputs, batch.lengths)


def load(directory: Path, task: Task) -> Predictor:
    """The trained model of a run."""
    config = read_config(directory, task.config_type)
    problem = task.problem(config)
    model = model_of(config, problem)
    params = train.best_params(directory, jax.eval_shape(partial(initial, config, model), jax.random.key(0)))
    return Predictor(config, problem, model, params)


# --- sub-commands


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``evaluate``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    split: Literal["train", "validation", "test"] = "test"


def show_evaluation(predictor: Predictor, split: str, directory: Path) -> None:
    """Measure a trained model on a split, and print that."""
    show(f"{directory} {split}", predictor.evaluate(split), predictor.problem.baselines.get(split, {}))


def commands(task: Task) -> dict[str, tuple[type, Callable[[Any], None]]]:
    """The sub-commands ``evaluate`` and ``export``, for `run_experiment`."""

    def evaluate(options: EvaluateOptions) -> None:
        """Print the measures of a run on one split, beside what is reached without a model."""
        directory = options.run or newest_run(task.name)
        show_evaluation(load(directory, task), options.split, directory)

    def export_run(options: ExportOptions) -> None:
        """Write a run as files that load and run without seqjax's models: program and weights."""
        directory = options.run or newest_run(task.name)
        predictor = load(directory, task)
        functions = {"apply": exported(predictor)}
        write_bundle(
            task.name, directory, options.to, functions, predictor.params, kind=task.name, **predictor.problem.about
        )

    return {"evaluate": (EvaluateOptions, evaluate), "export": (ExportOptions, export_run)}


def exported(predictor: Predictor) -> export.Function:
    """``apply(params, inputs [B, T, D], lengths [B]) -> outputs`` for a bundle."""
    b, t = jax.export.symbolic_shape("b, t")
    arguments = {
        "inputs": jax.ShapeDtypeStruct((b, t, predictor.problem.d_in), jnp.float32),
        "lengths": jax.ShapeDtypeStruct((b,), jnp.int32),
    }
    return export.Function(predictor.model.apply, arguments, ("outputs",), True)
