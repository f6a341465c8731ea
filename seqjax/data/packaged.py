"""Data sets that ordinary packages ship, read as files: nothing of the package is imported, nothing is downloaded."""

import importlib.metadata
from pathlib import Path

from seqjax.errors import InputError


def packaged_file(package: str, *parts: str) -> Path:
    """The path of a file of an installed package.

    Args:
      package: as it is called on PyPI, one of ``seqjax[examples]``.
      parts: of the file's path there.

    Raises:
      InputError: the package is not installed, or has no such file.
    """
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        distribution = None
    for file in (distribution.files if distribution else None) or []:
        if file.parts == parts:
            return Path(str(file.locate()))
    raise InputError(f'{"/".join(parts)} of {package} is not installed; run: pip install "seqjax[examples]"')
