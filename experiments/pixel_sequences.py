"""Digits read pixel by pixel: images as sequences.

    python -m experiments.pixel_sequences                             # 8 × 8 pixels, from the scikit-learn package
    python -m experiments.pixel_sequences --data.permuted
    python -m experiments.pixel_sequences train mnist --data.path mnist.npz
    python -m experiments.pixel_sequences evaluate                    # the newest run; writes confusion.png
    python -m experiments.pixel_sequences predict --input digits.csv  # or lines of pixels from the standard input
    python -m experiments.pixel_sequences export

With "permuted" the pixels come in a fixed order that has no neighbours (Le et al., 2015). Results and times are in
experiments/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from experiments import series_runs
from experiments.series_runs import (
    CLASSES,
    EvaluateOptions,
    Examples,
    ModelConfig,
    Problem,
    SeriesRNNConfig,
    Task,
    TCNConfig,
)
from seqjax import metrics, reporting, train
from seqjax.config import Run, newest_run, run_experiment
from seqjax.data import read_lines, standard_input
from seqjax.data.digits import Images, digits, mnist_file
from seqjax.errors import InputError

NAME = "pixel_sequences"


@dataclass(frozen=True)
class Data:
    """The images."""

    source: Literal["digits", "mnist"] = "digits"
    """Those of the scikit-learn package, or of a file."""
    path: Path | None = None
    """Of mnist: the .npz."""
    permuted: bool = False
    """In an order drawn once and for all."""

    def __post_init__(self):
        if self.source == "digits" and self.path is not None:
            raise InputError(f"data.path={self.path}: the file is that of --data.source mnist, as of the preset mnist.")


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: ModelConfig = SeriesRNNConfig()
    """The preset decides which of the three."""
    hyper: train.Hyper = train.Hyper(lr=3e-3, b2=0.999, weight_decay=0.01, dropout=0.5)
    loop: train.Loop = train.Loop(steps=2000, log_every=100, eval_every=250, checkpoint_every=500)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 50
    """Steps of linear warm-up."""
    batch_size: int = 64

    def __post_init__(self):
        series_runs.check(self, frames=False)


PRESETS = {
    "digits": ("8 × 8 pixels, a GRU", Config()),
    "digits_tcn": ("a temporal convolutional network", Config(model=TCNConfig(d_hidden=32, n_layers=4))),
    "mnist": (
        "needs --data.path; 784 pixels, a GRU, better on an accelerator",
        Config(
            data=Data("mnist"),
            hyper=train.Hyper(lr=1e-3, b2=0.999),
            loop=train.Loop(steps=10000, log_every=100, eval_every=1000, checkpoint_every=1000),
        ),
    ),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(
            model=SeriesRNNConfig(d_hidden=8),
            loop=train.Loop(steps=20, log_every=10, eval_every=20, checkpoint_every=20),
        ),
    ),
}


def images(data: Data) -> dict[str, Images]:
    """split -> images, of the package or the file."""
    if data.source == "digits":
        return digits()
    if data.path is None:
        raise InputError("data.path: no package has MNIST; give the path of its .npz.")
    return mnist_file(data.path)


def sequences(data: Data, pixels: np.ndarray) -> np.ndarray:
    """[N, height · width, 1] of images [N, height, width]."""
    flat = pixels.reshape(len(pixels), -1, 1)
    # Sorting raw words shuffles, and they never change between NumPy versions.
    words = np.random.SeedSequence(0).generate_state(flat.shape[1], np.uint64)
    return flat[:, np.argsort(words, kind="stable")] if data.permuted else flat


def problem(config: Config) -> Problem:
    """Which digit an image shows."""
    found = images(config.data)
    n_classes = 1 + max(int(split.labels.max()) for split in found.values())
    examples = {
        name: Examples(sequences(config.data, split.pixels), split.labels, frames=False)
        for name, split in found.items()
    }
    commonest = np.bincount(found["train"].labels).argmax()
    return Problem(
        1,
        n_classes,
        partial(examples["train"].epochs, config.batch_size),
        {name: partial(split.once, config.batch_size) for name, split in examples.items()},
        CLASSES,
        {
            name: {"accuracy of the commonest class": float(np.mean(split.labels == commonest))}
            for name, split in found.items()
        },
        {"permuted": config.data.permuted, "shape": found["train"].pixels.shape[1:]},
    )


TASK = Task(NAME, Config, problem)


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, for a study."""
    return series_runs.setup(config, TASK)


def run(config: Config, run: Run) -> None:
    """Train and evaluate."""
    series_runs.fit(config, run, TASK)


# --- sub-commands


def evaluate(options: EvaluateOptions) -> None:
    """Print the measures of a run on one split, and of each class; draw what was taken for what."""
    directory = options.run or newest_run(NAME)
    predictor = series_runs.load(directory, TASK)
    series_runs.show_evaluation(predictor, options.split, directory)
    gold, found = [], []
    for batch, outputs in predictor.outputs(predictor.problem.splits[options.split]()):
        gold += batch.targets[batch.where].tolist()
        found += outputs.argmax(-1)[batch.where].tolist()
    labels = [str(label) for label in range(predictor.problem.d_out)]
    report = metrics.classification_report(gold, found, labels)
    print(metrics.score_table(report.classes))
    reporting.confusion_map(metrics.confusion_matrix(gold, found, len(labels)), labels, directory / "confusion.png")


@dataclass(frozen=True)
class PredictOptions:
    """Options of ``predict``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    input: Path | None = None
    """A file with the pixels of an image in each line, between commas; without one, the standard input."""


def predict(options: PredictOptions) -> None:
    """Say which digit each image shows, and how likely it is."""
    predictor = series_runs.load(options.run or newest_run(NAME), TASK)
    data = predictor.config.data
    shape, highest = predictor.problem.about["shape"], 16 if data.source == "digits" else 255
    lines = read_lines(options.input) if options.input else standard_input()
    rows = [_pixels(line, number, shape, highest) for number, line in enumerate(lines, 1) if line.strip()]
    pixels = np.array(rows, np.float32) / highest
    if not len(pixels):
        raise InputError("input: there is no image in it; give one a line.")
    given = Examples(sequences(data, pixels), np.zeros(len(pixels), np.int32), frames=False)
    for batch, outputs in predictor.outputs(given.once(predictor.config.batch_size)):
        scores = np.exp(outputs - outputs.max(-1, keepdims=True))[batch.where]
        for label, p in zip(scores.argmax(-1), scores.max(-1) / scores.sum(-1), strict=True):
            print(f"{label}  {p:.4f}")


def _pixels(line: str, number: int, shape: tuple[int, int], highest: int) -> np.ndarray:
    try:
        pixels = [float(field) for field in line.split(",")]
    except ValueError as error:
        raise InputError(f"input:{number}: {error}; give numbers between commas.") from error
    n = shape[0] * shape[1]
    if len(pixels) not in (n, n + 1):  # a label may follow
        raise InputError(f"input:{number}: {len(pixels)} numbers; give {n} pixels, row by row.")
    if not all(0 <= pixel <= highest for pixel in pixels[:n]):
        raise InputError(f"input:{number}: pixels must be from 0 to {highest}, as in training.")
    return np.reshape(pixels[:n], shape)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = series_runs.commands(TASK) | {
        "evaluate": (EvaluateOptions, evaluate),
        "predict": (PredictOptions, predict),
    }
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
