"""Tables of a study: its members, and its points over their seeds.

Results are plain dicts, one a member, best first, as in ``results.jsonl``:
``{"rank", "member", "seed", "point": {"lr": 0.003}, "status", "step", "value", "metrics": {"loss": 1.93}}``.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

Rows = Sequence[Mapping[str, Any]]


def table(results: Rows, *, monitor: str = "loss", limit: int | None = None) -> str:
    """The members as a Markdown table, in their order; the first ``limit`` of them.

    Seed, status and step have a column if they tell members apart.

    >>> member = {"rank": 1, "point": {"lr": 0.00316}, "seed": 0, "status": "done", "step": 9, "value": 1.9342}
    >>> print(table([member | {"metrics": {"bleu": 31.2}}]))
    | rank |      lr |  loss |  bleu |
    | ---: | ------: | ----: | ----: |
    |    1 | 0.00316 | 1.934 | 31.20 |
    """
    columns = {"rank": [str(row["rank"]) for row in results]} | _settings(results)
    if len({row["seed"] for row in results}) > 1:
        columns["seed"] = [str(row["seed"]) for row in results]
    columns[monitor] = [value_text(row["value"]) for row in results]
    for name in dict.fromkeys(name for row in results for name in row["metrics"]):
        columns.setdefault(name, [value_text(row["metrics"].get(name)) for row in results])
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

    def row(group: Group) -> dict[str, Any]:
        values = [row["value"] for row in group.counted] if group.complete else []
        return {
            "point": group.point,
            "n": len(group.members),
            "mean": statistics.fmean(values) if values else None,
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "least": min(values, default=None),
            "most": max(values, default=None),
            "complete": len(values),
        }

    return [row(group) for group in by_point(results, highest=highest)]


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
    columns = {"rank": [str(rank) for rank in range(1, len(rows) + 1)]} | _settings(rows)
    columns[monitor] = []
    for row in rows:
        sd = "" if row["sd"] is None else f" ± {_digits(row['sd'], 2, '#')}"
        count = row["n"] if row["complete"] == row["n"] else f"{row['complete']} of {row['n']}"
        columns[monitor].append(f"{value_text(row['mean'])}{sd} ({count})")
    columns |= {name: [value_text(row[name]) for row in rows] for name in ("least", "most")}
    return _markdown(columns, limit)


# --- points


class Group(NamedTuple):
    """The members of a point."""

    point: Mapping[str, Any]
    members: list[Mapping[str, Any]]

    @property
    def complete(self) -> bool:
        """Whether any came to the end."""
        return any(fate(row) == "whole" for row in self.members)

    @property
    def counted(self) -> list[Mapping[str, Any]]:
        """Those that came to the end; if none did, those of the others that came furthest with a value."""
        if self.complete:
            return [row for row in self.members if fate(row) == "whole"]
        short = [row for row in self.members if fate(row) == "short"]
        return [row for row in short if row["step"] == max(row["step"] for row in short)]

    @property
    def mean(self) -> float | None:
        """Over ``counted``; None if there are none."""
        return statistics.fmean(row["value"] for row in self.counted) if self.counted else None


def by_point(results: Rows, *, highest: bool) -> list[Group]:
    """The members of each point, best mean first; points without complete ones last, in the order of their members."""
    groups: dict[frozenset, Group] = {}
    for row in results:
        groups.setdefault(frozenset(row["point"].items()), Group(row["point"], [])).members.append(row)
    sign = -1 if highest else 1
    return sorted(groups.values(), key=lambda group: sign * (group.mean or 0.0) if group.complete else math.inf)


def fate(row: Mapping[str, Any]) -> Literal["whole", "short", "lost"]:
    """Of a member's training: it came to the end, was cut short (halved), or has no value that counts."""
    if not is_number(row["value"]) or row["status"] in ("diverged", "failed"):
        return "lost"
    return "whole" if row["status"] in ("done", "stopped early") else "short"


def axis_names(rows: Rows) -> list[str]:
    """What any of the points has."""
    return list(dict.fromkeys(name for row in rows for name in row["point"]))


def is_number(x: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


# --- text


def value_text(x: Any) -> str:
    """A metric: four digits, zeros included."""
    return _digits(x, 4, "#") if is_number(x) else "–"


def setting_text(x: Any) -> str:
    """A value of an axis: a float of three digits, anything else as it is.

    >>> [setting_text(x) for x in (0.0031622776, 1e-05, 0.9999, 512, "gru", None)]
    ['0.00316', '1e-5', '0.9999', '512', 'gru', '–']
    """
    if not (isinstance(x, float) and math.isfinite(x)):
        return "–" if x is None else str(x)
    nines = -math.log10(1 - x) if 0 < x < 1 else 0  # of a decay: its distance from 1 is what counts
    return _digits(x, 3 + int(nines))


def _digits(x: float, digits: int, zeros: Literal["", "#"] = "") -> str:
    if 10**digits <= abs(x) < 1e7:
        return f"{x:.0f}"
    return f"{x:{zeros}.{digits}g}".removesuffix(".").replace("e+0", "e").replace("e-0", "e-")


def _settings(rows: Rows) -> dict[str, list[str]]:
    return {name: [setting_text(row["point"].get(name)) for row in rows] for name in axis_names(rows)}


def _markdown(columns: Mapping[str, Sequence[str]], limit: int | None) -> str:
    """Columns of the same length; text to the left, numbers to the right."""
    total = len(columns["rank"])
    aligned = []
    for name, words in columns.items():
        cells = [cell.replace("|", "\\|") for cell in (name, *words[:limit])]
        left, width = any(word[:1].isalpha() for word in words), max(3, *map(len, cells))
        cells.insert(1, "-" * width if left else "-" * (width - 1) + ":")
        aligned.append([cell.ljust(width) if left else cell.rjust(width) for cell in cells])
    text = "\n".join(f"| {' | '.join(line)} |" for line in zip(*aligned, strict=True))
    return text if limit is None or total <= limit else f"{text}\n\n… and {total - limit} more"
