"""Parallel corpora: a text in two languages, line by line."""

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from seqjax.errors import InputError

NAMES = {
    "train": ("train",),
    "validation": ("val", "valid", "dev", "validation"),
    "test": ("test", "test_2016_flickr"),
}
"""How the files of a split are called, before ``.de`` or ``.de.gz``; the last is Multi30k's."""


def text_lines(path: str | os.PathLike[str]) -> list[str]:
    r"""The lines of a UTF-8 file, .gz too, without their ends, which are ``\n`` or ``\r\n`` and nothing else.

    Raises InputError if the file cannot be read or is not UTF-8.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not valid UTF-8; convert the file to UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot read the text ({error}); give a UTF-8 file, or one in .gz.") from error
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()  # the file ends with a line's end, as it should
    return [line.removesuffix("\r") for line in lines]


def parallel_texts(
    source_path: str | os.PathLike[str], target_path: str | os.PathLike[str]
) -> tuple[list[str], list[str]]:
    """The lines of two files of which each line translates the same line of the other; empty lines are kept.

    Raises InputError if a file cannot be read, or the files have different numbers of lines.
    """
    sources, targets = text_lines(source_path), text_lines(target_path)
    if len(sources) != len(targets):
        raise InputError(
            f"{source_path} has {len(sources)} lines and {target_path} has {len(targets)}; give files that are "
            "translations of each other line by line."
        )
    return sources, targets


def parallel_folder(
    path: str | os.PathLike[str], source_language: str, target_language: str
) -> dict[str, tuple[list[str], list[str]]]:
    """A folder with a file a split and language, as a corpus: train, validation and, where there is one, test.

    For German these are train.de; val.de, valid.de, dev.de or validation.de; test.de or test_2016_flickr.de; each may
    be in .gz.

    Raises InputError if the folder lacks the files of train or of validation, or `parallel_texts` does.
    """
    path, languages = Path(path), (source_language, target_language)
    corpus = {}
    for split, names in NAMES.items():
        found = [[file for language in languages if (file := _file(path / f"{name}.{language}"))] for name in names]
        both = next((files for files in found if len(files) == 2), None)
        if both is not None:
            corpus[split] = parallel_texts(*both)
        elif split != "test":
            tried = ", ".join(f"{name}.{language}" for name in names for language in languages)
            raise InputError(
                f"{path}: has no {split} files in both {source_language!r} and {target_language!r}: tried {tried}, "
                "and each with .gz; give a folder that has them."
            )
    return corpus


def _file(path: Path) -> Path | None:
    """The file, plain or compressed."""
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def without_empty(sources: Sequence[str], targets: Sequence[str]) -> tuple[list[str], list[str], int]:
    """The pairs with text on both sides, and how many others there were: nothing is learned from those.

    >>> without_empty(["a", " ", "c"], ["A", "B", ""])
    (['a'], ['A'], 2)
    """
    kept = [pair for pair in zip(sources, targets, strict=True) if all(text.strip() for text in pair)]
    return [source for source, _ in kept], [target for _, target in kept], len(sources) - len(kept)
