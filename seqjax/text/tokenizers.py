"""Character, byte and word tokenizers: one interface, one JSON file.

The four special tokens come first in every vocabulary: ``<pad>`` 0, ``<unk>`` 1, ``<sos>`` 2, ``<eos>`` 3. They have no
spelling: the text "<eos>" encodes as five characters or three words, so nothing typed by a user can end a sequence.
"""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from seqjax.errors import InputError
from seqjax.types import Array

SPECIALS = ("<pad>", "<unk>", "<sos>", "<eos>")
PAD, UNK, SOS, EOS = range(len(SPECIALS))

_VERSION = 1  # of the JSON file
_REPLACEMENT = "\ufffd"
_KINDS = ("char", "byte", "word")
_BYTES = (*SPECIALS, *(chr(b) if 0x20 <= b < 0x7F else f"<0x{b:02X}>" for b in range(256)))

# `\w` leaves out combining marks, so that Hindi words and decomposed accents would fall apart. Marks beyond the basic
# plane are left out: with them `re` gives up its fast character table.
_MARKS = "".join(chr(c) for c in range(0x10000) if unicodedata.category(chr(c)).startswith("M"))
_WORD = re.compile(rf"\n|\w+(?:[{_MARKS}]+\w*|['’]\w+)*|[^\w\s]")

Ids = np.ndarray | Array | Sequence[int | np.integer]


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer offers; ids are int32, the vocabulary lists the specials first."""

    kind: ClassVar[str]  # "char", "byte" or "word"

    @property
    def vocab(self) -> tuple[str, ...]:
        """One readable string an id."""
        ...

    @property
    def vocab_size(self) -> int:
        """The number of ids, V."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids [T]; what the vocabulary lacks becomes `<unk>`. Adds no `<sos>` and no `<eos>`."""
        ...

    def decode(self, ids: Ids) -> str:
        """Ids [T] to text; `<pad>`, `<sos>` and `<eos>` are dropped. Raises InputError for ids out of range."""
        ...

    def unknown(self, text: str) -> list[str]:
        """The distinct tokens of the text that the vocabulary lacks, in order of first appearance."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        ...


@dataclass(frozen=True)
class CharTokenizer:
    r"""One token a Unicode code point.

    >>> tokenizer = CharTokenizer((*SPECIALS, "a", "b"))
    >>> tokenizer.encode("abc").tolist()
    [4, 5, 1]
    >>> tokenizer.decode([2, 5, 4, 3])
    'ba'
    """

    kind: ClassVar[str] = "char"
    vocab: tuple[str, ...]

    @property
    def vocab_size(self) -> int:
        """The number of ids, V."""
        return len(self.vocab)

    @cached_property
    def _table(self) -> np.ndarray:
        """Code point -> id, up to the largest known code point; the last entry stands for all above it."""
        codes = _code_points("".join(self.vocab[len(SPECIALS) :]))
        table = np.full(codes.max(initial=0) + 2, UNK, np.int32)
        table[codes] = np.arange(len(SPECIALS), self.vocab_size)
        return table

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids [T], unknown characters to `<unk>`."""
        return self._table[np.minimum(_code_points(text), len(self._table) - 1)]

    def decode(self, ids: Ids) -> str:
        """Ids [T] to text, `<unk>` as U+FFFD. Raises InputError for ids out of range."""
        shown = ("", _REPLACEMENT, "", "", *self.vocab[len(SPECIALS) :])
        return "".join(shown[i] for i in _checked(ids, self.vocab_size))

    def unknown(self, text: str) -> list[str]:
        """The distinct unknown characters, in order of first appearance."""
        chars = "".join(dict.fromkeys(text))
        return [char for char, i in zip(chars, self.encode(chars), strict=True) if i == UNK]

    def to_json(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        return _to_json(self)


@dataclass(frozen=True)
class ByteTokenizer:
    """One token a byte of UTF-8: 260 ids for every text, nothing is unknown.

    >>> ByteTokenizer().encode("é").tolist()
    [199, 173]
    """

    kind: ClassVar[str] = "byte"

    @property
    def vocab(self) -> tuple[str, ...]:
        """The specials, then printable ASCII as itself and every other byte as `<0x0A>`."""
        return _BYTES

    @property
    def vocab_size(self) -> int:
        """The number of ids, V."""
        return len(self.vocab)

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids [T], one a byte."""
        # surrogatepass: a lone surrogate in a Python string (from the command line, say) is no reason to stop
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32) + len(SPECIALS)

    def decode(self, ids: Ids) -> str:
        """Ids [T] to text, `<unk>` and invalid UTF-8 as U+FFFD. Raises InputError for ids out of range."""
        specials = (b"", _REPLACEMENT.encode(), b"", b"")
        shown = (*specials, *(bytes([b]) for b in range(256)))
        return b"".join(shown[i] for i in _checked(ids, self.vocab_size)).decode("utf-8", "replace")

    def unknown(self, text: str) -> list[str]:
        """Always empty: every text is bytes."""
        return []

    def to_json(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        return _to_json(self)


@dataclass(frozen=True)
class WordTokenizer:
    r"""One token a word, punctuation mark or newline; other white space separates and is not kept.

    >>> tokenizer = train_tokenizer("word", ["Don't stop,\nsaid he."])
    >>> tokenizer.vocab[4:]
    ('\n', ',', '.', "Don't", 'he', 'said', 'stop')
    >>> tokenizer.decode(tokenizer.encode("he said:  stop ,\n he."))
    'he said <unk> stop,\nhe.'
    """

    kind: ClassVar[str] = "word"
    vocab: tuple[str, ...]

    @property
    def vocab_size(self) -> int:
        """The number of ids, V."""
        return len(self.vocab)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.vocab) if i >= len(SPECIALS)}

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids [T], unknown words to `<unk>`."""
        words = split_words(text)
        return np.fromiter((self._index.get(word, UNK) for word in words), np.int32, len(words))

    def decode(self, ids: Ids) -> str:
        """Ids [T] to text with ordinary spacing, `<unk>` as itself. Raises InputError for ids out of range."""
        words = (self.vocab[i] for i in _checked(ids, self.vocab_size) if i not in (PAD, SOS, EOS))
        text = re.sub(r" ?\n ?", "\n", " ".join(words))
        text = re.sub(r" ([.,;:!?%)\]}…”»])", r"\1", text)
        return re.sub(r"([(\[{“«]) ", r"\1", text)

    def unknown(self, text: str) -> list[str]:
        """The distinct unknown words, in order of first appearance."""
        return [word for word in dict.fromkeys(split_words(text)) if word not in self._index]

    def to_json(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        return _to_json(self)


def split_words(text: str) -> list[str]:
    r"""Words (with inner apostrophes), single punctuation marks and newlines.

    >>> split_words("'Tis not,\nI don't!")
    ["'", 'Tis', 'not', ',', '\n', 'I', "don't", '!']
    """
    return _WORD.findall(text)


def train_tokenizer(kind: str, texts: Iterable[str], *, min_count: int = 1, max_size: int | None = None) -> Tokenizer:
    """The tokenizer whose vocabulary is what the texts contain, read once as a stream.

    Tokens seen fewer than `min_count` times are left out; `max_size` bounds the vocabulary, specials included, and
    keeps the most frequent (ties: the smaller string). Characters are ordered by code point, words by falling
    frequency, so that equal texts give equal ids. The byte vocabulary is fixed: `texts` is not read and the bounds do
    not apply.

    Raises InputError for an unknown kind or bounds that leave no room.

    >>> train_tokenizer("char", ["banana"]).vocab
    ('<pad>', '<unk>', '<sos>', '<eos>', 'a', 'b', 'n')
    """
    if kind not in _KINDS:
        raise InputError(f"kind: no tokenizer {kind!r}; choose one of {', '.join(_KINDS)}.")
    if min_count < 1:
        raise InputError(f"min_count: {min_count} is below 1; 1 keeps every token.")
    if max_size is not None and max_size <= len(SPECIALS):
        raise InputError(f"max_size: {max_size} leaves no room beside the {len(SPECIALS)} special tokens; raise it.")
    if kind == "byte":
        return ByteTokenizer()
    counts: Counter[str] = Counter()
    for text in [texts] if isinstance(texts, str) else texts:
        counts.update(text if kind == "char" else split_words(text))
    frequent = [token for token, count in counts.items() if count >= min_count]
    ranked = sorted(frequent, key=lambda token: (-counts[token], token))
    kept = ranked if max_size is None else ranked[: max_size - len(SPECIALS)]
    return CharTokenizer((*SPECIALS, *sorted(kept))) if kind == "char" else WordTokenizer((*SPECIALS, *kept))


def save_tokenizer(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Write `tokenizer` as one JSON file, usually tokenizer.json; a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # The vocabulary may hold lone surrogates, which UTF-8 cannot: JSON's escapes (the default) can.
    temporary.write_text(json.dumps(tokenizer.to_json(), indent=0) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer that `save_tokenizer` wrote; InputError if the file is missing, damaged or of another version."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the tokenizer ({error.strerror}); give the run's tokenizer.json."
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: not a tokenizer file ({error}); copy it again or train a new one.") from error
    if not isinstance(content, dict) or "version" not in content:
        raise InputError(f"{path}: not a tokenizer file; expected the JSON that save_tokenizer writes.")
    if content["version"] != _VERSION:
        raise InputError(
            f"{path}: tokenizer file of version {content['version']!r}, this seqjax reads version {_VERSION}; "
            "use the seqjax that wrote it or train a new one."
        )
    tokenizer = _from_json(content.get("kind"), content.get("vocab"))
    if tokenizer is None:
        raise InputError(f"{path}: damaged tokenizer file, wrong kind or vocabulary; copy it again or train a new one.")
    return tokenizer


def _from_json(kind: Any, vocab: Any) -> Tokenizer | None:
    """The tokenizer, or None where the vocabulary is not one that `kind` can have."""
    if not isinstance(vocab, list) or not all(isinstance(token, str) for token in vocab):
        return None
    vocab = tuple(vocab)
    distinct = vocab[: len(SPECIALS)] == SPECIALS and len(set(vocab)) == len(vocab)
    match kind:
        case "char" if distinct and all(len(token) == 1 for token in vocab[len(SPECIALS) :]):
            return CharTokenizer(vocab)
        case "byte" if vocab == _BYTES:
            return ByteTokenizer()
        case "word" if distinct:
            return WordTokenizer(vocab)
    return None


def _to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"version": _VERSION, "kind": tokenizer.kind, "vocab": list(tokenizer.vocab)}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _checked(ids: Ids, vocab_size: int) -> list[int]:
    array = np.asarray(ids)
    if array.ndim != 1:
        raise InputError(f"ids: shape {array.shape}; decode takes one sequence at a time.")
    if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        raise InputError(f"ids: {array.min()} to {array.max()}, but the vocabulary has ids 0 to {vocab_size - 1}.")
    return array.tolist()
