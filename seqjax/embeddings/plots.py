"""Looking at word vectors: a map of chosen words, and files for TensorBoard's projector."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from seqjax.embeddings.factorize import pca
from seqjax.embeddings.vectors import WordVectors
from seqjax.errors import InputError
from seqjax.reporting import boxes_for_glyphs


def plot_words(vectors: WordVectors, words: Sequence[str], path: str | os.PathLike) -> Path:
    """Draw words by the first two principal components of their vectors, as a figure at ``path`` (.png, .svg, .pdf).

    Raises:
      InputError: a word is unknown; there are fewer than two words or dimensions; matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure  # not pyplot: that keeps figures and a backend for the whole process
    except ImportError as error:
        raise InputError("plot_words needs matplotlib: python -m pip install matplotlib") from error
    chosen = vectors[words]
    if isinstance(words, str) or min(chosen.shape) < 2:
        raise InputError(f"words: a map needs at least two words and two dimensions, not {chosen.shape}")
    projected, _, variances, _ = pca(jnp.asarray(chosen), 2)
    points, total = np.asarray(projected), chosen.var(axis=0, ddof=1).sum()
    shares = np.asarray(variances) / (total if total else 1)
    side = 5 + min(len(words), 200) / 25
    figure = Figure(figsize=(1.3 * side, side), dpi=160, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.scatter(*points.T, s=14, color="#c2452d", zorder=2)
    axes.margins(0.12)
    axes.set(
        xlabel=f"first principal component ({shares[0]:.0%} of the variance)",
        ylabel=f"second principal component ({shares[1]:.0%})",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    with boxes_for_glyphs():
        figure.draw_without_rendering()  # fixes the layout, so that sizes of labels are known
        _label(axes, points, words, canvas.get_renderer())
        figure.savefig(path)
    return Path(path)


def _label(axes, points, words, renderer):
    """Write each word beside its point, on the side where it covers least of other labels and points."""
    sides = [
        (x, y, horizontal, vertical)
        for y, vertical in ((0, "center_baseline"), (4, "bottom"), (-4, "top"))
        for x, horizontal in ((5, "left"), (-5, "right"), (0, "center"))
        if x or y
    ]
    dots = axes.transData.transform(points)
    taken = np.concatenate([dots - 4, dots + 4], axis=1)  # boxes (left, bottom, right, top) in pixels
    for point, word in zip(points, words, strict=True):
        label = axes.annotate(
            word, point, xytext=(0, 0), textcoords="offset points", fontsize=9, color="#3a3a3a", parse_math=False
        )
        boxes = []
        for x, y, horizontal, vertical in sides:
            label.set(position=(x, y), horizontalalignment=horizontal, verticalalignment=vertical)
            boxes.append(label.get_window_extent(renderer).extents)
        best = int(np.argmin([_overlap(box, taken) for box in boxes]))
        x, y, horizontal, vertical = sides[best]
        label.set(position=(x, y), horizontalalignment=horizontal, verticalalignment=vertical)
        taken = np.concatenate([taken, boxes[best][None]])


def _overlap(box, boxes) -> float:
    """The area of a box, (left, bottom, right, top), that others cover, counted as often as they do."""
    sizes = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    return float(sizes.clip(0).prod(axis=1).sum())


def export_projector(vectors: WordVectors, directory: str | os.PathLike) -> Path:
    """Write what TensorBoard's projector reads: ``tensorboard --logdir DIRECTORY``; its first two files can also be
    loaded at projector.tensorflow.org.

    ``vectors.tsv``, a row of numbers for each word; ``metadata.tsv``, the words with their counts, or with their ranks
    where counts are not known; ``projector_config.pbtxt``. The browser becomes slow beyond about 100,000 words: pass a
    `WordVectors.subset`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "vectors.tsv", "w", encoding="utf-8") as file:
        file.writelines("\t".join(f"{x:.6g}" for x in row.tolist()) + "\n" for row in vectors.vectors)
    name, numbers = (
        ("count", vectors.counts) if vectors.counts is not None else ("rank", np.arange(1, len(vectors) + 1))
    )
    with open(directory / "metadata.tsv", "w", encoding="utf-8") as file:
        # Always two columns: from a single one the projector drops lines of white space, such as the word U+00A0.
        file.write(f"word\t{name}\n")
        spaced = (word.translate({ord(c): " " for c in "\t\n\r"}) for word in vectors.words)
        file.writelines(f"{word}\t{number}\n" for word, number in zip(spaced, numbers.tolist(), strict=True))
    config = 'embeddings {\n  tensor_name: "words"\n  tensor_path: "vectors.tsv"\n  metadata_path: "metadata.tsv"\n}\n'
    (directory / "projector_config.pbtxt").write_text(config, encoding="utf-8")
    return directory
