"""Which score function attends best? The same encoder-decoder with each of them, on sequences to be reversed.

    python -m experiments.attention_study                    # six scores and none, a minute each
    python -m experiments.attention_study --scores additive general --loop.steps 3000
    python -m experiments.attention_study --resume           # go on where it was stopped

Each score has a run of its own in the run directory, as `toy_seq2seq` makes them, with pictures of its attention; the
study adds table.md, figure.png and summary.json. Results are in experiments/README.md.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments import toy_seq2seq
from experiments.seq2seq_runs import Batching
from experiments.seq2seq_writer import Report, Search
from experiments.toy_seq2seq import Data
from seqjax import train
from seqjax.config import Run, run_experiment, write_config
from seqjax.errors import InputError
from seqjax.models.rnn_seq2seq import RNNSeq2SeqConfig
from seqjax.reporting import read_metrics
from seqjax.scores import SCORES

NAME = "attention_study"


@dataclass(frozen=True)
class Config:
    """One study."""

    seed: int = 0
    scores: tuple[str, ...] = ("dot", "scaled_dot", "cosine", "general", "additive", "location", "none")
    """Members of seqjax.scores.SCORES, and none."""
    data: Data = Data("reverse", pairs=20_000, n_symbols=20, longest=15, longest_test=20)
    model: RNNSeq2SeqConfig = RNNSeq2SeqConfig("gru", 32, 64, d_attention=64, longest=21)
    """All but the score."""
    hyper: train.Hyper = train.Hyper(lr=3e-3, b2=0.98)
    loop: train.Loop = train.Loop(steps=2000, log_every=200, eval_every=500, checkpoint_every=500)
    batches: Batching = Batching(tokens=1024, n_buckets=2, max_source=21, max_target=21)

    def __post_init__(self):
        if unknown := set(self.scores) - {*SCORES, "none"}:
            raise InputError(f"scores={sorted(unknown)} are unknown; choose from {', '.join(SCORES)}, none.")
        if len(set(self.scores)) < len(self.scores) or not self.scores:
            raise InputError(f"scores={self.scores}; name at least one, and each only once.")
        if self.data.task == "addition":
            raise InputError("data.task='addition' has no BLEU to compare; choose copy, sort or reverse.")
        for score in self.scores:
            self.member(score)  # checks itself, now and not after the others were trained

    def member(self, score: str) -> toy_seq2seq.Config:
        """The run of one score."""
        return toy_seq2seq.Config(
            seed=self.seed,
            data=self.data,
            model=replace(self.model, attention=score),
            hyper=self.hyper,
            loop=self.loop,
            batches=self.batches,
            search=Search(beam_size=1),
            report=Report(samples=0, maps=2),
        )


PRESETS = {
    "reverse": ("up to 15 numbers backwards, tested on up to 20", Config()),
    "smoke": (
        "seconds: does everything run?",
        Config(
            scores=("general", "none"),
            data=Data("reverse", pairs=100, longest=4),
            model=RNNSeq2SeqConfig("gru", 8, 8, d_attention=8, longest=8),
            loop=train.Loop(steps=10, log_every=5, eval_every=10, checkpoint_every=10),
            batches=Batching(tokens=128, n_buckets=1, max_source=5, max_target=5),
        ),
    ),
}


def run(config: Config, run: Run) -> None:
    """Train with each score, then compare."""
    rows = {}
    for score in config.scores:
        directory = run.directory / score
        if not (directory / "summary.json").exists():
            print(f"\n=== {score}")
            resume = (directory / "config.json").exists()
            if not resume:
                write_config(directory, toy_seq2seq.NAME, config.member(score), [score])
            toy_seq2seq.run(config.member(score), Run(directory, resume))
        rows[score] = json.loads((directory / "summary.json").read_text())
    table = ["| score | exact match | BLEU | perplexity |", "|---|---|---|---|"]
    for score, values in sorted(rows.items(), key=lambda row: -row[1]["exact_match_test"]):
        found = (values[f"{name}_test"] for name in ("exact_match", "bleu", "perplexity"))
        table.append("| {} | {:.3f} | {:.1f} | {:.3f} |".format(score, *found))
    (run.directory / "table.md").write_text("\n".join(table) + "\n")
    print("", *table, sep="\n")
    (run.directory / "summary.json").write_text(
        json.dumps({f"{name}_{score}": value for score, row in rows.items() for name, value in row.items()}, indent=2)
        + "\n"
    )
    draw(run.directory, config.scores)


def draw(directory: Path, scores: Sequence[str]) -> Path | None:
    """The exact matches of the validation split against the step, a line a score; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(7, 4.2), dpi=160, layout="constrained")
    axes = figure.subplots()
    for score in scores:
        rows = [row for row in read_metrics(directory / score / "metrics.jsonl") if row["split"] == "validation"]
        axes.plot([row["step"] for row in rows], [row["exact_match"] for row in rows], marker="o", label=score)
    axes.set(xlabel="step", ylabel="exact matches of longer sequences", ylim=(-0.02, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.legend(frameon=False)
    figure.savefig(directory / "figure.png")
    return directory / "figure.png"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_experiment(NAME, PRESETS, train=run, description=__doc__, argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
