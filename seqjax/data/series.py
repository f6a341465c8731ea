"""Time series: tables of numbers, a row a time, from files or from an installed package."""

import csv
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from seqjax.data.files import PathLike, read_lines
from seqjax.data.packaged import packaged_file
from seqjax.errors import InputError


class Series(NamedTuple):
    """Quantities that were measured at the same times."""

    names: tuple[str, ...]  # of the D quantities
    times: tuple[str, ...]  # as the file has them
    values: np.ndarray  # [T, D] float64


def series_file(path: PathLike, *, columns: Sequence[str] = ()) -> Series:
    r"""A .csv whose first line names its columns and whose first column tells the time, in any form.

    Args:
      path: the file, .gz too, or inside a .zip.
      columns: which quantities to read; without any, all.

    Raises:
      InputError: the file cannot be read or is empty; there is no such column; a line has another number of fields, or
        one that is no finite number.
    """
    lines = _fields(path)
    header = [name.strip() for name in next(lines, ("", []))[1]]
    if len(header) < 2:
        raise InputError(f"{path}:1: {len(header)} columns; give a time and at least one quantity, between commas.")
    if len(set(header[1:])) < len(header[1:]):
        raise InputError(f"{path}:1: two columns have the same name; rename one of them.")
    if unknown := [name for name in columns if name not in header[1:]]:
        raise InputError(f"{path}:1: there is no column {unknown[0]!r}; choose from {', '.join(header[1:])}.")
    places = [1 + header[1:].index(name) for name in columns] or list(range(1, len(header)))
    times, values = [], []
    for where, fields in lines:
        if len(fields) not in (0, len(header)):
            raise InputError(f"{where}: {len(fields)} fields for {len(header)} columns; repair the line.")
        if fields:
            times.append(fields[0])
            values.append([_number(fields[place], f"{where}: {header[place]}") for place in places])
    if not values:
        raise InputError(f"{path}: there is no line below the names of the columns; give a longer series.")
    return Series(tuple(header[place] for place in places), tuple(times), np.array(values))


def sunspots() -> Series:
    """The number of sunspots in each year from 1700 to 2008.

    The file is that of the package `statsmodels`; the data, of the National Geophysical Data Center, are in the public
    domain.

    Raises InputError if the package is not installed.
    """
    return series_file(packaged_file("statsmodels", "statsmodels", "datasets", "sunspots", "sunspots.csv"))


def _fields(path: PathLike) -> Iterator[tuple[str, list[str]]]:
    """Where each line is, and its fields."""
    lines = csv.reader(read_lines(path), strict=True)
    try:
        for fields in lines:
            yield f"{path}:{lines.line_num}", fields
    except csv.Error as error:
        raise InputError(f"{path}:{lines.line_num}: {error}; repair the line.") from error


def _number(field: str, where: str) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where} is {field!r}, which is no finite number; fill it in, or leave out the line.")
    return value
