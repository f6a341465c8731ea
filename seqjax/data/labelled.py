"""Texts with labels, in the formats of the usual data sets for classification."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from seqjax.data.files import PathLike, read_lines, read_text
from seqjax.errors import InputError

PREFIX = "__label__"
"""What fastText puts before a label."""


class Labelled(NamedTuple):
    """A text, without white space around it, and its labels: one, or several where they do not exclude each other."""

    text: str
    labels: tuple[str, ...]


def labelled_lines(path: PathLike, *, encoding: str = "utf-8") -> list[Labelled]:
    """A file with ``label text`` a line, as of TREC and SST, or with fastText's ``__label__a __label__b text``.

    The label ends at the first space or tab. If the first line begins with ``__label__``, all must, and may have
    several labels. Blank lines are left out.

    Args:
      path: the file, .gz too, or inside a .zip.
      encoding: of the file; TREC is latin-1.

    Raises:
      InputError: the file cannot be read or is empty; a line has no label or no text.
    """
    found, fasttext = [], None
    for number, line in enumerate(read_lines(path, encoding=encoding), 1):
        if not line.strip():
            continue
        rest, labels = line, []
        if fasttext is None:
            fasttext = line.startswith(PREFIX)
        while rest.startswith(PREFIX) if fasttext else not labels:
            label, rest = _first(rest)
            labels.append(label.removeprefix(PREFIX))
        found.append(_checked(rest, labels, f"{path}:{number}"))
    return _some(found, path)


def labelled_tsv(
    path: PathLike,
    *,
    text: int | str = 1,
    label: int | str = 0,
    quoted: bool = True,
    encoding: str = "utf-8",
) -> list[Labelled]:
    """A file with a text a row and columns between tabs, as of 20 Newsgroups and GLUE.

    Args:
      path: the file, .gz too, or inside a .zip.
      text: which column is the text: its place from 0, or its name. If a column has a name, the first row has names.
      label: which column is the label, likewise.
      quoted: a field that begins with ``"`` ends with ``"``, and what is between may hold tabs, line ends and ``""``
        for a quotation mark; as spreadsheets write them. Give False where quotation marks are characters as others.
      encoding: of the file.

    Raises:
      InputError: the file cannot be read or has no rows; a row has another number of columns than the first, lacks a
        text or a label, or is quoted wrongly; there is no such column.
    """
    columns, found, places = (label, text), [], None
    n_columns = 0
    for where, row in _rows(path, encoding, quoted):
        if places is None:
            n_columns, places = len(row), tuple(_place(column, row, where) for column in columns)
            if any(isinstance(column, str) for column in columns):
                continue
        if len(row) != n_columns:
            raise InputError(
                f"{where}: has {len(row)} columns, the first row {n_columns}; correct it, or give quoted={not quoted}."
            )
        found.append(_checked(row[places[1]], [row[places[0]]], where))
    return _some(found, path)


def labelled_folder(path: PathLike, *, encoding: str = "utf-8") -> list[Labelled]:
    """A folder that holds a folder a class, named like it, with a text a file, .gz too; in the order of their names.

    Files beside the folders are no texts, nor those whose names begin with a dot.

    Raises InputError if there are no such folders, one is empty, or a file cannot be read or holds no text.
    """
    path = Path(path)
    folders = sorted(folder for folder in _visible(path) if folder.is_dir()) if path.is_dir() else []
    if not folders:
        raise InputError(f"{path}: holds no folders; give a folder with one for each class.")
    found = []
    for folder in folders:
        files = sorted(file for file in _visible(folder) if file.is_file())
        if not files:
            raise InputError(f"{folder}: holds no texts; put a file for each there, or remove it.")
        found += [_checked(read_text(file, encoding=encoding), [folder.name], str(file)) for file in files]
    return found


def labelled_files(paths: Sequence[PathLike], *, encoding: str = "utf-8") -> list[Labelled]:
    """A file a class with a text a line: the label is how its name ends, such as ``neg`` of ``rt-polarity.neg``.

    Blank lines are left out, and an ending .gz is none.

    Args:
      paths: the files of all classes.
      encoding: of the files; movie reviews (rt-polarity) and Subj are cp1252.

    Raises:
      InputError: a file cannot be read or is empty; its name has no ending, or that of another file.
    """
    found, seen = [], {}
    for path in map(Path, paths):
        label = path.with_suffix("" if path.suffix == ".gz" else path.suffix).suffix.removeprefix(".")
        if not label or label in seen:
            other = f"{seen[label]} ends so too" if label else "has no ending"
            raise InputError(f"{path}: {other}; give a file a class, named such as reviews.neg and reviews.pos.")
        seen[label] = path
        lines = read_lines(path, encoding=encoding)
        found += _some([Labelled(line.strip(), (label,)) for line in lines if line.strip()], path)
    return found


def _visible(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _first(line: str) -> tuple[str, str]:
    """What is before the first space or tab, and what is after it and others."""
    label = line.replace("\t", " ").partition(" ")[0]
    return label, line[len(label) :].lstrip(" \t")


def _checked(text: str, labels: Sequence[str], where: str) -> Labelled:
    if not labels or not all(label.strip() for label in labels):
        raise InputError(f"{where}: has no label; put one before the text.")
    if not text.strip():
        raise InputError(f"{where}: has no text, only the label {labels[0]!r}; remove it.")
    return Labelled(text.strip(), tuple(labels))


def _some(found: list[Labelled], path: PathLike) -> list[Labelled]:
    if not found:
        raise InputError(f"{path}: has no texts; give a file that is not empty.")
    return found


def _rows(path: PathLike, encoding: str, quoted: bool) -> Iterator[tuple[str, list[str]]]:
    """The rows that are not blank, and where they begin."""
    if not quoted:
        for number, line in enumerate(read_lines(path, encoding=encoding), 1):
            if line:
                yield f"{path}:{number}", line.split("\t")
        return
    text = read_text(path, encoding=encoding)
    rows = csv.reader(io.StringIO(text, newline="\n"), delimiter="\t", strict=True)
    while True:
        where = f"{path}:{rows.line_num + 1}"
        limit = csv.field_size_limit(len(text) + 1)  # that of all readers: texts may be longer than 128 kB
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise InputError(
                f"{where}: {error} in the row that begins here; correct it, or give quoted=False."
            ) from error
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield where, row


def _place(column: int | str, row: Sequence[str], where: str) -> int:
    if isinstance(column, str) and column in row:
        return row.index(column)
    if isinstance(column, int) and -len(row) <= column < len(row):
        return column
    raise InputError(f"{where}: there is no column {column!r} among the {len(row)} of {list(row)!r:.200}.")
