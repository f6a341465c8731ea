"""The texts of the experiments that read words: their words and labels, vocabulary, given vectors, files in a run."""

import hashlib
import json
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments import embedding_runs, trunk_runs
from experiments.lm_runs import files_of
from seqjax import distributed
from seqjax.embeddings import WordVectors, load_vectors
from seqjax.errors import InputError
from seqjax.text import SPECIALS, UNK, Tokenizer, load_tokenizer, save_tokenizer, split_words, train_tokenizer


class Example(NamedTuple):
    """The words of a text, and its labels; or those of its words, in order."""

    words: tuple[str, ...]
    labels: tuple[str, ...]


Corpus = Mapping[str, Sequence[Example]]


class Texts(NamedTuple):
    """From words and labels to ids."""

    tokenizer: Tokenizer  # "word" or "space"
    labels: tuple[str, ...]
    several: bool  # a text has any number of labels; else it has one
    lower: bool  # words are read in lower case
    digits: bool  # every digit is read as 0
    known: Mapping[str, int]  # word -> id
    trunk: trunk_runs.Trunk | None = None  # the language model that the run was started from

    def split(self, text: str) -> tuple[str, ...]:
        """The words of a text, as they are written."""
        return split(text, self.tokenizer.kind)

    def ids(self, words: Sequence[str]) -> np.ndarray:
        """int32 [T], <unk> for unknown words."""
        # All at once: a call for each word would take longer than looking it up.
        read = normal("\n".join(words), lower=self.lower, digits=self.digits).split("\n") if words else []
        return np.fromiter(map(self.known.get, read, repeat(UNK)), np.int32, len(words))

    def label_ids(self, labels: Sequence[str]) -> np.ndarray:
        """int32, of labels that must be known."""
        known = {label: i for i, label in enumerate(self.labels)}
        if unknown := [label for label in labels if label not in known]:
            raise InputError(f"the label {unknown[0]!r} is none of this run: {', '.join(self.labels)}")
        return np.array([known[label] for label in labels], np.int32)


def split(text: str, kind: str) -> tuple[str, ...]:
    """Words and punctuation ("word"), or what stands between white space ("space")."""
    return tuple(split_words(" ".join(text.split())) if kind == "word" else text.split())


def normal(text: str, *, lower: bool, digits: bool) -> str:
    """A text as its words are in the vocabulary.

    >>> normal("Page 17", lower=True, digits=True)
    'page 00'
    """
    text = re.sub(r"\d", "0", text) if digits else text
    return text.lower() if lower else text


def prepare(
    directory: Path,
    corpus: Callable[[], Corpus],
    *,
    kind: Literal["word", "space"] = "space",
    lower: bool = False,
    digits: bool = False,
    min_count: int = 1,
    max_size: int | None = None,
    vectors: Path | None = None,
    start: Path | None = None,
) -> tuple[Texts, Corpus]:
    """Vocabulary, labels, vectors, texts and the language model to start from, made once, then read from the run.

    The training examples are put in an order of their own, so that the order of files changes nothing.
    """

    def make():
        if (directory / "tokenizer.json").exists():
            return
        splits = {name: list(examples) for name, examples in corpus().items()}
        if empty := [name for name, examples in splits.items() if not examples]:
            raise InputError(f"there is no text for {' and '.join(empty)}; give more, or other files.")
        splits["train"].sort()
        (directory / "corpus").mkdir(exist_ok=True)
        for name, examples in splits.items():
            lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
            (directory / "corpus" / f"{name}.jsonl").write_text(
                "".join(lines), encoding="utf-8", errors="surrogatepass"
            )
        labels = sorted({label for examples in splits.values() for example in examples for label in example.labels})
        several = any(len(example.labels) != 1 for examples in splits.values() for example in examples)
        known = {"labels": labels, "several": several, "lower": lower, "digits": digits}
        (directory / "labels.json").write_text(json.dumps(known, indent=1) + "\n")
        joined = (" ".join(example.words) for example in splits["train"])
        normalise = partial(normal, lower=lower, digits=digits)
        tokenizer = train_tokenizer(kind, map(normalise, joined), min_count=min_count, max_size=max_size)
        if tokenizer.vocab_size == len(SPECIALS):
            raise InputError(f"data.min_count={min_count} leaves the vocabulary empty; lower it.")
        if vectors is not None:
            of = embedding_runs.load(vectors) if vectors.is_dir() else load_vectors(vectors)
            tokenizer = extended(tokenizer, of, normalise)
            np.save(directory / "vectors.npy", look_up(of, tokenizer.vocab, normalise))
        if start is not None:
            trunk_runs.copy(start, directory)
        save_tokenizer(tokenizer, directory / "tokenizer.json")  # last: where it is, all else is

    distributed.on_first(make)
    return load_texts(directory), load_corpus(directory)


def load_texts(directory: Path) -> Texts:
    """The vocabulary and the labels of a run."""
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    known = json.loads((directory / "labels.json").read_text())
    index = {word: i for i, word in enumerate(tokenizer.vocab) if i >= len(SPECIALS)}
    options = known["several"], known["lower"], known["digits"]
    return Texts(tokenizer, tuple(known["labels"]), *options, index, trunk_runs.load(directory))


def load_corpus(directory: Path) -> dict[str, list[Example]]:
    """split -> its examples, from a run."""

    def examples(file: Path) -> list[Example]:
        with open(file, encoding="utf-8", errors="surrogatepass", newline="\n") as lines:
            return [Example(*map(tuple, json.loads(line))) for line in lines]

    return {file.stem: examples(file) for file in files_of(directory, "corpus/*.jsonl")}


def digest(texts: Texts) -> np.ndarray:
    """A number for words and labels."""
    content = [texts.tokenizer.to_json(), texts.labels, texts.several, texts.lower, texts.digits]
    if texts.trunk is not None:
        content.append(texts.trunk.tokenizer.to_json())
    return np.array([zlib.crc32(json.dumps(content).encode("utf-8", "surrogatepass"))], np.uint32)


# --- given vectors


VECTOR_WORDS = 50_000
"""So many words of given vectors, the first, are known beside those of the training texts."""


def extended(tokenizer: Tokenizer, vectors: WordVectors, normalise: Callable[[str], str]) -> Tokenizer:
    """The vocabulary, and the words that vectors have beside it: a text may have them that no training text has."""
    known = {*tokenizer.vocab}
    more = dict.fromkeys(map(normalise, vectors.words[:VECTOR_WORDS]))
    words = (word for word in more if word not in known and split(word, tokenizer.kind) == (word,))
    return replace(tokenizer, vocab=(*tokenizer.vocab, *words))


def look_up(vectors: WordVectors, vocab: Sequence[str], normalise: Callable[[str], str]) -> np.ndarray:
    """float32 [V, D]: the vector of each word, or else of the word in lower case, or of one that is read as this one.

    NaN if there is none.
    """
    table = np.full((len(vocab), vectors.vectors.shape[1]), np.nan, np.float32)
    read = {normalise(word): word for word in reversed(vectors.words[:VECTOR_WORDS])}
    forms = ((i, (read.get(word, word), word.lower(), word)) for i, word in enumerate(vocab))
    spelled = {i: form for i, candidates in forms for form in candidates if form in vectors}
    known = [i for i in spelled if i >= len(SPECIALS)]
    table[known] = vectors[[spelled[i] for i in known]]
    print(f"vectors: {len(known):,} of {len(vocab) - len(SPECIALS):,} words have one", file=sys.stderr)
    return table


# --- shares


def hashed(*words: str) -> int:
    """A number below 2^64 for words in order, the same on every machine."""
    joined = "\0".join(words).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(joined).digest()[:8], "big")


def check_labelled(data: Any) -> None:
    """Raise `InputError` for a share of the training examples that is none."""
    if not 0 < data.labelled <= 1:
        raise InputError(f"data.labelled={data.labelled}; it must be above 0 and at most 1.")


def labelled(data: Any, examples: Sequence[Example]) -> list[Example]:
    """The share ``data.labelled`` of the examples, drawn by a hash of their words: the order of files changes nothing.

    A smaller share is part of a larger one.
    """
    if data.labelled == 1:
        return list(examples)
    drawn = sorted(examples, key=lambda example: hashed(str(data.draw), *example.words))
    return drawn[: max(1, round(data.labelled * len(examples)))]
