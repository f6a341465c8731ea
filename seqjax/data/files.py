"""The text of a data set's files: plain, in .gz or inside a .zip, in any encoding."""

import gzip
import json
import os
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

from seqjax.errors import InputError

PathLike = str | os.PathLike[str]


def read_text(path: PathLike, *, encoding: str = "utf-8") -> str:
    r"""The text of a file, or of what a .gz holds. ``corpus.zip/folder/train.txt`` is a file inside an archive.

    A byte order mark is left out; line ends stay as they are.

    Raises InputError if the file cannot be read, is not in this encoding, which names the line, or there is no such
    encoding.
    """
    path = Path(path)
    content = _content(path)
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise InputError(
            f"{path}:{line}: the byte {content[error.start]:#04x} is not {encoding}; convert the file, or give its "
            "encoding, such as latin-1."
        ) from error
    except LookupError as error:
        raise InputError(f"encoding: {encoding!r} is no encoding of text; use utf-8, latin-1, cp1252 …") from error


def read_lines(path: PathLike, *, encoding: str = "utf-8") -> list[str]:
    r"""The lines of `read_text` without their ends, which are ``\n`` or ``\r\n`` and nothing else.

    Old files in latin-1 have characters, such as 0x85, that Unicode takes for the end of a line.

    Raises InputError as `read_text` does.
    """
    return _lines(read_text(path, encoding=encoding))


def standard_input() -> list[str]:
    """The lines of the standard input, as `read_lines` gives those of a file."""
    try:
        return _lines(sys.stdin.buffer.read().decode())
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: byte {error.start} is not valid UTF-8; convert it to UTF-8.") from error


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()  # the text ends with a line's end, as it should
    return [line.removesuffix("\r") for line in lines]


def read_json(path: PathLike) -> Any:
    """What a file of JSON holds, plain, in .gz or inside a .zip.

    Raises InputError as `read_text` does, and if it is no JSON, which names the line.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: is not JSON ({error.msg}); copy the file again.") from error
    except RecursionError as error:
        raise InputError(f"{path}: is not JSON that can be read (it is too deep); copy the file again.") from error


def _content(path: Path) -> bytes:
    archive = next((place for place in (path, *path.parents) if place.suffix == ".zip" and place.is_file()), None)
    try:
        content = path.read_bytes() if archive is None else _member(path, archive)
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot read the text ({error}); give a text file, or one in .gz or .zip.") from error


def _member(path: Path, archive: Path) -> bytes:
    name = path.relative_to(archive).as_posix()
    with zipfile.ZipFile(archive) as file:
        files = [entry.filename for entry in file.infolist() if not entry.is_dir()]
        if name not in files:
            raise InputError(f"{path}: is no file in the archive; give {archive}/ and one of {', '.join(files):.300}.")
        return file.read(name)
