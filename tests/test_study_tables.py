"""Tables of studies: what is in them, how points rank, and how numbers are written."""

import math

import pytest

from seqjax.study import tables


def result(member, point, value, status="done", step=100, seed=0, **metrics):
    metrics = {"loss": value, **metrics}
    row = {"member": member, "seed": seed, "point": point, "status": status, "step": step}
    return row | {"value": value, "metrics": metrics, "command": "python -m experiments.char_lm"}


def ranked(results, highest=False):
    """As a study ranks them: those that came to the end first, lost ones last."""

    def order(row):
        value = math.inf if row["value"] is None else -row["value"] if highest else row["value"]
        return row["status"] in ("diverged", "failed"), row["status"] == "halved", value

    return [{"rank": i + 1, **row} for i, row in enumerate(sorted(results, key=order))]


@pytest.mark.fast
def test_a_table_has_the_columns_that_tell_members_apart():
    points = [{"lr": 0.00316227, "model.cell": "gru"}, {"lr": 1e-5, "model.cell": "lstm|x"}]
    rows = ranked([result(1, points[1], 2.5, bleu=31.25), result(0, points[0], 1.93449, bleu=None)])
    assert tables.table(rows).splitlines() == [
        "| rank |      lr | model.cell |  loss |  bleu |",
        "| ---: | ------: | ---------- | ----: | ----: |",
        "|    1 | 0.00316 | gru        | 1.934 |     – |",
        "|    2 |    1e-5 | lstm\\|x    | 2.500 | 31.25 |",
    ]


def test_a_table_shows_seed_status_and_step_where_they_differ():
    rows = [
        result(0, {"n": 512}, 2.0, seed=3),
        result(1, {"n": 512}, None, "failed", 40, seed=4),
        result(2, {}, math.nan, seed=4),
    ]
    assert tables.table(ranked(rows), monitor="ppl", limit=2).splitlines() == [
        "| rank |   n | seed |   ppl |  loss | status | step |",
        "| ---: | --: | ---: | ----: | ----: | ------ | ---: |",
        "|    1 | 512 |    3 | 2.000 | 2.000 | done   |  100 |",
        "|    2 |   – |    4 |     – |     – | done   |  100 |",
        "",
        "… and 1 more",
    ]
    assert "more" not in tables.table(ranked(rows), limit=3)
    assert tables.table([]).startswith("| rank | loss |")


def test_values_of_an_axis():
    def column(*values):
        rows = ranked([result(i, {"x": value}, float(i)) for i, value in enumerate(values)])
        return [line.split("|")[2].strip() for line in tables.table(rows).splitlines()[2:]]

    assert column(0.9, 0.99, 0.9999) == ["0.9", "0.99", "0.9999"]
    assert column(64, 4096, 1000000) == ["64", "4096", "1000000"]
    assert column(2.0, 12345.0, 1e-7, 1e9) == ["2", "12345", "1e-7", "1e9"]
    assert column(True, False, "a b", None, math.inf) == ["True", "False", "a b", "–", "inf"]


def test_points_over_their_seeds():
    rows = ranked(
        [
            result(0, {"lr": 0.1}, 3.0),
            result(1, {"lr": 0.1}, 2.0, "stopped early"),
            result(2, {"lr": 0.1}, 9.0, "diverged"),
            result(3, {"lr": 0.2}, 2.25),
            result(4, {"lr": 0.3}, None, "failed"),
            result(5, {"lr": 0.4}, 1.0, "halved", 50),
        ]
    )
    first, second, *rest = tables.over_seeds(rows)
    assert first == {"point": {"lr": 0.2}, "n": 1, "mean": 2.25, "sd": None, "least": 2.25, "most": 2.25, "complete": 1}
    assert second == {
        "point": {"lr": 0.1},
        "n": 3,
        "mean": 2.5,
        "sd": pytest.approx(math.sqrt(0.5)),
        "least": 2.0,
        "most": 3.0,
        "complete": 2,
    }
    assert [(row["point"]["lr"], row["mean"], row["complete"]) for row in rest] == [(0.4, None, 0), (0.3, None, 0)]
    assert tables.over_seeds(ranked(rows, highest=True), highest=True)[0]["point"] == {"lr": 0.1}
    assert tables.seeds_table(rows, limit=3).splitlines() == [
        "| rank |  lr |                  loss | least |  most |",
        "| ---: | --: | --------------------: | ----: | ----: |",
        "|    1 | 0.2 |             2.250 (1) | 2.250 | 2.250 |",
        "|    2 | 0.1 | 2.500 ± 0.71 (2 of 3) | 2.000 | 3.000 |",
        "|    3 | 0.4 |            – (0 of 1) |     – |     – |",
        "",
        "… and 1 more",
    ]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((812.31, 840.0), "826.2 ± 20"),
        ((1.00001, 1.00003), "1.000 ± 1.4e-5"),
        ((0.0, 0.0), "0.000 ± 0.0"),
        ((1e-6, 3e-6), "2.000e-6 ± 1.4e-6"),
        ((1e9, 3e9), "2.000e9 ± 1.4e9"),
        ((-2.0, -1.0), "-1.500 ± 0.71"),
    ],
)
def test_digits_of_mean_and_deviation(values, text):
    rows = ranked([result(i, {}, value) for i, value in enumerate(values)])
    assert f"| {text} (2) |" in tables.seeds_table(rows)
