"""Toy tasks from sequence to sequence, made up on the spot: copy, sort, reverse, and add numbers.

    python -m experiments.toy_seq2seq                        # reverse, with attention; tested on longer sequences
    python -m experiments.toy_seq2seq train reverse_without_attention     # the same model, and it fails
    python -m experiments.toy_seq2seq train copy             # a small Transformer; also sort
    python -m experiments.toy_seq2seq train addition         # 3-digit numbers, character by character
    python -m experiments.toy_seq2seq evaluate --split test --search.beam_size 1
    echo "4 8 15 16 23 42" | python -m experiments.toy_seq2seq predict

A run writes summary.json, predictions.txt and pictures of the attention. Results and times are in
experiments/README.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from experiments import seq2seq_commands, seq2seq_runs, seq2seq_texts
from experiments.lm_runs import data_seed
from experiments.seq2seq_runs import Batching, Task
from experiments.seq2seq_texts import Corpus, Example, Texts
from experiments.seq2seq_writer import Report, Search, show
from seqjax import metrics, train
from seqjax.config import Run, run_experiment
from seqjax.errors import InputError, check_least
from seqjax.models.rnn_seq2seq import RNNSeq2SeqConfig
from seqjax.models.transformer_seq2seq import TransformerSeq2SeqConfig

NAME = "toy_seq2seq"


@dataclass(frozen=True)
class Data:
    """The sequences, drawn at random."""

    task: Literal["copy", "sort", "reverse", "addition"] = "reverse"
    pairs: int = 10_000
    """Those to train on; validation and test have 1,000 each. No source of theirs is trained on."""
    n_symbols: int = 10
    """Different numbers in a sequence; of no effect on addition."""
    shortest: int = 1
    longest: int = 9
    """Of the sequences; of the summands' digits in addition."""
    longest_test: int | None = None
    """That of validation and test; by default the same."""

    def __post_init__(self):
        check_least(self, "data.", pairs=1, n_symbols=1, shortest=1)
        if not self.shortest <= self.longest <= (self.longest_test or self.longest):
            raise InputError(
                f"data.shortest={self.shortest}, longest={self.longest} and longest_test={self.longest_test}; none may "
                "be below the one before it."
            )
        if self.task == "addition" and (self.longest_test or self.longest) > 18:
            raise InputError(f"data.longest={self.longest_test or self.longest}; addition has at most 18 digits.")


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: RNNSeq2SeqConfig | TransformerSeq2SeqConfig = RNNSeq2SeqConfig("gru", 64, 128, attention="general")
    hyper: train.Hyper = train.Hyper(lr=3e-3, b2=0.98)
    loop: train.Loop = train.Loop(steps=4000, eval_every=1000, checkpoint_every=1000)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 100
    """Steps of linear warm-up."""
    batches: Batching = Batching(tokens=1024, n_buckets=1)
    search: Search = Search(length_penalty="none")
    report: Report = Report()

    def __post_init__(self):
        seq2seq_runs.check(self)


TRANSFORMER = TransformerSeq2SeqConfig(d_model=32, n_heads=4, n_layers=2, d_ff=64, context=32, positions="rotary")
REVERSE = Data("reverse", pairs=50_000, n_symbols=50, longest=25, longest_test=30)
LONG = Batching(tokens=1024, n_buckets=3, max_source=31, max_target=31)

PRESETS = {
    "reverse": (
        "up to 25 numbers backwards, tested on up to 30: a GRU with attention and input feeding",
        Config(
            data=REVERSE,
            model=RNNSeq2SeqConfig("gru", 64, 128, attention="general", input_feeding=True),
            batches=LONG,
        ),
    ),
    "reverse_without_attention": (
        "the same, where one vector must hold the sequence",
        Config(
            data=REVERSE, model=RNNSeq2SeqConfig("gru", 64, 128, attention="none", input_feeding=True), batches=LONG
        ),
    ),
    "copy": ("up to 9 numbers as they are: a small Transformer", Config(data=Data("copy"), model=TRANSFORMER)),
    "sort": ("up to 9 numbers in order: a small Transformer", Config(data=Data("sort"), model=TRANSFORMER)),
    "addition": (
        "the sum of two numbers of up to 3 digits: a GRU with attention",
        Config(data=Data("addition", pairs=50_000, longest=3)),
    ),
    "smoke": (
        "seconds: does everything run?",
        Config(
            data=Data("copy", pairs=200, longest=4),
            model=RNNSeq2SeqConfig("gru", 8, 16, attention="dot"),
            loop=train.Loop(steps=20, log_every=10, eval_every=20, checkpoint_every=20),
            batches=Batching(tokens=128, n_buckets=1),
            search=Search(beam_size=2),
            report=Report(texts=20, maps=1, samples=1),
        ),
    ),
}


def draw(data: Data, seed: int) -> dict[str, list[Example]]:
    """The corpus of a task. Sources do not come twice, neither in one split nor in two."""
    rng = np.random.default_rng(seed)
    make: Callable = addition if data.task == "addition" else sequences
    corpus, seen = {}, set()
    for split, n in (("train", data.pairs), ("validation", 1000), ("test", 1000)):
        longest = data.longest if split == "train" else data.longest_test or data.longest
        examples, tries = [], 0
        while len(examples) < n and tries < 20 * n:
            example = make(rng, data, longest)
            tries += 1
            if example.source not in seen:
                seen.add(example.source)
                examples.append(example)
        corpus[split] = examples
    if not all(corpus.values()):
        raise InputError(
            f"data.pairs={data.pairs}: there are no other sequences to test on; give longer ones or fewer."
        )
    return corpus


def sequences(rng: np.random.Generator, data: Data, longest: int) -> Example:
    """Numbers between spaces, and the same copied, sorted or backwards."""
    numbers = rng.integers(0, data.n_symbols, rng.integers(data.shortest, longest + 1)).tolist()
    answer = {"copy": numbers, "sort": sorted(numbers), "reverse": numbers[::-1]}[data.task]
    return Example(" ".join(map(str, numbers)), (" ".join(map(str, answer)),))


def addition(rng: np.random.Generator, data: Data, longest: int) -> Example:
    """``17+204``, and the sum."""
    least = 10 ** (data.shortest - 1) if data.shortest > 1 else 0
    a, b = (int(rng.integers(least, 10 ** rng.integers(data.shortest, longest + 1))) for _ in range(2))
    return Example(f"{a}+{b}", (str(a + b),))


def measure(hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
    """Share of right answers and, of sequences, BLEU."""
    values = {"exact_match": metrics.exact_match(hypotheses, references)}
    if any(" " in text for texts in references for text in texts):
        values["bleu"] = metrics.bleu(hypotheses, references, tokenize="none").score
    return values


TASK = Task(NAME, Config, measure)


def prepare(config: Config, directory: Path) -> tuple[Texts, Corpus]:
    """Tokenizers and texts."""
    kind = "char" if config.data.task == "addition" else "space"
    return seq2seq_texts.prepare(
        directory, lambda: draw(config.data, data_seed(config)), kinds=(kind, kind), joint=True
    )


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, on the texts of a run or a study."""
    return seq2seq_runs.setup(config, TASK, directory, *prepare(config, directory))


def run(config: Config, run: Run) -> None:
    """Train, evaluate, write."""
    texts, corpus = prepare(config, run.directory)
    writer, _ = seq2seq_runs.fit(config, run, TASK, texts, corpus)
    show(writer, corpus["validation"], config, run.directory)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands = seq2seq_commands.commands(TASK)
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
