"""Figures of studies: that they come of anything, and how they are scaled."""

import math
import random
import sys

import numpy as np
import pytest

from seqjax.study import figures
from seqjax.study.tables import by_point
from tests.test_study_tables import ranked, result

CELLS = ("lstm", "gru", "elman")


def study(points, seeds=1, fate=lambda point, seed: ("done", 100)):
    """Results and curves of members that fall from 4 to a value of their own."""
    rng, results, curves = random.Random(3), [], []
    for point in points:
        for seed in range(seeds):
            (status, last), member, end = fate(point, seed), len(results), rng.uniform(1, 3)
            value = None
            for step in range(10, last + 1, 10):
                value = end + (4 - end) * math.exp(-step / 20)
                if status == "diverged":
                    value = 10.0**step
                shown = None if status == "failed" and step == last else value
                for split in ("train", "validation"):
                    curves.append({"step": step, "split": split, "member": member, "loss": shown, "seconds": step})
            value = None if status == "failed" else value
            results.append(result(member, point, value, status, last, seed))
    return ranked(results), curves


def drawn(tmp_path, results, curves, **options):
    """The names of the figures, which are pictures, and not of one colour."""
    from matplotlib.image import imread

    paths = figures.draw(results, curves, tmp_path / "figures", **options)
    for path in paths:
        assert np.ptp(imread(path)[..., :3]) > 0.5
    return [path.name for path in paths]


def grid(**axes):
    points = [{}]
    for name, values in axes.items():
        points = [point | {name: value} for point in points for value in values]
    return points


def test_one_axis(tmp_path):
    def fate(point, seed):
        if point["lr"] == 0.3:
            return ("diverged", 60) if seed else ("failed", 40)
        return ("halved", 50) if point["lr"] == 0.001 or (seed and point["lr"] == 0.01) else ("done", 100)

    results, curves = study(grid(lr=[0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4]), 3, fate)
    assert drawn(tmp_path, results, curves) == ["curves.png", "sweep.png"]


def test_a_grid(tmp_path):
    points = grid(lr=[0.001, 0.01, 0.1], cell=CELLS, tied=[True, False])
    lost = {"lr": 0.1, "cell": "elman"}

    def fate(point, seed):
        return (
            ("failed", 30)
            if lost.items() <= point.items()
            else ("halved", 50)
            if point["lr"] == 0.001
            else ("done", 100)
        )

    results, curves = study(points, 2, fate)
    names = drawn(tmp_path, results, [row for row in curves if row["split"] == "train"], highest=True)
    assert names == ["curves.png", "heatmap.png", "parallel.png"]


def test_many_scattered_points(tmp_path):
    rng = random.Random(1)
    points = [{"lr": 10 ** rng.uniform(-4, -1), "dropout": rng.random(), "d": rng.randint(1, 999)} for _ in range(300)]
    results, curves = study(points, 1, lambda point, _: ("diverged", 30) if point["lr"] > 0.05 else ("done", 40))
    assert drawn(tmp_path, results, curves) == ["curves.png", "heatmap.png", "parallel.png"]


def test_names_are_no_formulas(tmp_path):
    points = [
        {"$x$ \\frac": "日本 $^", "_y": 1},
        {"_y": 2.5, "$x$ \\frac": "a\n" + 40 * "b"},
        {"_y": "$"},
        {"_y": 3, "$x$ \\frac": "c"},
    ]
    results, curves = study(points)
    assert len(drawn(tmp_path, results, curves, monitor="loss")) == 3
    curves = [{("$_1^" if name == "loss" else name): x for name, x in row.items()} for row in curves]
    one = [{**row, "point": {"$": row["member"]}} for row in results]
    assert drawn(tmp_path, one, curves, monitor="$_1^") == ["curves.png", "sweep.png"]


def test_little_to_draw(tmp_path):
    single, curves = study([{"lr": 0.1}])
    assert drawn(tmp_path, single, curves) == ["curves.png"]
    failed, curves = study(grid(lr=[1, 2]), 1, lambda *_: ("failed", 20))
    assert drawn(tmp_path, failed, curves) == ["curves.png"]
    assert figures.draw(failed, [row for row in curves if row["step"] == 20], tmp_path) == []  # all of them null
    assert figures.draw([], [], tmp_path) == []
    same = ranked([result(i, {"lr": i, "n": 1}, 2.0) for i in range(2)])
    assert drawn(tmp_path, same, [{"step": 0, "split": "train", "member": 0, "loss": 2}]) == ["curves.png", "sweep.png"]
    assert figures.draw(failed + single, [], tmp_path, monitor="other") != []


def test_without_matplotlib(tmp_path, monkeypatch):
    for package in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, package, None)  # makes their import fail
    assert figures.draw(*study([{"lr": 0.1}, {"lr": 0.2}]), tmp_path) == []
    assert not list(tmp_path.iterdir())


# How figures are scaled


def rows_of(name, values):
    return [{"member": i, "point": {name: value}} for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((1e-4, 1e-3, 1e-2), "log"),
        ((1e-4, 1e-2), "log"),
        ((64, 512, 128, 256), "log"),
        ((0.0, 0.1, 0.2, 0.5), "linear"),
        ((1, 2, 3), "linear"),
        ((0.0, 1e-4, 1e-3, 1e-2), "ordinal"),
        ((0.9, 0.99, 0.999), "ordinal"),
        ((1.0, 10.0, math.inf), "ordinal"),
        ((True, False), "ordinal"),
        (CELLS, "ordinal"),
        ([0.1 * 1.02**i for i in range(300)], "log"),
    ],
)
def test_scales(values, kind):
    scale = figures._scale("x", rows_of("x", values))
    assert scale.kind == kind
    shares = [scale.share(scale.place(x)) for x in scale.values]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1
    places, labels = scale.ticks()
    assert 2 <= len(places) == len(labels) <= 16
    assert all(0 <= scale.share(place) <= 1 for place in places)
    if kind == "ordinal":
        assert scale.values == list(values)  # in the order of members
        assert places == list(range(len(values)))


def test_round_numbers_mark_many_values():
    def labels(*values):
        return figures._scale("x", rows_of("x", np.linspace(*values, 30).tolist())).ticks()[1]

    assert labels(0.03, 0.57) == ["0.1", "0.2", "0.3", "0.4", "0.5"]
    many = [10**x for x in np.linspace(-4.2, -0.9, 30).tolist()]
    assert figures._scale("x", rows_of("x", many)).ticks()[1] == [
        "0.0001",
        "0.0003",
        "0.001",
        "0.003",
        "0.01",
        "0.03",
        "0.1",
    ]


@pytest.mark.parametrize("sign", [1, -1])
def test_outliers_do_not_squash_a_scale(sign):
    def limits(*values, margin=0.0):
        low, high = sorted(sign * x for x in figures._limits([sign * x for x in values], sign < 0, margin))
        return low, high

    assert limits(1.0, 1.1, 1.2, 1.3, 1e30) == (1.0, pytest.approx(1.9))
    assert limits(1.0, 1.5, 2.0, 3.0) == (1.0, 3.0)
    assert limits(1.0, 1.5, 2.0, 3.0, margin=0.1) == pytest.approx((0.8, 3.2))
    assert limits(2.0) == (1.9, 2.1)
    assert limits(0.0, 0.0) == (-1.0, 1.0)
    assert limits(1e4, *29 * [80.0], 75.0)[1] < 200  # a curve that falls steeply


@pytest.mark.fast
def test_lines_are_means_of_the_members_that_count():
    statuses = ("done", "stopped early", "halved", "failed")
    rows = ranked([result(i, {}, None if i == 3 else 1.0, status) for i, status in enumerate(statuses)])
    series = {0: {1: 4.0, 2: 3.0, 3: 2.0}, 1: {1: 2.0, 2: 1.0}, 2: {1: 5.0, 2: 4.0}, 3: {1: 9.0}}
    [group] = by_point(rows, highest=False)
    lines = figures._lines(group, series)
    assert [(line.steps, line.values.tolist(), line.fate) for line in lines] == [
        ([1, 2, 3], [[4.0, 3.0, 2.0], [2.0, 1.0, 1.0]], "whole"),
        ([1, 2], [[5.0, 4.0]], "short"),
        ([1], [[9.0]], "lost"),
    ]


def test_points_of_halved_members_show_those_that_came_furthest():
    rows = ranked([result(i, {}, value, "halved", step) for i, (value, step) in enumerate([(3.0, 20), (1.0, 10)])])
    [group] = by_point(rows, highest=False)
    assert (group.complete, group.mean) == (False, 3.0)


def test_older_figures_are_removed(tmp_path):
    assert drawn(tmp_path, *study(grid(lr=[1, 2]))) == ["curves.png", "sweep.png"]
    kept = tmp_path / "figures" / "mine.png"
    kept.touch()
    assert drawn(tmp_path, *study(grid(lr=[1, 2], n=[1, 2]))) == ["curves.png", "heatmap.png", "parallel.png"]
    names = sorted(path.name for path in kept.parent.iterdir())
    assert names == ["curves.png", "heatmap.png", "mine.png", "parallel.png"]
