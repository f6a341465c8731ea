"""The sub-commands of the experiments from sequence to sequence: evaluate, predict, interactive, export."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from experiments.lm_runs import write_bundle
from experiments.seq2seq_runs import Task, load, load_together, measure, teacher_forced
from experiments.seq2seq_texts import load_corpus
from experiments.seq2seq_writer import Hypothesis, Model, Search, Writer, draw_attention, one_line
from seqjax import export, train
from seqjax.config import newest_run
from seqjax.data import read_lines, standard_input
from seqjax.errors import InputError
from seqjax.models import transformer_seq2seq


@dataclass(frozen=True)
class Overrides:
    """How texts are written; what is left out is as in the run."""

    beam_size: int | None = None
    """1 always takes the likeliest token."""
    length_penalty: Literal["none", "average", "wu"] | None = None
    alpha: float | None = None
    """Exponent of the length penalty; more favours longer texts."""
    coverage_penalty: float | None = None
    """Weight of Wu et al.'s penalty for parts of the source that were not looked at."""
    no_repeat_ngram: int | None = None
    """No n-gram of so many tokens twice; 0 allows all."""
    repetition_penalty: float | None = None
    """Above 1, written tokens become less likely."""
    min_length: int | None = None
    """The fewest tokens."""
    max_length: int | None = None
    """The most tokens."""
    temperature: float | None = None
    """Draw the texts at this temperature instead of searching for the likeliest."""
    seed: int | None = None
    """Of the drawing."""
    batch_size: int | None = None
    """Sources at a time."""

    def applied(self, search: Search) -> Search:
        """What is given here, else what ``search`` has."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        # A run that draws its texts can still be searched.
        search = replace(search, temperature=None) if self.beam_size is not None else search
        return replace(search, **given)

    def __post_init__(self):
        self.applied(Search())  # refuses what is out of range before a model is loaded


def _check_counts(options: Any) -> None:
    for name in ("n_best", "average"):
        if getattr(options, name, 1) < 1:
            raise InputError(f"{name}={getattr(options, name)}; it must be at least 1.")


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``evaluate``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    split: Literal["train", "validation", "test"] = "test"
    ensemble: tuple[Path, ...] = ()
    """More runs of the same model and vocabulary: the probabilities of all are averaged."""
    average: int = 1
    """Take the mean of the weights of so many checkpoints."""
    search: Overrides = Overrides()

    def __post_init__(self):
        _check_counts(self)


@dataclass(frozen=True)
class PredictOptions:
    """Options of ``predict``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    input: Path | None = None
    """A UTF-8 file with a source in each line, .gz too; without one, the standard input."""
    output: Path | None = None
    """Where the texts go, line by line; without one, the standard output."""
    n_best: int = 1
    """Texts for each line, best first; the beam is at least as wide."""
    scores: bool = False
    """Print score and log-probability before each text, between tabs; the score of greedy search and of draws is the
    log-probability."""
    ensemble: tuple[Path, ...] = ()
    """More runs of the same model and vocabulary: the probabilities of all are averaged."""
    average: int = 1
    """Take the mean of the weights of so many checkpoints."""
    search: Overrides = Overrides()

    def __post_init__(self):
        _check_counts(self)
        if self.output is not None and (self.output.is_dir() or not self.output.parent.is_dir()):
            raise InputError(f"output={self.output}: no file can be written there; name one in a folder that exists.")


@dataclass(frozen=True)
class InteractiveOptions:
    """Options of ``interactive``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    n_best: int = 1
    """Texts for each line, best first; the beam is at least as wide."""
    ensemble: tuple[Path, ...] = ()
    """More runs of the same model and vocabulary: the probabilities of all are averaged."""
    maps: Path | None = None
    """A folder for pictures of the attention."""
    search: Overrides = Overrides()

    def __post_init__(self):
        _check_counts(self)
        if self.maps is not None and self.maps.exists() and not self.maps.is_dir():
            raise InputError(f"maps={self.maps} is a file; name a folder, which may be new.")


@dataclass(frozen=True)
class ExportOptions:
    """Options of ``export``."""

    run: Path | None = None
    """Run directory; without one, the newest."""
    to: Path | None = None
    """A directory to write, or a file that ends with .zip; without one, bundle in the run directory."""
    max_length: int | None = None
    """The tokens that decoding has room for; by default as many as the run would write at most."""

    def __post_init__(self):
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length={self.max_length}; it must be at least 1.")


def functions(config: Any, model: Model, params: Any, max_length: int | None = None) -> dict[str, export.Function]:
    """What a bundle has of a model."""
    max_length = max_length or config.search.max_length or config.batches.max_target
    longest = config.model.longest
    if isinstance(config.model, transformer_seq2seq.TransformerSeq2SeqConfig):
        if longest is not None and max_length > longest:
            raise InputError(f"max_length={max_length}; this model has learned positions for {longest} tokens.")
        limits = {"max_source": longest, "max_target": longest}
    else:
        limits = {"max_source": longest if config.model.attention == "location" else None}
    return export.encoder_decoder(model.apply, params, max_length=max_length, **limits)


def commands(task: Task) -> dict[str, tuple[type, Callable[[Any], None]]]:
    """The sub-commands ``evaluate``, ``predict``, ``interactive`` and ``export``, for `run_experiment`."""

    def opened(options, **arguments) -> tuple[Path, Any, Writer, Search]:
        directory = options.run or newest_run(task.name)
        config, writer = load_together((directory, *options.ensemble), task.config_type, **arguments)
        config = replace(config, search=options.search.applied(config.search))  # checks itself
        return directory, config, writer, config.search

    def evaluate(options: EvaluateOptions) -> None:
        """Print loss and the task's metrics of a run on one split."""
        directory, _, writer, search = opened(options, average=options.average)
        corpus = load_corpus(directory)
        if options.split not in corpus:
            raise InputError(f"split={options.split!r}: this corpus has {', '.join(corpus)}.")
        examples = corpus[options.split]
        pairs = [writer.texts.encode(example) for example in examples]
        values = train.make_evaluate(teacher_forced(writer.model, pairs, writer.shapes))(writer.params)
        values |= measure(task, writer, examples, search)
        print(f"{directory} {options.split}:", "  ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def predict(options: PredictOptions) -> None:
        """Write a text for each line of a file, or of the standard input."""
        lines = read_lines(options.input) if options.input else standard_input()
        _, config, writer, search = opened(options, average=options.average)
        sources = [task.clean(config, line) for line in lines]
        text = "".join(
            _formatted(found, options.scores) for found in writer.write(sources, search, n_best=options.n_best)
        )
        if options.output is None:
            print(text, end="")
        else:
            options.output.write_text(text, encoding="utf-8")

    def interactive(options: InteractiveOptions) -> None:
        """Read lines from the terminal and write a text for each; an empty line ends."""
        _, config, writer, search = opened(options)
        if options.maps is not None and search.temperature is not None:
            raise InputError(
                "maps: there are none of texts that are drawn; leave out the temperature, or give a beam_size."
            )
        for number, line in enumerate(_typed()):
            source = task.clean(config, line)
            found = writer.write([source], search, n_best=options.n_best, alignments=True)[0]
            print(_formatted(found, options.n_best > 1), end="", flush=True)
            if options.maps is not None:
                draw_attention(found[0], writer.texts.read(source), options.maps / f"{number}.png")

    def export_run(options: ExportOptions) -> None:
        """Write a run as files that load and run without seqjax's models: programs, weights, tokenizers."""
        directory = options.run or newest_run(task.name)
        config, writer = load(directory, task.config_type)
        found = functions(config, writer.model, writer.params, options.max_length)
        write_bundle(task.name, directory, options.to, found, writer.params, kind="encoder-decoder")

    return {
        "evaluate": (EvaluateOptions, evaluate),
        "predict": (PredictOptions, predict),
        "interactive": (InteractiveOptions, interactive),
        "export": (ExportOptions, export_run),
    }


def _formatted(found: Sequence[Hypothesis], scores: bool) -> str:
    """One line a text: an empty source keeps its line too."""
    return "".join((f"{h.score:.4f}\t{h.log_prob:.4f}\t" if scores else "") + one_line(h.text) + "\n" for h in found)


def _typed() -> Iterable[str]:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise InputError(f"standard input: byte {error.start} is not valid UTF-8; convert it to UTF-8.") from error
        if not line.strip():
            return
        yield line
