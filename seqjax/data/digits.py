"""Images of handwritten digits: small ones from a file of an installed package, MNIST from a file of yours."""

import math
import zipfile
from typing import NamedTuple

import numpy as np

from seqjax.data.files import PathLike, read_lines
from seqjax.data.packaged import packaged_file
from seqjax.errors import InputError


class Images(NamedTuple):
    """Images and what they show."""

    pixels: np.ndarray  # [N, height, width] float32, from 0 to 1
    labels: np.ndarray  # [N] int32


def digits() -> dict[str, Images]:
    """1,797 digits of 8 × 8 pixels: 1,257 to train, 180 for validation and 360 for the test, drawn once and for all.

    The same people wrote those of all splits. The images are those of the package `scikit-learn`, the test set of the
    UCI "Optical Recognition of Handwritten Digits", by E. Alpaydin and C. Kaynak.

    Raises InputError if the package is not installed.
    """
    images = small_digits()
    # Sorting raw words shuffles, and they never change between NumPy versions.
    order = np.argsort(np.random.SeedSequence(0).generate_state(len(images.labels), np.uint64), kind="stable")
    parts = {"test": order[:360], "validation": order[360:540], "train": order[540:]}
    return {split: Images(images.pixels[rows], images.labels[rows]) for split, rows in parts.items()}


def small_digits() -> Images:
    """All images of `digits`, as the package has them: writer by writer."""
    return image_lines(packaged_file("scikit-learn", "sklearn", "datasets", "data", "digits.csv.gz"))


def image_lines(path: PathLike, *, highest: int = 16) -> Images:
    """Square images, one a line: pixels row by row, from 0 to ``highest``, then the label, between commas.

    Raises InputError, with the line, for what is no number, is out of range, or makes no square.
    """
    rows, side = [], 0
    for number, line in enumerate(read_lines(path), 1):
        try:
            row = [float(field) for field in line.split(",")]
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}; give numbers between commas.") from error
        side = side or math.isqrt(len(row) - 1)
        if side == 0 or side * side != len(row) - 1:
            raise InputError(
                f"{path}:{number}: {len(row)} numbers are no square image and its label; give as many in each line."
            )
        if not all(0 <= pixel <= highest for pixel in row[:-1]) or not 0 <= row[-1] < 2**31 or row[-1] % 1:
            raise InputError(f"{path}:{number}: pixels must be from 0 to {highest} and the label 0, 1, …")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: there is no image in it; give a line for each.")
    table = np.array(rows, np.float32)
    return Images(
        table[:, :-1].reshape(len(table), side, side) / highest, np.array([row[-1] for row in rows], np.int32)
    )


def mnist_file(path: PathLike, *, validation: int = 5000) -> dict[str, Images]:
    """The .npz with ``x_train, y_train, x_test, y_test`` in which MNIST is usually kept; pixels are from 0 to 255.

    The last ``validation`` images of the training set validate.

    Raises InputError if the file cannot be read or holds something else.
    """
    try:
        with np.load(path) as file:
            arrays = [file[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:  # a .npy is a TypeError
        raise InputError(
            f"{path}: cannot read the images ({error}); give a .npz with x_train, y_train, x_test and y_test."
        ) from error
    x_train, y_train, x_test, y_test = arrays
    for name, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if x.ndim != 3 or x.dtype != np.uint8 or y.shape != x.shape[:1] or x.shape[1:] != x_train.shape[1:]:
            raise InputError(
                f"{path}: x_{name} {x.dtype.name}{x.shape} and y_{name} {y.shape} must be uint8 [N, height, width] "
                "and [N]."
            )
        if y.dtype.kind not in "ui" or (len(y) and y.min() < 0):
            raise InputError(f"{path}: the labels y_{name} must be whole numbers, 0 or more.")
    if not 0 < validation < len(x_train):
        raise InputError(f"validation: {validation} of {len(x_train)} training images; leave some for both.")
    images = {
        "train": (x_train[:-validation], y_train[:-validation]),
        "validation": (x_train[-validation:], y_train[-validation:]),
        "test": (x_test, y_test),
    }
    return {split: Images(x.astype(np.float32) / 255, y.astype(np.int32)) for split, (x, y) in images.items()}
