"""Polyphonic music as pianos play it: which of the 88 keys sound in each frame."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from seqjax.data.files import PathLike, read_json
from seqjax.errors import InputError

LOWEST, KEYS = 21, 88
"""The MIDI number of a piano's first key, A0, and how many keys follow it."""

Piece = list[tuple[int, ...]]
"""The pitches of each frame, as MIDI numbers, in rising order; none is silence."""


def chorales_file(path: PathLike) -> dict[str, list[Piece]]:
    """Pieces as lists of frames, which are lists of pitches: ``{"train": pieces, "valid": pieces, "test": pieces}``.

    Bach's chorales (JSB) are kept so at several resolutions, in the splits of Boulanger-Lewandowski et al. (2012), and
    so may other music be. The split "valid" is called validation here.

    Raises:
      InputError: the file cannot be read, or is no JSON; a split is missing or empty; a piece has no frame; a pitch is
        no key of a piano. It names the file and the piece.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f'{path}: must be an object with the pieces of "train", "valid" and "test".')
    found = {}
    for split, name in {"train": "train", "validation": "valid", "test": "test"}.items():
        pieces = content.get(name)
        if not isinstance(pieces, list) or not pieces:
            raise InputError(f'{path}: there is no list of pieces for "{name}"; give one for each split.')
        found[split] = [_piece(piece, f"{path}: {name}, piece {i}") for i, piece in enumerate(pieces)]
    return found


def _piece(frames: Any, where: str) -> Piece:
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{where}: is no list of frames; give at least one.")
    piece = []
    for t, pitches in enumerate(frames):
        if not isinstance(pitches, list):
            raise InputError(f"{where}, frame {t}: {pitches!r} is no list of pitches; silence is [].")
        for pitch in pitches:
            if not isinstance(pitch, int | float) or not 0 <= pitch - LOWEST < KEYS or pitch != int(pitch):
                raise InputError(
                    f"{where}, frame {t}: {pitch!r} is no key; pitches are MIDI numbers from {LOWEST} to "
                    f"{LOWEST + KEYS - 1}."
                )
        piece.append(tuple(sorted({int(pitch) for pitch in pitches})))
    return piece


def piano_roll(piece: Sequence[Sequence[int]]) -> np.ndarray:
    """bool [T, 88]: which keys sound.

    >>> piano_roll([(60, 64), ()]).nonzero()
    (array([0, 0]), array([39, 43]))
    """
    roll = np.zeros((len(piece), KEYS), bool)
    for frame, pitches in zip(roll, piece, strict=True):
        frame[np.array(pitches, int) - LOWEST] = True
    return roll


def pitches(roll: np.ndarray) -> Piece:
    """The inverse of `piano_roll`."""
    return [tuple((np.flatnonzero(frame) + LOWEST).tolist()) for frame in roll]
