"""How the experiments from sequence to sequence write: searches, trained models that write, pictures of attention."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.seq2seq_texts import Example, Texts
from seqjax import decoding, sharding
from seqjax.data import count_cut, evaluation_batches
from seqjax.errors import InputError, check_least, check_seeds
from seqjax.reporting import attention_map
from seqjax.text import EOS, PAD, SOS, UNK


@dataclass(frozen=True)
class Search:
    """How texts are written."""

    beam_size: int = 5
    """1 always takes the likeliest token."""
    length_penalty: Literal["none", "average", "wu"] = "average"
    alpha: float = 1.0
    """Exponent of the length penalty; more favours longer texts."""
    coverage_penalty: float = 0.0
    """Weight of Wu et al.'s penalty for parts of the source that were not looked at."""
    no_repeat_ngram: int = 0
    """No n-gram of so many tokens twice; 0 allows all."""
    repetition_penalty: float | None = None
    """Above 1, written tokens become less likely."""
    min_length: int = 0
    """The fewest tokens."""
    max_length: int | None = None
    """The most tokens; by default twice those of the longest source of the batch's bucket and ten more, up to
    batches.max_target."""
    temperature: float | None = None
    """Draw the texts at this temperature instead of searching for the likeliest."""
    seed: int = 0
    """Of the drawing."""
    batch_size: int = 64
    """Sources at a time."""

    def __post_init__(self):
        check_seeds(self)
        check_least(self, beam_size=1, batch_size=1, min_length=0, no_repeat_ngram=0)
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length={self.max_length}; it must be at least 1.")
        # Now, not when the first text is written, after hours of training.
        if not math.isfinite(self.alpha):
            raise InputError(f"alpha={self.alpha}; it must be finite.")
        if not self.coverage_penalty >= 0:
            raise InputError(f"coverage_penalty={self.coverage_penalty}; it must be at least 0.")
        if self.repetition_penalty is not None and not self.repetition_penalty > 0:
            raise InputError(
                f"repetition_penalty={self.repetition_penalty}; it must be above 0 (above 1 avoids repetition)."
            )
        decoding.check_options(temperature=self.temperature)


class Model(NamedTuple):
    """The pure functions of an encoder-decoder."""

    init: Callable  # key -> params
    apply: Callable  # (params, source, lengths, inputs, dropout=, key=) -> (attention, logits), other methods by name
    read: Callable  # (params, source, lengths, max_length=) -> (state, logits), compiled for each shape
    step: Callable  # (params, state, tokens) -> (state, logits): for decoding
    axes: Callable  # () -> what the axes of each parameter mean, see `nn.logical_axes`


class Hypothesis(NamedTuple):
    """A text that was written; with alignments also its tokens, as they are shown, and its attention [T, S]."""

    text: str
    score: float
    log_prob: float
    tokens: list[str]
    attention: np.ndarray | None


class Writer(NamedTuple):
    """A trained model with all it needs to turn texts into texts."""

    model: Model
    params: Any
    texts: Texts
    shapes: tuple  # of batches: the lengths that programs are compiled for

    def write(
        self,
        sources: Sequence[str],
        search: Search,
        *,
        n_best: int = 1,
        alignments: bool = False,
        quiet: bool = False,
    ) -> list[list[Hypothesis]]:
        """For each source its ``n_best`` texts, best first; for an empty one the empty text.

        Unless ``quiet``, warn of sources that are cut, and tell on a terminal how many texts are written.
        """
        written = [[Hypothesis("", 0.0, 0.0, [], None)] * n_best for _ in sources]
        asked = [i for i, source in enumerate(sources) if source.strip()]
        if not asked:
            return written
        pairs = [(self.texts.encode(Example(sources[i], ()))[0], ()) for i in asked]
        rows = min(search.batch_size, 1 << (len(asked) - 1).bit_length())
        shapes = [(rows, n_source, 1) for _, n_source, _ in self.shapes]
        if not quiet and (cut := count_cut(pairs, shapes)[0]):
            limit = shapes[-1][1]
            print(
                f"warning: {cut} of {len(sources)} sources are longer than {limit} tokens and were cut", file=sys.stderr
            )
        done = 0
        for number, (index, batch) in enumerate(evaluation_batches(pairs, shapes)):
            beams = self._search(batch, number, search, n_best, alignments)
            places = index[index >= 0].tolist()  # the first rows
            for row, place in enumerate(places):
                written[asked[place]] = self._read_out(beams, row, sources[asked[place]])
            done += len(places)
            if not quiet and len(asked) > rows and sys.stderr.isatty():
                end = "\n" if done == len(asked) else ""
                print(f"\r{done:,} of {len(asked):,} texts written", end=end, file=sys.stderr, flush=True)
        return written

    def _search(self, batch, number: int, search: Search, n_best: int, alignments: bool):
        n_source = batch.source.shape[1]
        length = search.max_length or min(2 * n_source + 10, self.shapes[-1][2])
        state, logits = self.model.read(self.params, batch.source, batch.source_lengths, max_length=length)
        constraints = decoding.Constraints(
            allowed=_may_be_written(logits.shape[-1]),
            min_length=search.min_length or None,
            no_repeat_ngram=search.no_repeat_ngram,
            repetition_penalty=search.repetition_penalty,
        )
        arguments = self.model.step, self.params, state, logits
        common = {"max_length": length, "eos": EOS, "constraints": constraints}
        if search.temperature is not None:
            key = jax.random.fold_in(jax.random.key(search.seed), number)
            keys = [jax.random.fold_in(key, n) for n in range(n_best)]
            draw = partial(decoding.sample, *arguments, temperature=search.temperature, **common)
            return _as_beams(sharding.fetch([draw(key) for key in keys]))
        if max(search.beam_size, n_best) == 1 and not alignments:
            return _as_beams([sharding.fetch(decoding.greedy(*arguments, **common))])
        beams = decoding.beam_search(
            *arguments,
            beam_size=max(search.beam_size, n_best),
            n_best=n_best,
            length_penalty=search.length_penalty,
            alpha=search.alpha,
            coverage_penalty=search.coverage_penalty,
            attention=_attention,
            alignments=alignments,
            stop="first" if max(search.beam_size, n_best) == 1 else "exact",
            **common,
        )
        return sharding.fetch(beams)

    def _read_out(self, beams: decoding.Beams, row: int, source: str) -> list[Hypothesis]:
        found = []
        for n, length in enumerate(beams.lengths[row].tolist()):
            ids, tokens, attention = beams.tokens[row, n, :length], [], None
            if beams.attention is not None:
                tokens = self.texts.spelled(self.texts.target, ids.tolist(), source)
                attention = beams.attention[row, n, :length]
            score, log_prob = float(beams.scores[row, n]), float(beams.log_probs[row, n])
            found.append(Hypothesis(self.texts.decode(ids, source), score, log_prob, tokens, attention))
        return found


def _as_beams(samples: Sequence[decoding.Samples]) -> decoding.Beams:
    """Several texts of each row, best first, as if by beam search."""
    tokens, scores, lengths = (np.stack(arrays, axis=1) for arrays in zip(*samples, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")
    scores, lengths = (np.take_along_axis(a, order, axis=1) for a in (scores, lengths))
    return decoding.Beams(np.take_along_axis(tokens, order[:, :, None], axis=1), scores, lengths, scores, None)


def _attention(state):
    """``[N, S]``, of an ensemble the mean of its members, ``[N, M, S]``."""
    return state.attention if state.attention.ndim == 2 else jnp.mean(state.attention, axis=1)


def _may_be_written(vocab_size: int) -> np.ndarray:
    """Everything but what no text has."""
    return ~np.isin(np.arange(vocab_size), (PAD, SOS, UNK))


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.splitlines())


def draw_attention(best: Hypothesis, tokens: list[str], path: Path) -> None:
    """A picture of the attention to the tokens of a source, where the model has one."""
    if best.attention is not None and np.any(best.attention) and jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        read = min(len(tokens), best.attention.shape[1])
        tokens = [*tokens[: read - 1], tokens[-1]]  # what was cut ends with <eos> too
        attention_map(best.attention[:, :read], tokens, best.tokens, path)


@dataclass(frozen=True)
class Report:
    """What a run shows of itself."""

    texts: int = 500
    """Texts of the validation split that are written, greedily, at each evaluation."""
    maps: int = 4
    """Pictures of attention."""
    samples: int = 5
    """Texts on the screen at the end."""

    def __post_init__(self):
        check_least(self, "report.", texts=1, maps=0, samples=0)


def show(writer: Writer, examples: Sequence[Example], config: Any, directory: Path) -> None:
    """Print what is written for the first examples, and draw where the model looked into ``directory``."""
    report = config.report
    examples = examples[: max(report.maps, report.samples)]
    written = writer.write([example.source for example in examples], config.search, alignments=True, quiet=True)
    for number, (example, (best, *_)) in enumerate(zip(examples, written, strict=True)):
        if number < report.maps:
            draw_attention(best, writer.texts.read(example.source), directory / "attention" / f"{number}.png")
        if number < report.samples:
            rows = {"source": example.source, "reference": example.targets[0], "written": best.text}
            print("", *(f"  {name:10} {one_line(text)}" for name, text in rows.items()), sep="\n")
