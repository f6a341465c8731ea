"""The study of normalization and residual connections: its network beside a plain loop, its numbers, its files."""

import contextlib
import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import norms_residuals as study
from seqjax.normalization import BatchStats
from seqjax.reporting import read_metrics
from tests import oracles

TEXT = "".join(f"{n % 7} is what the quick brown fox says to the lazy dog;\nand so it goes.\n" for n in range(40))
DEPTH, WIDTH, N = 2, 4, 6


def network(seed=0):
    """Weights, running statistics (variances above 0) and images, all random."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: study.init_network(key, DEPTH, WIDTH), jax.random.key(0))
    params, stats = oracles.random_like(rng, shapes)
    stats = study.Stats(*(BatchStats(s.mean, 0.5 + jnp.square(s.var)) for s in stats))
    return params, stats, jnp.asarray(rng.normal(size=(N, 64)), jnp.float32)


def plain(variant, params, stats, image):
    """The scores of one image."""
    p, s = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, stats))

    def norm(x, g, b, mean, var):
        if variant.norm == "layer":
            return g * (x - x.mean()) / np.sqrt(x.var() + 1e-5) + b
        if variant.norm == "rms":
            return g * x / np.sqrt((x * x).mean() + 1e-6)
        return g * (x - mean) / np.sqrt(var + 1e-5) + b

    x = image @ p.w_x + p.b_x
    for i in range(DEPTH):
        of_block = p.blocks.g[i], p.blocks.b[i], s.blocks.mean[i], s.blocks.var[i]
        y = norm(x, *of_block) if variant.place == "pre" else x
        y = np.maximum(y @ p.blocks.w_in[i] + p.blocks.b_in[i], 0) @ p.blocks.w_out[i] + p.blocks.b_out[i]
        x = x + y if variant.residual else y
        x = norm(x, *of_block) if variant.place == "post" else x
    if variant.place == "pre":
        x = norm(x, p.g, p.b, s.last.mean, s.last.var)
    return x @ p.w_y + p.b_y


@pytest.mark.fast
@pytest.mark.parametrize(
    "variant",
    [
        study.Variant("none", "none", True),
        study.Variant("layer", "pre", True),
        study.Variant("rms", "post", True),
        study.Variant("batch", "pre", False),
        study.Variant("batch", "post", True),
    ],
    ids=str,
)
def test_network(variant):
    """One image at a time, so batch norm has nothing but its running statistics."""
    params, stats, images = network()
    scores, after = study.apply_network(variant, params, stats, images, train=False)
    for n in range(N):
        np.testing.assert_allclose(
            scores[n], plain(variant, params, stats, np.asarray(images[n])), rtol=2e-5, atol=2e-5
        )
    jax.tree.map(np.testing.assert_array_equal, after, stats)


@pytest.mark.fast
def test_running_statistics_are_learned_in_training_and_used_in_evaluation():
    variant = study.Variant("batch", "pre", True)
    params, stats, images = network()
    labels, rows = jnp.arange(N, dtype=jnp.int32), jnp.array([4, 0, 2])
    task = study.digits_task(variant, DEPTH, study.Part(width=WIDTH))
    loss_fn, evaluate = jax.jit(task.loss_fn), jax.jit(task.evaluate)
    _, (after, _) = loss_fn(params, stats, ((images, labels), rows), None, None)
    first = np.asarray(images)[rows] @ np.asarray(params.w_x) + np.asarray(params.b_x)  # what the first norm sees
    np.testing.assert_allclose(after.blocks.mean[0], 0.9 * stats.blocks.mean[0] + 0.1 * first.mean(0), rtol=1e-4)
    np.testing.assert_allclose(after.blocks.var[0], 0.9 * stats.blocks.var[0] + 0.1 * first.var(0, ddof=1), rtol=1e-4)
    for used in (stats, after):
        metrics = evaluate(params, used, (images, labels))
        scores = np.array([plain(variant, params, used, np.asarray(image)) for image in images])
        expected = np.log(np.exp(scores).sum(-1)) - scores[np.arange(N), labels]
        np.testing.assert_allclose(metrics["loss"], (expected.sum(), N), rtol=1e-4)
        np.testing.assert_array_equal(metrics["accuracy"], (np.sum(scores.argmax(-1) == labels), N))


@pytest.mark.fast
def test_digits():
    data = study.digits_data()
    assert {split: len(labels) for split, (_, labels) in data.items()} == {
        "train": 1079,
        "validation": 359,
        "test": 359,
    }
    images, labels = (np.concatenate([part[i] for part in data.values()]) for i in (0, 1))
    assert (images.min(), images.max(), len(np.unique(images, axis=0))) == (-1, 1, 1797)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.fast
def test_rows_of_text():
    text = np.arange(23, dtype=np.uint8)
    rows = study.text_rows({"train": text, "validation": text}, 3, held_out=3)
    np.testing.assert_array_equal(rows["train"], np.arange(20).reshape(5, 4))
    np.testing.assert_array_equal(rows["validation"], np.arange(20).reshape(5, 4)[[0, 2, 4]])


# --- the command line

WORDS = ("smoke", "--digits.lrs", "0.1", "1e30", "--data.path", "text.txt", "--run", "run")


def main(*words):
    return study.main([str(word) for word in words])


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What a run prints; it is in the working directory. One of two learning rates is far too high."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("norms_residuals"))
        # As conftest.py wants it: without optimised machine code.
        for name, static in {"train_members": ("task", "optimizer"), "evaluate_members": ("task",)}.items():
            patch.setattr(study, name, jax.jit(getattr(study, name).__wrapped__, static_argnames=static))
        Path("text.txt").write_text(TEXT)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(*WORDS) == 0
        yield out.getvalue()


def test_smoke(printed):
    run, rows = Path("run"), read_metrics("run/metrics.jsonl")
    assert len(rows) == 2 * (2 * 2) * 3 + 2 * 2 * 2  # units, members, splits
    assert (run / "table.md").read_text() in printed
    assert "| batch | pre | yes |" in printed
    assert (run / "norms_residuals.png").stat().st_size > 10_000
    best = json.loads((run / "summary.json").read_text())["units"]
    assert [unit["lr"] for unit in best[:2]] == [0.1, 0.1]
    digits = [row for row in rows if row["part"] == "digits"]
    assert all((row["lr"] == 1e30) == (row.get("skipped", 0) > 0) for row in digits if row["split"] == "train")
    assert printed.count("diverged 2/4") == 2
    chosen = [row for row in digits if row["lr"] == 0.1 and row["residual"] and row["split"] == "test"]
    assert best[0]["test accuracy"] == np.mean([row["accuracy"] for row in chosen])


def test_gradients_are_the_first(printed):
    """Those of the plain derivative at the initial weights."""
    row = next(row for row in read_metrics("run/metrics.jsonl") if row["lr"] == 0.1 and row["seed"] == 1)
    part = study.PRESETS["smoke"][1].digits
    task = study.digits_task(study.Variant("batch", "pre", True), 2, part)
    key_init, _, key_rows = jax.random.split(jax.random.key(1), 3)
    params, stats = task.init(key_init)
    data = jax.tree.map(jnp.asarray, study.digits_data()["train"])
    drawn = jax.random.randint(key_rows, (part.steps, part.batch_size), 0, len(data[1]))[0]

    def loss(params):
        total, count = task.loss_fn(params, stats, (data, drawn), None, None)[0]
        return total / count

    norms = [np.linalg.norm(w) for w in jax.jit(jax.grad(loss))(params).blocks.w_in]
    np.testing.assert_allclose(row["gradients"], norms, rtol=1e-4)


def test_resume_does_what_is_missing(printed, monkeypatch):
    path = Path("run/metrics.jsonl")
    before, rows = path.read_text(), read_metrics(path)
    lines = before.splitlines()
    path.write_text("\n".join([*lines[:20], lines[20][:30]]))  # killed while it wrote the second unit
    measured = []

    def again(unit, *_):
        measured.append(unit)
        return [row for row in rows if study.Unit(*(row[name] for name in study.Unit._fields)) == unit]

    monkeypatch.setattr(study, "measure", again)
    assert main("--resume", "--run", "run") == 0
    assert [(unit.part, unit.residual) for unit in measured] == [
        ("digits", False),
        ("characters", True),
        ("characters", False),
    ]
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--characters.norms layer batch", "characters.norms: batch norm would see the future"),
        ("--characters.width 40", "characters.width=40; it must be a multiple of 16"),
        ("--digits.depths 2 2", "depths=(2, 2); give at least one, and none twice"),
        ("--digits.lrs 0.1 0", "lrs=(0.1, 0.0) above 0"),
        ("--digits.seeds 0", "seeds=0; it must be at least 1"),
        ("--hyper.b1 1", "hyper.b1=1.0; it must be at least 0 and below 1"),
        ("--window 5000 --data.path text.txt --run short", "window=5000: the text has"),
    ],
)
def test_refused(printed, capsys, words, message):
    assert main("smoke", *words.split()) == 2
    assert message in capsys.readouterr().err
    assert not Path("short").exists()
