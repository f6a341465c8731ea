"""Corpora from files, and their tokens on disk.

Everything streams: neither the text nor its tokens need to fit in memory.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from seqjax.errors import InputError
from seqjax.text import EOS, Tokenizer

_PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class TextRange:
    """The bytes `start` to `stop` of a UTF-8 file as pieces of at most `chunk` bytes; can be iterated again and again.

    Both ends must lie between characters. Pieces end after white space where the chunk has some, so that no word is
    cut, and else between two characters. No piece is the last of its document: a text file is one stream. Nothing is
    translated: line ends and a byte order mark stay as they are.

    Raises InputError, with the position in the file, where the bytes are not UTF-8.
    """

    path: Path
    start: int
    stop: int
    chunk: int = 1 << 20

    def __post_init__(self):
        if self.chunk < 4:
            raise InputError(f"chunk: {self.chunk} bytes cannot hold every character; give at least 4.")

    def __iter__(self) -> Iterator[tuple[str, bool]]:
        position = self.start
        with open(self.path, "rb") as file:
            while position < self.stop:
                file.seek(position)
                block = file.read(min(self.chunk, self.stop - position))
                if not block:
                    raise InputError(f"{self.path}: ends at byte {position}, expected {self.stop}; it has changed.")
                if position + len(block) < self.stop:
                    block = block[: _cut(block)]
                try:
                    text = block.decode()
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{self.path}: byte {position + error.start} is not valid UTF-8; convert the file to UTF-8."
                    ) from error
                yield text, False
                position += len(block)


def _cut(block: bytes) -> int:
    """Where to end a piece: after the last white space, else between characters."""
    after_space = 1 + max(block.rfind(space) for space in (b" ", b"\n", b"\t", b"\r"))
    if after_space:
        return after_space
    # Without white space: before the last character, which the block may hold only in part. A character has at most
    # three bytes after its first, so if none of the last three begins one, the block ends with a whole character.
    begins = (i for i in range(len(block) - 1, max(0, len(block) - 4), -1) if not _continues(block[i]))
    return next(begins, len(block))


def _continues(byte: int) -> bool:
    """Whether a byte is inside a UTF-8 character and does not begin one."""
    return byte & 0xC0 == 0x80


def text_file(path: _PathLike, *, fraction: float = 0.9) -> dict[str, TextRange]:
    """A UTF-8 file as a corpus: `train` is the first `fraction` of its bytes, `validation` the rest.

    The border moves forward to the next character. An ASCII file of n characters is split at `int(n * fraction)`.

    Raises InputError for a fraction outside (0, 1), and for a file that is missing, a directory, or too short to split.
    """
    path = Path(path)
    if not 0 < fraction < 1:
        raise InputError(f"fraction: {fraction} is not between 0 and 1; 0.9 keeps a tenth for validation.")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            border = int(size * fraction)
            file.seek(border)
            ahead = file.read(4)
            border += next((i for i, byte in enumerate(ahead) if not _continues(byte)), len(ahead))
    except OSError as error:
        raise InputError(f"{path}: cannot read the text ({error.strerror}); give the path of a UTF-8 file.") from error
    if not 0 < border < size:
        raise InputError(
            f"{path}: {size} bytes are too few to split at fraction={fraction}; give a longer file or another fraction."
        )
    return {"train": TextRange(path, 0, border), "validation": TextRange(path, border, size)}


def tokens(pieces: Iterable[tuple[str, bool]], tokenizer: Tokenizer, path: _PathLike) -> np.ndarray:
    """Encode a corpus split into a .npy file at `path` and return it memory-mapped [n], read-only.

    `<eos>` follows each piece that ends a document. The dtype is the smallest unsigned one that holds the vocabulary.
    One piece at a time is in memory. The file appears under its name only when it is complete.

    Raises InputError if there are no tokens.
    """
    path = Path(path)
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            # The length is known only at the end. NumPy pads a header so that the length can grow in place.
            begin = _write_header(file, dtype, 0)
            count = 0
            for text, last in pieces:
                ids = tokenizer.encode(text).astype(dtype)
                ids = np.append(ids, dtype.type(EOS)) if last else ids
                file.write(ids.data)
                count += ids.size
            file.seek(0)
            if _write_header(file, dtype, count) != begin:
                raise RuntimeError("the .npy header changed its length; this NumPy does not pad it")
        if not count:
            raise InputError(f"{path.name}: the corpus has no tokens; give a text that is not empty.")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def _write_header(file: BinaryIO, dtype: np.dtype, count: int) -> int:
    """Write the .npy header of a vector; returns where its data begin."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def cache_dir() -> Path:
    """Where prepared data sets are kept: `$SEQJAX_CACHE`, else ~/.cache/seqjax."""
    return Path(os.environ.get("SEQJAX_CACHE") or Path.home() / ".cache" / "seqjax")
