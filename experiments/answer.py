"""Question answering: a word that follows from the facts of a story, or a span of a text.

    python -m experiments.answer                                   # stories from a small simulator, no data needed
    python -m experiments.answer train babi2 --data.path en        # the folder with qa2_…_train.txt and …_test.txt
    python -m experiments.answer train babi2 --data.path en --model.n_hops 0        # a GRU without attention
    python -m experiments.answer train squad --data.path squad     # the folder with train-v1.1.json and dev-v1.1.json
    python -m experiments.answer evaluate --split test             # the newest run, or --run DIR
    python -m experiments.answer predict --question "Where is Mary?" --map map.png < story.txt
    python -m experiments.answer export

``exact_match`` and ``f1`` are those of the official script for SQuAD. Some groups of the training questions, stories or
articles, are kept for validation; the test questions are those of …_test.txt or dev-v1.1.json, and predictions.json in
the run directory has the answers to them. Results and times are in experiments/README.md.
"""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from experiments import answer_runs
from experiments.answer_tasks import Corpus, Question, in_validation
from experiments.lm_runs import ExportOptions, write_bundle
from seqjax import train
from seqjax.config import Run, newest_run, run_experiment
from seqjax.data import babi_file, squad_file, standard_input
from seqjax.errors import InputError, check_least, check_seeds
from seqjax.models.span_reader import SpanReaderConfig
from seqjax.models.story_reader import StoryReaderConfig
from seqjax.reporting import attention_map

NAME = "answer"


@dataclass(frozen=True)
class Data:
    """The questions."""

    source: Literal["simulated", "babi", "squad"] = "simulated"
    path: Path | None = None
    """The folder with the files of bAbI or SQuAD."""
    task: int = 1
    """Which of the tasks of bAbI."""
    validation: float = 0.1
    """About this share of the groups of training questions validates."""
    limit: int | None = None
    """Read only so many questions of each split."""
    min_count: int = 1
    """Rarer words are <unk>."""

    def __post_init__(self):
        check_least(self, "data.", task=1, limit=1, min_count=1)
        if self.source == "simulated" and self.path is not None:
            raise InputError(f"data.path={self.path}: say what is there with --data.source, or take a preset for it.")
        if not 0 < self.validation < 1:
            raise InputError(f"data.validation={self.validation}; it must be above 0 and below 1.")


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    data_seed: int | None = None
    """Of the order of the data; by default seed."""
    data: Data = Data()
    model: StoryReaderConfig | SpanReaderConfig = StoryReaderConfig()
    """The preset decides which of the two."""
    hyper: train.Hyper = train.Hyper(lr=5e-3)
    loop: train.Loop = train.Loop(steps=2000, eval_every=500, checkpoint_every=500)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup: int = 50
    """Steps of linear warm-up."""
    batches: answer_runs.Batching = answer_runs.Batching()
    linear_steps: int = 0
    """Steps at the beginning in which a reader of stories attends without softmax."""
    report: answer_runs.Report = answer_runs.Report()

    def __post_init__(self):
        check_seeds(self)
        check_least(self, warmup=0, linear_steps=0)
        train.check_unused(self.hyper, "label_smoothing", "scheduled_sampling", "embed_lr", "layer_lr")
        if self.data.source == "squad" and isinstance(self.model, StoryReaderConfig):
            raise InputError("data.source='squad' has answers of several words; take a preset with a reader of spans.")


_BABI = Config(
    data=Data("babi"),
    hyper=train.Hyper(lr=1e-2, dropout=0.3),
    loop=train.Loop(steps=4000, log_every=250, eval_every=500, checkpoint_every=2000),
    batches=answer_runs.Batching(tokens=2048, max_text=64),
    linear_steps=800,
)

_SQUAD = Config(
    data=Data("squad", validation=0.03, min_count=4),
    model=SpanReaderConfig(),
    hyper=train.Hyper(lr=2e-3, clip=5.0, dropout=0.3, ema=0.999),
    loop=train.Loop(steps=5000, log_every=100, eval_every=1000, checkpoint_every=2500),
    warmup=300,
    batches=answer_runs.Batching(tokens=16384, n_buckets=3),
)

_SMOKE = Config(
    data=Data(limit=40),
    model=StoryReaderConfig(d_embed=8, n_hops=2),
    loop=train.Loop(steps=20, log_every=10, eval_every=20, checkpoint_every=20),
    report=answer_runs.Report(maps=1, samples=1),
)

PRESETS = {
    "stories": ("who carries what where, simulated; a memory network, about a minute on 2 cores", Config()),
    "babi1": (
        "needs --data.path; one supporting fact, a memory network",
        replace(_BABI, model=StoryReaderConfig(n_hops=1, noise=0.3)),
    ),
    "babi2": ("needs --data.path; two supporting facts, three hops", replace(_BABI, data=replace(_BABI.data, task=2))),
    "squad": ("needs --data.path and a GPU, four minutes there; LSTMs with attention both ways", _SQUAD),
    "squad_small": (
        "needs --data.path; smaller and shorter, for a CPU",
        replace(
            _SQUAD,
            model=SpanReaderConfig("gru", d_embed=64, n_filters=32, d_hidden=128),
            hyper=_SQUAD.hyper._replace(lr=3e-3, dropout=0.1, ema=0.99),
            loop=train.Loop(steps=2000, log_every=50, eval_every=500, checkpoint_every=1000),
            warmup=100,
            batches=answer_runs.Batching(tokens=4800, n_buckets=2, max_text=200, max_question=24),
            report=answer_runs.Report(questions=500),
        ),
    ),
    "smoke": ("seconds: does everything run?", _SMOKE),
    "smoke_spans": (
        "seconds: the same stories, of which a span is the answer",
        replace(_SMOKE, model=SpanReaderConfig("gru", d_embed=8, d_char=4, n_filters=4, width=3, d_hidden=8)),
    ),
}


# --- questions


def corpus(data: Data) -> Corpus:
    """split -> questions."""
    if data.source == "simulated":
        made = {"train": simulated(200, seed=0), "test": simulated(200, seed=1)}
    elif data.path is None:
        raise InputError(f"data.source={data.source!r} needs --data.path, the folder with its files.")
    elif data.source == "babi":
        made = {split: _babi(data.path, f"qa{data.task}_*_{split}.txt") for split in ("train", "test")}
    else:
        made = {"train": _squad(data.path, "train*.json*"), "test": _squad(data.path, "dev*.json*")}
    validates = [in_validation(q.group, data.validation) for q in made["train"]]
    split = {
        "train": [q for q, held in zip(made["train"], validates, strict=True) if not held],
        "validation": [q for q, held in zip(made["train"], validates, strict=True) if held],
        "test": made["test"],
    }
    if empty := [name for name, questions in split.items() if not questions]:
        raise InputError(f"there is no question for {' and '.join(empty)}; change data.validation, or give more data.")
    return {name: questions[: data.limit] for name, questions in split.items()}


def _file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(f"data.path={folder}: one file must be named {pattern}, there is {names}.")
    return found[0]


def _babi(folder: Path, pattern: str) -> list[Question]:
    questions, before, story = [], (), 0
    for number, told in enumerate(babi_file(_file(folder, pattern))):
        story += told.facts[: len(before)] != before  # else it goes on
        before = told.facts
        questions.append(Question(str(number), "\n".join(before), told.question, (told.answer,), str(story)))
    return questions


def _squad(folder: Path, pattern: str) -> list[Question]:
    return [
        Question(q.id, q.context, q.question, tuple(answer.text for answer in q.answers), q.title)
        for q in squad_file(_file(folder, pattern))
    ]


PEOPLE, PLACES, THINGS = ("Mary", "John", "Daniel"), ("kitchen", "garden", "office", "hallway"), ("apple", "book")


def simulated(n: int, *, seed: int) -> list[Question]:
    """Questions about n stories: people walk, and take things that go where they go.

    >>> first = simulated(1, seed=0)[0]
    >>> first.text.splitlines()
    ['John went to the hallway.', 'Mary went to the office.', 'Daniel went to the hallway.']
    >>> first.question, first.answers
    ('Where is Mary?', ('office',))
    """
    draw, questions = random.Random(seed), []
    for story in range(n):
        where, holder, facts = {}, {}, []
        for turn in range(12):
            who = draw.choice(PEOPLE)
            free = [thing for thing in THINGS if thing not in holder]
            if who in where and free and draw.random() < 0.3:
                holder[thing := draw.choice(free)] = who
                facts.append(f"{who} took the {thing}.")
            else:
                where[who] = draw.choice([place for place in PLACES if place != where.get(who)])
                facts.append(f"{who} went to the {where[who]}.")
            if turn % 3 == 2:
                asked, at = draw.choice([*where.items(), *((f"the {t}", where[p]) for t, p in holder.items())])
                questions.append(
                    Question(f"{story}-{turn}", "\n".join(facts), f"Where is {asked}?", (at,), f"{seed}-{story}")
                )
    return questions


# --- training


def setup(config: Config, directory: Path) -> train.Setup:
    """What trains and measures a model, on the questions of a run or a study."""
    return answer_runs.setup(config, directory, corpus(config.data))


def run(config: Config, run: Run) -> None:
    """Train, evaluate, write."""
    answer_runs.fit(config, run, corpus(config.data))


# --- sub-commands


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``evaluate``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    split: Literal["train", "validation", "test"] = "validation"


def evaluate(options: EvaluateOptions) -> None:
    """Print loss (nats), exact match and F1 of a run on one split."""
    directory = options.run or newest_run(NAME)
    config, reader = answer_runs.load(directory, Config)
    values, _ = answer_runs.examine(reader, corpus(config.data)[options.split])
    print(f"{directory} {options.split}:", answer_runs.shown(values))


@dataclass(frozen=True)
class PredictOptions:
    """Options of ``predict``."""

    question: str
    """What is asked."""
    text: str | None = None
    """The story, a fact a line, or the text; without one, the standard input."""
    run: Path | None = None
    """Run directory; without one, the newest."""
    map: Path | None = None
    """A file, such as map.png, for a picture of the attention."""

    def __post_init__(self):
        kinds = ".png", ".pdf", ".svg"
        if self.map is not None and (self.map.suffix not in kinds or not self.map.parent.is_dir()):
            raise InputError(f"map={self.map}: name a file that ends with {', '.join(kinds)}, in a folder that exists.")


def predict(options: PredictOptions) -> None:
    """Answer a question about a text, and say where the model looked."""
    _, reader = answer_runs.load(options.run or newest_run(NAME), Config)
    text = "\n".join(standard_input()) if options.text is None else options.text.replace("\\n", "\n")
    if not text.strip() or not options.question.strip():
        raise InputError("text and question must not be empty.")
    question = Question("", text.strip(), options.question, (), "")
    if answer_runs.is_cut(reader, question):
        print("warning: longer than batches.max_text or batches.max_question; the rest is not read", file=sys.stderr)
    [answer] = answer_runs.answers(reader, [question])
    print(f"{answer.text}  (log-probability {answer.score:.3f})")
    for line in answer_runs.looks(answer):
        print(f"  {line}")
    if options.map is not None and answer.weights.size:
        attention_map(answer.weights, answer.keys, answer.queries, options.map)


def export_run(options: ExportOptions) -> None:
    """Write a run as files that load and run without seqjax's models: programs, weights, words."""
    directory = options.run or newest_run(NAME)
    _, reader = answer_runs.load(directory, Config)
    write_bundle(NAME, directory, options.to, reader.task.functions(), reader.params, kind=NAME)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    commands: dict[str, tuple[type, Callable]] = {
        "evaluate": (EvaluateOptions, evaluate),
        "predict": (PredictOptions, predict),
        "export": (ExportOptions, export_run),
    }
    return run_experiment(
        NAME, PRESETS, train=run, commands=commands, description=__doc__, mesh_axes=("data", "model"), argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
