"""The texts of the experiments from sequence to sequence: pairs of them, their tokenizers, their files in a run."""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.lm_runs import files_of
from seqjax import distributed
from seqjax.data import read_lines
from seqjax.errors import InputError
from seqjax.text import EOS, PAD, SOS, UNK, Tokenizer, load_tokenizer, save_tokenizer, train_tokenizer


class Example(NamedTuple):
    """A source, and the texts that may come of it; the first is what is learned, unless a task says otherwise."""

    source: str
    targets: tuple[str, ...]


Corpus = Mapping[str, Sequence[Example]]


class Texts(NamedTuple):
    """From texts to ids and back. With ``n_extra``, a source's own unknown words have ids from V on."""

    source: Tokenizer
    target: Tokenizer
    n_extra: int = 0
    max_source: int | None = None  # tokens that are read of a source, <eos> included: no other can be copied

    def encode(self, example: Example, *, which: int = 0, dropout=None) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the source, and of one of its targets."""
        target = example.targets[which] if example.targets else ""
        if self.n_extra:
            source, known = self._extended(example.source, {})
            return source, self._extended(target, known, grow=False)[0]
        options = {} if dropout is None else {"dropout": dropout[0], "rng": dropout[1]}
        return self.source.encode(example.source, **options), self.target.encode(target, **options)

    def decode(self, ids: np.ndarray, source: str) -> str:
        """The text of ids that were written for a source."""
        if not self.n_extra:
            return self.target.decode(ids)
        written = [i for i in ids.tolist() if i not in (PAD, SOS, EOS)]
        return " ".join(self.spelled(self.target, written, source))

    def spelled(self, tokenizer: Tokenizer, ids: Sequence[int], source: str) -> list[str]:
        """Each id as it is shown in a picture, where ``source`` was read."""
        own = list(self._extended(source, {})[1]) if self.n_extra else []
        own = dict(enumerate(own, start=tokenizer.vocab_size))
        return [_shown(tokenizer, i) if i < tokenizer.vocab_size else own.get(i, tokenizer.vocab[UNK]) for i in ids]

    def read(self, source: str) -> list[str]:
        """A source as its tokens, for pictures."""
        ids, _ = self.encode(Example(source, ()))
        return self.spelled(self.source, [*ids.tolist(), EOS], source)

    def _extended(self, text: str, known: dict[str, int], *, grow: bool = True):
        """Ids of words between spaces; unknown ones get the next of the n_extra ids, or that in ``known``."""
        words = text.split()
        ids = self.source.encode(" ".join(words))
        n_read = len(words) if self.max_source is None else self.max_source - 1
        for i, word in enumerate(words):
            if ids[i] == UNK and (word in known or (grow and i < n_read and len(known) < self.n_extra)):
                ids[i] = known.setdefault(word, self.source.vocab_size + len(known))
        return ids, known


def _shown(tokenizer: Tokenizer, i: int) -> str:
    """A token as it is shown, a space as a dot; of bpe as its bytes where they are no characters."""
    text = tokenizer.decode([i]) if tokenizer.kind == "bpe" else ""
    return (tokenizer.vocab[i] if text in ("", "\ufffd") else text).replace(" ", "·")


def prepare(
    directory: Path,
    corpus: Callable[[], Corpus],
    *,
    kinds: tuple[str, str],
    joint: bool = False,
    min_count: int = 1,
    max_size: int | None = None,
    n_extra: int = 0,
    max_source: int | None = None,
) -> tuple[Texts, Corpus]:
    """Tokenizers and texts, made once, then read from the run."""
    folder = directory / "corpus"

    def make():
        if any((directory / name).exists() for name in ("tokenizer.json", "target_tokenizer.json")):
            return
        splits = corpus()
        if empty := [split for split, examples in splits.items() if not examples]:
            raise InputError(f"the corpus has no pair for {' and '.join(empty)}; give files that are not empty.")
        folder.mkdir(exist_ok=True)
        for split, examples in splits.items():
            lines = (json.dumps(example._asdict(), ensure_ascii=False) + "\n" for example in examples)
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        sources = [example.source for example in splits["train"]]
        targets = [text for example in splits["train"] for text in example.targets]
        learn = partial(train_tokenizer, min_count=min_count, max_size=max_size)
        if joint:
            save_tokenizer(learn(kinds[0], sources + targets), directory / "tokenizer.json")
        else:
            save_tokenizer(learn(kinds[0], sources), directory / "source_tokenizer.json")
            save_tokenizer(learn(kinds[1], targets), directory / "target_tokenizer.json")  # last: all else is there

    distributed.on_first(make)
    return load_texts(directory, n_extra, max_source), load_corpus(directory)


def load_texts(directory: Path, n_extra: int = 0, max_source: int | None = None) -> Texts:
    """The tokenizers of a run."""
    if (directory / "tokenizer.json").exists():
        tokenizer = load_tokenizer(directory / "tokenizer.json")
        return Texts(tokenizer, tokenizer, n_extra, max_source)
    sides = (load_tokenizer(directory / f"{side}_tokenizer.json") for side in ("source", "target"))
    return Texts(*sides, n_extra, max_source)


def load_corpus(directory: Path) -> dict[str, list[Example]]:
    """split -> its examples, from a run."""

    def examples(file: Path) -> list[Example]:
        records = map(json.loads, read_lines(file))
        return [Example(record["source"], tuple(record["targets"])) for record in records]

    return {file.stem: examples(file) for file in files_of(directory, "corpus/*.jsonl")}


def digest(texts: Texts) -> np.ndarray:
    """A number for the vocabularies."""
    content = json.dumps([tokenizer.to_json() for tokenizer in (texts.source, texts.target)])
    return np.array([zlib.crc32(content.encode("utf-8", "surrogatepass"))], np.uint32)
