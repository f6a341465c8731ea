"""Summarisation: titles of papers from their abstracts (SciTLDR), by a pointer-generator, against the first sentence.

    python -m experiments.summarise --data.path scitldr            # a folder with train.jsonl, dev.jsonl, test.jsonl
    python -m experiments.summarise --data.path scitldr --data.target summary
    python -m experiments.summarise evaluate --split test --search.beam_size 8
    python -m experiments.summarise predict --input abstracts.txt      # one in each line

The model reads lower-cased words and may copy those of the abstract, also such as no other abstract has. ROUGE of what
it writes stands beside that of LEAD, the abstract's first sentence, which is also cut to the length of an average
target. Results and times are in experiments/README.md.
"""

import re
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
from seqjax.data.scitldr import scitldr
from seqjax.errors import InputError
from seqjax.models.rnn_seq2seq import RNNSeq2SeqConfig
from seqjax.text import split_words

NAME = "summarise"


@dataclass(frozen=True)
class Data:
    """The corpus."""

    path: Path | None = None
    """A folder with train.jsonl, dev.jsonl and test.jsonl of SciTLDR-A."""
    target: Literal["title", "summary"] = "title"
    max_size: int = 6000
    """The words that can be written without copying."""


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: RNNSeq2SeqConfig = RNNSeq2SeqConfig(
        "gru", 128, 128, attention="additive", d_attention=128, copy=True, n_extra=60, tied="all"
    )
    hyper: train.Hyper = train.Hyper(lr=2e-3, b2=0.98, dropout=0.3)
    loop: train.Loop = train.Loop(
        steps=1500, eval_every=250, checkpoint_every=250, monitor="rougeL", best="highest", patience=4
    )
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 100
    """Steps of linear warm-up."""
    coverage_loss: float = 0.0
    """Weight of what attention looks at again (See et al., 2017)."""
    batches: Batching = Batching(tokens=4096, n_buckets=3, max_source=200, max_target=32)
    search: Search = Search(no_repeat_ngram=2)
    report: Report = Report(texts=200)

    def __post_init__(self):
        if self.coverage_loss < 0 or (self.coverage_loss and self.model.attention == "none"):
            raise InputError(f"coverage_loss={self.coverage_loss}; it must be at least 0, and 0 without attention.")
        seq2seq_runs.check(self)


PRESETS = {
    "pointer": ("a GRU that writes or copies: minutes on a laptop", Config()),
    "coverage": (
        "the same, which knows where it has looked",
        Config(
            model=RNNSeq2SeqConfig(
                "gru", 128, 128, attention="additive", d_attention=128, coverage=True, copy=True, n_extra=60, tied="all"
            ),
            coverage_loss=1.0,
        ),
    ),
    "smoke": (
        "seconds: does everything run?",
        Config(
            data=Data(max_size=60),
            model=RNNSeq2SeqConfig("gru", 8, 8, attention="additive", d_attention=8, copy=True, n_extra=5, tied="all"),
            loop=train.Loop(steps=20, log_every=10, eval_every=20, checkpoint_every=20),
            batches=Batching(tokens=256, n_buckets=1, max_source=64, max_target=16),
            search=Search(beam_size=2),
            report=Report(texts=20, maps=1, samples=1),
        ),
    ),
}


def clean(config: Config, text: str) -> str:
    """Lower-cased words and punctuation marks with spaces between them."""
    return " ".join(split_words(text.lower())).replace("\n", " ")


def corpus(config: Config) -> Corpus:
    """split -> abstracts, and titles or summaries."""
    data = config.data
    if data.path is None:
        raise InputError("data.path: give a folder with train.jsonl, dev.jsonl and test.jsonl of SciTLDR-A.")

    def example(paper) -> Example:
        targets = (paper.title,) if data.target == "title" else paper.targets
        return Example(clean(config, paper.abstract), tuple(clean(config, text) for text in targets))

    return {split: [example(paper) for paper in papers] for split, papers in scitldr(data.path).items()}


def lead(abstract: str, n_words: int | None = None) -> str:
    """The first sentence of a cleaned abstract, or its first ``n_words`` words.

    Sentences end at marks between spaces; in one of eleven papers that is not the end in the corpus.
    """
    if n_words is not None:
        return " ".join(abstract.split()[:n_words])
    return re.split(r"(?<= [.?!]) ", abstract, maxsplit=1)[0]


def measure(hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
    """The F1 of ROUGE-1, ROUGE-2 and ROUGE-L, in per cent."""
    rouge = metrics.rouge(hypotheses, references)
    return {name: 100 * getattr(rouge, name).f1 for name in ("rouge1", "rouge2", "rougeL")}


TASK = Task(NAME, Config, measure, clean)


def prepare(config: Config, directory: Path) -> tuple[Texts, Corpus]:
    """Tokenizers and texts."""
    return seq2seq_texts.prepare(
        directory,
        lambda: corpus(config),
        kinds=("space", "space"),
        joint=True,
        max_size=config.data.max_size,
        n_extra=config.model.n_extra,
        max_source=config.batches.max_source,
    )


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, on the texts of a run or a study."""
    return seq2seq_runs.setup(config, TASK, directory, *prepare(config, directory))


def run(config: Config, run: Run) -> None:
    """Train, evaluate, compare with LEAD."""
    texts, splits = prepare(config, run.directory)
    writer, values = seq2seq_runs.fit(config, run, TASK, texts, splits)
    lengths = [len(example.targets[0].split()) for example in splits["train"]]
    mean = round(sum(lengths) / len(lengths))
    references = [list(example.targets) for example in splits["test"]]
    for name, n_words in {"lead": None, f"lead_{mean}_words": mean}.items():
        found = measure([lead(example.source, n_words) for example in splits["test"]], references)
        print(f"{name}:", "  ".join(f"{metric} {value:.2f}" for metric, value in found.items()))
        values |= {f"{name}_{metric}": value for metric, value in found.items()}
    train.summarise(run.directory, values)
    show(writer, splits["validation"], config, run.directory)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = seq2seq_commands.commands(TASK)
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
