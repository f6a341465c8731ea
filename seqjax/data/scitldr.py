"""SciTLDR: abstracts of papers on machine learning and their summaries in one sentence (Cachola et al. 2020)."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from seqjax.errors import InputError

FILES = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}


class Paper(NamedTuple):
    """A paper. White space is single spaces everywhere."""

    title: str
    sentences: tuple[str, ...]  # of the abstract; the first is the baseline LEAD
    targets: tuple[str, ...]  # summaries, the author's first; a training paper has one

    @property
    def abstract(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)


def scitldr(path: str | os.PathLike[str]) -> dict[str, list[Paper]]:
    """A folder with train.jsonl, dev.jsonl and test.jsonl of SciTLDR-A as a corpus: train, validation and test.

    A line is a JSON object with the fields ``title``, a string, and ``source`` and ``target``, lists of strings; others
    are ignored.

    Raises InputError, with file and line, if a file cannot be read or a line is none of those.
    """
    return {split: _papers(Path(path) / name) for split, name in FILES.items()}


def _papers(path: Path) -> list[Paper]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the papers ({error.strerror}); give a folder with {', '.join(FILES.values())}."
        ) from error
    return [_paper(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _paper(line: bytes, where: str) -> Paper:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: is not JSON ({error}); copy the file again.") from error
    fields = record if isinstance(record, dict) else {}
    title, sentences, targets = fields.get("title"), _texts(fields.get("source")), _texts(fields.get("target"))
    if not (isinstance(title, str) and sentences and targets):
        raise InputError(f"{where}: has no title, no source or no target; take the files of SciTLDR-A.")
    return Paper(" ".join(title.split()), sentences, targets)


def _texts(field) -> tuple[str, ...]:
    """The texts of a field that are not blank; none where it is not a list of strings."""
    if not isinstance(field, list) or not all(isinstance(text, str) for text in field):
        return ()
    return tuple(" ".join(text.split()) for text in field if text.strip())
