"""What came of a study, for people: tables of its members and of its points, and figures.

Results are plain dicts, one a member, best first, as in ``results.jsonl``:
``{"rank", "member", "seed", "point": {"lr": 0.003}, "status", "step", "value", "metrics": {"loss": 1.93}}``.
Curves are the rows of a study's ``metrics.jsonl``.
"""

import itertools
import json
import math
import os
import statistics
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Rows = Sequence[Mapping[str, Any]]

STRONG = ("#c2452d", "#2f6fab", "#d99a1c", "#3f8f5f", "#7d5ba6", "#3a3a3a")  # of the best points, best first
GREY, PALE, ENDED = "#b9b9b9", "#e4e4e4", "#7a7a7a"
BEST = STRONG[0]
SMALL_GRID = 8  # cells a side, up to which values are written into them


# --- tables


def table(results: Rows, *, monitor: str = "loss", limit: int | None = None) -> str:
    """The members as a Markdown table, in their order; the first ``limit`` of them.

    Seed, status and step have a column if they tell members apart.

    >>> print(table([{"rank": 1, "point": {"lr": 0.00316}, "seed": 0, "status": "done", "step": 9, "value": 1.9342}]))
    | rank |      lr |  loss |
    | ---: | ------: | ----: |
    |    1 | 0.00316 | 1.934 |
    """
    names, others = _names(results), _unique(name for row in results for name in row.get("metrics") or {})
    columns: dict[str, list[str]] = {"rank": [str(row["rank"]) for row in results]}
    columns |= {name: _setting_column([row["point"].get(name) for row in results]) for name in names}
    if len({row.get("seed") for row in results}) > 1:
        columns["seed"] = [str(row.get("seed", "")) for row in results]
    columns[monitor] = [_value(row.get("value")) for row in results]
    for name in others:
        if name not in columns:
            columns[name] = [_value((row.get("metrics") or {}).get(name)) for row in results]
    if any(row["status"] != "done" for row in results):
        columns["status"] = [row["status"] for row in results]
    if len({row["step"] for row in results}) > 1:
        columns["step"] = [str(row["step"]) for row in results]
    return _markdown(columns, limit)


def over_seeds(results: Rows, *, highest: bool = False) -> list[dict[str, Any]]:
    """One row a point, best mean first: ``{"point", "n", "mean", "sd", "least", "most", "complete"}``.

    The statistics are those of the ``complete`` members, of ``n``, that came to the end with a value. ``sd`` is that of
    a sample, None for fewer than two; a point without complete members has None for all and stands last.

    >>> seeds = [{"point": {"lr": 0.1}, "status": "done", "value": value} for value in (1.0, 3.0)]
    >>> over_seeds(seeds)[0]["mean"]
    2.0
    """
    return [
        {
            "point": group.point,
            "n": len(group.members),
            "mean": group.mean,
            "sd": statistics.stdev(group.values) if len(group.values) > 1 else None,
            "least": min(group.values, default=None),
            "most": max(group.values, default=None),
            "complete": len(group.values),
        }
        for group in _groups(results, highest)
    ]


def seeds_table(results: Rows, *, monitor: str = "loss", highest: bool = False, limit: int | None = None) -> str:
    """`over_seeds` as a Markdown table: "mean ± sd (n)" of each point, the first ``limit`` of them.

    "(2 of 3)": only so many members came to the end.

    >>> seeds = [{"point": {"lr": 0.1}, "status": "done", "value": value} for value in (1.91, 1.93)]
    >>> print(seeds_table(seeds))
    | rank |  lr |              loss | least |  most |
    | ---: | --: | ----------------: | ----: | ----: |
    |    1 | 0.1 | 1.920 ± 0.014 (2) | 1.910 | 1.930 |
    """
    rows = over_seeds(results, highest=highest)
    columns: dict[str, list[str]] = {"rank": [str(i + 1) for i in range(len(rows))]}
    columns |= {name: _setting_column([row["point"].get(name) for row in rows]) for name in _names(rows)}
    columns[monitor] = [f"{_mean_sd(row['mean'], row['sd'])} ({_count(row['complete'], row['n'])})" for row in rows]
    if any(row["complete"] > 1 for row in rows):
        columns |= {name: [_value(row[name]) for row in rows] for name in ("least", "most")}
    return _markdown(columns, limit)


def _markdown(columns: Mapping[str, Sequence[str]], limit: int | None) -> str:
    """Columns of the same length; text to the left, numbers to the right."""
    total = len(next(iter(columns.values())))
    lines: list[list[str]] = [[] for _ in range(min(total, total if limit is None else limit) + 2)]
    for name, words in columns.items():
        cells = [name, *words[:limit]]
        cells = [" ".join(cell.replace("|", "\\|").split()) for cell in cells]
        left = any(word[:1].isalpha() for word in words)
        width = max(3, *map(len, cells))
        cells.insert(1, "-" * width if left else "-" * (width - 1) + ":")
        for line, cell in zip(lines, cells, strict=True):
            line.append(cell.ljust(width) if left else cell.rjust(width))
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text if limit is None or total <= limit else f"{text}\n\n… and {total - limit} more"


def _count(complete: int, n: int) -> str:
    return str(n) if complete == n else f"{complete} of {n}"


def _mean_sd(mean: float | None, sd: float | None) -> str:
    """Two digits of sd or four of the mean, whichever are more."""
    if mean is None or sd is None:
        return _value(mean)
    if not 1e-3 <= abs(mean) < 1e6:
        return f"{_value(mean)} ± {_digits(sd, 2)}"
    decimals = max(3 - math.floor(math.log10(abs(mean))), 1 - math.floor(math.log10(sd)) if sd else 0)
    return f"{mean:.{min(max(decimals, 0), 6)}f} ± {sd:.{min(max(decimals, 0), 6)}f}"


def _value(x: Any) -> str:
    """A metric: four digits, zeros included."""
    x = _finite(x)
    return "–" if x is None else _digits(x, 4, zeros=True)


def _digits(x: float, digits: int, *, zeros: bool = False) -> str:
    if 10**digits <= abs(x) < 1e7:
        return f"{x:.0f}"
    text = f"{x:{'#' if zeros else ''}.{digits}g}"
    number, e, exponent = text.partition("e")
    return f"{number}e{int(exponent)}" if e else number.removesuffix(".")


def _setting(x: Any, digits: int = 3) -> str:
    """A value of an axis: a float of few digits, anything else as it is.

    >>> [_setting(x) for x in (0.0031622776, 1e-05, 0.9999, 512, "gru")]
    ['0.00316', '1e-5', '0.9999', '512', 'gru']
    """
    if x is None:
        return "–"
    if not isinstance(x, float) or not math.isfinite(x):
        return str(x)
    nines = -math.log10(1 - abs(x)) if 0 < abs(x) < 1 else 0  # of a decay: its distance from 1 is what counts
    return _digits(x, digits + int(nines))


def _setting_column(values: Sequence[Any]) -> list[str]:
    """So many digits that the values of a grid can be told apart."""
    distinct = _unique(values)
    digits = 3
    if len(distinct) <= max(20, len(values) // 4):
        while digits < 9 and len({_setting(x, digits) for x in distinct}) < len(distinct):
            digits += 1
    return [_setting(x, digits) for x in values]


# --- points


class _Group(NamedTuple):
    """The members of a point."""

    point: Mapping[str, Any]
    members: list[Mapping[str, Any]]

    @property
    def values(self) -> list[float]:
        """Of those that came to the end."""
        return [float(row["value"]) for row in self.members if _fate(row) == "whole"]

    @property
    def mean(self) -> float | None:
        """Over `values`."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def shown(self) -> float | None:
        """The mean; if nobody came to the end, that of the members which came furthest."""
        short = [row for row in self.members if _fate(row) == "short"]
        if self.values or not short:
            return self.mean
        last = max(row["step"] for row in short)
        return statistics.fmean(row["value"] for row in short if row["step"] == last)


def _fate(row: Mapping[str, Any]) -> Literal["whole", "short", "lost"]:
    """Of a member's training: it came to the end, was cut short (halved), or has no value that counts."""
    if _finite(row.get("value")) is None or row["status"] in ("diverged", "failed"):
        return "lost"
    return "whole" if row["status"] in ("done", "stopped early") else "short"


def _groups(results: Rows, highest: bool) -> list[_Group]:
    """Members by point, best mean first; those without one last, in the order of their members."""
    groups: dict[str, _Group] = {}
    for row in results:
        groups.setdefault(json.dumps(row["point"], sort_keys=True), _Group(row["point"], [])).members.append(row)
    sign = -1 if highest else 1
    return sorted(groups.values(), key=lambda group: math.inf if group.mean is None else sign * group.mean)


def _names(rows: Rows) -> list[str]:
    return _unique(name for row in rows for name in row["point"])


def _unique(values: Iterable[Any]) -> list[Any]:
    """Without repetitions."""
    return list({_key(x): x for x in values}.values())


def _key(x: Any) -> tuple[bool, Any]:
    return isinstance(x, bool), x  # True is not 1


def _finite(x: Any) -> float | None:
    return float(x) if isinstance(x, int | float) and math.isfinite(x) else None


class _Scale(NamedTuple):
    """An axis of a figure."""

    name: str
    kind: Literal["linear", "log", "ordinal"]
    values: list[Any]  # distinct, in order
    labels: list[str]
    numbers: dict[tuple[bool, Any], int]  # of the values

    def number(self, x: Any) -> int:
        """The number of a value."""
        return self.numbers[_key(x)]

    def place(self, x: Any) -> float:
        """The coordinate of a value: itself, or its number among the ordinal ones."""
        return float(self.number(x) if self.kind == "ordinal" else x)

    def share(self, x: Any) -> float:
        """The place between 0 and 1."""
        if self.kind == "ordinal":
            return (self.place(x) + 0.5) / len(self.values)
        low, high, x = (math.log(v) if self.kind == "log" else v for v in (self.values[0], self.values[-1], x))
        return (x - low) / (high - low)

    def ticks(self, gap: float) -> list[tuple[Any, str]]:
        """Values to mark, and their labels, at least so far apart in `share`: of those there are, if these are few."""
        pairs = list(zip(self.values, map(_short, self.labels), strict=True))
        if self.kind != "ordinal" and len(pairs) > 2 * SMALL_GRID:
            ends = float(self.values[0]), float(self.values[-1])
            pairs = [(x, _setting(x)) for x in _round_numbers(*ends, self.kind == "log")]
        kept: list[tuple[Any, str]] = []
        for pair in pairs:
            if not kept or self.share(pair[0]) - self.share(kept[-1][0]) >= gap:
                kept.append(pair)
        return kept


def _scale(name: str, results: Rows) -> _Scale:
    """How to draw what the points have under a name; categories are in the order of members."""
    in_order = sorted(results, key=lambda row: row["member"])
    values = _unique(row["point"].get(name) for row in in_order)
    kind: Literal["linear", "log", "ordinal"] = "ordinal"
    if all(_finite(x) is not None and not isinstance(x, bool) for x in values):
        values.sort()
        numbers = [float(x) for x in values]
        kind = "log" if _log_spaced(numbers) else "linear"
        if len(numbers) <= 2 * SMALL_GRID and (numbers[0] == 0 or numbers[-1] < 1):
            # 0, 1e-4, 1e-3, 1e-2 or 0.9, 0.99, 0.999: neither scale shows all of them.
            spaced = numbers[1:] if numbers[0] == 0 else [1 - x for x in reversed(numbers)]
            kind = "ordinal" if kind == "linear" and _log_spaced(spaced, 20.0) else kind
    return _Scale(name, kind, values, _setting_column(values), {_key(x): i for i, x in enumerate(values)})


def _round_numbers(low: float, high: float, log: bool) -> list[float]:
    """A few round numbers between two, or the two."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        digits = (1, 2, 5) if high < 200 * low else (1, 3) if high < 1e4 * low else (1,)
        found = [float(f"{digit}e{e}") for e in decades for digit in digits]
    else:
        step = 10.0 ** math.floor(math.log10((high - low) / 3))
        step *= next(m for m in (5, 2, 1) if (high - low) / (m * step) >= 3)
        found = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    found = [x for x in found if low <= x <= high]
    return found if len(found) > 1 else [low, high]


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= 24 else f"{label[:23]}…"


def _log_spaced(values: Sequence[float], least: float = 5.0) -> bool:
    """Whether sorted values lie more evenly by factors than by differences, with ``least`` from end to end."""
    if len(values) < 2 or values[0] <= 0 or values[-1] < least * values[0]:
        return False
    x, log = np.array(values), np.log(values)
    off, log_off = (abs(np.median(a) - (a[0] + a[-1]) / 2) / (a[-1] - a[0]) for a in (x, log))
    return len(values) == 2 or bool(log_off < off)


def _ends(values: Iterable[float], highest: bool) -> tuple[float, float]:
    """``(best, worst)`` of a scale that shows the values: without those so bad that they would squash the others."""
    sign = -1 if highest else 1
    costs = [sign * value for value in values]
    best, usual, worst = min(costs), float(np.quantile(costs, 0.75, method="lower")), max(costs)
    cut = best + 3 * (usual - best)
    return sign * best, sign * (worst if worst - best <= 1.5 * (cut - best) or cut == best else cut)


# --- figures


def draw(
    results: Rows, curves: Rows, directory: str | os.PathLike, *, monitor: str = "loss", highest: bool = False
) -> list[Path]:
    """Draw a study into a directory; returns the paths of the figures that it gave reason for.

    ``curves.png``: the monitored metric (on the validation split if it was measured there) against the step, a line a
    point. ``sweep.png``: its last value against the only axis. With two or more axes ``heatmap.png``, over the two with
    most values, and ``parallel.png``, over all of them. Nothing is drawn without matplotlib.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: that keeps figures and a backend for the whole process
    except ImportError:
        return []
    groups = _groups(results, highest)
    scales = [scale for name in _names(results) if len((scale := _scale(name, results)).values) > 1]
    wanted: dict[str, Any] = {"curves": partial(_curves, curves=curves)}
    if any(group.shown is not None for group in groups):
        wanted |= {"sweep": _sweep} if len(scales) == 1 else {}
        wanted |= {"heatmap": _heatmap, "parallel": _parallel} if len(scales) > 1 else {}
    paths = []
    for name, function in wanted.items():
        figure = Figure(figsize=(9, 4.6), dpi=160, layout="constrained")
        if not function(figure, groups, scales, monitor, highest):
            continue
        path = Path(directory) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
            figure.savefig(path)
        paths.append(path)
    return paths


def _plain(text: str) -> str:
    """No name is a formula."""
    return text.replace("$", "\\$")


def _describe(point: Mapping[str, Any], scales: Sequence[_Scale]) -> str:
    found = (scale.labels[scale.number(point.get(scale.name))] for scale in scales)
    return ", ".join(
        f"{scale.name}\N{NO-BREAK SPACE}{_short(label)}" for scale, label in zip(scales, found, strict=True)
    )


def _shown(group: _Group) -> str:
    """In brackets if no member came to the end."""
    return _value(group.shown) if group.mean is not None else f"({_value(group.shown)})"


def _headline(axes, groups: Sequence[_Group], scales: Sequence[_Scale], monitor: str, highest: bool) -> None:
    """The best point as the title."""
    best = groups[0]
    if best.mean is None:
        return
    text = f"{'highest' if highest else 'lowest'}{' mean' * (len(best.values) > 1)} {monitor} {_value(best.mean)}"
    text += f" at {_describe(best.point, scales)}" if scales else ""
    axes.set_title(_plain(textwrap.fill(text, 90)), loc="left", fontsize=10, color=BEST)


def _quiet(axes, grid: Literal["both", "x", "y"] = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)


def _put(scale: _Scale, axes, side: Literal["x", "y"]) -> None:
    """Make a scale one of the two of a figure."""
    if scale.kind == "log":
        getattr(axes, f"set_{side}scale")("log")
    ticks = scale.ticks(_gap(scale, side))
    _label(scale, axes, side, [scale.place(x) for x, _ in ticks], [label for _, label in ticks])


def _gap(scale: _Scale, side: Literal["x", "y"]) -> float:
    """What numbers need of a side of a figure. Categories are turned instead."""
    longest = max(map(len, scale.labels))
    return 0.05 if side == "y" or scale.kind == "ordinal" else 0.012 * (min(longest, 9) + 1)


def _label(scale: _Scale, axes, side: Literal["x", "y"], places: Sequence[float], labels: Sequence[str]) -> None:
    turned = side == "x" and 0.012 * (max(map(len, labels)) + 1) * len(labels) > 1
    style = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    getattr(axes, f"set_{side}ticks")(places, labels, parse_math=False, **style)
    getattr(axes, f"set_{side}ticks")([], minor=True)
    getattr(axes, f"set_{side}label")(_plain(scale.name))


def _colors(values: Sequence[float], highest: bool) -> tuple[Any, Any, dict[str, Any]]:
    """``(map, norm, options of a colour bar)``: the best are dark, what is worse than usual is pale."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, Normalize

    found = ListedColormap(colormaps["YlGnBu"](np.linspace(0.1, 0.92, 256)))
    low, high = sorted(_ends(values, highest))
    beyond = "min" if min(values) < low else "max" if max(values) > high else "neither"
    pad = 0.0 if low < high else abs(low) / 100 or 1.0
    return found if highest else found.reversed(), Normalize(low - pad, high + pad), {"extend": beyond}


# --- curves.png


class _Line(NamedTuple):
    steps: list[int]
    values: list[float]
    least: list[float]
    most: list[float]
    of_all: bool  # the mean of a point; else a member where it is alone
    mark: str  # at the end


def _curves(figure, groups, scales, monitor, highest, *, curves) -> bool:
    """Mean over seeds, and their range, as far as all go; from there, and of lost members, a line each."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, MaxNLocator

    split, series = _series(curves, monitor)
    drawn = [_lines(group, series) for group in groups]
    if not any(drawn):
        return False
    axes = figure.subplots()
    grey, handles = [], []
    for i, (group, lines) in enumerate(zip(groups, drawn, strict=True)):
        color = STRONG[i] if i < len(STRONG) and group.shown is not None else None
        above = 3 - i / len(STRONG)  # the best on top
        for line in lines:
            if color is None:
                grey.append(np.column_stack([line.steps, line.values]))
            else:
                width = 1.8 if line.of_all else 0.9
                dot = "." if len(line.steps) == 1 else None
                axes.plot(line.steps, line.values, color=color, linewidth=width, marker=dot, zorder=above)
                axes.fill_between(line.steps, line.least, line.most, color=color, alpha=0.13, linewidth=0, zorder=1.5)
            if line.mark:
                axes.plot(line.steps[-1], line.values[-1], line.mark, color=color or ENDED, markersize=5, zorder=above)
        if color and lines:
            name = f"{_shown(group)}  {_describe(group.point, scales)}"
            name = textwrap.fill(name, 36, subsequent_indent=" " * 11)
            handles.append(Line2D([], [], color=color, linewidth=1.8, label=_plain(name)))
    alpha = min(1.0, max(0.35, 40 / len(drawn)))
    axes.add_collection(LineCollection(grey, colors=GREY, linewidths=0.8, alpha=alpha, zorder=1), autolim=False)
    others = sum(1 for lines in drawn if lines) - len(handles)
    if others:
        label = f"{others} {'other' if handles else 'point'}{'s' * (others > 1)}"
        handles.append(Line2D([], [], color=GREY, linewidth=0.8, label=label))
    for mark, meaning in (("x", "diverged or failed"), ("o", "cut short: (value there)")):
        if any(line.mark == mark for lines in drawn for line in lines):
            handles.append(Line2D([], [], color=ENDED, marker=mark, markersize=5, linestyle="", label=meaning))
    n_seeds = max(len(group.members) for group in groups)
    title = f"{split} {monitor}" + (f", mean and range of {n_seeds} seeds" if n_seeds > 1 else "")
    axes.set_title(_plain(title), loc="left", fontsize=10)
    last = 1.03 * max(1, *(line.steps[-1] for lines in drawn for line in lines))
    axes.set(xlabel="step", ylabel=_plain(monitor), xlim=(0, last), ylim=_curve_limits(drawn, highest))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _quiet(axes)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8.5, alignment="left")
    return True


def _series(curves: Rows, monitor: str) -> tuple[str, dict[int, dict[int, float]]]:
    """The split, and ``member -> step -> value``."""
    rows = [row for row in curves if _finite(row.get(monitor)) is not None and "member" in row]
    split = "validation" if any(row["split"] == "validation" for row in rows) else "train"
    series: dict[int, dict[int, float]] = {}
    for row in rows:
        if row["split"] == split:
            series.setdefault(row["member"], {})[row["step"]] = float(row[monitor])
    return split, series


def _lines(group: _Group, series: Mapping[int, Mapping[int, float]]) -> list[_Line]:
    marks = {"whole": "", "short": "o", "lost": "x"}
    found = [(series[row["member"]], marks[_fate(row)]) for row in group.members if row["member"] in series]
    kept = [(values, mark) for values, mark in found if mark != "x"]
    common = sorted(set.intersection(*(set(values) for values, _ in kept))) if kept else []
    lines = []
    if common:
        together = np.array([[values[step] for step in common] for values, _ in kept])
        least, mean, most = (f(together, axis=0).tolist() for f in (np.min, np.mean, np.max))
        halved = all(mark == "o" and max(values) == common[-1] for values, mark in kept)
        lines.append(_Line(common, mean, least, most, True, "o" if halved else ""))
        found = [pair for pair in found if not (halved and pair[1] == "o")]
    for values, mark in found:
        steps = sorted(step for step in values if mark == "x" or not common or step >= common[-1])
        if len(steps) > 1 or mark:
            alone = [values[step] for step in steps]
            lines.append(_Line(steps, alone, alone, alone, False, mark))
    return lines


def _curve_limits(drawn: Sequence[Sequence[_Line]], highest: bool) -> tuple[float, float]:
    """From the best value to where most curves begin or, if they soon fall far below, to where they mostly are."""
    sign = -1 if highest else 1
    every = [line for lines in drawn for line in lines]
    kept = [line for line in every if line.mark != "x"] or every
    bands = [sign * x for line in kept for x in (*line.least, *line.most)]
    whole = [sign * np.array(line.values) for line in kept if line.of_all] or [sign * np.array(x.values) for x in kept]
    best, starts, ends = min(bands), [v[0] for v in whole], [v[-1] for v in whole]
    top = max(np.quantile(starts, 0.9, method="lower"), np.quantile(ends, 0.75, method="lower"))
    usual = np.quantile(np.concatenate(whole), 0.9)
    if top - best > 2 * (usual - best) > 0:
        top = usual
    if max(bands) - best <= 1.4 * (top - best):
        top = max(bands)
    pad = 0.05 * (top - best) or abs(best) / 20 or 1.0
    low, high = sorted((sign * (best - pad), sign * (top + pad)))
    return float(low), float(high)


# --- sweep.png


def _sweep(figure, groups, scales, monitor, highest) -> bool:
    axes, scale = figure.subplots(), scales[0]
    best, worst = _ends(
        [float(row["value"]) for group in groups for row in group.members if _fate(row) != "lost"], highest
    )
    pad = 0.06 * (worst - best) or (-1 if highest else 1) * (abs(best) / 20 or 1.0)
    axes.set_ylim(*sorted((best - pad, worst + pad)))
    _put(scale, axes, "x")
    edge = 0.02 if highest else 0.98
    styles = {
        "whole": {"marker": "o", "color": STRONG[1], "alpha": 0.75, "label": "a seed"},
        "short": {"marker": "o", "color": STRONG[1], "markerfacecolor": "white", "label": "cut short"},
        "lost": {"marker": "x", "color": ENDED, "label": "diverged or failed"},
        "beyond": {"marker": "v" if highest else "^", "color": STRONG[1], "label": "beyond the scale"},
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in styles}
    for group in groups:
        x = scale.place(group.point.get(scale.name))
        for row in group.members:
            fate = _fate(row)
            beyond = fate != "lost" and (row["value"] < worst if highest else row["value"] > worst)
            found["beyond" if beyond else fate].append((x, edge if beyond or fate == "lost" else row["value"]))
    for name, points in found.items():
        if points:
            at_edge = {"transform": axes.get_xaxis_transform()} if name in ("lost", "beyond") else {}
            axes.plot(*zip(*points, strict=True), linestyle="", markersize=5, zorder=3, **styles[name], **at_edge)
    means = sorted((scale.place(g.point.get(scale.name)), g.mean) for g in groups if g.mean is not None)
    if means:
        numeric = all(_finite(x) is not None and not isinstance(x, bool) for x in scale.values)
        style = {"linestyle": "-"} if numeric else {"linestyle": "", "marker": "_", "markersize": 22}
        label = "mean" if any(len(group.values) > 1 for group in groups) else "_"
        axes.plot(*zip(*means, strict=True), color=STRONG[1], linewidth=1.4, zorder=2, label=label, **style)
        x = scale.place(groups[0].point.get(scale.name))
        axes.plot(x, groups[0].mean, "o", markersize=13, markerfacecolor="none", markeredgecolor=BEST, label="_")
    if scale.kind == "ordinal":
        axes.set_xlim(-0.5, len(scale.values) - 0.5)
    axes.set_ylabel(_plain(monitor))
    _headline(axes, groups, scales, monitor, highest)
    _quiet(axes)
    figure.legend(loc="outside lower right", ncols=5, frameon=False, fontsize=8.5)
    return True


# --- heatmap.png


def _heatmap(figure, groups, scales, monitor, highest) -> bool:
    """Over two axes; of several points at one place the best."""
    first, second = sorted(scales, key=lambda scale: -len(scale.values))[:2]
    places: dict[tuple[int, int], _Group] = {}
    for group in sorted(groups, key=lambda group: group.shown is None):
        place = first.number(group.point.get(first.name)), second.number(group.point.get(second.name))
        places.setdefault(place, group)
    axes = figure.subplots()
    colors, norm, bar = _colors([group.shown for group in places.values() if group.shown is not None], highest)
    a_grid = 2 * len(places) >= len(first.values) * len(second.values)
    draw_it = _cells if a_grid else _scatter
    shown = draw_it(axes, places, first, second, colors, norm)
    bar = figure.colorbar(shown, ax=axes, pad=0.01, **bar)
    bar.set_label(_plain(monitor))
    bar.outline.set_visible(False)
    if not highest:
        bar.ax.invert_yaxis()  # the best on top
    _headline(axes, groups, scales, monitor, highest)
    rest = ", ".join(scale.name for scale in scales if scale not in (first, second))
    notes = [f"best over {rest}"] if len(places) < len(groups) else []
    notes += ["×: diverged or failed"] if any(group.shown is None for group in places.values()) else []
    if any(group.mean is None and group.shown is not None for group in places.values()):
        notes.append("in brackets: cut short" if a_grid else "small: cut short")
    figure.supxlabel(_plain("   ".join(notes)), fontsize=8.5, x=0.01, ha="left", color="#5a5a5a")
    return True


def _cells(axes, places, first, second, colors, norm):
    from matplotlib.patches import Rectangle

    values = np.full((len(second.values), len(first.values)), np.nan)
    small = max(values.shape) <= SMALL_GRID
    (best_x, best_y), best = next(iter(places.items()))
    for (x, y), group in places.items():
        if group.shown is None:
            axes.plot(x, y, "x", color=ENDED, markersize=5)
            continue
        values[y, x] = group.shown
        if small:
            dark = np.dot(colors(norm(group.shown))[:3], (0.3, 0.59, 0.11)) < 0.55
            axes.text(x, y, _shown(group), ha="center", va="center", fontsize=8.5, color="white" if dark else "#262626")
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colors, norm=norm, origin="lower", aspect="auto")
    axes.set_facecolor("#f4f4f4")
    sides: tuple[tuple[_Scale, Literal["x", "y"]], ...] = ((first, "x"), (second, "y"))
    for scale, side in sides:
        every = math.ceil(_gap(scale, side) * len(scale.values))
        at = [float(i) for i in range(0, len(scale.values), every)]
        _label(scale, axes, side, at, [_short(label) for label in scale.labels[::every]])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if best.mean is not None:
        axes.add_patch(
            Rectangle((best_x - 0.5, best_y - 0.5), 1, 1, fill=False, color=BEST, linewidth=2.5, clip_on=False)
        )
    return image


def _scatter(axes, places, first, second, colors, norm):
    _put(first, axes, "x")
    _put(second, axes, "y")

    def at(groups):
        return [[scale.place(g.point.get(scale.name)) for g in groups] for scale in (first, second)]

    known = [group for group in places.values() if group.shown is not None][::-1]  # the best on top
    lost = [group for group in places.values() if group.shown is None]
    sizes = [60 if group.mean is not None else 22 for group in known]
    style = {"cmap": colors, "norm": norm, "edgecolors": ENDED, "linewidths": 0.5, "zorder": 3}
    shown = axes.scatter(*at(known), c=[group.shown for group in known], s=sizes, **style)
    axes.plot(*at(lost), "x", color=GREY, markersize=5, zorder=2)
    if known[-1].mean is not None:
        axes.plot(*at(known[-1:]), "o", markersize=13, markerfacecolor="none", markeredgecolor=BEST, zorder=4)
    _quiet(axes, "both")
    return shown


# --- parallel.png


def _parallel(figure, groups, scales, monitor, highest) -> bool:
    """A line a point; its last value, best on top, gives the colour. Lost points end below."""
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import MaxNLocator

    figure.set_size_inches(max(7.0, 2.2 + 1.7 * len(scales)), 4.8)
    axes = figure.subplots()
    known = [group for group in groups if group.shown is not None]
    values = [group.shown for group in known]
    best, worst = _ends(values, highest)
    colors, norm, _ = _colors(values, highest)
    paths, shades, widths = [], [], []
    shares = np.stack([_spread(scale, groups) for scale in scales], axis=1)
    width = min(1.4, max(0.6, 80 / len(groups)))
    for i, group in reversed(list(enumerate(groups))):  # the best on top
        places = shares[i].tolist()
        if group.shown is None:
            places.append(-0.13)
        else:
            places.append(min(max((worst - group.shown) / (worst - best), 0.0), 1.0) if worst != best else 1.0)
        paths.append(_smooth(places))
        best_one = i == 0 and group.mean is not None
        shades.append(BEST if best_one else GREY if group.shown is None else colors(norm(group.shown)))
        widths.append(2.2 if best_one else width if group.mean is not None else width / 2)
    axes.add_collection(LineCollection(paths, colors=shades, linewidths=widths, alpha=0.9), autolim=False)
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
    for x, scale in enumerate(scales):
        axes.axvline(x, color="#5a5a5a", linewidth=0.9, zorder=3)
        for value, label in scale.ticks(0.05):
            y = scale.share(value)
            axes.plot([x - 0.015, x], [y, y], color="#5a5a5a", linewidth=0.9, zorder=3)
            text = axes.text(x - 0.03, y, label, ha="right", va="center", fontsize=8, bbox=box, zorder=4)
            text.set_parse_math(False)
    x = len(scales)
    steps = np.linspace(0, 1, 65)
    pieces = [np.array([[x, a], [x, b]]) for a, b in itertools.pairwise(steps)]
    tones = colors(norm(worst + (best - worst) * (steps[:-1] + steps[1:]) / 2))
    axes.add_collection(LineCollection(pieces, colors=tones, linewidths=7, zorder=3), autolim=False)
    low, high = sorted((best, worst))
    marks = [v for v in MaxNLocator(6).tick_values(low, high) if low <= v <= high] if low < high else [best]
    for mark in marks:
        y = (worst - mark) / (worst - best) if worst != best else 1.0
        axes.text(x + 0.05, y, _setting(float(mark), 4), ha="left", va="center", fontsize=8)
    if len(known) < len(groups):
        axes.text(x + 0.05, -0.13, "diverged\nor failed", ha="left", va="center", fontsize=8, color=ENDED)
    axes.set(xlim=(-0.25, x + 0.25), ylim=(-0.17 if len(known) < len(groups) else -0.03, 1.03), yticks=[])
    axes.set_xticks(range(x + 1), [*(scale.name for scale in scales), monitor], parse_math=False)
    axes.tick_params(length=0, top=False)
    axes.spines[:].set_visible(False)
    _headline(axes, groups, scales, monitor, highest)
    return True


def _spread(scale: _Scale, groups: Sequence[_Group]) -> np.ndarray:
    """The shares of the points; those that meet in a category are spread a little, the best on top."""
    shares = np.array([scale.share(group.point.get(scale.name)) for group in groups])
    if scale.kind == "ordinal":
        for share in set(shares.tolist()):
            [met] = np.nonzero(shares == share)
            shares[met] += (
                (0.5 - (np.arange(len(met)) + 0.5) / len(met)) * min(0.5, 0.02 * len(met)) / len(scale.values)
            )
    return shares


def _smooth(places: Sequence[float]) -> np.ndarray:
    """``[n, 2]``, a curve through the places at 0, 1, …, level at each: easier to follow than corners."""
    t = np.linspace(0, 1, 25)
    ease = t * t * (3 - 2 * t)
    pieces = [np.stack([i + t, a + (b - a) * ease], axis=1) for i, (a, b) in enumerate(itertools.pairwise(places))]
    return np.concatenate(pieces)
