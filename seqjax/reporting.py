"""Where the results of a training run go: ``metrics.jsonl``, TensorBoard, the screen and a learning curve.

``metrics.jsonl`` is always written. TensorBoard files (tensorboardX), the progress bar (rich) and the figure
(matplotlib) are extras: on a machine without these packages a run goes on without them.
"""

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsFloat

import jax

from seqjax.errors import InputError


class Reporter:
    """Reports one run; a context manager. In a run of several processes all have one, and only the first one's writes.

    Without `resume_step` the reports of an earlier run in `directory` are dropped; with it, those after that step are.
    On a terminal a progress bar is shown, elsewhere plain lines; ``console=False`` shows nothing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory, Reporter(directory, total_steps=2000) as reporter:
    ...     reporter.metrics(200, "validation", {"loss": 1.9125, "accuracy": 0.5}, 12.3)
    ...     print((Path(directory) / "metrics.jsonl").read_text(), end="")
    step 200/2000  validation loss 1.913  accuracy 0.500  0:12
    {"step": 200, "split": "validation", "loss": 1.9125, "accuracy": 0.5, "seconds": 12.3}
    """

    def __init__(
        self, directory: str | os.PathLike, *, total_steps: int, resume_step: int | None = None, console: bool = True
    ):
        self._total, self._console, self._start = total_steps, False, time.monotonic()
        if jax.process_index() > 0:
            self._file, self._tensorboard, self._bar = open(os.devnull, "w"), None, None  # noqa: SIM115
            return
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        last = -1 if resume_step is None else resume_step
        kept = _truncate(directory / "metrics.jsonl", last)
        self._file = open(directory / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._tensorboard = _open_tensorboard(directory / "tensorboard", last + 1)
        self._console = console
        self._bar = _start_bar(total_steps, max(last, 0)) if console else None
        self._start -= kept[-1].get("seconds", 0.0) if kept else 0.0

    def metrics(self, step: int, split: str, values: Mapping[str, SupportsFloat], seconds: float) -> None:
        """Record the values of a split at a step, after so many seconds of training; show them unless it is `train`.

        What is not finite becomes null. The line is flushed before this returns.
        """
        row = {"step": step, "split": split, **{name: _jsonable(x) for name, x in values.items()}, "seconds": seconds}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        if self._tensorboard:
            for name, value in values.items():
                if math.isfinite(float(value)):
                    self._tensorboard.add_scalar(f"{split}/{name}", float(value), step)
        if split != "train":  # that is what `progress` shows
            self.note(_line(step, self._total, split, values, seconds))

    def members(self, step: int, split: str, values: Mapping[int, Mapping[str, SupportsFloat]], seconds: float) -> None:
        """Record the values of each member of a study, ``member -> values``, one line each. Nothing is shown."""
        for member, found in values.items():
            row = {"step": step, "split": split, "member": member, **{name: _jsonable(x) for name, x in found.items()}}
            self._file.write(json.dumps(row | {"seconds": seconds}, allow_nan=False) + "\n")
        self._file.flush()

    def progress(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Show how far training is, for instance with its loss and tokens/s. Nothing is recorded."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, values=_values(values))
        else:
            self.note(_line(step, self._total, "train", values, time.monotonic() - self._start))

    def note(self, message: str) -> None:
        """Show a line."""
        if self._bar:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)
        elif self._console:
            print(message, flush=True)

    def close(self) -> None:
        """Close the files and leave the terminal as it was. Closing twice does no harm."""
        if self._bar:
            self._bar.stop()
        if self._tensorboard:
            self._tensorboard.close()
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, without a last one that is still being written.

    Raises `InputError` if there is no such file or another line is not a JSON object.
    """
    try:
        rows = _rows(path)
    except FileNotFoundError as error:
        raise InputError(f"path={path}: there is no such file; give the metrics.jsonl of a run") from error
    if rows and rows[-1] is None:
        rows.pop()
    if None in rows:
        raise InputError(f"path={path}: line {rows.index(None) + 1} is not a JSON object; repair or remove it")
    return [row for row in rows if row is not None]


def learning_curve(directory: str | os.PathLike) -> Path | None:
    """Draw the loss against the step from ``metrics.jsonl`` as ``learning_curve.png`` beside it.

    Returns the path of the figure; None if no loss was recorded or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: that keeps figures and a backend for the whole process
        from matplotlib.ticker import EngFormatter, MaxNLocator
    except ImportError:
        return None
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(Path(directory) / "metrics.jsonl"):
        if row.get("loss") is not None:
            curves.setdefault(row["split"], []).append((row["step"], row["loss"]))
    if not curves:
        return None
    figure = Figure(figsize=(7, 4.2), dpi=160, layout="constrained")
    axes = figure.subplots()
    styles = {
        "train": {"color": "#8fb3d9", "linewidth": 1.0},
        "validation": {"color": "#c2452d", "linewidth": 1.6, "marker": "o", "markersize": 4},
        "test": {"color": "#3a3a3a", "linestyle": "none", "marker": "D", "markersize": 5},
    }
    for split, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=split, **styles.get(split, {"linewidth": 1.0}))
    if "validation" in curves:
        step, loss = min(curves["validation"], key=lambda point: point[1])
        color = styles["validation"]["color"]
        axes.plot(step, loss, "o", markersize=11, markerfacecolor="none", markeredgecolor=color)
        # Above the axes, as the legend: nowhere inside is safe from a curve.
        axes.set_title(f"lowest validation loss {loss:.3f} at step {step:,}", loc="left", fontsize=10, color=color)
    axes.set(xlabel="step", ylabel="loss (nats)", xlim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(curves), borderaxespad=0.2)
    path = Path(directory) / "learning_curve.png"
    figure.savefig(path)
    return path


def attention_map(weights, source: Sequence[str], target: Sequence[str], path: str | os.PathLike) -> Path | None:
    """Draw where each token of a target was attended to in its source, as a figure at ``path``.

    Args:
      weights: ``[T, S]``, between 0 (white) and 1.
      source: the S tokens that were read.
      target: the T tokens that were written.

    Returns the path; None if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    beside, above = (0.07 * max(map(len, tokens), default=0) for tokens in (target, source))  # inches of their labels
    size = max(1.5, 0.5 + beside) + 0.24 * len(source), max(1.2, 0.5 + above) + 0.24 * len(target)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    # Text as it is: no token is a formula.
    axes.set_xticks(range(len(source)), source, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(target)), target, fontsize=8, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_color("#e4e4e4")
    with boxes_for_glyphs():
        figure.savefig(path)
    return Path(path)


def confusion_map(matrix, labels: Sequence[str], path: str | os.PathLike) -> Path | None:
    """Draw which labels were found in place of which, as a figure at ``path``.

    Args:
      matrix: ``[C, C]``, how often label i was taken for label j; the colour is the share of row i.
      labels: their C names.

    Returns the path; None if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    n = len(labels)
    figure = Figure(figsize=(2.2 + 0.42 * n, 1.6 + 0.42 * n), dpi=160, layout="constrained")
    axes = figure.subplots()
    shares = [[count / (sum(row) or 1) for count in row] for row in matrix]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            if count:
                axes.text(
                    j, i, f"{count:,}", ha="center", va="center", fontsize=6, color="w" if shares[i][j] > 0.5 else "k"
                )
    axes.set_xticks(range(n), labels, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(n), labels, fontsize=8, parse_math=False)
    axes.set(xlabel="found", ylabel="right")
    axes.tick_params(length=0)
    axes.spines[:].set_color("#e4e4e4")
    with boxes_for_glyphs():
        figure.savefig(path)
    return Path(path)


def _rows(path: str | os.PathLike) -> list[dict[str, Any] | None]:
    """The JSON object in each line; None where there is none, as in a line that was cut off."""

    def parse(line):
        try:
            row = json.loads(line)
        except ValueError:
            return None
        return row if isinstance(row, dict) else None

    with open(path, encoding="utf-8", errors="replace") as file:
        return [parse(line) for line in file]


def _truncate(path: Path, last: int) -> list[dict[str, Any]]:
    """Drop the lines after step `last`, and broken ones, from the file; return the rest."""
    rows = [row for row in _rows(path) if row and row.get("step", last + 1) <= last] if path.exists() else []
    new = path.with_suffix(".tmp")
    with open(new, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)  # atomic: a kill here leaves either file whole
    return rows


@contextmanager
def boxes_for_glyphs() -> Iterator[None]:
    """Without a warning for each character that a font lacks: a box stands for it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def write_json(path: Path, values: Mapping[str, SupportsFloat]) -> None:
    """Write numbers, ``{name: value}``; what is not finite becomes null. Nobody sees half of the file."""
    unfinished = path.with_name(f".{path.name}.tmp")
    content = {name: _jsonable(value) for name, value in values.items()}
    unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(unfinished, path)


def _jsonable(value: SupportsFloat) -> int | float | None:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(float(value)) else None


def _line(step, total, split, values, seconds) -> str:
    return f"step {step}/{total}  {split} {_values(values)}  {_clock(seconds)}"


def _values(values: Mapping[str, SupportsFloat]) -> str:
    """``loss 1.912  34,120 tokens/s``: a rate stands before its unit."""
    pairs = ((name, value if isinstance(value, int) else float(value)) for name, value in values.items())
    return "  ".join(f"{x:,.0f} {name}" if name.endswith("/s") else f"{name} {_number(x)}" for name, x in pairs)


def _number(x: int | float) -> str:
    if isinstance(x, int):
        return f"{x:,}"
    return f"{x:.3f}" if x == 0 or 0.01 <= abs(x) < 1e4 else f"{x:.3g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _open_tensorboard(directory, first_step):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=first_step, flush_secs=20)


def _start_bar(total, done):
    """A bar with one task on a terminal that can draw it; else None."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    bar = Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[values]}", markup=False),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=Console(file=sys.stdout),
        refresh_per_second=4,
        expand=True,
    )
    bar.add_task("train", total=total, completed=done, values="")
    bar.start()
    return bar
