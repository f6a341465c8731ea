"""What a language model writes at different temperatures, measured beside the validation text.

    python -m experiments.sampling                     # the newest run of char_lm
    python -m experiments.sampling --run runs/word_lm/20260131-120000 --temperatures 0.5 1.0 --length 100

For runs of char_lm and word_lm. The table has the mean log-probability of a token under the model itself, at
temperature 1; the share of different n-grams; the entropy of the tokens' frequencies. The last row is the validation
text, in as many pieces of the same length, each read from a cleared state as the samples are written. A figure,
temperatures.png, is saved in the run directory.
"""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import lm_runs
from seqjax import decoding, losses
from seqjax.config import newest_run, run_experiment
from seqjax.errors import InputError, check_least
from seqjax.metrics import distinct, entropy

NAME = "sampling"
EXPERIMENTS = ("char_lm", "word_lm")


@dataclass(frozen=True)
class Options:
    """Options of ``temperatures``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    temperatures: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5)
    """0 always takes the likeliest token."""
    samples: int = 16
    """Texts for each temperature."""
    length: int = 400
    """Tokens of a text, unless <eos> comes first; as many as the model can write at most."""
    seed: int = 0

    def __post_init__(self):
        # Before a model is loaded.
        if not self.temperatures:
            raise InputError("temperatures is empty; give at least one.")
        for temperature in self.temperatures:
            decoding.check_options(temperature=temperature)
        check_least(self, samples=1, length=1)


class Row(NamedTuple):
    """Measures of some texts."""

    name: str  # the temperature, or "validation"
    log_probability: float  # nats a token, under the model
    distinct: tuple[float, float, float]  # of 1, 2 and 3 tokens
    entropy: float  # bits a token


# --- measuring


def draw(
    model: lm_runs.Model, params: Any, first: int, *, temperature: float, samples: int, length: int, seed: int
) -> tuple[list[np.ndarray], float]:
    """Texts that follow the token ``first``, without it, and the mean log-probability of their tokens."""
    prompt, key = np.array([first], np.int32), jax.random.key(seed)
    drawn = lm_runs.continuations(model, params, prompt, samples, key, max_length=length, temperature=temperature)
    drawn = jax.device_get(drawn)
    texts = [row[:n] for row, n in zip(drawn.tokens, drawn.lengths, strict=True)]
    return texts, float(drawn.scores.sum() / drawn.lengths.sum())


def pieces(tokens: np.ndarray, *, samples: int, length: int) -> np.ndarray:
    """``[samples, length + 1]`` int32: pieces of a text at equal distances; they overlap where it is short.

    Raises InputError where it is too short for one.
    """
    last = len(tokens) - (length + 1)
    if last < 0:
        raise InputError(f"length={length}; the validation text has {len(tokens)} tokens: give less.")
    starts = np.linspace(0, last, samples).astype(int)
    return np.stack([tokens[start : start + length + 1] for start in starts]).astype(np.int32)


def log_probability(model: lm_runs.Model, params: Any, rows: np.ndarray) -> float:
    """The mean log-probability of the tokens of rows ``[N, T + 1]``, but for the first of each, which is given."""
    # Row by row: the scores of all words of a vocabulary at all places of all rows may be too much.
    sums = [jax.device_get(_loss(model.apply, params, row[None])) for row in rows]
    total, n = np.sum(sums, axis=0, dtype=np.float64)
    return -float(total / n)


@partial(jax.jit, static_argnames="apply")
def _loss(apply, params, rows):
    _, logits = apply(params, rows[:, :-1], apply(params, len(rows), method="initial_carry"))
    return losses.cross_entropy(logits, rows[:, 1:])


def measured(name: str, texts: Sequence[np.ndarray], log_probability: float) -> Row:
    """All measures of texts."""
    lists = [text.tolist() for text in texts]
    one, two, three = (distinct(lists, n) for n in (1, 2, 3))
    return Row(name, log_probability, (one, two, three), entropy(lists))


def measure(model: lm_runs.Model, params: Any, first: int, validation: np.ndarray, options: Options) -> list[Row]:
    """A row for each temperature, then that of the validation text."""
    length = options.length if model.longest is None else min(options.length, model.longest)
    real = pieces(validation, samples=options.samples, length=length)
    rows = []
    for temperature in options.temperatures:
        texts, score = draw(
            model,
            params,
            first,
            temperature=temperature,
            samples=options.samples,
            length=length,
            seed=options.seed,
        )
        rows.append(measured(f"{temperature:g}", texts, score))
    return [*rows, measured("validation", list(real[:, 1:]), log_probability(model, params, real))]


# --- showing


def table(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    heads = ["temperature", "log-probability (nats)", "distinct-1", "distinct-2", "distinct-3", "entropy (bits)"]
    lines = [heads, ["---"] * len(heads)]
    lines += [[row.name, *(f"{x:.3f}" for x in (row.log_probability, *row.distinct, row.entropy))] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(rows: Sequence[Row], path: Path) -> Path | None:
    """Draw the measures over the temperature, those of the validation text as lines; None without matplotlib."""
    try:
        from matplotlib.figure import Figure  # not pyplot: that keeps figures and a backend for the whole process
    except ImportError:
        return None
    *drawn, real = rows
    at = [float(row.name) for row in drawn]
    figure = Figure(figsize=(11, 3.6), dpi=160, layout="constrained")
    panels = figure.subplots(1, 3)
    curves = [
        (panels[0], "", "#c2452d", lambda row: row.log_probability),
        *(
            (panels[1], f"distinct-{n}", color, lambda row, n=n: row.distinct[n - 1])
            for n, color in ((1, "#8fb3d9"), (2, "#3f74b5"), (3, "#1d3f6b"))
        ),
        (panels[2], "", "#c2452d", lambda row: row.entropy),
    ]
    for axes, label, color, value in curves:
        axes.plot(at, [value(row) for row in drawn], label=label, color=color, linewidth=1.6, marker="o", markersize=4)
        axes.axhline(value(real), color=color, linewidth=1.0, linestyle="--")
    labels = ("log-probability (nats per token)", "different n-grams", "entropy (bits per token)")
    for axes, label in zip(panels, labels, strict=True):
        axes.set(xlabel="temperature", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
    panels[0].set_title("dashed: the validation text", loc="left", fontsize=10, color="#3a3a3a")
    panels[1].legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)
    figure.savefig(path)
    return path


# --- the command line


def commands(name: str) -> dict[str, tuple[type, Callable[[Any], None]]]:
    """The sub-command ``temperatures`` of experiment ``name``, for `run_experiment`."""

    def temperatures(options: Options) -> None:
        """Measure what a run writes at different temperatures."""
        directory = options.run or newest_run(name)
        _, model, tokenizer, params = lm_runs.load(directory, _config_type(directory))
        first = int(tokenizer.encode(lm_runs.opening(tokenizer))[0])
        validation = lm_runs.read_tokens(directory)["validation"]
        rows = measure(model, params, first, validation, options)
        print(table(rows))
        if path := plot(rows, directory / "temperatures.png"):
            print(f"\n{path}")

    return {"temperatures": (Options, temperatures)}


def _config_type(directory: Path) -> type:
    """The configuration of the experiment that a run belongs to."""
    try:
        name = json.loads((directory / "config.json").read_text(encoding="utf-8"))["experiment"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{directory} is no run directory ({error}); give that of {' or '.join(EXPERIMENTS)}."
        ) from error
    if name not in EXPERIMENTS:
        raise InputError(f"{directory} is a run of {name}; give one of {' or '.join(EXPERIMENTS)}.")
    return importlib.import_module(f"experiments.{name}").Config  # here: those modules may import this one


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    words = words if words[:1] == ["temperatures"] else ["temperatures", *words]
    return run_experiment(NAME, {}, train=_nothing, commands=commands("char_lm"), description=__doc__, argv=words)


def _nothing(config: Any, run: Any) -> None:
    """There is nothing to train here."""


if __name__ == "__main__":
    raise SystemExit(main())
