"""Reading and writing other people's vectors: word2vec and GloVe text, word2vec binary, fastText's .bin, .ftz and .vec.

A file that is damaged, cut or of another format is an InputError that names the file and the byte; vectors are never
made up. Files are written beside their place and moved there when complete. All but fastText's may be ``*.gz``.

The layouts are those of https://code.google.com/archive/p/word2vec, https://github.com/stanfordnlp/GloVe and
https://github.com/facebookresearch/fastText, all little-endian.
"""

import gzip
import math
import mmap
import os
import re
import struct
import warnings
import zlib
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np

from seqjax.embeddings.subwords import FastTextHeader, Subwords, compose, utf8
from seqjax.embeddings.vectors import WordVectors
from seqjax.errors import InputError

_LINE = 1 << 16  # bytes a line may have beside its numbers, or a word in a binary file
_DEFLATE = 1032  # times smaller a compressed file can be
_ROWS = 1 << 13  # written or checked at a time

_MAGIC = 793712314
_OPTIONS = "<12id"
_DIGITS = set(b"0123456789+-.\r") | set(b"einfaty") | set(b"EINFATY")  # of numbers in text, 1E-5 and -Infinity too
_CENTROIDS = 256  # of a subspace: a code is a byte
_MAX_PRUNED_BUCKET = 100_000_000  # in other files, the rows that follow bound the number of buckets

_Path = str | os.PathLike[str]


def load_vectors(path: _Path) -> WordVectors:
    """Vectors in any format that is read here; which one it is, their first bytes say.

    Raises:
      InputError: the file cannot be read, or what `load_word2vec`, `load_glove` or `load_fasttext` raises.
    """
    with _reading(path) as (file, _):
        head = file.read(_LINE)
    if head[:4] == struct.pack("<i", _MAGIC):
        return load_fasttext(path)
    first, _, rest = head.partition(b"\n")
    if len(first.split()) != 2 or not all(map(bytes.isdigit, first.split())):
        return load_glove(path)
    # In text all numbers are made of few characters; the first word may be cut off, or have any bytes.
    numbers = rest.partition(b"\n")[0].split(b" ")[1:]
    return load_word2vec(path, binary=not all(set(number) <= _DIGITS for number in numbers))


def load_word2vec(
    path: _Path, *, binary: bool = False, limit: int | None = None, errors: str = "strict"
) -> WordVectors:
    """Vectors in word2vec's formats: a line ``V D``, then each word and its D numbers. fastText's ``.vec`` is one, too.

    Text has a line for each word and single spaces between its fields. Binary has the word, a space, D float32, and
    perhaps a newline. ``limit`` reads the first words only, usually the most frequent. ``errors`` is that of
    ``bytes.decode``: word2vec.c cuts long words, even within a character. Of a word that comes twice the first vector
    is kept, with a warning.

    Raises:
      InputError: the file cannot be read, has no header, is damaged, has more or fewer words than its header says, or
        holds numbers that are not finite.
    """
    with _reading(path) as (file, size):
        head = file.readline(_LINE)
        match = re.fullmatch(rb"(\d{1,18})[ \t]+(\d{1,18})[ \t]*\r?\n", head)
        if not match:
            raise InputError(
                f"{path}: byte 0: expected the header 'words dimensions', found {head[:40]!r}; text without a header "
                "is read by load_glove, fastText's .bin and .ftz by load_fasttext"
            )
        v, d = int(match[1]), int(match[2])
        smallest = 1 + 4 * d if binary else 1 + 2 * d  # bytes of a word: ' ' and numbers; ' 0' for each and a newline
        if v < 1 or d < 1 or v * smallest > size - len(head) + 1:
            raise InputError(
                f"{path}: byte 0: the header promises {v:,} words of {d:,} dimensions, which the file has no room for; "
                "it is damaged or cut: copy it again"
            )
        rows = _binary_rows(path, file, d) if binary else _text_rows(path, file, d, line=2)
        return _collect(path, rows, v, d, limit, errors, exact=True)


def load_glove(path: _Path, *, limit: int | None = None, errors: str = "strict") -> WordVectors:
    """Vectors in GloVe's text format: a line for each word, no header (the one of its ``-write-header`` is skipped).

    Words may hold spaces, as some of Stanford's do (``at name@domain.com``), but no numbers after them. ``limit`` and
    ``errors`` are those of `load_word2vec`, and so is what happens to a word that comes twice.

    Raises:
      InputError: as for `load_word2vec`.
    """
    with _reading(path) as (file, _):
        first, second = (_fields(file.readline(_LINE)) for _ in range(2))
        header = len(first) == 2 and all(map(bytes.isdigit, first)) and len(second) == 1 + int(first[1])
        d = len(second if header else first) - 1
        if d < 1:
            raise InputError(f"{path}: byte 0: expected a word and numbers, separated by single spaces")
        file.seek(0)
        v = 1 + sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))  # or fewer
        file.seek(0)
        if header:
            file.readline()
        rows = _text_rows(path, file, d, line=1 + header, spaces=True)
        return _collect(path, rows, v, d, limit, errors, exact=False)


def save_word2vec(vectors: WordVectors, path: _Path, *, binary: bool = False) -> None:
    """Write words and vectors in word2vec's text or binary format. Both keep every bit.

    Raises:
      InputError: a word holds a space or a newline, which these formats cannot represent.
    """
    with _writing(path) as file:
        file.write(b"%d %d\n" % vectors.vectors.shape)
        _write_rows(file, vectors, binary=binary)


def save_glove(vectors: WordVectors, path: _Path) -> None:
    """Write words and vectors in GloVe's text format: that of `save_word2vec` without the header.

    Raises:
      InputError: a word holds a space or a newline.
    """
    with _writing(path) as file:
        _write_rows(file, vectors, binary=False)


@contextmanager
def _reading(path):
    """The open file and how many bytes it has at most; what goes wrong while it is read becomes an InputError."""
    try:
        compressed = Path(path).suffix == ".gz"
        with gzip.open(path) if compressed else open(path, "rb") as file:
            yield file, os.path.getsize(path) * (_DEFLATE if compressed else 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}): give the path of a complete file") from error


@contextmanager
def _writing(path):
    """A file that takes its place when it is complete, or vanishes: a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with gzip.open(temporary, "wb") if path.suffix == ".gz" else open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _collect(path, rows, v, d, limit, errors, *, exact):
    """WordVectors of the first ``limit`` rows; there must be v, or at most v if the number is not ``exact``."""
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} reads no words: use None to read all")
    wanted = v if limit is None else min(v, limit)
    words, vectors = {}, np.empty((wanted, d), np.float32)
    repeated = []
    for offset, name, vector in islice(rows, wanted):
        word = _decoded(path, offset, name, errors)
        if word in words:
            repeated.append(word)
            continue
        vectors[len(words)] = vector
        words[word] = None
    n = len(words) + len(repeated)
    extra = next(rows, None) if exact and n == v else None
    if extra or (exact and n < wanted):
        found = f"another word at byte {extra[0]:,}" if extra else f"the end of the file after {n:,}"
        raise InputError(f"{path}: expected {v:,} words as its header says, found {found}: copy it again or correct it")
    if repeated:
        warnings.warn(
            f"{path}: {len(repeated):,} words come again, the first is {repeated[0]!r}: their first vector counts"
        )
    words, vectors = list(words), vectors[: len(words)]
    for start in range(0, len(words), _ROWS):
        finite = np.isfinite(vectors[start : start + _ROWS]).all(axis=1)
        if not finite.all():
            raise InputError(
                f"{path}: the vector of {words[start + finite.argmin()]!r} is not finite; remove the word, "
                "or train again with a lower learning rate"
            )
    return WordVectors(words, vectors)


def _decoded(path, offset, name, errors):
    try:
        return name.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {offset:,}: expected a word in UTF-8, found {name[:40]!r}; errors='replace' reads it all "
            "the same, errors='surrogateescape' keeps its bytes"
        ) from error


def _fields(line):
    return line.rstrip(b" \r\n").split(b" ")  # nothing else separates: words may hold any other kind of space


def _text_rows(path, file, d, *, line, spaces=False):
    """(byte, word, numbers [D]) of each line that is not blank; ``line`` is the number of the first."""
    offset = file.tell()
    for number, text in enumerate(iter(lambda: file.readline(_LINE + 32 * d), b""), line):
        name, *numbers = _fields(text)
        more = numbers[:-d] if spaces else []
        if more and not any(map(_is_number, more)):
            name, numbers = b" ".join([name, *more]), numbers[-d:]
        where = f"{path}: line {number:,}, byte {offset:,}"
        if len(numbers) != d and (name or numbers):
            raise InputError(
                f"{where}: expected a word and {d:,} numbers, found {len(numbers):,}; the file is damaged or cut, "
                "or is binary and needs binary=True"
            )
        if numbers:
            try:
                yield offset, name, _floats(numbers)
            except ValueError as error:
                raise InputError(
                    f"{where}: expected {d:,} numbers after the word ({error}); the file is damaged"
                ) from error
        offset += len(text)


def _is_number(field):
    try:
        float(field)
    except ValueError:
        return False
    return True


@np.errstate(over="ignore")  # what is too large becomes infinite, and is then found
def _floats(numbers):
    return np.array(numbers, np.float32)


def _binary_rows(path, file, d):
    """(byte, word, numbers [D]) of each word."""
    offset, buffer, at = file.tell(), b"", 0  # offset: where the buffer begins in the file
    while True:
        space = buffer.find(b" ", at)
        end = space + 1 + 4 * d
        if space >= 0 and end <= len(buffer):
            # word2vec.c ends a vector with a newline, others do not; so one may come before a word
            yield offset + at, buffer[at:space].lstrip(b"\n"), np.frombuffer(buffer, "<f4", d, space + 1)
            at = end
            continue
        more = file.read(4 * d + (1 << 20)) if space >= 0 or len(buffer) - at < _LINE else b""
        if not more:
            break
        offset, buffer, at = offset + at, buffer[at:] + more, 0
    if buffer[at:].strip(b"\n"):
        raise InputError(
            f"{path}: byte {offset + at:,}: expected a word, a space and {4 * d:,} bytes of numbers, found "
            f"{len(buffer) - at:,} bytes; the file is damaged or cut: copy it again"
        )


def _write_rows(file, vectors, *, binary):
    for word, vector in zip(vectors.words, vectors.vectors, strict=True):
        # str of a float32 is the shortest that gives it back
        numbers = vector.astype("<f4").tobytes() if binary else " ".join(map(str, vector)).encode()
        file.write(_name(word, b" \n") + b" " + numbers + b"\n")


def load_fasttext(path: _Path, *, errors: str = "strict") -> WordVectors:
    """A model of Facebook's fastText, ``.bin`` or quantised ``.ftz``, with subwords: unknown words have vectors, too.

    vectors[i] = mean of the rows of word i and its n-grams

    The matrices of a ``.bin`` stay in the file, which is mapped into memory; only ``.vectors`` is computed. Those of a
    ``.ftz`` are decoded. ``.context_vectors`` is the output matrix if its rows belong to words; that of a supervised
    model or a Huffman tree is ``.subwords.header.output``. ``errors`` is that of ``bytes.decode``; with
    "surrogateescape" damaged words keep their bytes, hence their n-grams. ``</s>`` has no n-grams, as in fastText
    0.9; it had some in files so old that they name no version.

    Raises:
      InputError: the file cannot be read, is damaged or cut, or is not of a version that fastText 0.9 reads.
    """
    file = _Mapped(path)
    version = 0  # old files begin with the options
    if file.data[:4] == struct.pack("<i", _MAGIC):
        _, version = file.unpack("<2i", "magic number and version")
        file.require(version in (11, 12), f"version 11 or 12, found {version}")
    options = file.unpack(_OPTIONS, "the options of the training")
    d, *settings, bucket, min_n, file_max_n, lr_update_rate, sample = options
    loss, model = settings[-2:]
    supervised = model == 3
    max_n = 0 if supervised and version < 12 else file_max_n  # as in fastText: those had no n-grams of characters
    possible = d > 0 and bucket >= (max_n > 0) and 1 <= loss <= 4 and 1 <= model <= 3
    file.require(possible, f"the options of the training, found {options}")
    size, v, n_labels, n_tokens = file.unpack("<3iq", "the sizes of the dictionary")
    file.require(0 < v <= size == v + n_labels, f"the sizes of the dictionary, found {size}, {v} and {n_labels}")
    (n_pruned,) = file.unpack("<q", "the number of pruned rows") if version else (-1,)
    names, counts = _dictionary(file, size, v, errors)
    slots = _slots(file, n_pruned, bucket) if n_pruned >= 0 else None

    quantised = file.flag("whether the input is quantised") if version else False
    file.require(quantised or slots is None, "a quantised input, since rows have been pruned")
    rows = _matrix(file, v + (bucket if slots is None else n_pruned), d, quantised)
    quantised &= file.flag("whether the output is quantised") if version else False
    output = _matrix(file, n_labels if supervised else v, d, quantised)
    file.start = file.at
    file.require(file.at == len(file.data), f"the end of the file, which has {len(file.data):,} bytes")

    of_words = not supervised and loss != 1
    header = FastTextHeader(
        *settings,
        lr_update_rate=lr_update_rate,
        sample=sample,
        n_tokens=n_tokens,
        labels=tuple(names[v:]),
        label_counts=tuple(counts[v:].tolist()),
        output=None if of_words else output,
        version=version,
        max_n=file_max_n,
    )
    subwords = Subwords(rows, slots, min_n, max_n, bucket, pruned=slots is not None, header=header)
    words = names[:v]
    vectors = compose(subwords, words, index=dict(zip(words, range(v), strict=True))) if max_n > 0 else rows[:v]
    context_vectors = output if of_words else None
    return WordVectors(words, vectors, counts=counts[:v], context_vectors=context_vectors, subwords=subwords)


class _Mapped:
    """A file mapped into memory and read from front to back; ``start`` is where the last item begins."""

    def __init__(self, path):
        try:
            with open(path, "rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise InputError(f"{path}: cannot be read ({error}): give the path of a .bin or .ftz file") from error
        self.path, self.start, self.at = path, 0, 0
        if self.data[:2] == b"\x1f\x8b":
            raise InputError(f"{path}: is compressed, so it cannot be mapped into memory: gunzip it first")

    def require(self, condition, expected):
        """InputError unless the condition holds."""
        if not condition:
            raise InputError(
                f"{self.path}: byte {self.start:,}: expected {expected}; the file is damaged or cut, or no fastText "
                "model: copy it again"
            )

    def skip(self, n, what):
        """Go on by n bytes; where they begin."""
        self.start = self.at
        left = len(self.data) - self.at
        self.require(n <= left, f"{what}, {n:,} bytes, found {left:,}")
        self.at += n
        return self.start

    def unpack(self, layout, what):
        """Numbers, as `struct` has them."""
        return struct.unpack_from(layout, self.data, self.skip(struct.calcsize(layout), what))

    def flag(self, what):
        """A byte that is 0 or 1."""
        (value,) = self.unpack("<B", what)
        self.require(value <= 1, f"0 or 1, {what}, found {value}")
        return value == 1

    def array(self, what, dtype, *shape):
        """An array that stays in the file; most are not aligned there."""
        n = math.prod(shape)
        start = self.skip(n * np.dtype(dtype).itemsize, what)
        return np.frombuffer(self.data, dtype, n, start).reshape(shape)


def _dictionary(file, size, v, errors):
    """The words, then the labels, and their counts int64 [size]."""
    entry = struct.Struct("<qb")
    file.start = file.at
    file.require((1 + entry.size) * size <= len(file.data) - file.at, f"a dictionary of {size:,} words and labels")
    names, counts = [], np.empty(size, np.int64)
    for i in range(size):
        file.start = file.at
        end = file.data.find(b"\0", file.at)
        file.require(0 <= end < len(file.data) - entry.size, f"entry {i:,} of the dictionary")
        names.append(_decoded(file.path, file.at, file.data[file.at : end], errors))
        counts[i], is_label = entry.unpack_from(file.data, end + 1)
        file.require(is_label == (i >= v), f"{v:,} words, then labels; entry {i:,} is of kind {is_label}")
        file.at = end + 1 + entry.size
    if len(set(names[:v])) < v:
        raise InputError(f"{file.path}: a word comes twice with errors={errors!r}: 'surrogateescape' keeps words apart")
    return names, counts


def _slots(file, n_pruned, bucket):
    """Which row each bucket has after pruning, -1 none."""
    pairs = file.array(f"the buckets of {n_pruned:,} rows", "<i4", n_pruned, 2)
    buckets, rows = pairs.T
    file.require(
        bucket <= _MAX_PRUNED_BUCKET
        and np.array_equal(np.sort(rows), np.arange(n_pruned))
        and (n_pruned == 0 or 0 <= buckets.min() <= buckets.max() < bucket),
        f"a bucket, of {bucket:,}, for each of {n_pruned:,} rows",
    )
    slots = np.full(bucket, -1, np.int32)
    slots[buckets] = rows
    return slots


def _matrix(file, m, n, quantised):
    """float32 [m, n]: as it is in the file, or decoded from product codes.

    matrix[i, columns of subspace s] = norm[i] * centroids[s][codes[i, s]]      without norms, norm[i] = 1
    """
    what = f"a matrix of {m:,} x {n:,}"
    normed = quantised and file.flag("whether the norms of the rows are apart")
    shape = file.unpack("<2q", what)
    file.require(shape == (m, n), f"{what}, found {shape}")
    if not quantised:
        return file.array(what, "<f4", m, n)
    (size,) = file.unpack("<i", "the number of codes")
    file.require(size >= 0, f"the number of codes, found {size}")
    codes = file.array("codes", np.uint8, size)
    subspaces = _subspaces(file, n)
    file.require(size == m * len(subspaces), f"{len(subspaces)} codes for each of {m:,} rows, found {size:,} in all")
    codes = codes.reshape(m, -1)
    matrix = np.empty((m, n), np.float32)
    for s, (columns, centroids) in enumerate(subspaces):
        matrix[:, columns] = centroids[codes[:, s]]
    if normed:
        codes = file.array("codes of norms", np.uint8, m)
        ((_, norms),) = _subspaces(file, 1)
        matrix *= norms[codes]
    return matrix


def _subspaces(file, n):
    """The columns of each subspace of a product quantiser of n columns, and its centroids [256, columns]."""
    what = f"a product quantiser of {n:,} columns"
    columns, count, width, last = sizes = file.unpack("<4i", what)
    fits = width > 0 and count == -(-n // width) and last == n - (count - 1) * width
    file.require(columns == n and fits, f"{what}, found {sizes}")
    centroids = file.array("centroids", "<f4", _CENTROIDS * n)
    slices = [slice(start, min(start + width, n)) for start in range(0, n, width)]
    return [(s, centroids[_CENTROIDS * s.start : _CENTROIDS * s.stop].reshape(_CENTROIDS, -1)) for s in slices]


def save_fasttext(vectors: WordVectors, path: _Path) -> None:
    """Write a model for Facebook's fastText and all that reads its ``.bin``; to a path ``*.vec``, its text format.

    What `load_fasttext` read from a ``.bin`` is written byte for byte. Buckets without a row get zeros. Vectors without
    subwords become a model without n-grams; without a header, it says fastText's defaults. The text holds
    ``.vectors`` with five digits, as fastText writes it; `load_word2vec` reads it.

    Raises:
      InputError: the words have no counts or context vectors, which a model needs; a word holds a character that ends
        words in the file; rows have been pruned, which is possible in quantised files only.
    """
    with _writing(path) as file:
        if Path(path).suffix == ".vec":
            _write_vec(file, vectors)
        else:
            _write_model(file, vectors)


def _write_vec(file, vectors):
    file.write(b"%d %d\n" % vectors.vectors.shape)
    layout = "%.5g " * vectors.vectors.shape[1] + "\n"  # with a space at the end, as fastText
    for word, vector in zip(vectors.words, vectors.vectors, strict=True):
        file.write(_name(word, b" \n") + b" " + (layout % tuple(vector.tolist())).encode())


def _write_model(file, vectors):
    subwords = vectors.subwords or Subwords(vectors.vectors, None, min_n=0, max_n=0, bucket=0)
    header = subwords.header or FastTextHeader()
    output = vectors.context_vectors if header.output is None else header.output
    if subwords.pruned:
        raise InputError(
            "vectors: fastText reads pruned models from quantised files only; save them with save_word2vec"
        )
    if vectors.counts is None or output is None:
        lacking = "counts" if vectors.counts is None else "context_vectors"
        raise InputError(f"vectors: .{lacking} is None, but a fastText model needs it; save them with save_word2vec")
    v, d, labels = len(vectors.words), subwords.rows.shape[1], header.labels
    if header.version:
        file.write(struct.pack("<2i", _MAGIC, header.version))
    *settings, lr_update_rate, sample = header[:9]
    ngrams = (subwords.bucket, subwords.min_n, subwords.max_n if header.max_n is None else header.max_n)
    file.write(struct.pack(_OPTIONS, d, *settings, *ngrams, lr_update_rate, sample))
    file.write(struct.pack("<3iq", v + len(labels), v, len(labels), header.n_tokens))
    if header.version:
        file.write(struct.pack("<q", -1))  # nothing is pruned
    kinds = ((vectors.words, vectors.counts.tolist(), 0), (labels, header.label_counts, 1))
    for names, counts, kind in kinds:
        for name, count in zip(names, counts, strict=True):
            file.write(_name(name, b"\0") + struct.pack("<xqb", count, kind))
    _write_matrix(file, (v + subwords.bucket, d), _input_blocks(subwords, v), header.version)
    _write_matrix(file, output.shape, _blocks(output), header.version)


def _input_blocks(subwords, v):
    """The rows of words and of all buckets, a block at a time."""
    yield from _blocks(subwords.rows[:v] if subwords.slots is not None else subwords.rows)
    for slots in _blocks(subwords.slots) if subwords.slots is not None else ():
        block = np.zeros((len(slots), subwords.rows.shape[1]), np.float32)
        block[slots >= 0] = subwords.rows[v + slots[slots >= 0]]
        yield block


def _blocks(array):
    return (array[start : start + _ROWS] for start in range(0, len(array), _ROWS))


def _write_matrix(file, shape, blocks, version):
    file.write(b"\0" if version else b"")  # not quantised
    file.write(struct.pack("<2q", *shape))
    for block in blocks:
        file.write(block.astype("<f4").tobytes())


def _name(word, separators):
    """The word's bytes. InputError if they hold one of those that end it in the file."""
    name = utf8(word)
    if any(byte in separators for byte in name):
        raise InputError(f"the word {word!r} holds a character that ends words in this format: rename it")
    return name
