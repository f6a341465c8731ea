"""From a corpus to word ids: sentences, a vocabulary by frequency, and a stream of int32 ids.

A corpus is the path of a text file, a sentence a line and words between white space, or something that can be iterated
again and again over sentences, lists of words. Neither has to fit into memory.
"""

import gzip
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TypeAlias

import numpy as np

from seqjax.errors import InputError

Corpus: TypeAlias = str | os.PathLike | Iterable[Sequence[str]]

MAX_SENTENCE = 10_000
"""Longer sentences are cut, as in gensim: some corpora are one line of a hundred million characters."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of a corpus by falling count, equal counts in the order of the words; a word's id is its rank."""

    words: list[str]
    counts: np.ndarray  # int64[V]
    index: dict[str, int]
    n_tokens: int  # of the corpus, rare words included


def sentences(corpus: Corpus) -> Iterator[list[str]]:
    """The sentences of a corpus; those of more than 10,000 words are cut. A file ``*.gz`` is decompressed.

    Raises:
      InputError: the file cannot be read or is not UTF-8; the corpus can be read only once; a sentence is no list.
    """
    if isinstance(corpus, str | os.PathLike):
        yield from _file(Path(corpus))
        return
    if isinstance(corpus, Iterator):
        raise InputError(
            "corpus is an iterator, which is empty after one pass: give a list, a path, or an object whose __iter__ "
            "begins anew each time"
        )
    for sentence in corpus:
        if isinstance(sentence, str):
            raise InputError(f"a sentence must be a list of words, not the string {sentence[:40]!r}: split it")
        for start in range(0, len(sentence), MAX_SENTENCE):
            yield list(sentence[start : start + MAX_SENTENCE])


def _file(path: Path) -> Iterator[list[str]]:
    """Read by blocks, not by lines: a line may be larger than memory."""
    try:
        open_text = gzip.open if path.suffix == ".gz" else open
        with open_text(path, "rt", encoding="utf-8") as file:
            words, half = [], ""  # of the line that is not at its end yet; half a word
            while block := file.read(1 << 20):
                *complete, tail = (half + block).split("\n")
                for line in complete:
                    words += line.split()
                    yield from _cut(words)
                    words = []
                *more, half = tail.rsplit(maxsplit=1) if tail and not tail[-1].isspace() else (tail, "")
                words += more[0].split() if more else []
                if len(words) >= MAX_SENTENCE:
                    whole = len(words) // MAX_SENTENCE * MAX_SENTENCE
                    yield from _cut(words[:whole])
                    words = words[whole:]
            yield from _cut(words + half.split())
    except UnicodeDecodeError as error:
        raise InputError(f"corpus {path} is not UTF-8 ({error}): convert it") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"corpus {path} cannot be read ({error}): give a text file") from error


def _cut(words):
    return (words[start : start + MAX_SENTENCE] for start in range(0, len(words), MAX_SENTENCE))


def count_words(corpus: Corpus) -> Counter[str]:
    """word -> how often it occurs.

    >>> count_words([["a", "b"], ["a"]])
    Counter({'a': 2, 'b': 1})
    """
    counts: Counter[str] = Counter()
    for sentence in sentences(corpus):
        counts.update(sentence)
    return counts


def make_vocabulary(counts: Mapping[str, int], *, min_count: int = 5, max_final_vocab: int | None = None) -> Vocabulary:
    """The words that occur at least ``min_count`` times, at most the ``max_final_vocab`` most frequent of them.

    ``max_final_vocab`` raises ``min_count`` until no more words are left, as in gensim: so all words of one count stay
    or go together.

    >>> make_vocabulary({"b": 7, "a": 7, "c": 9, "d": 1}).words
    ['c', 'a', 'b']

    Raises:
      InputError: no word is left.
    """
    ranked = sorted(((count, word) for word, count in counts.items()), key=lambda pair: (-pair[0], pair[1]))
    if max_final_vocab is not None and max_final_vocab < len(ranked):
        min_count = max(min_count, ranked[max_final_vocab][0] + 1)
    kept = [(count, word) for count, word in ranked if count >= min_count]
    if not kept:
        if not ranked:
            raise InputError("the corpus is empty: it has no words")
        raise InputError(
            f"min_count={min_count} leaves no word: the most frequent of {len(ranked):,} words, {ranked[0][1]!r}, "
            f"occurs {ranked[0][0]:,} times; lower min_count"
            + (f" or raise max_final_vocab={max_final_vocab}" if max_final_vocab is not None else "")
        )
    words = [word for _, word in kept]
    return Vocabulary(
        words,
        np.array([count for count, _ in kept], np.int64),
        {word: i for i, word in enumerate(words)},
        sum(counts.values()),
    )


def encode(corpus: Corpus, vocabulary: Vocabulary, *, chunk: int = 1 << 20) -> Iterator[np.ndarray]:
    """The corpus as int32 ids, in pieces of ``chunk`` (the last is shorter).

    Unknown words are left out: their neighbours move together. The first word of each sentence is stored as ``~id``,
    a negative number, so borders take no room.

    >>> vocabulary = make_vocabulary({"b": 9, "a": 8}, min_count=1)
    >>> list(encode([["b", "x", "a"], ["x"], ["a"]], vocabulary))
    [array([-1,  1, -2], dtype=int32)]
    """
    rest, index = np.empty(0, np.int32), vocabulary.index
    for words, lengths in _batched(sentences(corpus), chunk):
        ids = np.fromiter(map(index.get, words, repeat(-1)), np.int32, len(words))
        known = ids >= 0
        # A sentence begins at its first known word: where the count of begun sentences rises among the known ones.
        sentence = np.repeat(np.arange(len(lengths)), lengths)[known]
        first = np.diff(sentence, prepend=-1) > 0
        ids = ids[known]
        rest = np.concatenate([rest, np.where(first, ~ids, ids)])
        while len(rest) >= chunk:
            yield rest[:chunk]
            rest = rest[chunk:]
    if len(rest):
        yield rest


def _batched(corpus: Iterable[list[str]], n: int) -> Iterator[tuple[list[str], list[int]]]:
    """Sentences joined into lists of about n words, and their lengths: NumPy calls per sentence would be slow."""
    words, lengths = [], []
    for sentence in corpus:
        words += sentence
        lengths.append(len(sentence))
        if len(words) >= n:
            yield words, lengths
            words, lengths = [], []
    if words:
        yield words, lengths
