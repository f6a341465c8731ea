"""Corpora with splits of their own, and the beginning of a text file."""

import gzip
import os
import re
import zlib
from itertools import islice
from pathlib import Path

from seqjax.data.sources import TextRange
from seqjax.errors import InputError

NAMES = ("ptb.{}.txt", "wiki.{}.tokens", "{}.txt")
"""The files of Penn Treebank (Mikolov's), of WikiText, and others, with ``train``, ``valid`` and ``test`` for {}."""


def text_folder(path: str | os.PathLike[str]) -> dict[str, TextRange]:
    """A folder with a text file a split as a corpus: train, validation and, where there is one, test.

    The files are ptb.train.txt, ptb.valid.txt and ptb.test.txt; or wiki.train.tokens and so on; or train.txt and so
    on.

    Raises InputError if the folder has no such files or one cannot be read.
    """
    path = Path(path)
    for name in NAMES:
        if (path / name.format("train")).exists():
            break
    else:
        tried = ", ".join(name.format("train") for name in NAMES)
        raise InputError(f"{path}: has none of {tried}; give a folder with the files of a corpus, or a text file.")
    files = {split: path / name.format(split) for split in ("train", "valid", "test")}
    if not files["test"].exists():
        del files["test"]
    try:
        ranges = {split: TextRange(file, 0, file.stat().st_size) for split, file in files.items()}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot read the text ({error.strerror}); put the file there.") from error
    return {"validation" if split == "valid" else split: part for split, part in ranges.items()}


def text_words(
    path: str | os.PathLike[str], *, limit: int | None = None, fraction: float = 0.9, chunk: int = 1 << 20
) -> dict[str, list[tuple[str, bool]]]:
    """The first ``limit`` words of a UTF-8 file, .gz too, as a corpus in memory: train and validation.

    Words stand between white space. `train` is the first `fraction` of the characters, up to the end of a word. Pieces
    have about `chunk` characters and end after a word.

    Raises InputError for a limit below 2, a fraction outside (0, 1), and a file that cannot be read or split.
    """
    path = Path(path)
    if limit is not None and limit < 2:
        raise InputError(f"limit: {limit} words cannot be split; give at least 2, or None for all.")
    if not 0 < fraction < 1:
        raise InputError(f"fraction: {fraction} is not between 0 and 1; 0.9 keeps a tenth for validation.")
    blocks, words = [], 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
            # A word on the border of two blocks counts twice: so many more are read.
            while (limit is None or words <= limit + len(blocks)) and (block := file.read(chunk)):
                blocks.append(block)
                words += len(block.split())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error}); convert it.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot read the text ({error}); give a UTF-8 file, or one in .gz.") from error
    text = "".join(blocks)
    if limit is not None and (last := next(islice(re.finditer(r"\S+", text), limit - 1, None), None)):
        text = text[: last.end()]
    border = _after_word(text, int(len(text) * fraction))
    if not 0 < border < len(text):
        raise InputError(f"{path}: {words} words are too few to split at fraction={fraction}; give a longer text.")
    return {"train": _pieces(text[:border], chunk), "validation": _pieces(text[border:], chunk)}


_SPACE = re.compile(r"\s")


def _after_word(text: str, place: int) -> int:
    """The first place from there on that comes after white space, else the end."""
    space = _SPACE.search(text, max(place - 1, 0))
    return space.end() if space else len(text)


def _pieces(text: str, chunk: int) -> list[tuple[str, bool]]:
    pieces, start = [], 0
    while start < len(text):
        stop = _after_word(text, start + chunk)
        pieces.append((text[start:stop], False))
        start = stop
    return pieces
