"""The experiments with series from the command line: what they draw, write, answer and refuse."""

import contextlib
import functools
import gzip
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import forecast, memory_tasks, music, pixel_sequences, series_runs
from experiments.memory_tasks import Data, Drawn, draw
from experiments.series_runs import Batch, Examples
from seqjax import export, train
from seqjax.data import digits
from seqjax.data.series import Series
from seqjax.reporting import read_metrics

EXPERIMENTS = (memory_tasks, pixel_sequences, music, forecast)
PIECES = {
    name: [[[60 + t % 3, 67] if t % 4 else [] for t in range(5 + i)] for i in range(n)]
    for name, n in {"train": 9, "valid": 3, "test": 2}.items()
}
SMOKE = "smoke", "--model.cell", "elman"  # compiled sooner than others
EXTRA = {music: ("--data.path", "music.json")}


def main(experiment, *words):
    return experiment.main([str(word) for word in words])


def run_of(experiment):
    return Path("runs") / experiment.NAME / "first"


@pytest.fixture(scope="module", autouse=True)
def printed(tmp_path_factory):
    """The working directory with a run of each experiment; what they printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("series"))
        patch.setattr(train, "learning_curve", lambda directory: None)  # drawn in other tests
        # Equal models are compiled once for all tests.
        for module, name in ((series_runs, "make_loss"), (series_runs, "make_optimizer"), (train, "make_step")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        Path("music.json").write_text(json.dumps(PIECES))
        few = tmp_path_factory.mktemp("package") / "digits.csv.gz"
        whole = digits.packaged_file("scikit-learn", "sklearn", "datasets", "data", "digits.csv.gz")
        with gzip.open(whole, "rt") as lines, gzip.open(few, "wt") as file:
            file.writelines(line for _, line in zip(range(700), lines, strict=False))
        patch.setattr(digits, "packaged_file", lambda *_: few)
        out = {}
        for experiment in EXPERIMENTS:
            with contextlib.redirect_stdout(io.StringIO()) as stream:
                assert main(experiment, *SMOKE, *EXTRA.get(experiment, ()), "--run", run_of(experiment)) == 0
            out[experiment] = stream.getvalue()
        yield out


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_run_directory(experiment, printed, capsys):
    run = run_of(experiment)
    summary = json.loads((run / "summary.json").read_text())
    baseline = {
        memory_tasks: "loss of always 1",
        pixel_sequences: "accuracy of the commonest class",
        music: "loss of the frequencies",
        forecast: "AR(9) rmse",
    }[experiment]
    assert {"loss_validation", "loss_test", f"{baseline}_test"} <= set(summary)
    assert all(np.isfinite(value) for value in summary.values())
    assert f"  {baseline} {summary[f'{baseline}_test']:.4g}\n" in printed[experiment]
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert last["split"] == "validation"
    assert main(experiment, "evaluate") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{run} test: ")
    assert f"loss {summary['loss_test']:.4g}" in out
    assert f"  {baseline} {summary[f'{baseline}_test']:.4g}\n" in out


@pytest.mark.full
def test_a_mesh_changes_nothing():
    words = (*SMOKE, "--run", "runs/meshed", "--mesh", "data=4")
    assert main(memory_tasks, *words) == 0
    first, meshed = (read_metrics(run / "metrics.jsonl")[0] for run in (run_of(memory_tasks), Path("runs/meshed")))
    assert first["loss"] == pytest.approx(meshed["loss"], rel=1e-5)
    assert main(memory_tasks, *words[:4], "runs/other", "--mesh", "data=4", "--batch_size", 5) == 2


def test_resumed_runs_go_on_with_the_same_batches():
    shutil.copytree(run_of(memory_tasks), "runs/resumed")
    shutil.rmtree("runs/resumed/checkpoints/20")
    (Path("runs/resumed") / "summary.json").unlink()
    assert main(memory_tasks, "--run", "runs/resumed", "--resume") == 0
    whole, resumed = (
        json.loads((run / "summary.json").read_text()) for run in (run_of(memory_tasks), Path("runs/resumed"))
    )
    assert resumed == whole


def test_export():
    run = run_of(memory_tasks)
    assert main(memory_tasks, "export", "--run", run) == 0
    bundle = export.load_bundle(run / "bundle")
    predictor = series_runs.load(run, memory_tasks.TASK)
    batch = draw(Data(length=5), 3, 1)
    ((_, expected),) = predictor.outputs([batch])
    found = bundle.functions["apply"](bundle.params, batch.inputs, batch.lengths)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- what is to be remembered


def test_the_tasks_are_what_they_say():
    adding = draw(Data("adding", 7), 200, 0)
    numbers, marks = adding.inputs[..., 0], adding.inputs[..., 1]
    assert np.array_equal(marks.sum(1), np.full(200, 2))
    assert set(np.unique(marks)) == {0, 1}
    assert len({tuple(row) for row in marks}) == 21  # all pairs of places
    np.testing.assert_allclose(adding.targets[:, 0], (numbers * marks).sum(1), rtol=1e-6)
    assert 0 <= numbers.min() < 0.05 < 0.95 < numbers.max() <= 1

    copy = draw(Data("copy", 5), 50, 0)
    symbols = copy.inputs.argmax(-1)
    assert symbols.shape == (50, 25)
    assert set(np.unique(symbols[:, :10])) == set(range(1, 9))
    assert np.array_equal(symbols[:, 10:], np.tile([0] * 4 + [9] * 11, (50, 1)))
    assert np.array_equal(copy.targets[:, -10:], symbols[:, :10])
    assert not copy.targets[:, :-10].any()

    parity = draw(Data("parity", 6), 50, 0)
    bits = (parity.inputs[..., 0] > 0).tolist()
    assert parity.targets.tolist() == [[sum(row[: t + 1]) % 2 for t in range(6)] for row in bits]


def test_batches_are_functions_of_seed_and_step():
    data = Data("copy", 3)
    drawn, again, other = Drawn(data, 4, 1), Drawn(data, 4, 1), Drawn(data, 4, 2)
    same = [np.array_equal(a, b) for a, b in zip(drawn[7], again[7], strict=True)]
    assert all(same)
    assert not np.array_equal(drawn[7].targets, drawn[8].targets)
    assert not np.array_equal(drawn[7].targets, other[7].targets)
    parts = [Drawn(data, 4, 1, lambda n, k=k: np.arange(k, n, 2))[7] for k in range(2)]
    np.testing.assert_array_equal(np.stack([p.targets for p in parts], 1).reshape(4, -1), drawn[7].targets)
    config = replace(memory_tasks.PRESETS["smoke"][1], seed=3, batch_size=64)
    problem, others = memory_tasks.problem(config), memory_tasks.problem(replace(config, seed=4))
    for split in ("validation", "test"):
        whole = list(problem.splits[split]())
        assert sum(batch.where.sum() for batch in whole) == memory_tasks.EXAMPLES
        assert np.array_equal(whole[0].inputs, next(iter(others.splits[split]())).inputs)


def test_copies_are_measured_where_they_are_asked_for():
    batch, measure = draw(Data("copy", 2), 2, 0), jax.jit(memory_tasks.measure_copy)
    right = 9 * np.eye(10, dtype=np.float32)[batch.targets]
    assert [float(x) for x in measure(right, batch)["accuracy"]] == [20, 20]
    blank, one = np.roll(right, 1, axis=-1), batch._replace(where=batch.where & np.array([[True], [False]]))
    assert [float(x) for x in measure(blank, one)["accuracy"]] == [0, 10]


def test_longer_sequences(capsys):
    assert main(memory_tasks, "evaluate", "--length", 11, "--split", "validation") == 0
    assert "loss of always 1 0.1667" in capsys.readouterr().out


# --- examples


def test_examples_are_padded():
    of_places = Examples(
        [np.full((n, 2), n, np.float32) for n in (2, 3)], [np.full((n, 1), n) for n in (2, 3)], frames=True
    )
    batch = of_places.collate(np.array([1, 0]), (3, 3))
    assert batch.lengths.tolist() == [3, 2, 0]
    assert batch.inputs[..., 0].tolist() == [[3, 3, 3], [2, 2, 0], [0, 0, 0]]
    assert batch.targets[..., 0].tolist() == [[3, 3, 3], [2, 2, 0], [0, 0, 0]]
    assert batch.where.tolist() == [[True, True, True], [True, True, False], [False, False, False]]
    cut = of_places.collate(np.array([1]), (1, 2))
    assert (cut.lengths.tolist(), cut.where.tolist()) == ([2], [[True, True]])
    whole = of_places._replace(targets=np.array([5, 6]), frames=False)
    assert whole.collate(np.array([1]), (2, 3)).targets.tolist() == [6, 0]
    assert [batch.lengths.tolist() for batch in whole.once(4)] == [[2, 3]]


def test_errors_are_means_over_numbers():
    batch = Batch(None, None, np.array([[0.0, 0.0], [1.0, 3.0]], np.float32), np.array([False, True]))
    values = jax.jit(series_runs.measure_errors)(np.array([[7.0, 7.0], [2.0, 1.0]], np.float32), batch)
    assert [float(x) for x in values["loss"]] == [2.5, 1]
    assert [float(x) for x in values["mae"]] == [1.5, 1]


# --- music


def test_frames_are_measured_key_by_key():
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(2, 3, 88)).astype(np.float32), rng.random((2, 3, 88)) < 0.2
    where = np.array([[True, True, False], [True, False, False]])
    total, hits, either = 0.0, 0, 0
    for b, t in np.argwhere(where):
        for z, y in zip(outputs[b, t].astype(np.float64), targets[b, t], strict=True):
            p = 1 / (1 + np.exp(-z))
            total -= np.log(p if y else 1 - p)
            hits, either = hits + (z > 0 and y), either + (z > 0 or y)
    values = jax.jit(music.measure_frames)(outputs, Batch(None, None, targets, where))
    assert [float(x) for x in values["loss"]] == pytest.approx([total, 3], rel=1e-5)
    assert [float(x) for x in values["accuracy"]] == [hits, either]
    assert music.shifted(np.array([[True], [False]])).tolist() == [[0], [1]]


def test_a_sample(capsys):
    run = run_of(music)
    written = []
    for temperature in (0, 3):
        assert main(music, "sample", "--frames", 6, "--temperature", temperature) == 0
        written.append((run / "sample.json").read_text())
    assert written[0] != written[1]
    piece = json.loads(written[0])
    assert len(piece) == 6
    # Greedy: each frame holds the keys likelier than not after those before it.
    predictor = series_runs.load(run, music.TASK)
    given = Examples([music.shifted(music.piano_roll(piece))], [music.piano_roll(piece)], frames=True)
    ((_, outputs),) = predictor.outputs(given.once(1))
    assert music.pitches(outputs[0] > 0) == [tuple(frame) for frame in piece]
    assert (run / "sample.png").exists()
    assert "6 frames" in capsys.readouterr().out


def test_midi():
    data = music.midi([(60,), (60, 64), ()], 0.5)
    assert data[:14] == b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x00\x01"
    assert int.from_bytes(data[18:22], "big") == len(data) - 22
    events = [(0, 0x90, 60), (1, 0x90, 64), (1, 0x80, 60), (0, 0x80, 64)]
    track = b"".join(bytes([wait, status, key, 64]) for wait, status, key in events)
    assert data[22:] == b"\x00\xff\x51\x03\x07\xa1\x20" + track + b"\x00\xff\x2f\x00"
    assert [music._variable_length(n) for n in (0, 127, 128, 300)] == [b"\x00", b"\x7f", b"\x81\x00", b"\x82\x2c"]


# --- forecasts


def test_ar_is_least_squares():
    rng = np.random.default_rng(0)
    values = [0.0, 1.0]
    for _ in range(60):
        values.append(0.3 + 0.5 * values[-1] - 0.4 * values[-2] + rng.normal())
    values, p = np.array(values), 2
    rows = [[1.0, *(values[t - i] for i in range(1, p + 1))] for t in range(p, len(values))]
    expected = np.linalg.solve(np.array(rows).T @ rows, np.array(rows).T @ values[p:])
    fitted = forecast.fit_ar(values, p)
    np.testing.assert_allclose(fitted, expected, rtol=1e-8)
    history = list(values[-4:])
    for _ in range(3):
        history.append(fitted[0] + fitted[1] * history[-1] + fitted[2] * history[-2])
    np.testing.assert_allclose(forecast.run_ar(fitted, values[None, -4:], 3)[0], history[4:], rtol=1e-12)


def test_windows_know_nothing_of_the_future():
    values = np.arange(40.0)[:, None] * [1.0, 2.0]
    data = forecast.Data(parts=(20, 8, 10), window=4, horizon=3, order=2)
    windows = forecast.cut(Series(("a", "b"), tuple(map(str, range(40))), values), data)
    np.testing.assert_allclose(windows.mean, values[:20].mean(0))  # of the training part only
    np.testing.assert_allclose(windows.std, values[:20].std(0))
    rows = {
        split: sorted({*(begins[:, None] + np.arange(3)).ravel().tolist()}) for split, begins in windows.begins.items()
    }
    assert rows == {"train": [*range(4, 20)], "validation": [*range(20, 28)], "test": [*range(28, 38)]}
    scaled = (values - windows.mean) / windows.std
    np.testing.assert_allclose(windows.seen(np.array([20]), 4)[0], scaled[16:20])
    np.testing.assert_allclose(windows.following(np.array([20]), 3)[0], scaled[20:23])
    plain = forecast.examples(windows, data, np.array([20]))
    np.testing.assert_allclose(plain.targets[0].reshape(3, 2), scaled[20:23], rtol=1e-6)
    since = forecast.examples(windows, replace(data, difference=True), np.array([20]))
    np.testing.assert_allclose(since.inputs[0], scaled[16:20] - scaled[19], atol=1e-6)
    np.testing.assert_allclose(since.targets[0].reshape(3, 2), scaled[20:23] - scaled[19], rtol=1e-6)
    found = forecast.baselines(windows, data)["test"]
    np.testing.assert_allclose(found["persistence"][0], np.tile(scaled[27], (3, 1)))
    np.testing.assert_allclose(found["AR(2)"][0], scaled[28:31], rtol=1e-6)  # a straight line
    assert forecast.finish(np.array([2.0]), {"loss": 4.0, "mae": 1.0}) == {"loss": 4.0, "rmse": 4.0, "mae": 2.0}
    assert forecast.finish(np.array([2.0, 3.0]), {"loss": 4.0, "mae": 1.0}) == {"loss": 4.0, "rmse": 2.0, "mae": 1.0}


def test_what_comes_next(capsys):
    assert (run_of(forecast) / "forecast.png").exists()
    capsys.readouterr()
    assert main(forecast, "predict") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "steps after 2008,SUNACTIVITY"
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3"]
    Path("last.csv").write_text("YEAR,SUNACTIVITY\n" + "".join(f"{1985 + t},{t % 11}\n" for t in range(24)))
    assert main(forecast, "predict", "--path", "last.csv") == 0
    assert capsys.readouterr().out.splitlines()[1:] != rows


# --- digits


def test_what_an_image_shows(capsys, monkeypatch):
    data = pixel_sequences.images(pixel_sequences.Data())["test"]
    lines = [",".join(str(int(16 * p)) for p in image.ravel()) for image in data.pixels[:3]]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(("\n".join(lines) + "\n").encode())))
    capsys.readouterr()
    assert main(pixel_sequences, "predict") == 0
    found = [line.split() for line in capsys.readouterr().out.splitlines()]
    predictor = series_runs.load(run_of(pixel_sequences), pixel_sequences.TASK)
    given = Examples(data.pixels[:3].reshape(3, 64, 1), data.labels[:3], frames=False)
    ((_, outputs),) = predictor.outputs(given.once(3))
    assert [int(label) for label, _ in found] == outputs.argmax(-1).tolist()
    p = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    np.testing.assert_allclose([float(p) for _, p in found], p.max(-1), atol=1e-3)
    assert main(pixel_sequences, "evaluate") == 0
    assert (run_of(pixel_sequences) / "confusion.png").exists()


def test_pixels_in_another_order():
    pixels = np.arange(2 * 64, dtype=np.float32).reshape(2, 8, 8)
    straight, permuted = (
        pixel_sequences.sequences(pixel_sequences.Data(permuted=p), pixels)[..., 0] for p in (False, True)
    )
    np.testing.assert_array_equal(straight, pixels.reshape(2, 64))
    assert not np.array_equal(permuted, straight)
    np.testing.assert_array_equal(np.sort(permuted), straight)
    np.testing.assert_array_equal(permuted[1] - permuted[0], np.full(64, 64))  # one order for all


# --- refused


@pytest.mark.parametrize(
    ("experiment", "words", "message"),
    [
        (memory_tasks, "--data.length 1", "data.length=1; it must be at least 2."),
        (memory_tasks, "--data.task copy", "model.readout=last; here it must be frames: every place has its answer."),
        (memory_tasks, "train copy --model.readout mean", "model.readout=mean; here it must be frames"),
        (memory_tasks, "--batch_size 0", "batch_size=0; it must be at least 1."),
        (pixel_sequences, "--model.readout frames", "model.readout=frames; here it must be last or mean: a sequence"),
        (pixel_sequences, "mnist --data.path none.npz", "none.npz: cannot read the images"),
        (pixel_sequences, "mnist", "data.path: no package has MNIST"),
        (pixel_sequences, "--data.path none.npz", "data.path=none.npz: the file is that of --data.source mnist"),
        (pixel_sequences, "predict --input music.json", "input:1: could not convert string to float"),
        (music, "gru", "data.path: no package has chorales; give the path of jsb-chorales-quarter.json."),
        (music, "sample --temperature -1", "temperature=-1.0; it must be at least 0."),
        (forecast, "--data.order 30", "data.order=30: AR(p) sees the window too, 24 rows; lower it."),
        (
            forecast,
            "--data.parts 300 30 30",
            "data.parts=(300, 30, 30): the series has 309 rows only",
        ),
        (forecast, "--data.window 230", "data.window=230 and data.horizon=1 do not fit into 221, 35 and 53 rows"),
    ],
)
def test_refused(experiment, words, message, capsys):
    capsys.readouterr()
    assert main(experiment, *words.split()) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
