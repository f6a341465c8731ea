"""Figures of a study: learning curves, and what came of its points, over one axis, over two and over all.

Results are those of `seqjax.study.tables`; curves are the rows of a study's ``metrics.jsonl``.
Matplotlib is optional, and imported where it is used.
"""

import math
import os
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from seqjax.study.tables import Group, Rows, axis_names, by_point, fate, is_number, setting_text, value_text

NAMES = ("curves", "sweep", "heatmap", "parallel")
STRONG = ("#c2452d", "#2f6fab", "#d99a1c", "#3f8f5f", "#7d5ba6", "#3a3a3a")  # of the best points, best first
BEST, BLUE, GREY, ENDED = STRONG[0], STRONG[1], "#b9b9b9", "#7a7a7a"
MARKS = {"whole": ".", "short": "o", "lost": "x"}  # at the end of a curve
CIRCLE = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "markeredgecolor": BEST, "zorder": 4}
FEW = 16  # values of an axis, up to which each is marked
SMALL = 8  # cells a side, up to which values are written into them
STYLE: Any = {
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "grid.color": "#e4e4e4",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.parse_math": False,  # no name is a formula
}


def draw(
    results: Rows, curves: Rows, directory: str | os.PathLike, *, monitor: str = "loss", highest: bool = False
) -> list[Path]:
    """Draw a study into a directory; returns the paths of the figures that it gave reason for, and removes older ones.

    ``curves.png``: the monitored metric (on the validation split if it was measured there) against the step, a line a
    point. ``sweep.png``: its last value against the only axis. With two or more axes ``heatmap.png``, over the two with
    most values, and ``parallel.png``, over all of them. Nothing is drawn without matplotlib.
    """
    directory = Path(directory)
    for name in NAMES:
        (directory / f"{name}.png").unlink(missing_ok=True)
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure  # not pyplot: that keeps figures and a backend for the whole process
    except ImportError:
        return []
    scales = [scale for name in axis_names(results) if len((scale := _scale(name, results)).values) > 1]
    study = _Study(by_point(results, highest=highest), scales, monitor, highest, *_series(curves, monitor))
    wanted = {"curves": _curves} if study.series else {}
    if any(group.counted for group in study.groups) and scales:
        wanted |= {"sweep": _sweep} if len(scales) == 1 else {"heatmap": _heatmap, "parallel": _parallel}
    directory.mkdir(parents=True, exist_ok=True)
    for name, function in wanted.items():
        with warnings.catch_warnings(), rc_context(STYLE):
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
            figure = Figure(figsize=(9, 4.6), dpi=160, layout="constrained")
            function(figure, study)
            figure.savefig(directory / f"{name}.png")
    return [directory / f"{name}.png" for name in wanted]


# --- scales


class _Scale(NamedTuple):
    """An axis along which points differ, as one of a figure."""

    name: str
    kind: Literal["linear", "log", "ordinal"]
    values: list[Any]  # distinct, in order

    def place(self, x: Any) -> float:
        """The coordinate of a value: itself, its logarithm, or its number among the ordinal ones."""
        if self.kind == "ordinal":
            return float(self.values.index(x))
        return math.log10(x) if self.kind == "log" else float(x)

    def of(self, group: Group) -> float:
        """The place of a point."""
        return self.place(group.point.get(self.name))

    def share(self, place: float) -> float:
        """Between 0 and 1."""
        if self.kind == "ordinal":
            return (place + 0.5) / len(self.values)
        low, high = self.place(self.values[0]), self.place(self.values[-1])
        return (place - low) / (high - low)

    def ticks(self) -> tuple[list[float], list[str]]:
        """Places to mark, and their labels: of the values if these are few, else of round numbers."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        marked = self.values
        if self.kind != "ordinal" and len(marked) > FEW:
            low, high = marked[0], marked[-1]
            subs = (1, 2, 5) if high < 100 * low else (1, 3)
            locator = LogLocator(subs=subs) if self.kind == "log" else MaxNLocator(6)
            marked = [float(x) for x in locator.tick_values(low, high) if low <= x <= high]
        kept = marked[:1]
        for x in marked:
            if self.share(self.place(x)) - self.share(self.place(kept[-1])) > 0.04:
                kept.append(x)
        return [self.place(x) for x in kept], [setting_text(x) for x in kept]


def _scale(name: str, results: Rows) -> _Scale:
    """How to draw what the points have under a name; categories are in the order of members."""
    values = list(dict.fromkeys(row["point"].get(name) for row in sorted(results, key=lambda row: row["member"])))
    if len(values) == 1 or not all(map(is_number, values)):
        return _Scale(name, "ordinal", values)
    values.sort()
    found = _Scale(name, "linear", values)
    if values[0] > 0 and values[-1] >= 5 * values[0]:
        found = min(found._replace(kind="log"), found, key=_skew)
    # Neither shows 0, 1e-4, 1e-3 and 1e-2 well, or 0.9, 0.99 and 0.999.
    return found._replace(kind="ordinal") if _skew(found) > 0.35 and len(values) <= FEW else found


def _skew(scale: _Scale) -> float:
    """How far from the middle the values' median is."""
    return abs(float(np.median([scale.share(scale.place(x)) for x in scale.values])) - 0.5)


def _put(scale: _Scale, axes, side: Literal["x", "y"]) -> None:
    """Make a scale one of the two of a figure."""
    places, labels = scale.ticks()
    gap = min(np.diff([scale.share(place) for place in places]), default=1.0)
    turned = side == "x" and 0.012 * (max(map(len, labels)) + 1) > gap
    style = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    getattr(axes, f"set_{side}label")(scale.name)
    getattr(axes, f"set_{side}ticks")(places, labels, **style)


def _limits(values: Iterable[float], highest: bool, margin: float = 0.0) -> tuple[float, float]:
    """Of a scale that shows the values, but for those so bad that they would squash the others."""
    sign = -1 if highest else 1
    costs = np.sort(sign * np.array(list(values)))
    best, usual, worst = costs[0], costs[3 * (len(costs) - 1) // 4], costs[-1]
    cut = best + 3 * (usual - best)
    worst = worst if worst - best <= 1.5 * (cut - best) or cut == best else cut
    pad = margin * (worst - best) if worst > best else abs(best) / 20 or 1.0
    low, high = sorted((sign * (best - pad), sign * (worst + pad)))
    return float(low), float(high)


# --- figures


class _Study(NamedTuple):
    groups: list[Group]  # best first
    scales: list[_Scale]
    monitor: str
    highest: bool
    split: str  # of the curves
    series: dict[int, dict[int, float]]  # member -> step -> value


def _described(study: _Study, group: Group) -> str:
    return ", ".join(
        f"{axis.name}\N{NO-BREAK SPACE}{setting_text(group.point.get(axis.name))}" for axis in study.scales
    )


def _shown(group: Group) -> str:
    """The value, in brackets if no member came to the end."""
    return value_text(group.mean) if group.complete else f"({value_text(group.mean)})"


def _headline(axes, study: _Study) -> None:
    """The best point as the title."""
    best = study.groups[0]
    if best.complete:
        which = ("highest" if study.highest else "lowest") + " mean" * (len(best.counted) > 1)
        text = f"{which} {study.monitor} {value_text(best.mean)} at {_described(study, best)}"
        axes.set_title(textwrap.fill(text, 90), color=BEST)


def _shades(study: _Study) -> Any:
    """Of values: the best are dark, what is worse than usual is pale."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colors: Any = ListedColormap(colormaps["YlGnBu"](np.linspace(0.1, 0.92, 256)))
    colors = colors if study.highest else colors.reversed()
    values = [group.mean for group in study.groups if group.mean is not None]
    low, high = _limits(values, study.highest)
    colors.colorbar_extend = "min" if min(values) < low else "max" if max(values) > high else "neither"
    return ScalarMappable(Normalize(low, high, clip=True), colors)


def _bar(figure, study: _Study, shades, **place) -> None:
    bar = figure.colorbar(shades, **place)
    bar.outline.set_visible(False)
    if not study.highest:
        bar.ax.invert_yaxis()  # the best on top


def _series(curves: Rows, monitor: str) -> tuple[str, dict[int, dict[int, float]]]:
    """The split, and ``member -> step -> value``."""
    rows = [row for row in curves if is_number(row.get(monitor)) and "member" in row]
    split = "validation" if any(row["split"] == "validation" for row in rows) else "train"
    series: dict[int, dict[int, float]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        if row["split"] == split:
            series.setdefault(row["member"], {})[row["step"]] = float(row[monitor])
    return split, series


class _Line(NamedTuple):
    steps: list[int]
    values: np.ndarray  # [members, steps]
    fate: str


def _lines(group: Group, series: Mapping[int, Mapping[int, float]]) -> list[_Line]:
    """One of the members that count, one for each other; a member that stopped early keeps its last value."""
    lines = []
    for rows in (group.counted, *([row] for row in group.members if row not in group.counted)):
        found = [series[row["member"]] for row in rows if row["member"] in series]
        if found:
            steps = sorted(set().union(*found))
            values = np.array([np.interp(steps, list(values), list(values.values())) for values in found])
            lines.append(_Line(steps, values, fate(rows[0])))
    return lines


def _curves(figure, study: _Study) -> None:
    from matplotlib.ticker import EngFormatter

    axes = figure.subplots()
    drawn = [(group, _lines(group, study.series)) for group in study.groups]
    for i, (group, lines) in enumerate(drawn):
        strong = i < len(STRONG) and group.mean is not None
        color, depth = (STRONG[i], 3 - i / len(STRONG)) if strong else (GREY, 1)
        name = textwrap.fill(f"{_shown(group)}  {_described(study, group)}", 36, subsequent_indent=" " * 11)
        for line in lines:
            style: dict[str, Any] = {"color": color, "linewidth": 1.8 if strong and line is lines[0] else 0.8}
            style |= {"marker": MARKS[line.fate], "markevery": [-1], "zorder": depth, "alpha": None if strong else 0.6}
            axes.plot(line.steps, line.values.mean(0), label=name if strong and line is lines[0] else None, **style)
            if strong:
                band = line.values.min(0), line.values.max(0)
                axes.fill_between(line.steps, *band, color=color, alpha=0.13, linewidth=0, zorder=1.5)
    lines = [line for _, lines in drawn for line in lines]
    others = len(drawn) - sum(group.mean is not None for group, _ in drawn[: len(STRONG)])
    if others:
        axes.plot([], [], color=GREY, linewidth=0.8, label=f"other points: {others}")
    for kind, meaning in (("short", "cut short: (value there)"), ("lost", "diverged or failed")):
        if any(line.fate == kind for line in lines):
            axes.plot([], [], MARKS[kind], color=ENDED, label=meaning)
    seeds = max(len(group.members) for group in study.groups)
    axes.set_title(f"{study.split} {study.monitor}" + f", mean and range of {seeds} seeds" * (seeds > 1))
    axes.set(xlabel="step", ylabel=study.monitor, xlim=(0, 1.03 * max(1, *(line.steps[-1] for line in lines))))
    kept = [line for line in lines if line.fate != "lost"] or lines
    axes.set_ylim(_limits(np.concatenate([line.values.ravel() for line in kept]), study.highest, 0.05))
    axes.locator_params(axis="x", integer=True)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(loc="outside right upper", alignment="left")


def _sweep(figure, study: _Study) -> None:
    axes, scale = figure.subplots(), study.scales[0]
    _put(scale, axes, "x")
    rows = [(scale.of(group), row) for group in study.groups for row in group.members]
    low, high = _limits([row["value"] for _, row in rows if fate(row) != "lost"], study.highest, 0.06)
    axes.set(ylim=(low, high), ylabel=study.monitor)
    styles: dict[str, dict[str, Any]] = {
        "whole": {"marker": "o", "color": BLUE, "alpha": 0.75, "label": "a seed"},
        "short": {"marker": "o", "color": BLUE, "markerfacecolor": "white", "label": "cut short"},
        "lost": {"marker": "x", "color": ENDED, "clip_on": False, "label": "diverged, failed or beyond the scale"},
    }
    for x, row in rows:
        inside = fate(row) != "lost" and low <= row["value"] <= high
        style = styles[fate(row) if inside else "lost"]
        axes.plot(x, row["value"] if inside else low if study.highest else high, linestyle="", **style)
        style["label"] = None  # one is enough
    means = sorted((scale.of(group), group.mean) for group in study.groups if group.complete)
    if means:
        style = {"linestyle": "", "marker": "_", "markersize": 22} if scale.kind == "ordinal" else {"linewidth": 1.4}
        axes.plot(*zip(*means, strict=True), color=BLUE, zorder=2, label="mean", **style)
        axes.plot(scale.of(study.groups[0]), study.groups[0].mean, **CIRCLE)
    _headline(axes, study)
    figure.legend(loc="outside lower right", ncols=4)


def _heatmap(figure, study: _Study) -> None:
    """Over two axes; of several points at one place the best."""
    first, second, *rest = sorted(study.scales, key=lambda scale: -len(scale.values))
    places: dict[tuple[float, float], Group] = {}
    for group in sorted(study.groups, key=lambda group: group.mean is None):
        places.setdefault((first.of(group), second.of(group)), group)
    axes, shades, groups = figure.subplots(), _shades(study), list(places.values())
    a_grid = 2 * len(groups) >= len(first.values) * len(second.values)
    (_cells if a_grid else _scatter)(axes, groups, first, second, shades)
    _bar(figure, study, shades, ax=axes, pad=0.01, label=study.monitor)
    _headline(axes, study)
    notes = [f"best over {', '.join(scale.name for scale in rest)}"] if len(groups) < len(study.groups) else []
    notes += ["×: diverged or failed"] if any(group.mean is None for group in groups) else []
    if any(group.counted and not group.complete for group in groups):
        notes.append(f"{'in brackets' if a_grid else 'small'}: cut short")
    figure.supxlabel("   ".join(notes), fontsize=8.5, x=0.01, ha="left", color="#5a5a5a")


def _cells(axes, groups: Sequence[Group], first: _Scale, second: _Scale, shades) -> None:
    from matplotlib.patches import Rectangle

    first, second = first._replace(kind="ordinal"), second._replace(kind="ordinal")
    values = np.full((len(second.values), len(first.values)), np.nan)
    for group in groups:
        x, y = int(first.of(group)), int(second.of(group))
        values[y, x] = group.mean  # None makes NaN, which is left out
        if group.mean is None:
            axes.plot(x, y, "x", color=ENDED)
        elif max(values.shape) <= SMALL:
            dark = np.dot(shades.to_rgba(group.mean)[:3], (0.3, 0.59, 0.11)) < 0.55
            axes.text(x, y, _shown(group), ha="center", va="center", fontsize=8.5, color="white" if dark else "#262626")
    axes.imshow(values, cmap=shades.cmap, norm=shades.norm, origin="lower", aspect="auto")
    _put(first, axes, "x")
    _put(second, axes, "y")
    axes.set_facecolor("#f4f4f4")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if groups[0].complete:
        corner = first.of(groups[0]) - 0.5, second.of(groups[0]) - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, color=BEST, linewidth=2.5, clip_on=False))


def _scatter(axes, groups: Sequence[Group], first: _Scale, second: _Scale, shades) -> None:
    _put(first, axes, "x")
    _put(second, axes, "y")
    axes.grid(axis="both")
    for group in reversed(groups):  # the best on top
        x, y = first.of(group), second.of(group)
        if group.mean is None:
            axes.plot(x, y, "x", color=GREY)
        else:
            style = {"markeredgecolor": ENDED, "markeredgewidth": 0.5, "markersize": 8 if group.complete else 5}
            axes.plot(x, y, "o", color=shades.to_rgba(group.mean), zorder=3, **style)
    if groups[0].complete:
        axes.plot(first.of(groups[0]), second.of(groups[0]), **CIRCLE)


def _parallel(figure, study: _Study) -> None:
    """A line a point; its last value, best on top, gives the colour. Lost points end below."""
    axes, shades, last = figure.subplots(), _shades(study), len(study.scales)
    figure.set_size_inches(max(7.0, 2.2 + 1.7 * last), 4.8)
    t = np.linspace(0, last, 24 * last + 1)
    level = np.floor(t) + (t % 1) ** 2 * (3 - 2 * (t % 1))  # easier to follow than corners
    for i, group in reversed(list(enumerate(study.groups))):  # the best on top
        spread = 0.4 * (0.5 - i / len(study.groups))  # of the points that meet in a category
        shares = [scale.share(scale.of(group) + spread * (scale.kind == "ordinal")) for scale in study.scales]
        color, width, end = GREY, 0.7, -0.13
        if group.mean is not None:
            color, width, end = shades.to_rgba(group.mean), 1.2 if group.complete else 0.6, shades.norm(group.mean)
            end = end if study.highest else 1 - end
        if i == 0 and group.complete:
            color, width = BEST, 2.2
        axes.plot(t, np.interp(level, range(last + 1), [*shares, end]), color=color, linewidth=width, alpha=0.9)
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
    for x, scale in enumerate(study.scales):
        places, labels = scale.ticks()
        shares = [scale.share(place) for place in places]
        axes.axvline(x, color="#5a5a5a", linewidth=0.9, zorder=3)
        axes.plot([x] * len(shares), shares, "_", color="#5a5a5a", zorder=3)
        for share, label in zip(shares, labels, strict=True):
            axes.text(x - 0.03, share, label, ha="right", va="center", fontsize=8, bbox=box, zorder=4)
    inset = axes.inset_axes((last, 0, 0.04, 1), transform=axes.transData, zorder=3)
    _bar(figure, study, shades, cax=inset)
    lost = any(group.mean is None for group in study.groups)
    if lost:
        axes.text(last + 0.05, -0.13, "diverged\nor failed", va="center", fontsize=8, color=ENDED)
    axes.set(xlim=(-0.25, last + 0.25), ylim=(-0.17 if lost else -0.03, 1.03), yticks=[])
    axes.set_xticks(range(last + 1), [*(scale.name for scale in study.scales), study.monitor])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _headline(axes, study)
