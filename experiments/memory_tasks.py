"""Tasks for which a network must remember: adding, copying, parity.

    python -m experiments.memory_tasks                                    # adding, a GRU, 100 steps
    python -m experiments.memory_tasks train adding --model.cell elman    # which does not learn it
    python -m experiments.memory_tasks train copy_tcn
    python -m experiments.memory_tasks train parity --data.length 200
    python -m experiments.memory_tasks evaluate --length 400              # of a run, on longer sequences
    python -m experiments.memory_tasks export

"adding" is the sum of the two marked ones of T numbers between 0 and 1 (Hochreiter and Schmidhuber, 1997); "copy" is to
repeat 10 symbols after T steps (Arjovsky et al., 2016, in the form of Bai et al., 2018); "parity" says after each of T
bits whether an odd number of ones has come. Every training batch is drawn anew. Results and times are in
experiments/README.md.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import series_runs
from experiments.series_runs import (
    NUMBERS,
    Batch,
    Measures,
    ModelConfig,
    Problem,
    SeriesRNNConfig,
    SeriesTransformerConfig,
    Task,
    TCNConfig,
)
from seqjax import train
from seqjax.config import Run, newest_run, run_experiment
from seqjax.errors import InputError

NAME = "memory_tasks"
SYMBOLS, TO_COPY = 8, 10
"""Of "copy": how many kinds of symbols there are, and how many are to be remembered."""
EXAMPLES = 1000
"""Of the validation and of the test split, which are the same for all seeds."""


@dataclass(frozen=True)
class Data:
    """What is to be remembered."""

    task: Literal["adding", "copy", "parity"] = "adding"
    length: int = 100
    """T: the numbers of "adding", the wait of "copy", the bits of "parity"."""

    def __post_init__(self):
        if self.length < 2:
            raise InputError(f"data.length={self.length}; it must be at least 2.")


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the training data; by default seed."""
    data: Data = Data()
    model: ModelConfig = SeriesRNNConfig()
    """The preset decides which of the three."""
    hyper: train.Hyper = train.Hyper(lr=2e-3, b2=0.999)
    loop: train.Loop = train.Loop(steps=4000, log_every=200, eval_every=400, checkpoint_every=2000)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 0
    """Steps of linear warm-up."""
    batch_size: int = 32

    def __post_init__(self):
        series_runs.check(self, frames=self.data.task != "adding")


PRESETS = {
    "adding": ("the sum of two of 100 numbers, a GRU", Config()),
    "adding_tcn": (
        "a temporal convolutional network",
        Config(model=TCNConfig(d_hidden=24, n_layers=5)),
    ),
    "adding_transformer": (
        "a Transformer",
        Config(model=SeriesTransformerConfig(), loop=train.Loop(steps=3000)),
    ),
    "copy": (
        "10 symbols, 100 steps later, a GRU",
        Config(data=Data("copy"), model=SeriesRNNConfig(readout="frames")),
    ),
    "copy_tcn": (
        "a temporal convolutional network",
        Config(data=Data("copy"), model=TCNConfig(d_hidden=10, n_layers=5, readout="frames")),
    ),
    "parity": (
        "after each of 100 bits, whether an odd number was 1; a GRU",
        Config(data=Data("parity"), model=SeriesRNNConfig(d_hidden=32, readout="frames")),
    ),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(
            data=Data(length=6),
            model=SeriesRNNConfig(d_hidden=8),
            loop=train.Loop(steps=20, log_every=10, eval_every=10, checkpoint_every=10),
            batch_size=8,
        ),
    ),
}


# --- data


def draw(data: Data, n: int, seed: int, *key: int) -> Batch:
    """``n`` sequences, a function of the seed and the key alone."""
    random = partial(_words, np.random.SeedSequence(seed, spawn_key=key))
    length = data.length
    match data.task:
        case "adding":
            words = random(n, length + 2)
            numbers, marks = words[:, 2:] / 2.0**64, np.zeros((n, length))
            first = words[:, 0] % length
            second = (first + 1 + words[:, 1] % (length - 1)) % length
            for place in (first, second):
                marks[np.arange(n), place] = 1
            inputs = np.stack([numbers, marks], axis=-1)
            targets = np.sum(numbers * marks, axis=1, keepdims=True).astype(np.float32)
            where = np.ones(n, bool)
        case "copy":
            symbols = 1 + (random(n, TO_COPY) % SYMBOLS).astype(np.int32)
            blank = np.zeros((n, length - 1), np.int32)
            asked = np.full((n, TO_COPY + 1), SYMBOLS + 1, np.int32)
            inputs = np.eye(SYMBOLS + 2)[np.concatenate([symbols, blank, asked], axis=1)]
            targets = np.concatenate([np.zeros((n, length + TO_COPY), np.int32), symbols], axis=1)
            where = np.ones(targets.shape, bool)
        case "parity":
            bits = (random(n, length) >> np.uint64(63)).astype(np.int32)
            inputs, targets = 2.0 * bits[..., None] - 1, np.cumsum(bits, axis=1, dtype=np.int32) % 2
            where = np.ones(targets.shape, bool)
    return Batch(inputs.astype(np.float32), np.full(n, inputs.shape[1], np.int32), targets, where)


def _words(sequence: np.random.SeedSequence, *shape: int) -> np.ndarray:
    # Raw words never change between NumPy versions; what a Generator makes of them may.
    return sequence.generate_state(math.prod(shape), np.uint64).reshape(shape)


class Drawn:
    """Training batches by step, each drawn from the seed and the step."""

    def __init__(self, data: Data, batch_size: int, seed: int, rows=np.arange):
        self._draw, self._rows = partial(draw, data, batch_size, seed, 0), rows(batch_size)

    def __getitem__(self, step: int) -> Batch:
        return Batch(*(array[self._rows] for array in self._draw(step)))


def _split(data: Data, batch_size: int, key: int) -> Iterator[Batch]:
    whole = draw(data, EXAMPLES, 0, key)
    for begin in range(0, EXAMPLES, batch_size):
        part = Batch(*(array[begin : begin + batch_size] for array in whole))
        missing = batch_size - len(part.lengths)
        yield Batch(*(np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for array in part))


# --- what is measured


def measure_copy(outputs: jax.Array, batch: Batch) -> dict[str, tuple]:
    """Cross-entropy of all places; accuracy of the symbols."""
    right = (jnp.argmax(outputs, -1) == batch.targets) & batch.where
    asked = (batch.targets > 0) & batch.where
    sums = (jnp.sum(part).astype(jnp.float32) for part in (right & asked, asked))
    return {"loss": series_runs.classification_loss(outputs, batch), "accuracy": tuple(sums)}


def measure_parity(outputs: jax.Array, batch: Batch) -> dict[str, tuple]:
    """Cross-entropy and accuracy of all places; accuracy of the last."""
    last = batch._replace(targets=batch.targets[:, -1], where=batch.where[:, -1])
    values = series_runs.measure_classes(outputs, batch)
    return values | {"accuracy_at_the_end": series_runs.measure_classes(outputs[:, -1], last)["accuracy"]}


MEASURES = {
    "adding": NUMBERS,
    "copy": Measures(series_runs.classification_loss, measure_copy),
    "parity": Measures(series_runs.classification_loss, measure_parity),
}


def problem(config: Config) -> Problem:
    """What the task asks."""
    data, batch_size = config.data, config.batch_size
    d_in, d_out = {"adding": (2, 1), "copy": (SYMBOLS + 2,) * 2, "parity": (1, 2)}[data.task]
    trivial = {
        "adding": {"loss of always 1": 1 / 6},
        "copy": {"loss without memory": TO_COPY * math.log(SYMBOLS) / (data.length + 2 * TO_COPY)},
        "parity": {"loss without memory": math.log(2)},
    }[data.task]

    def training(*, seed: int, multiple: int = 1, rows=np.arange) -> Drawn:
        return Drawn(data, batch_size, seed, rows)

    return Problem(
        d_in,
        d_out,
        training,
        {split: partial(_split, data, batch_size, key) for key, split in enumerate(("validation", "test"), 1)},
        MEASURES[data.task],
        dict.fromkeys(("validation", "test"), trivial),
    )


TASK = Task(NAME, Config, problem)


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, for a study."""
    return series_runs.setup(config, TASK)


def run(config: Config, run: Run) -> None:
    """Train and evaluate."""
    series_runs.fit(config, run, TASK)


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``evaluate``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    split: Literal["validation", "test"] = "test"
    length: int | None = None
    """T of the sequences; without one, that of the training."""


def evaluate(options: EvaluateOptions) -> None:
    """Print the measures of a run, maybe on sequences of another length, beside those of no memory."""
    directory = options.run or newest_run(NAME)
    predictor = series_runs.load(directory, TASK)
    config = predictor.config
    if options.length is not None:
        config = replace(config, data=replace(config.data, length=options.length))
    series_runs.show_evaluation(predictor._replace(problem=problem(config)), options.split, directory)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = series_runs.commands(TASK) | {"evaluate": (EvaluateOptions, evaluate)}
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
