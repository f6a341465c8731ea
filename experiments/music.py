"""Chorales, frame by frame: which of a piano's keys sound next (Boulanger-Lewandowski et al., 2012).

    python -m experiments.music --data.path jsb-chorales-quarter.json
    python -m experiments.music train lstm --data.path jsb-chorales-quarter.json
    python -m experiments.music evaluate                # the newest run, or --run DIR
    python -m experiments.music sample --frames 64      # writes sample.json, sample.mid and sample.png
    python -m experiments.music export

The file is JSON, ``{"train": pieces, "valid": pieces, "test": pieces}`` with a list of pitches for each frame. The loss
is in nats a frame, the sum over all 88 keys, and counts every frame, the first one too, which is to be found without
any before it. Results and times are in experiments/README.md.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments import series_runs
from experiments.series_runs import (
    Batch,
    Examples,
    Measures,
    ModelConfig,
    Problem,
    SeriesRNNConfig,
    Task,
    TCNConfig,
)
from seqjax import losses, train
from seqjax.config import Run, newest_run, run_experiment
from seqjax.data.chorales import KEYS, LOWEST, Piece, chorales_file, piano_roll, pitches
from seqjax.errors import InputError, check_least, check_seeds

NAME = "music"


@dataclass(frozen=True)
class Data:
    """The pieces."""

    path: Path | None = None
    """A JSON file, see above."""
    n_buckets: int = 4
    """Lengths to which pieces are padded, each compiled once."""

    def __post_init__(self):
        if self.n_buckets < 1:
            raise InputError(f"data.n_buckets={self.n_buckets}; it must be at least 1.")


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: ModelConfig = SeriesRNNConfig(d_hidden=384, readout="frames")
    """The preset decides which of the three."""
    hyper: train.Hyper = train.Hyper(lr=2e-3, b2=0.999, dropout=0.5)
    loop: train.Loop = train.Loop(steps=5000, log_every=100, eval_every=100, checkpoint_every=500, patience=10)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 50
    """Steps of linear warm-up."""
    batch_size: int = 8

    def __post_init__(self):
        series_runs.check(self, frames=True)


PRESETS = {
    "gru": ("needs --data.path; a GRU", Config()),
    "lstm": ("needs --data.path; an LSTM", Config(model=SeriesRNNConfig("lstm", d_hidden=384, readout="frames"))),
    "tcn": (
        "needs --data.path; a temporal convolutional network",
        Config(
            model=TCNConfig(d_hidden=128, n_layers=2, kernel=3, readout="frames"),
            loop=train.Loop(steps=4000, log_every=100, eval_every=100, checkpoint_every=500, patience=10),
            schedule="constant",
        ),
    ),
    "smoke": (
        "needs --data.path; a few seconds, to see that everything works",
        Config(
            data=Data(n_buckets=1),
            model=SeriesRNNConfig(d_hidden=8, readout="frames"),
            loop=train.Loop(steps=20, log_every=10, eval_every=10, checkpoint_every=10),
        ),
    ),
}


# --- what is learned


def frames_loss(outputs: jax.Array, batch: Batch, label_smoothing: Any = 0.0) -> tuple[jax.Array, jax.Array]:
    """-Σ_key log p(key) of each frame, keys being independent of each other given the frames before."""
    where = jnp.broadcast_to(batch.where[..., None], outputs.shape)
    total, _ = losses.binary_cross_entropy(outputs, batch.targets, where=where, label_smoothing=label_smoothing)
    return total, jnp.sum(batch.where.astype(total.dtype))


def measure_frames(outputs: jax.Array, batch: Batch) -> dict[str, tuple]:
    """The loss; and the accuracy, hits / (hits + false alarms + misses), of the keys that are likelier than not.

    That is the accuracy of Bay et al. (2009).
    """
    found, right = (outputs > 0) & batch.where[..., None], batch.targets & batch.where[..., None]
    hits, either = (jnp.sum(keys).astype(jnp.float32) for keys in (found & right, found | right))
    return {"loss": frames_loss(outputs, batch), "accuracy": (hits, either)}


MEASURES = Measures(frames_loss, measure_frames)


def shifted(roll: np.ndarray) -> np.ndarray:
    """What is heard before each frame: nothing before the first."""
    return np.concatenate([np.zeros_like(roll[:1]), roll[:-1]]).astype(np.float32)


def frequencies(train_rolls: Sequence[np.ndarray], rolls: Sequence[np.ndarray]) -> float:
    """Nats a frame if each key sounds as often as in training, whatever came before."""
    counted = np.concatenate(train_rolls)
    p = (counted.sum(0) + 0.5) / (len(counted) + 1)
    heard = np.concatenate(rolls)
    return float(-np.mean(np.sum(np.where(heard, np.log(p), np.log1p(-p)), axis=1)))


def problem(config: Config) -> Problem:
    """The next frame of each piece."""
    data, batch_size = config.data, config.batch_size
    if data.path is None:
        raise InputError("data.path: no package has chorales; give the path of jsb-chorales-quarter.json.")
    rolls = {split: [piano_roll(piece) for piece in pieces] for split, pieces in chorales_file(data.path).items()}
    examples = {split: Examples([shifted(roll) for roll in of], of, frames=True) for split, of in rolls.items()}
    return Problem(
        KEYS,
        KEYS,
        partial(examples["train"].epochs, batch_size, data.n_buckets),
        {split: partial(of.once, batch_size, data.n_buckets) for split, of in examples.items()},
        MEASURES,
        {split: {"loss of the frequencies": frequencies(rolls["train"], of)} for split, of in rolls.items()},
        {"lowest_pitch": LOWEST},
    )


TASK = Task(NAME, Config, problem)


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, for a study."""
    return series_runs.setup(config, TASK)


def run(config: Config, run: Run) -> None:
    """Train and evaluate."""
    series_runs.fit(config, run, TASK)


# --- a new piece


@dataclass(frozen=True)
class SampleOptions:
    """Options of ``sample``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    frames: int = 64
    temperature: float = 0.8
    """0 plays the keys that are likelier than not."""
    seconds: float = 0.5
    """How long a frame sounds."""
    seed: int = 0

    def __post_init__(self):
        check_seeds(self)
        check_least(self, frames=1, temperature=0)
        if not 0 < self.seconds < 10:
            raise InputError(f"seconds={self.seconds}; it must be above 0 and below 10.")


@partial(jax.jit, static_argnames=("apply", "frames"))
def compose(apply, params, frames: int, temperature: float, key: jax.Array) -> jax.Array:
    """bool [frames, 88]: each frame is drawn from what the model makes of those before."""

    def add_frame(t, roll):
        heard = jnp.pad(roll[:-1], ((1, 0), (0, 0)))  # before each frame
        outputs = apply(params, heard[None], jnp.full(1, frames, jnp.int32))[0, t]
        noise = jax.random.logistic(jax.random.fold_in(key, t), outputs.shape)
        sounds = outputs + temperature * noise > 0  # with probability σ(outputs / temperature)
        return roll.at[t].set(sounds.astype(roll.dtype))

    return lax.fori_loop(0, frames, add_frame, jnp.zeros((frames, KEYS))) > 0


def sample(options: SampleOptions) -> None:
    """Write a new piece: as JSON, as MIDI and as a figure in the run directory."""
    directory = options.run or newest_run(NAME)
    predictor = series_runs.load(directory, TASK)
    key = jax.random.key(options.seed)
    roll = np.asarray(compose(predictor.model.apply, predictor.params, options.frames, options.temperature, key))
    piece = pitches(roll)
    (directory / "sample.json").write_text(json.dumps(piece) + "\n")
    (directory / "sample.mid").write_bytes(midi(piece, options.seconds))
    draw_roll(roll, directory / "sample.png")
    print(
        f"wrote {directory}/sample.json, .mid and .png: {options.frames} frames, {roll.sum(1).mean():.2f} keys in each"
    )


def midi(piece: Piece, seconds: float = 0.5) -> bytes:
    """A piece as a MIDI file of one track; a key that goes on sounding is not struck again."""
    events, before, waited = bytearray(), set(), 0
    for chord in (*map(set, piece), set()):
        for status, keys in ((0x80, before - chord), (0x90, chord - before)):
            for key in sorted(keys):
                events += _variable_length(waited) + bytes([status, key, 64])
                waited = 0
        before, waited = chord, waited + 1
    tempo = b"\x00\xff\x51\x03" + round(seconds * 1e6).to_bytes(3, "big")
    track = tempo + bytes(events) + b"\x00\xff\x2f\x00"
    # Format 0, one track, one tick a frame.
    return b"MThd" + bytes([0, 0, 0, 6, 0, 0, 0, 1, 0, 1]) + b"MTrk" + len(track).to_bytes(4, "big") + track


def _variable_length(n: int) -> bytes:
    """Seven bits a byte, the highest first, all but the last with the eighth bit set."""
    found = [n & 127]
    while n := n >> 7:
        found.append(n & 127 | 128)
    return bytes(found[::-1])


def draw_roll(roll: np.ndarray, path: Path) -> None:
    """The keys over time, as a figure, if matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(2 + 0.09 * len(roll), 4), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.imshow(roll.T, cmap="Blues", aspect="auto", origin="lower", extent=(0, len(roll), LOWEST, LOWEST + KEYS))
    if roll.any():
        sounding = np.flatnonzero(roll.any(0)) + LOWEST
        axes.set_ylim(sounding.min() - 2, sounding.max() + 3)
    axes.set(xlabel="frame", ylabel="pitch (MIDI number)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = series_runs.commands(TASK) | {"sample": (SampleOptions, sample)}
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
