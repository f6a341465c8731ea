"""How good word vectors are: analogy questions, and similarity as people judge it.

Analogy totals depend on three choices, which tools make differently and papers rarely state: how many of the most
frequent words take part, whether case matters, and whether questions with unknown words are left out or count as
wrong. The defaults are gensim's, and the results print them.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from math import isfinite, nan
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from seqjax.embeddings import queries
from seqjax.errors import InputError
from seqjax.types import Array, Float


class Section(NamedTuple):
    """The count of questions of one kind. ``oov`` had unknown words; ``asked`` includes them if they count as wrong."""

    name: str
    correct: int
    asked: int
    oov: int

    @property
    def accuracy(self) -> float:
        """``correct / asked``; NaN if nothing was asked."""
        return self.correct / self.asked if self.asked else nan


class Analogies(NamedTuple):
    """The result of `evaluate_analogies`; ``print`` shows it as a table."""

    sections: list[Section]
    restrict_vocab: int
    case_insensitive: bool
    unknown: str  # the policy: "skip" or "wrong"

    @property
    def correct(self) -> int:
        """How many questions were answered correctly."""
        return self._sum("total").correct

    @property
    def asked(self) -> int:
        """How many questions were asked."""
        return self._sum("total").asked

    @property
    def oov(self) -> int:
        """How many questions had unknown words."""
        return self._sum("total").oov

    @property
    def accuracy(self) -> float:
        """The share of correct answers in all sections."""
        return self._sum("total").accuracy

    @property
    def semantic(self) -> float:
        """The accuracy in all sections but the syntactic ones."""
        return self._sum("semantic").accuracy

    @property
    def syntactic(self) -> float:
        """The accuracy in the sections whose names begin with "gram"."""
        return self._sum("syntactic").accuracy

    def _sum(self, kind: str) -> Section:
        chosen = [
            s for s in self.sections if kind in ("total", "syntactic" if s.name.startswith("gram") else "semantic")
        ]
        return Section(kind, *(sum(getattr(s, field) for s in chosen) for field in ("correct", "asked", "oov")))

    def __str__(self) -> str:
        totals = [self._sum(kind) for kind in ("semantic", "syntactic", "total")]
        width = max(len(s.name) for s in (*self.sections, *totals))
        lines = [f"{'section':<{width}}  correct   asked  accuracy     OOV"]
        for s in (*self.sections, *totals):
            accuracy = f"{s.accuracy:.1%}" if s.asked else "-"
            lines.append(f"{s.name:<{width}}  {s.correct:>7,} {s.asked:>7,}  {accuracy:>8} {s.oov:>7,}")
        lines.insert(-len(totals), "-" * len(lines[0]))
        case = "case ignored" if self.case_insensitive else "case matters"
        unknown = "left out" if self.unknown == "skip" else "counted as wrong"
        return (
            "\n".join(lines) + f"\nrestrict_vocab {self.restrict_vocab:,}, {case}, questions with OOV words {unknown}"
        )


class Similarity(NamedTuple):
    """Correlations of the cosine with people's scores; ``oov`` is the share of pairs with an unknown word."""

    pearson: float
    spearman: float
    oov: float

    def __str__(self) -> str:
        return f"Pearson {self.pearson:.3f}, Spearman {self.spearman:.3f}, OOV {self.oov:.1%}"


def evaluate_analogies(
    words: Sequence[str],
    table: Float[Array, "V D"],
    path: str | os.PathLike,
    *,
    restrict_vocab: int = 300_000,
    case_insensitive: bool = True,
    oov: str = "skip",
    method: str = "add",
) -> Analogies:
    """Answer the questions of a file, "a is to b as c is to …": the nearest word to ``b - a + c``, not a, b or c.

    Words are counted as gensim does: of words that differ only in case the most frequent stands for all; an answer is
    looked for among the five nearest.

    Args:
      words: by falling frequency.
      table: their vectors.
      path: the file, see `read_analogies`.
      restrict_vocab: only the first so many words take part, in questions and in answers.
      case_insensitive: whether "Paris" and "paris" are the same.
      oov: ``"skip"`` leaves questions with unknown words out, ``"wrong"`` counts them as answered wrong.
      method: ``"add"`` is 3CosAdd (Mikolov et al. 2013), ``"mul"`` is 3CosMul (Levy and Goldberg 2014).

    Raises:
      InputError: the file cannot be read or has a malformed line; an option is not one of those above.
    """
    _check("oov", oov, ("skip", "wrong"))
    _check("method", method, queries.METHODS)
    fold, index = _folded(words, restrict_vocab, case_insensitive)
    parsed = read_analogies(path)
    rows = [[index.get(fold(word), -1) for word in question] for _, questions in parsed for question in questions]
    questions = np.array(rows, np.int32)
    known = (questions >= 0).all(axis=1)
    correct = np.zeros(len(questions), bool)
    same = np.array([index[fold(word)] for word in words[:restrict_vocab]], np.int32)
    answers = _answers(queries.METHODS[method], table, questions[known, :3], same)
    correct[known] = answers == questions[known, 3]

    asked = known | (oov == "wrong")
    ends = np.cumsum([len(questions) for _, questions in parsed])[:-1]
    counts = ([int(part.sum()) for part in np.split(flags, ends)] for flags in (correct, asked, ~known))
    sections = [Section(name, *row) for (name, _), row in zip(parsed, zip(*counts, strict=True), strict=True)]
    return Analogies(sections, min(restrict_vocab, len(words)), case_insensitive, oov)


def evaluate_similarity(
    words: Sequence[str],
    vectors: np.ndarray,
    path: str | os.PathLike,
    *,
    restrict_vocab: int = 300_000,
    case_insensitive: bool = True,
    oov: str = "skip",
    compose: Callable[[list[str]], np.ndarray] | None = None,
) -> Similarity:
    """Correlate the cosine of word pairs with the scores that people gave them.

    Args:
      words: by falling frequency.
      vectors: theirs, [V, D].
      path: the file, see `read_similarity`.
      restrict_vocab: the first so many words are known.
      case_insensitive: whether "Paris" and "paris" are the same; the most frequent spelling stands for all.
      oov: ``"skip"`` leaves pairs with unknown words out, ``"zero"`` gives them similarity 0.
      compose: makes vectors [N, D] for unknown words, so that none is left unknown.

    Raises:
      InputError: the file cannot be read or has a malformed line; an option is not one of those above.
    """
    _check("oov", oov, ("skip", "zero"))
    fold, index = _folded(words, restrict_vocab, case_insensitive)

    def look_up(spelled):
        rows = np.array([index.get(fold(word), -1) for word in spelled])
        found = np.zeros((len(rows), vectors.shape[1]), np.float32)
        found[rows >= 0] = vectors[rows[rows >= 0]]
        unknown = np.flatnonzero(rows < 0)
        if compose is None or not len(unknown):
            return found, rows >= 0
        found[unknown] = compose([spelled[i] for i in unknown])
        return found, np.ones(len(rows), bool)

    first, second, scores = zip(*read_similarity(path), strict=True)
    (a, a_known), (b, b_known) = look_up(first), look_up(second)
    known = a_known & b_known
    cosines = np.where(known, queries.in_blocks(queries.cosine, a, b), 0)
    counted = known | (oov == "zero")
    x, y = cosines[counted], np.array(scores)[counted]
    return Similarity(pearson(x, y), spearman(x, y), float(1 - known.mean()))


def read_analogies(path: str | os.PathLike) -> list[tuple[str, list[list[str]]]]:
    """The sections, (name, questions), of a file in the format of Google's questions-words.txt.

    A line ``: name`` begins a section, every other one is a question of four words; empty lines do not matter.
    """
    sections: list[tuple[str, list[list[str]]]] = []
    for number, line in _lines(path):
        if line.startswith(":"):
            sections.append((line[1:].strip(), []))
        elif not sections:
            raise InputError(f"{path}, line {number}: no section yet; put a line such as ': capitals' before it")
        elif len(question := line.split()) == 4:
            sections[-1][1].append(question)
        else:
            raise InputError(f"{path}, line {number}: {line!r} is no question; write four words, 'a b c d'")
    if not any(questions for _, questions in sections):
        raise InputError(f"{path}: no questions in it; give a file like questions-words.txt")
    return sections


def read_similarity(path: str | os.PathLike) -> list[tuple[str, str, float]]:
    """The pairs of a file of human judgements such as WordSim-353, SimLex-999, MEN or RW, (word, word, score).

    The fields of a line stand between tabs, or else commas, or else white space. The score is the first number after
    the two words: SimLex-999 has the part of speech before it, others have more numbers behind it. Lines that begin
    with ``#`` and a first line without a score, the header, are skipped.
    """
    pairs, header_allowed = [], True
    for number, line in _lines(path):
        if line.startswith("#"):
            continue
        separator = next((s for s in "\t," if s in line), None)
        fields = [field.strip() for field in line.split(separator)]
        score = next(filter(isfinite, map(_number, fields[2:])), None)
        if score is not None and all(fields[:2]):
            pairs.append((fields[0], fields[1], score))
        elif not header_allowed:
            raise InputError(f"{path}, line {number}: {line!r} is no pair; write 'word word score'")
        header_allowed = False
    if not pairs:
        raise InputError(f"{path}: no pairs in it; write lines 'word word score'")
    return pairs


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation; NaN for less than two pairs and where one side is constant.

    >>> round(pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 9.0])), 4)
    0.9707
    """
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return nan
    x, y = (v - v.mean() for v in (x.astype(np.float64), y.astype(np.float64)))
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation, which is Pearson's of the ranks.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 9.0]))
    1.0
    """
    return pearson(ranks(x), ranks(y))


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs.

    >>> ranks(np.array([7, 3, 7, 9]))
    array([2.5, 1. , 2.5, 4. ])
    """
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _answers(search, table, questions, same):
    """The answer to each question (a, b, c), int [N]: the row that ``same`` gives for the best word, or -1."""

    def five_best(ids):
        signs = jnp.broadcast_to(jnp.array([[-1.0, 1.0, 1.0]], jnp.float32), ids.shape)
        terms = queries.unit(table[ids])
        return search(table, terms, signs, k=5, excluded=ids, restrict_vocab=len(same)).ids

    best = queries.in_blocks(five_best, questions)
    found = np.where(best >= 0, same[best], -1)
    possible = (found >= 0) & (found[:, :, None] != questions[:, None, :]).all(-1)
    first = np.argmax(possible, axis=1)[:, None]
    return np.where(possible.any(1), np.take_along_axis(found, first, axis=1)[:, 0], -1)


def _folded(words, restrict_vocab, case_insensitive) -> tuple[Callable[[str], str], dict[str, int]]:
    """How a word is spelled for comparison, and the first row of each spelling."""
    if restrict_vocab < 1:
        raise InputError(f"restrict_vocab: {restrict_vocab}; pass at least 1")
    fold = str.upper if case_insensitive else str
    kept = words[:restrict_vocab]
    return fold, {fold(word): row for row, word in reversed(list(enumerate(kept)))}


def _lines(path) -> Iterable[tuple[int, str]]:
    """The lines that are not blank, stripped, and their numbers."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from ((number, line.strip()) for number, line in enumerate(file, 1) if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}): convert it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give an existing file") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


def _check(name, value, choices):
    if value not in choices:
        raise InputError(f"{name}: {value!r}; choose {' or '.join(map(repr, choices))}")
