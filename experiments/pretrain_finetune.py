"""Pre-training and fine-tuning: what a language model of texts without labels is worth where labels are few.

    python -m experiments.pretrain_finetune                              # twelve characters of Shakespeare's plays
    python -m experiments.pretrain_finetune train subj --classify.data.path DIR --classify.data.labelled 0.1
    python -m experiments.pretrain_finetune train chunks --tag.data.path conll2000.zip
    python -m experiments.pretrain_finetune train masked                 # a masked language model
    python -m experiments.pretrain_finetune --start runs/char_lm/RUN     # one that is there
    python -m experiments.pretrain_finetune --resume                     # go on where it was stopped

A language model reads all training texts of a data set. Then, for several seeds, it is trained further on a share of
the labels (``finetuned``), and so are, for comparison and on the same labels, the same model from random weights
(``scratch``) and one that has no language model in it (``plain``). Each seed draws other labels. All parts are runs of
their own experiments, in the run directory:

    text/                       the training and validation texts, a line each
    lm/                         of word_lm or masked_lm
    finetuned-0/, scratch-0/ …  of classify or tag, such as: python -m experiments.classify evaluate --run …/finetuned-0

summary.json has the means over the seeds, of what each part measured, and the differences to ``finetuned``, with the
standard error and the 95 % interval of Student's t. Results and times are in experiments/README.md.
"""

import contextlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import classify, masked_lm, tag, word_lm
from experiments.classify import Config as ClassifyConfig
from experiments.masked_lm import Config as MaskedConfig
from experiments.tag import Config as TagConfig
from experiments.text_runs import Batching
from experiments.word_lm import Config as WordConfig
from seqjax import distributed, train
from seqjax.config import Run, run_experiment, write_config
from seqjax.errors import InputError
from seqjax.models import rnn_lm
from seqjax.models.tagger import TaggerConfig

NAME = "pretrain_finetune"


@dataclass(frozen=True)
class Scratch:
    """How models are trained that begin with random weights."""

    hyper: train.Hyper = train.Hyper(lr=2e-3, dropout=0.4)
    steps: int = 300


@dataclass(frozen=True)
class Config:
    """One comparison."""

    seed: int = 0
    """Of the language model, and of the first of the runs that are compared."""
    seeds: int = 5
    """Runs of each kind."""
    start: Path | None = None
    """A run of an experiment with a language model; without one, it is trained here."""
    word_lm: WordConfig | None = None
    masked_lm: MaskedConfig | None = None
    """The language model: one of these."""
    classify: ClassifyConfig | None = None
    tag: TagConfig | None = None
    """What is learned from labels: one of these."""
    scratch: Scratch = Scratch()

    def __post_init__(self):
        if self.seed < 0 or self.seeds < 2:
            raise InputError(f"seed={self.seed}, seeds={self.seeds}; give a seed of at least 0, and at least 2 seeds.")
        for names in (("word_lm", "masked_lm"), ("classify", "tag")):
            if sum(getattr(self, name) is not None for name in names) != 1:
                raise InputError(f"give one of {' and '.join(names)}, as the presets do.")


def lm(steps: int) -> WordConfig:
    """A tied LSTM of one layer."""
    return replace(
        word_lm.PRESETS["shakespeare"][1],
        data=word_lm.Data(min_count=2, max_size=6000),
        model=rnn_lm.Config(d_embed=200, d_hidden=200, tied=True, variational=True),
        hyper=train.Hyper(lr=4e-3, weight_decay=0.02, dropout=0.4),
        loop=train.Loop(steps=steps, eval_every=steps // 4, checkpoint_every=steps // 4),
    )


def few(config: ClassifyConfig) -> ClassifyConfig:
    """A tenth of the labels."""
    return replace(
        config,
        data=replace(config.data, labelled=0.1),
        hyper=train.Hyper(lr=2e-3, dropout=0.4, layer_lr=0.4),
        loop=train.Loop(steps=300, log_every=100, eval_every=150, checkpoint_every=300),
        warmup=30,
        batches=Batching(rows=32, n_buckets=3, max_length=60),
    )


_CHUNKS = replace(
    tag.PRESETS["conll2000"][1],
    data=replace(tag.PRESETS["conll2000"][1].data, labelled=0.1),
    model=TaggerConfig(d_embed=50, d_hidden=200),
    hyper=train.Hyper(lr=2e-3, clip=5.0, dropout=0.5),
    loop=train.Loop(steps=900, log_every=100, eval_every=450, checkpoint_every=900),
    batches=Batching(rows=32, tokens=1024, n_buckets=2, max_length=100),
)
_MASKED = replace(
    masked_lm.PRESETS["shakespeare"][1],
    data=word_lm.Data(min_count=2, max_size=6000),
    loop=train.Loop(steps=1500, eval_every=375, checkpoint_every=375),
)
_WORDS = {name: few(classify.PRESETS[name][1]) for name in ("speakers", "trec", "mr", "subj")}
_SMOKE = replace(
    classify.PRESETS["smoke"][1],
    data=classify.Data(labelled=0.05),
    loop=train.Loop(steps=4, log_every=4, eval_every=4, checkpoint_every=4),
)

PRESETS = {
    "speakers": ("who speaks: 12 of Shakespeare's characters", Config(word_lm=lm(1000), classify=_WORDS["speakers"])),
    "masked": ("the same with a masked language model", Config(masked_lm=_MASKED, classify=_WORDS["speakers"])),
    "trec": ("needs --classify.data.path; questions", Config(word_lm=lm(800), classify=_WORDS["trec"])),
    "mr": ("needs --classify.data.path; film reviews", Config(word_lm=lm(1500), classify=_WORDS["mr"])),
    "subj": ("needs --classify.data.path; subjective or not", Config(word_lm=lm(1500), classify=_WORDS["subj"])),
    "chunks": (
        "needs --tag.data.path; chunks of CoNLL-2000",
        Config(
            word_lm=lm(1200),
            tag=_CHUNKS,
            scratch=Scratch(_CHUNKS.hyper, _CHUNKS.loop.steps),
        ),
    ),
    "smoke": (
        "a minute, to see that everything works",
        Config(
            seeds=2,
            word_lm=replace(
                word_lm.PRESETS["smoke"][1],
                loop=train.Loop(steps=4, log_every=4, eval_every=4, checkpoint_every=4),
                data=word_lm.Data(min_count=20),
            ),
            classify=_SMOKE,
            scratch=Scratch(steps=4),
        ),
    ),
}


# --- parts


def task(config: Config) -> tuple[Any, Any]:
    """The experiment that learns from labels, and its configuration."""
    return (classify, config.classify) if config.classify is not None else (tag, config.tag)


def write_texts(config: Config, folder: Path) -> None:
    """All training texts and those that validate, a line each, the words between spaces; none to test on."""
    experiment, of = task(config)
    if (folder / "train.txt").exists():  # it is written last
        return
    splits = experiment.corpus(replace(of.data, labelled=1.0))
    folder.mkdir(exist_ok=True)
    for split, name in {"validation": "valid", "train": "train"}.items():
        lines = sorted(" ".join(example.words) for example in splits[split])
        order = np.random.default_rng(0).permutation(len(lines))  # or neighbours would have their first words in common
        text = "".join(f"{lines[i]}\n" for i in order)
        text = (text.lower() if of.data.lower else text).encode("utf-8", "replace")
        (folder / f"{name}.txt").write_bytes(text)


def part(name: str, train_part: Callable, config: Any, run: Run, *, quiet: bool = False) -> dict[str, float]:
    """A run of another experiment, done once: its metrics. What a quiet one says is in its log.txt."""
    summary = run.directory / "summary.json"
    if distributed.from_first(not summary.exists()):
        resume = distributed.from_first((run.directory / "config.json").exists())
        if not resume:
            distributed.on_first(lambda: write_config(run.directory, name, config, sys.argv[1:]))
        with contextlib.ExitStack() as stack:
            if quiet and jax.process_index() == 0:
                log = stack.enter_context(open(run.directory / "log.txt", "a", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(log))
            train_part(config, run._replace(resume=resume))
    return distributed.from_first(json.loads(summary.read_text()) if jax.process_index() == 0 else None)


def language_model(config: Config, run: Run) -> Path:
    """The run of the language model."""
    if config.start is not None:
        return config.start
    folder, directory = run.directory / "text", run.directory / "lm"
    distributed.on_first(lambda: write_texts(config, folder))
    experiment, of = (word_lm, config.word_lm) if config.word_lm is not None else (masked_lm, config.masked_lm)
    assert of is not None, "a configuration has one of them"
    of = replace(of, seed=config.seed, data=replace(of.data, path=folder))
    part(experiment.NAME, experiment.run, of, run._replace(directory=directory))
    return directory


def compared(config: Config, start: Path, i: int) -> dict[str, Any]:
    """The configurations of the runs of a seed."""
    _, of = task(config)
    seed = config.seed + i
    finetuned = replace(of, seed=seed, start=start, data=replace(of.data, draw=seed))
    loop = replace(of.loop, steps=config.scratch.steps)
    scratch = replace(finetuned, start_random=True, thaw=0, hyper=config.scratch.hyper, loop=loop)
    return {"finetuned": finetuned, "scratch": scratch, "plain": replace(scratch, start=None, start_random=False)}


def run(config: Config, run: Run) -> None:
    """Train everything, compare."""
    experiment, _ = task(config)
    start = language_model(config, run)
    found: dict[str, list[dict[str, float]]] = {}
    for i in range(config.seeds):
        for kind, of in compared(config, start, i).items():
            directory = run.directory / f"{kind}-{i}"
            values = part(experiment.NAME, experiment.run, of, run._replace(directory=directory), quiet=True)
            print(f"{directory}:", "  ".join(f"{name} {value:.4f}" for name, value in values.items()), flush=True)
            found.setdefault(kind, []).append(values)
    summary = compare(found.pop("finetuned"), found)
    print(table(summary, config.seeds))
    if jax.process_index() == 0:
        (run.directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def compare(
    finetuned: Sequence[Mapping[str, float]], others: Mapping[str, Sequence[Mapping[str, float]]]
) -> dict[str, dict[str, Any]]:
    """Of each metric: the means of all, and of what is finetuned less what is not, seed by seed: mean, error, interval.

    >>> summary = compare([{"f1": 0.5}, {"f1": 0.7}], {"scratch": [{"f1": 0.4}, {"f1": 0.5}]})
    >>> print(table(summary, 2))
    <BLANKLINE>
    2 seeds             mean    finetuned is better by (error, 95 % interval)
    f1  finetuned  0.6000
        scratch    0.4500  +0.1500 (0.0500, -0.4853 … +0.7853)
    """
    from scipy.special import stdtrit

    def difference(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
        n, mean = len(one), float(np.mean(one - other))
        error = float(np.std(one - other, ddof=1)) / math.sqrt(n)
        reach = float(stdtrit(n - 1, 0.975)) * error
        return {"difference": mean, "error": error, "low": mean - reach, "high": mean + reach}

    found = {}
    for name in finetuned[0]:
        one = np.array([values[name] for values in finetuned])
        found[name] = {"finetuned": {"mean": float(np.mean(one))}}
        for kind, runs in others.items():
            other = np.array([values[name] for values in runs])
            found[name][kind] = {"mean": float(np.mean(other)), **difference(one, other)}
    return found


def table(summary: Mapping[str, Mapping[str, Mapping[str, float]]], seeds: int) -> str:
    """The same for the screen."""
    width, head = max(map(len, summary)), f"{seeds} seeds"
    lines = [f"\n{head:{width}}  {'':9}  mean    finetuned is better by (error, 95 % interval)"]
    for name, kinds in summary.items():
        for i, (kind, of) in enumerate(kinds.items()):
            line = f"{name if i == 0 else '':{width}}  {kind:9}  {of['mean']:.4f}"
            if "difference" in of:
                line += f"  {of['difference']:+.4f} ({of['error']:.4f}, {of['low']:+.4f} … {of['high']:+.4f})"
            lines.append(line)
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_experiment(NAME, PRESETS, train=run, description=__doc__, mesh_axes=("data", "model"), argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
