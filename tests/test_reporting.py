import io
import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqjax.errors import InputError
from seqjax.reporting import Reporter, attention_map, learning_curve, read_metrics


def lines(directory):
    return (directory / "metrics.jsonl").read_text().splitlines()


def report(directory, steps, resume_step=None, **values):
    with Reporter(directory, total_steps=100, resume_step=resume_step, console=False) as reporter:
        for step in steps:
            reporter.metrics(step, "train", {"loss": 1.0 / (step + 1), **values}, float(step))


# metrics.jsonl


def test_a_line_is_there_as_soon_as_metrics_returns(tmp_path):
    with Reporter(tmp_path / "new" / "run", total_steps=10, console=False) as reporter:
        reporter.metrics(3, "validation", {"loss": 0.1, "bleu": 27.25}, 1.5)
        assert lines(tmp_path / "new" / "run") == [
            '{"step": 3, "split": "validation", "loss": 0.1, "bleu": 27.25, "seconds": 1.5}'
        ]


def test_any_number_makes_valid_json_of_full_precision(tmp_path):
    values = {
        "third": 1 / 3,
        "count": 12,
        "numpy": np.float32(0.1),
        "jax": jnp.float32(2.5),
        "nan": math.nan,
        "inf": jnp.float32(-jnp.inf),
    }
    with Reporter(tmp_path, total_steps=10, console=False) as reporter:
        reporter.metrics(1, "train", values, 0.0)
    [row] = map(json.loads, lines(tmp_path))
    assert row["third"] == 1 / 3
    assert (row["count"], type(row["count"])) == (12, int)
    assert (row["numpy"], row["jax"]) == (float(np.float32(0.1)), 2.5)
    assert row["nan"] is row["inf"] is None
    assert read_metrics(tmp_path / "metrics.jsonl") == [row]


def test_a_new_run_starts_empty(tmp_path):
    report(tmp_path, [1, 2])
    report(tmp_path, [1])
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_resuming_drops_what_came_after(tmp_path):
    report(tmp_path, range(0, 50, 10), third=1 / 3)
    before = lines(tmp_path)
    report(tmp_path, [30, 40], resume_step=20, third=1 / 3)
    assert lines(tmp_path) == before


@given(st.data())
def test_resuming_after_the_file_was_cut_anywhere(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("run")
    numbers = st.floats() | st.integers(-(2**63), 2**63)
    names = st.text(min_size=1).filter(lambda name: name not in ("step", "split", "seconds"))
    rows = data.draw(st.lists(st.dictionaries(names, numbers, max_size=3), max_size=6))
    with Reporter(directory, total_steps=9, console=False) as reporter:
        for step, values in enumerate(rows):
            reporter.metrics(step, "train", values, 0.5)
    path = directory / "metrics.jsonl"
    whole, written = read_metrics(path), path.read_bytes()
    cut = data.draw(st.integers(0, len(written)))
    resume_step = data.draw(st.integers(0, 7))
    path.write_bytes(written[:cut])

    complete = read_metrics(path)
    assert complete == whole[: len(complete)]
    assert len(complete) >= written[:cut].count(b"\n")
    report(directory, [8], resume_step=resume_step)
    *kept, last = read_metrics(path)
    assert kept == [row for row in complete if row["step"] <= resume_step]
    assert last["step"] == 8
    assert not list(directory.glob("*.tmp"))


def test_reading_refuses_what_is_not_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(InputError, match="there is no such file"):
        read_metrics(path)
    path.write_text('{"step": 1}\n[1]\n{"step": 2}\n')
    with pytest.raises(InputError, match="line 2 is not a JSON object"):
        read_metrics(path)
    path.write_text("")
    assert read_metrics(path) == []


# TensorBoard


def scalars(directory):
    """(tag, step, value) in the order written, and where earlier values are purged from, as TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found = []
    for path in sorted((directory / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, place = path.read_bytes(), 0
        while place < len(data):  # length (8), its checksum (4), event, checksum (4)
            length = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            if event.session_log.status == SessionLog.START:
                found.append(("purge", event.step, None))
    return found


def test_tensorboard(tmp_path):
    with Reporter(tmp_path, total_steps=10, console=False) as reporter:
        reporter.metrics(1, "train", {"loss": 2.0, "skipped": math.nan}, 0.0)
        reporter.metrics(2, "validation", {"f1": 0.5}, 0.0)
    assert scalars(tmp_path) == [("purge", 0, None), ("train/loss", 1, 2.0), ("validation/f1", 2, 0.5)]


def test_tensorboard_forgets_what_came_after_the_resumed_step(tmp_path):
    report(tmp_path, [4, 5])
    for old in (tmp_path / "tensorboard").iterdir():
        old.unlink()  # within one second the next file would have the same name
    report(tmp_path, [5], resume_step=4)
    assert scalars(tmp_path)[0] == ("purge", 5, None)


# The screen


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(reporter):
    reporter.note("2 devices [bold]")
    reporter.progress(200, {"loss": 1.9123, "bits": 2.7583, "lr": 3e-4, "tokens/s": 34120.4})
    reporter.metrics(200, "train", {"loss": 1.9123}, 12.0)
    reporter.metrics(200, "validation", {"loss": 2.0, "perplexity": math.e**2}, 3723.9)


def test_plain_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("seqjax.reporting.time.monotonic", lambda: 5.0)
    with Reporter(tmp_path, total_steps=2000) as reporter:
        show(reporter)
    assert capsys.readouterr().out == (
        "2 devices [bold]\n"
        "step 200/2000  train loss 1.912  bits 2.758  lr 0.0003  34,120 tokens/s  0:00\n"
        "step 200/2000  validation loss 2.000  perplexity 7.389  1:02:03\n"
    )


def test_time_goes_on_where_the_resumed_run_was(tmp_path, capsys, monkeypatch):
    report(tmp_path, [60, 61])
    monkeypatch.setattr("seqjax.reporting.time.monotonic", lambda: 5.0)
    with Reporter(tmp_path, total_steps=100, resume_step=60) as reporter:
        reporter.progress(70, {"loss": 1.0})
    assert capsys.readouterr().out == "step 70/100  train loss 1.000  1:00\n"


def test_silence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    with Reporter(tmp_path, total_steps=2000, console=False) as reporter:
        show(reporter)
    assert terminal.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    with Reporter(tmp_path, total_steps=2000) as reporter:
        show(reporter)
    reporter.close()  # once more does no harm
    assert sys.stdout is terminal
    shown = terminal.getvalue()
    assert "2 devices [bold]\n" in shown
    assert "step 200/2000  validation loss 2.000  perplexity 7.389  1:02:03\n" in shown
    last = shown.rsplit("\r", 1)[1]
    assert "step 200/2000" in last
    assert "loss 1.912  bits 2.758  lr 0.0003  34,120 tokens/s" in last
    assert "\x1b[?25h" in last  # the cursor is back


def test_a_dumb_terminal_gets_plain_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    with Reporter(tmp_path, total_steps=2000) as reporter:
        show(reporter)
    assert "\r" not in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()
    assert len(terminal.getvalue().splitlines()) == 3


def test_without_the_extras(tmp_path, monkeypatch):
    for package in ("tensorboardX", "rich", "rich.console", "rich.progress", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, package, None)  # makes their import fail
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    with Reporter(tmp_path, total_steps=2000) as reporter:
        show(reporter)
    assert len(terminal.getvalue().splitlines()) == 3
    assert len(lines(tmp_path)) == 2
    assert not (tmp_path / "tensorboard").exists()
    assert learning_curve(tmp_path) is None
    assert attention_map(np.eye(2), ["a", "b"], ["A", "B"], tmp_path / "map.png") is None


# The figures


@pytest.mark.parametrize(
    "splits", [["train"], ["validation"], ["test"], ["train", "validation", "test"], ["valid_unseen"]]
)
def test_learning_curve(tmp_path, splits):
    with Reporter(tmp_path, total_steps=10, console=False) as reporter:
        for step in range(3):
            for split in splits:
                reporter.metrics(step, split, {"loss": [3.0, math.nan, 1.0][step]}, 0.0)
        reporter.metrics(3, "validation", {"accuracy": 0.5}, 0.0)
    path = learning_curve(tmp_path)
    assert path == tmp_path / "learning_curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_learning_curve_of_a_single_point(tmp_path):
    report(tmp_path, [0])
    assert learning_curve(tmp_path).exists()


def test_no_learning_curve_without_a_loss(tmp_path):
    with Reporter(tmp_path, total_steps=10, console=False) as reporter:
        reporter.metrics(1, "train", {"loss": math.nan}, 0.0)
        reporter.metrics(1, "validation", {"f1": 0.5}, 0.0)
    assert learning_curve(tmp_path) is None
    assert not (tmp_path / "learning_curve.png").exists()


def test_learning_curve_leaves_pyplot_alone(tmp_path):
    report(tmp_path, [1])
    loaded = "matplotlib.pyplot" in sys.modules
    learning_curve(tmp_path)
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def blue(path):
    """Where a picture is blue: the middle, down and across, as shares of its sides; None if it is nowhere."""
    from matplotlib.image import imread

    picture = imread(path)
    places = np.argwhere(picture[..., 2] - picture[..., 0] > 0.3)
    return places.mean(axis=0) / picture.shape[:2] if len(places) else None


def test_attention_map(tmp_path):
    # Nothing is read as a formula, and what the font lacks is no reason to warn.
    source, target = ["$a_1$", "^", "$\\frac$", "·日本", "🐋", "<eos>"], ["\t", "\x00", "a\nb", "<eos>"]

    def draw(t, s, weight=1.0):
        path = tmp_path / f"{t}{s}.png"
        weights = np.zeros((4, 6), np.float32)
        weights[t, s] = weight
        assert attention_map(weights, source, target, path) == path
        return blue(path)

    first, right, below = draw(0, 0), draw(0, 5), draw(3, 0)
    assert right[1] - first[1] > 0.3 > 0.01 > abs(right[0] - first[0])
    assert below[0] - first[0] > 0.3 > 0.01 > abs(below[1] - first[1])
    assert draw(1, 1, weight=0.1) is None  # white is 0 and blue is 1, whatever the largest weight
