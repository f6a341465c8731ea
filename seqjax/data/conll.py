"""Sentences whose words have tags: CoNLL's columns and CoNLL-U."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from seqjax.data.files import PathLike, read_lines
from seqjax.errors import InputError

CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The columns of CoNLL-U."""


class Sentence(NamedTuple):
    """The words of a sentence and the tag of each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def conll_file(
    path: PathLike, *, columns: tuple[int, int] = (0, -1), comment: str | None = None, encoding: str = "utf-8"
) -> list[Sentence]:
    """The sentences of a file with a word a line and its tags in columns, as of CoNLL-2000, CoNLL-2003 and WNUT17.

    Columns stand between tabs in lines that have some, so that words may hold spaces; else between spaces. Blank lines
    separate sentences, and so do lines that begin with -DOCSTART-, which are left out.

    Args:
      path: the file, .gz too; ``conll2000.zip/conll2000/train.txt`` is a file in an archive.
      columns: the places of the word and of its tag in a line, from 0, or negative from its end.
      comment: lines that begin with it are left out. By default there are none: "#" is a word in many corpora.
      encoding: of the file.

    Returns:
      the sentences, which are never empty.

    Raises:
      InputError: the file cannot be read or has no sentence; a line lacks such a column, has another number of columns
        than the lines before, or an empty word or tag.
    """
    found, n_columns = [], 0
    for rows in _blocks(path, encoding, comment, separator="-DOCSTART-"):
        words, tags = [], []
        for where, line in rows:
            fields = line.split("\t") if "\t" in line else [field for field in line.split(" ") if field]
            n_columns = n_columns or _checked(columns, len(fields), where)
            if len(fields) != n_columns:
                raise InputError(f"{where}: has {len(fields)} columns, the lines before it {n_columns}; correct it.")
            word, tag = (fields[column] for column in columns)
            if not (word.strip(" ") and tag.strip(" ")):
                raise InputError(f"{where}: {line!r} has an empty word or tag; correct it.")
            words.append(word)
            tags.append(tag)
        found.append(Sentence(tuple(words), tuple(tags)))
    return _some(found, path)


def _checked(columns: tuple[int, int], n_columns: int, where: str) -> int:
    places = {column % n_columns for column in columns if -n_columns <= column < n_columns}
    if len(places) < 2:
        raise InputError(f"{where}: has {n_columns} columns, too few for a word and a tag at columns={columns}.")
    return n_columns


def conllu_file(path: PathLike, *, tag: str = "upos") -> list[Sentence]:
    """The sentences of a file in CoNLL-U, the format of Universal Dependencies.

    Words are those of the syntax: of "don't", a line 1-2 that is left out, and "do" and "n't". Empty nodes (8.1) and
    comments are left out too.

    Args:
      path: the file, .gz too, or inside a .zip.
      tag: the column that gives the tags, one of `CONLLU`: upos, xpos, deprel and so on.

    Raises:
      InputError: the file cannot be read or has no sentence; there is no such column; a line has not ten columns, an
        empty word or tag, or a number that is not the next.
    """
    if tag not in CONLLU:
        raise InputError(f"tag: {tag!r} is no column of CoNLL-U; choose one of {', '.join(CONLLU)}.")
    found = []
    for rows in _blocks(path, "utf-8", "#"):
        words, tags = [], []
        for where, line in rows:
            fields = line.split("\t")
            if len(fields) != len(CONLLU):
                raise InputError(f"{where}: has {len(fields)} columns between tabs, not {len(CONLLU)}; correct it.")
            row = dict(zip(CONLLU, fields, strict=True))
            if re.fullmatch(r"[0-9]+[-.][0-9]+", row["id"]):
                continue
            if row["id"] != str(len(words) + 1):
                raise InputError(f"{where}: is word {row['id']!r}, but {len(words) + 1} comes next; correct it.")
            if not (row["form"] and row[tag]):
                raise InputError(f"{where}: has an empty word or {tag}; correct it.")
            words.append(row["form"])
            tags.append(row[tag])
        if words:
            found.append(Sentence(tuple(words), tuple(tags)))
    return _some(found, path)


def _blocks(
    path: PathLike, encoding: str, comment: str | None, separator: str | None = None
) -> Iterator[list[tuple[str, str]]]:
    """The lines of each sentence, with where they stand."""
    block = []
    for number, line in enumerate(read_lines(path, encoding=encoding), 1):
        if comment is not None and line.startswith(comment):
            continue
        if line.strip(" \t") and not (separator and line.startswith(separator)):
            block.append((f"{path}:{number}", line))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _some(found: Sequence[Sentence], path: PathLike) -> list[Sentence]:
    if not found:
        raise InputError(f"{path}: has no sentences; give a file with a word a line.")
    return list(found)
