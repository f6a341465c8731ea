"""Character, byte, word and subword tokenizers: one interface, one JSON file.

The four special tokens come first in every vocabulary: ``<pad>`` 0, ``<unk>`` 1, ``<sos>`` 2, ``<eos>`` 3. They have no
spelling: the text "<eos>" encodes as five characters, three words or one unknown word, so nothing typed by a user can
end a sequence.
"""

import json
import os
import re
import unicodedata
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from seqjax.errors import InputError
from seqjax.types import Array

SPECIALS = ("<pad>", "<unk>", "<sos>", "<eos>")
PAD, UNK, SOS, EOS = range(len(SPECIALS))

_VERSION = 1  # of the JSON file
_REPLACEMENT = "\ufffd"
_KINDS = ("char", "byte", "word", "space", "bpe")
_BYTES = (*SPECIALS, *(chr(b) if 0x20 <= b < 0x7F else f"<0x{b:02X}>" for b in range(256)))

# `\w` leaves out combining marks, so that Hindi words and decomposed accents would fall apart. Marks beyond the basic
# plane are left out: with them `re` gives up its fast character table.
_MARKS = "".join(chr(c) for c in range(0x10000) if unicodedata.category(chr(c)).startswith("M"))
_SPACED = re.compile(r"\n|\S+")
_WORD = re.compile(rf"\n|\w+(?:[{_MARKS}]+\w*|['’]\w+)*|[^\w\s]")

# How the vocabulary of bpe spells bytes: as GPT-2 does, so that the file can be read and no token holds white space.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (b for b in range(256) if b not in _PRINTABLE)
_LETTERS = {chr(b): b for b in _PRINTABLE} | {chr(256 + i): b for i, b in enumerate(_OTHERS)}  # in this order: ids
_LETTER_IDS = {letter: len(SPECIALS) + i for i, letter in enumerate(_LETTERS)}
BPE_SIZE = 8192
"""The vocabulary of bpe without a ``max_size``."""

Ids = np.ndarray | Array | Sequence[int | np.integer]


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer offers; ids are int32, the vocabulary lists the specials first."""

    kind: ClassVar[str]  # "char", "byte", "word", "space" or "bpe"

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
        return _index(self.vocab)

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids [T], unknown words to `<unk>`."""
        return _look_up(split_words(text), self._index)

    def decode(self, ids: Ids) -> str:
        """Ids [T] to text with ordinary spacing, `<unk>` as itself. Raises InputError for ids out of range."""
        text = re.sub(r" ([.,;:!?%)\]}…”»])", r"\1", _spaced(self.vocab, ids))
        return re.sub(r"([(\[{“«]) ", r"\1", text)

    def unknown(self, text: str) -> list[str]:
        """The distinct unknown words, in order of first appearance."""
        return [word for word in dict.fromkeys(split_words(text)) if word not in self._index]

    def to_json(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        return _to_json(self)


@dataclass(frozen=True)
class SpaceTokenizer:
    r"""One token whatever stands between white space, and one a newline: for text that is cut into words already.

    >>> tokenizer = train_tokenizer("space", ["mr. <unk> is n't\nmr. N"])
    >>> tokenizer.vocab[4:]
    ('mr.', '\n', 'N', 'is', "n't")
    >>> tokenizer.encode("mr. <unk>").tolist()
    [4, 1]
    """

    kind: ClassVar[str] = "space"
    vocab: tuple[str, ...]

    @property
    def vocab_size(self) -> int:
        """The number of ids, V."""
        return len(self.vocab)

    @cached_property
    def _index(self) -> dict[str, int]:
        return _index(self.vocab)

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids [T], unknown words to `<unk>`."""
        return _look_up(_SPACED.findall(text), self._index)

    def decode(self, ids: Ids) -> str:
        """Ids [T] to text, one space between words, `<unk>` as itself. Raises InputError for ids out of range."""
        return _spaced(self.vocab, ids)

    def unknown(self, text: str) -> list[str]:
        """The distinct unknown words, in order of first appearance."""
        return [word for word in dict.fromkeys(_SPACED.findall(text)) if word not in self._index]

    def to_json(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        return _to_json(self)


@dataclass(frozen=True)
class BPETokenizer:
    """Subwords: the bytes of a word, joined pair by pair in the order of ``merges`` (Sennrich et al., 2016).

    Words are cut as in GPT-2 (Radford et al., 2019): a space belongs to the word after it. Nothing is unknown, and
    every UTF-8 text comes back as it was. Encoding needs the package ``tokenizers``.

    With ``dropout`` a text is cut anew every time (Provilkov et al., 2020): at each step of joining, every pair that
    could be joined is left out with that probability. So a model sees words in many parts. It is for training only.

    >>> tokenizer = train_tokenizer("bpe", ["low lower lowest"], max_size=263)
    >>> tokenizer.merges
    (('l', 'o'), ('lo', 'w'), ('Ġ', 'low'))
    >>> [tokenizer.vocab[i] for i in tokenizer.encode("slow low é")]
    ['s', 'low', 'Ġlow', 'Ġ', 'Ã', '©']
    """

    kind: ClassVar[str] = "bpe"
    merges: tuple[tuple[str, str], ...]

    @property
    def vocab(self) -> tuple[str, ...]:
        """The specials, the 256 bytes, and what the merges make, in their order; bytes are spelled as GPT-2 does."""
        return self._vocab

    @cached_property
    def _vocab(self) -> tuple[str, ...]:
        # Two merges may make the same token.
        return (*SPECIALS, *_LETTERS, *dict.fromkeys(left + right for left, right in self.merges))

    @property
    def vocab_size(self) -> int:
        """The number of ids, V."""
        return len(self.vocab)

    @cached_property
    def _encoder(self) -> Any:
        from tokenizers import models  # the import of train_tokenizer or load_tokenizer has checked that it is there

        return _byte_level(models.BPE(vocab=_index(self.vocab), merges=list(self.merges)))

    @cached_property
    def _ranks(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Pair of ids -> place among the merges, and what the two make."""
        index = _index(self.vocab)
        return {(index[a], index[b]): (rank, index[a + b]) for rank, (a, b) in enumerate(self.merges)}

    @cached_property
    def _spelled(self) -> tuple[tuple[int, ...], ...]:
        """The ids of the bytes of each id."""
        return tuple(tuple(_LETTER_IDS[letter] for letter in token) for token in self.vocab)

    @cached_property
    def _bytes(self) -> tuple[bytes, ...]:
        spelled = (bytes(_LETTERS[letter] for letter in token) for token in self.vocab[len(SPECIALS) :])
        return (b"", _REPLACEMENT.encode(), b"", b"", *spelled)

    def encode(self, text: str, *, dropout: float = 0.0, rng: np.random.Generator | None = None) -> np.ndarray:
        """Text to int32 ids [T]; a lone surrogate, which UTF-8 cannot spell, becomes U+FFFD.

        With `dropout` > 0 the ids follow from the text and the state of `rng`. Dropout 1 gives bytes.

        Raises InputError for a dropout outside of [0, 1], or without a generator.
        """
        if not 0 <= dropout <= 1:
            raise InputError(f"dropout: {dropout} is not between 0 and 1; 0.1 is usual.")
        if dropout == 0:
            return np.asarray(self._encoder.encode(_without_surrogates(text)).ids, np.int32)
        if rng is None:
            raise InputError(f"rng: dropout={dropout} needs a generator; give np.random.default_rng(seed).")
        return self._encode_with_dropout(text, dropout, rng)

    def _encode_with_dropout(self, text: str, dropout: float, rng: np.random.Generator) -> np.ndarray:
        # In Python, since the dropout of the package `tokenizers` cannot be seeded. What it makes without dropout is
        # still of use: drawn first is how many steps go by before a best pair is left out, and most words are complete
        # by then.
        encoding = self._encoder.encode(_without_surrogates(text))
        words: dict[int, list[int]] = {}
        for i, word in zip(encoding.ids, encoding.word_ids, strict=True):
            words.setdefault(word, []).append(i)
        steps = (rng.geometric(dropout, len(words)) - 1).tolist()
        draws, ids = _uniform(rng), []
        for word, step in zip(words.values(), steps, strict=True):
            letters = [letter for i in word for letter in self._spelled[i]]
            if step < len(letters) - len(word):
                word = _join(letters, self._ranks, dropout, chain(repeat(1.0, step), (0.0,), draws))
            ids += word
        return np.array(ids, np.int32)

    def decode(self, ids: Ids) -> str:
        """Ids [T] to text, `<unk>` and invalid UTF-8 as U+FFFD. Raises InputError for ids out of range."""
        return b"".join(self._bytes[i] for i in _checked(ids, self.vocab_size)).decode("utf-8", "replace")

    def unknown(self, text: str) -> list[str]:
        """Always empty: every text is bytes."""
        return []

    def to_json(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        return {**_to_json(self), "merges": [list(pair) for pair in self.merges]}


def _join(
    parts: list[int], ranks: dict[tuple[int, int], tuple[int, int]], dropout: float, draws: Iterator[float]
) -> list[int]:
    """Join pairs until none is left, or all are left out: each is where the next of `draws` is below `dropout`.

    A step takes the best pair that is not left out: the first among the merges, and of these the leftmost. It looks at
    the pairs in this order, so that nothing is drawn for those after the one it takes.
    """
    end = len(parts)
    parts = [*parts, PAD]  # which pairs with nothing; also at place -1
    before, after = list(range(-1, end)), list(range(1, end + 1))
    pairs = sorted((*ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks)
    while (best := next((k for k in range(len(pairs)) if next(draws) >= dropout), None)) is not None:
        _, both, i = pairs.pop(best)
        j = after[i]
        left, right = before[i], after[j]
        for a, b in ((left, i), (j, right)):
            if (pair := (parts[a], parts[b])) in ranks:
                pairs.remove((*ranks[pair], a))
        parts[i], after[i], before[right] = both, right, i
        for a, b in ((left, i), (i, right)):
            if (pair := (parts[a], parts[b])) in ranks:
                insort(pairs, (*ranks[pair], a))
    joined, i = [], 0
    while i < end:
        joined.append(parts[i])
        i = after[i]
    return joined


def _uniform(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(256).tolist()


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
    not apply. That of bpe begins with the 256 bytes; `min_count` is that of a pair, `max_size` by default 8,192.

    Raises InputError for an unknown kind, bounds that leave no room, or bpe without the package ``tokenizers``.

    >>> train_tokenizer("char", ["banana"]).vocab
    ('<pad>', '<unk>', '<sos>', '<eos>', 'a', 'b', 'n')
    """
    if kind not in _KINDS:
        raise InputError(f"kind: no tokenizer {kind!r}; choose one of {', '.join(_KINDS)}.")
    if min_count < 1:
        raise InputError(f"min_count: {min_count} is below 1; 1 keeps every token.")
    fixed = len(SPECIALS) + (256 if kind == "bpe" else 0)
    if max_size is not None and max_size <= fixed:
        bytes_too = " and the 256 bytes" if kind == "bpe" else ""
        raise InputError(
            f"max_size: {max_size} leaves no room beside the {len(SPECIALS)} special tokens{bytes_too}; raise it."
        )
    texts = [texts] if isinstance(texts, str) else texts
    if kind == "byte":
        return ByteTokenizer()
    if kind == "bpe":
        return _train_bpe(texts, min_count, (max_size or BPE_SIZE) - len(SPECIALS))
    split = {"char": list, "word": split_words, "space": _SPACED.findall}[kind]
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(text))
    # Text cut by spaces may spell specials: its "<unk>" is ours, and no other can be typed.
    frequent = [token for token, count in counts.items() if count >= min_count and token not in SPECIALS]
    ranked = sorted(frequent, key=lambda token: (-counts[token], token))
    kept = ranked if max_size is None else ranked[: max_size - len(SPECIALS)]
    if kind == "char":
        return CharTokenizer((*SPECIALS, *sorted(kept)))
    return (WordTokenizer if kind == "word" else SpaceTokenizer)((*SPECIALS, *kept))


def _train_bpe(texts: Iterable[str], min_count: int, size: int) -> BPETokenizer:
    _require_tokenizers()
    from tokenizers import models, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=min_count, initial_alphabet=list(_LETTERS), show_progress=False
    )
    tokenizer = _byte_level(models.BPE())
    tokenizer.train_from_iterator(map(_without_surrogates, texts), trainer=trainer)
    return BPETokenizer(tuple((left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]))


def _byte_level(model: Any) -> Any:
    """A tokenizer of the package ``tokenizers`` that cuts words as GPT-2 does and has no tokens beside the model's."""
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def _require_tokenizers() -> None:
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise InputError('kind: bpe needs the package tokenizers; run: pip install "seqjax[text]"') from None


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
    tokenizer = _from_json(content)
    if tokenizer is None:
        raise InputError(f"{path}: damaged tokenizer file, wrong kind or vocabulary; copy it again or train a new one.")
    return tokenizer


def _from_json(content: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer, or None where the vocabulary is not one that its kind can have."""
    kind, vocab = content.get("kind"), content.get("vocab")
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
        case "space" if distinct:
            return SpaceTokenizer(vocab)
        case "bpe" if (merges := _merges(content.get("merges"), vocab)) is not None:
            tokenizer = BPETokenizer(merges)
            _require_tokenizers()
            return tokenizer if tokenizer.vocab == vocab else None
    return None


def _merges(pairs: Any, vocab: tuple[str, ...]) -> tuple[tuple[str, str], ...] | None:
    """The merges in a file, or None where one of them is no pair of tokens."""
    known = set(vocab)
    if isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 and {*p} <= known for p in pairs):
        return tuple((left, right) for left, right in pairs)
    return None


def _to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"version": _VERSION, "kind": tokenizer.kind, "vocab": list(tokenizer.vocab)}


def _index(vocab: tuple[str, ...]) -> dict[str, int]:
    return {token: i for i, token in enumerate(vocab) if i >= len(SPECIALS)}


def _look_up(words: list[str], index: dict[str, int]) -> np.ndarray:
    return np.fromiter((index.get(word, UNK) for word in words), np.int32, len(words))


def _spaced(vocab: tuple[str, ...], ids: Ids) -> str:
    """Words with a space between them, lines without spaces at their ends."""
    words = (vocab[i] for i in _checked(ids, len(vocab)) if i not in (PAD, SOS, EOS))
    return re.sub(r" ?\n ?", "\n", " ".join(words))


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _checked(ids: Ids, vocab_size: int) -> list[int]:
    array = np.asarray(ids)
    if array.ndim != 1:
        raise InputError(f"ids: shape {array.shape}; decode takes one sequence at a time.")
    if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        raise InputError(f"ids: {array.min()} to {array.max()}, but the vocabulary has ids 0 to {vocab_size - 1}.")
    return array.tolist()
