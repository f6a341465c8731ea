"""Parallel corpora: a text in two languages, line by line."""

from collections.abc import Sequence
from pathlib import Path

from seqjax.data.files import PathLike, read_lines
from seqjax.errors import InputError

NAMES = {
    "train": ("train",),
    "validation": ("val", "valid", "dev", "validation"),
    "test": ("test", "test_2016_flickr"),
}
"""How the files of a split are called, before ``.de`` or ``.de.gz``; the last is Multi30k's."""


def parallel_texts(source_path: PathLike, target_path: PathLike) -> tuple[list[str], list[str]]:
    """The lines of two files of which each line translates the same line of the other; empty lines are kept.

    Raises InputError if a file cannot be read, or the files have different numbers of lines.
    """
    sources, targets = read_lines(source_path), read_lines(target_path)
    if len(sources) != len(targets):
        raise InputError(
            f"{source_path} has {len(sources)} lines and {target_path} has {len(targets)}; give files that are "
            "translations of each other line by line."
        )
    return sources, targets


def parallel_folder(
    path: PathLike, source_language: str, target_language: str
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
