"""fastText's classifier: ours beside Facebook's program, seconds and accuracy, in alternating processes.

    python -m experiments.bench.classify --path newsgroups20 --rounds 3 --python bench/bin/python

The data are 20 Newsgroups, train.tsv.gz and test.tsv.gz, read and cut into words before the clock runs. Then each gets
a file with a text a line, in random order, ours through the same reader as in experiments.classify. The clock runs over
the whole training from that file, reading, counting and encoding included, for ours without compilation. Facebook's
runs in a process of ``--python``, which needs the package fasttext and nothing else, with ``--threads``, and with
the options in `FACEBOOKS_OPTIONS`, the best on validation of those that were tried.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax

from experiments import classify, text_corpora, text_runs
from experiments.classify import TASK, Config
from experiments.text_corpora import Example, Texts
from seqjax import train
from seqjax.data import labelled_lines
from seqjax.text import train_tokenizer

FACEBOOKS_OPTIONS = {"lr": 1.0, "epoch": 25, "dim": 50, "minCount": 2}

FACEBOOKS = """
import json, sys, time
import fasttext
train, test, options = sys.argv[1:]
start = time.perf_counter()
model = fasttext.train_supervised(train, verbose=0, **json.loads(options))
print(time.perf_counter() - start, model.test(test)[1])
"""


def write_files(args, directory: Path) -> Config:
    """The texts of both splits as lines; the configuration of the preset that reads them."""
    config = classify.PRESETS["newsgroups"][1]
    data = replace(config.data, path=Path(args.path))
    for split, names in (("train", data.train), ("test", data.test)):
        texts = classify.read(data, names)
        random.Random(0).shuffle(texts)  # Facebook's program takes them in the order of the file
        lines = (
            f"__label__{text.labels[0]} {' '.join(text_corpora.split(text.text.lower(), data.words))}\n"
            for text in texts
        )
        (directory / f"{split}.txt").write_text("".join(lines), encoding="utf-8", errors="replace")
    return replace(
        config,
        data=replace(data, path=directory, format="lines", train=("train.txt",), test=("test.txt",), words="space"),
    )


def ours(config: Config, directory: Path) -> tuple[float, float]:
    """Seconds of training, and the accuracy on the test texts."""
    start = time.perf_counter()
    examples = read(config, directory / "train.txt")
    words = (" ".join(example.words) for example in examples)
    tokenizer = train_tokenizer("space", words, min_count=config.data.min_count)
    labels = tuple(sorted({example.labels[0] for example in examples}))
    index = {word: i for i, word in enumerate(tokenizer.vocab)}
    texts = Texts(tokenizer, labels, several=False, lower=False, digits=False, known=index)
    buckets = text_runs.training_buckets(config, TASK, texts, examples)
    model = text_runs.model_of(config, TASK, texts)
    train_step = compiled(replace(config, seed=0), model)
    state = text_runs.initial(config, TASK, texts, {}, jax.random.key(config.seed))
    for i in range(config.loop.steps):
        state, _ = train_step(state, buckets[i], config.hyper)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    shapes = text_runs.reach(config, texts, buckets.shapes)
    evaluation = text_runs.evaluation(config, TASK, texts, read(config, directory / "test.txt"), shapes)
    return seconds, train.make_evaluate(evaluation)(state.params)["accuracy"]


@cache
def compiled(config: Config, model: text_runs.Model) -> Callable:
    """The step of training, compiled for each shape once."""
    return jax.jit(text_runs.make_step(config, TASK, model), donate_argnums=0)


def read(config: Config, path: Path) -> list[Example]:
    """The texts of a file."""
    return [Example(tuple(text.text.split()), text.labels) for text in labelled_lines(path)]


def facebooks(args, directory: Path) -> tuple[float, float]:
    """The same."""
    options = json.dumps(FACEBOOKS_OPTIONS | {"thread": args.threads} | json.loads(args.options))
    files = [str(directory / f"{split}.txt") for split in ("train", "test")]
    command = [args.python, "-c", FACEBOOKS, *files, options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, accuracy = map(float, done.stdout.split()[-2:])
    return seconds, accuracy


def main():
    """Print seconds and accuracies of every round, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="the folder with train.tsv.gz and test.tsv.gz")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with the package fasttext")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--options", default="{}", help="others for fasttext.train_supervised, as JSON")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        config = write_files(args, directory)
        ours(config, directory)  # compiles
        for seed in range(args.rounds):
            found = {"ours": ours(replace(config, seed=seed), directory), "Facebook's": facebooks(args, directory)}
            for contender, (seconds, accuracy) in found.items():
                print(f"{contender:10} {seconds:6.2f} s  accuracy {accuracy:.4f}", flush=True)
            ratios.append(found["Facebook's"][0] / found["ours"][0])
    print(f"ours is {statistics.median(ratios):.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
