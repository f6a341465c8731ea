"""Grapheme to phoneme: how English words are spoken, from the CMU pronouncing dictionary. Real data without a download.

    python -m experiments.g2p                            # a GRU with attention, from letters to phonemes
    python -m experiments.g2p train transformer
    python -m experiments.g2p evaluate --split test --search.beam_size 10
    echo "seqjax" | python -m experiments.g2p predict --n_best 3 --scores
    python -m experiments.g2p interactive

A hash of the word decides whether it is trained, validated or tested on; stress is left out. ``per`` is the phoneme
error rate, edit distance over length, to the nearest of a word's pronunciations; ``wer`` is the share of words that are
not one of them. Results and times are in experiments/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments import seq2seq_commands, seq2seq_runs, seq2seq_texts
from experiments.seq2seq_runs import Batching, Task
from experiments.seq2seq_texts import Corpus, Example, Texts
from experiments.seq2seq_writer import Report, Search, show
from seqjax import metrics, train
from seqjax.config import Run, run_experiment
from seqjax.data.cmudict import pronunciations
from seqjax.errors import InputError
from seqjax.models.rnn_seq2seq import RNNSeq2SeqConfig
from seqjax.models.transformer_seq2seq import TransformerSeq2SeqConfig

NAME = "g2p"


@dataclass(frozen=True)
class Data:
    """The dictionary."""

    limit: int | None = None
    """Read only so many words of each split."""

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise InputError(f"data.limit={self.limit}; it must be at least 1.")


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: RNNSeq2SeqConfig | TransformerSeq2SeqConfig = RNNSeq2SeqConfig(
        "gru", 64, 256, n_layers=1, attention="general"
    )
    hyper: train.Hyper = train.Hyper(lr=3e-3, b2=0.98, dropout=0.2, label_smoothing=0.1)
    loop: train.Loop = train.Loop(steps=8000, eval_every=2000, checkpoint_every=2000)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 200
    """Steps of linear warm-up."""
    batches: Batching = Batching(tokens=1536, n_buckets=5, max_source=36, max_target=36)
    search: Search = Search()
    report: Report = Report()

    def __post_init__(self):
        seq2seq_runs.check(self)


PRESETS = {
    "gru": ("a bidirectional GRU of 256 units with attention", Config()),
    "transformer": (
        "a Transformer of 3 + 3 layers of 128",
        Config(
            model=TransformerSeq2SeqConfig(d_model=128, n_layers=3, d_ff=512, context=36),
            hyper=train.Hyper(lr=2e-3, b2=0.98, dropout=0.1, label_smoothing=0.1),
        ),
    ),
    "large": (
        "two layers of 512, for a GPU",
        Config(
            model=RNNSeq2SeqConfig("lstm", 128, 512, n_layers=2, attention="general", input_feeding=True),
            hyper=train.Hyper(lr=1e-3, b2=0.98, dropout=0.3, label_smoothing=0.1),
            loop=train.Loop(steps=40_000, eval_every=2000, checkpoint_every=2000),
            batches=Batching(tokens=4096, n_buckets=3, max_source=36, max_target=36),
        ),
    ),
    "smoke": (
        "seconds: does everything run?",
        Config(
            data=Data(limit=100),
            model=RNNSeq2SeqConfig("gru", 8, 16, attention="general"),
            loop=train.Loop(steps=20, log_every=10, eval_every=20, checkpoint_every=20),
            batches=Batching(tokens=256, n_buckets=1, max_source=16, max_target=16),
            search=Search(beam_size=2),
            report=Report(texts=20, maps=1, samples=1),
        ),
    ),
}


def corpus(data: Data) -> dict[str, list[Example]]:
    """split -> words and their pronunciations, phonemes between spaces."""
    return {
        split: [Example(word, tuple(map(" ".join, found))) for word, found in list(words.items())[: data.limit]]
        for split, words in pronunciations().items()
    }


def measure(hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
    """Phoneme and word error rate."""
    spoken = [text.split() for text in hypotheses]
    known = [[text.split() for text in texts] for texts in references]
    return {"per": metrics.error_rate(spoken, known), "wer": 1 - metrics.exact_match(hypotheses, references)}


TASK = Task(NAME, Config, measure, clean=lambda config, line: line.strip().lower(), every_target=True)


def prepare(config: Config, directory: Path) -> tuple[Texts, Corpus]:
    """Tokenizers and texts."""
    return seq2seq_texts.prepare(directory, lambda: corpus(config.data), kinds=("char", "space"))


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, on the texts of a run or a study."""
    return seq2seq_runs.setup(config, TASK, directory, *prepare(config, directory))


def run(config: Config, run: Run) -> None:
    """Train, evaluate, write."""
    texts, splits = prepare(config, run.directory)
    writer, _ = seq2seq_runs.fit(config, run, TASK, texts, splits)
    show(writer, splits["validation"], config, run.directory)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = seq2seq_commands.commands(TASK)
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
