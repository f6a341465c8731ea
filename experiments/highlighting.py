"""Words that are highlighted, by a weight or by a tag, in the terminal and as HTML; no experiment itself."""

import hashlib
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.text import Text

from seqjax.errors import InputError


def shaded(words: Sequence[str], weights: Sequence[float]) -> str:
    """Words for a terminal, the greater their weight the stronger their colour."""
    top = max(weights, default=0) or 1
    shades = (round(255 - 155 * max(weight, 0) / top) for weight in weights)
    return " ".join(f"\x1b[48;2;255;{s};{s}m\x1b[38;2;0;0;0m{w}\x1b[0m" for w, s in zip(words, shades, strict=True))


def shaded_html(words: Sequence[str], weights: Sequence[float]) -> str:
    """The same as HTML; the weight is shown where the mouse points."""
    top = max(weights, default=0) or 1
    pieces = (
        f'<span style="background: rgba(255, 80, 80, {max(weight, 0) / top:.2f})" title="{weight:.3f}">'
        f"{html.escape(word)}</span>"
        for word, weight in zip(words, weights, strict=True)
    )
    return " ".join(pieces)


Pieces = list[tuple[str, str]]
"""Words, or the words of a span, and the tag, or the type of the span; "" where there is none."""


def _hue(tag: str) -> float:
    """A place on the circle of colours, always the same for a tag."""
    return hashlib.sha256(tag.encode()).digest()[0] / 256


def tagged(pieces: Pieces) -> Text:
    """For a terminal, in colours where it has some.

    >>> print(tagged([("New York", "LOC"), ("is", ""), ("Gotham", "LOC")]))
    [New York]/LOC is Gotham/LOC
    """
    line = Text()
    for words, tag in pieces:
        shown = f"[{words}]/{tag}" if " " in words else f"{words}/{tag}" if tag else words
        red, green, blue = (round(205 + 50 * np.cos(2 * np.pi * (_hue(tag) + k / 3))) for k in range(3))
        line.append(" " if line else "").append(shown, style=f"black on rgb({red},{green},{blue})" if tag else "")
    return line


def tagged_html(pieces: Pieces) -> str:
    """The same as HTML."""
    return " ".join(
        f'<span style="background: hsl({360 * _hue(tag):.0f}, 80%, 85%)">{html.escape(words)} '
        f"<small>{html.escape(tag)}</small></span>"
        if tag
        else html.escape(words)
        for words, tag in pieces
    )


def write_html(path: Path, title: str, paragraphs: Iterable[str]) -> None:
    """A page of paragraphs of HTML."""
    body = "\n".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    style = "body { font: 16px/1.7 sans-serif; max-width: 50em; margin: 2em auto } span { padding: 2px }"
    page = f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<style>{style}</style>\n'
    try:
        path.write_text(f"{page}{body}\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"html={path} cannot be written ({error.strerror}); name a file in a folder.") from error
