"""The fixed-window language models beside a plain loop, and their experiment: names, batches, the command line."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from experiments import fixed_window_lm as experiment
from seqjax.errors import InputError
from seqjax.models.fixed_window_lm import Config, FixedWindowLM
from seqjax.text import EOS, PAD, SOS, train_tokenizer
from tests import oracles

V, B, T = 7, 2, 6
SHAPES = {
    "bigram": Config(n_layers=0),
    "mlp": Config(fuse=3, d_embed=3, d_hidden=5),
    "tree": Config(fuse=2, n_layers=3, d_embed=3, d_hidden=5, norm=True),
}


def make(config):
    init, apply = seqjax.purify(lambda key: FixedWindowLM(config, V, rngs=nnx.Rngs(key)))
    return oracles.random_like(np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0))), jax.jit(apply)


def scores(params, config, window):
    """The scores after one window of tokens: its vectors, then trees of one level, then of two, ..."""
    vectors = [params["embed"]["w"][token] for token in window]
    for _, layer in sorted(params.get("layers", {}).items()):
        groups = [np.concatenate(vectors[i : i + config.fuse]) for i in range(0, len(vectors), config.fuse)]
        vectors = []
        for z in (group @ layer["dense"]["w"] + layer["dense"]["b"] for group in groups):
            if config.norm:
                z = layer["g"] * (z - z.mean()) / np.sqrt(z.var() + 1e-5)
            vectors.append(np.tanh(z))
    (vector,) = vectors
    return vector if config.n_layers == 0 else vector @ params["out"]["w"] + params["out"]["b"]


@pytest.mark.fast
@pytest.mark.parametrize("shape", SHAPES)
def test_each_window_is_a_tree(shape):
    config = SHAPES[shape]
    params, apply = make(config)
    plain = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    rng = np.random.default_rng(1)
    tokens, state = rng.integers(0, V, (B, T), np.int32), rng.integers(0, V, (B, config.window), np.int32)
    for before in (None, jnp.asarray(state)):
        after, logits = apply(params, jnp.asarray(tokens), before)
        for b in range(B):
            read = [*([PAD] * config.window if before is None else state[b]), *tokens[b]]
            np.testing.assert_array_equal(after[b], read[-config.window :])
            for t in range(T):
                expected = scores(plain, config, read[t + 1 : t + 1 + config.window])
                np.testing.assert_allclose(logits[b, t], expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_zero_outside_the_window():
    """Of scores at one t by the vectors of all tokens: each token has a vector of its own here."""
    config = SHAPES["mlp"]
    params, apply = make(config)
    gradient = jax.grad(lambda params: apply(params, jnp.arange(1, 1 + T)[None])[1][0, 4].sum())(params)
    seen = np.any(gradient["embed"]["w"] != 0, axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(seen), [3, 4, 5])


@pytest.mark.fast
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fuse": 0}, "model.fuse=0; it must be at least 1"),
        ({"n_layers": -1}, "model.n_layers=-1; it must be at least 0"),
        ({"d_embed": 0}, "model.d_embed=0; it must be at least 1"),
        ({"d_hidden": 0}, "model.d_hidden=0; it must be at least 1"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(InputError, match=message):
        Config(**options)


# --- names and batches

NAMES = ["".join(letters) for letters in itertools.product("abcde", "mno", "xyz")]


@pytest.mark.fast
def test_the_split_is_that_of_the_lectures():
    """Counted by its code; the shuffled order of Python's random is fixed for all versions."""
    splits = experiment.split_names([f"n{i}" for i in range(32033)])
    assert {split: len(names) for split, names in splits.items()} == {"train": 25626, "validation": 3203, "test": 3204}
    assert splits["train"][:3] == ["n26785", "n23366", "n20900"]  # in names.txt: yuheng, diondre, xavien
    assert len({name for names in splits.values() for name in names}) == 32033


@pytest.mark.fast
def test_rows():
    tokenizer = train_tokenizer("char", NAMES)
    rows = experiment.to_rows(["am", "box", "e"], tokenizer)
    a, b, e, m, x = tokenizer.encode("abemx")
    expected = [[SOS, a, m, EOS, PAD], [SOS, b, tokenizer.encode("o")[0], x, EOS], [SOS, e, EOS, PAD, PAD]]
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.fast
def test_a_batch_is_a_function_of_seed_and_step():
    rows = np.arange(23)[:, None].astype(np.int32)
    make = lambda seed: experiment.Batches(rows, batch_size=5, seed=seed)  # noqa: E731
    batches = [make(0)[step] for step in range(8)]  # two epochs
    walked = make(0)
    for step in (7, 0, 3, 4, 3):
        np.testing.assert_array_equal(walked[step], batches[step])
    epochs = np.reshape(batches, (2, 20))
    assert all(len({*epoch}) == 20 for epoch in epochs)
    assert not np.array_equal(*epochs)
    assert not np.array_equal(make(1)[0], batches[0])


def test_words_of_the_package():
    words = experiment.read_names(experiment.Data())
    assert len(words) > 100_000
    assert {"aardvark", "zoology"} <= {*words}
    assert len({*words}) == len(words)


# --- the command line


def main(*words):
    return experiment.main([str(word) for word in words])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The working directory: names, and a run trained on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("names"))
        Path("names.txt").write_text("\n".join(NAMES) + "\n\n")
        run = Path("runs/fixed_window_lm/first")
        assert main("smoke", "--data.path", "names.txt", "--hyper.lr", 0.03, "--run", run) == 0
        yield run


def test_smoke(workplace, capsys):
    summary = json.loads((workplace / "summary.json").read_text())
    assert summary["loss"] < 1.5  # log 30 = 3.4 at the beginning; (log 5 + 2 log 3) / 4 = 0.95 at best
    capsys.readouterr()
    assert main("evaluate") == 0
    assert f"validation: loss {summary['loss']:.4f}" in capsys.readouterr().out
    assert main("evaluate", "--split", "test") == 0
    assert "test: loss" in capsys.readouterr().out


def test_sample(workplace, capsys):
    capsys.readouterr()
    assert main("sample", "--run", workplace, "--prompt", "bn", "--samples", 3, "--temperature", 0.1) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(names) == 3
    assert all(name.startswith("bn") for name in names)


def test_export(workplace):
    assert main("export", workplace) == 0
    assert "apply.stablehlo" in {file.name for file in (workplace / "bundle").iterdir()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data.path nowhere.txt", "nowhere.txt: cannot read the names (No such file or directory)"),
        ("--data.path few.txt", "data.path: 9 names are too few to split"),
        ("--data.path long.txt", "data.path: 'xxxxxxxxxxxxxxxxxxxx'… has 65 characters, a name at most 64"),
        ("--data.path latin.txt", "latin.txt: byte 1 is not valid UTF-8"),
        ("--data.path names.txt --batch_size 37", "batch_size=37; there are 36 names to train on"),
        ("--seed -1", "seed=-1; it must be at least 0"),
        ("sample --prompt Bq", "prompt: ['B', 'q'] are not in the vocabulary"),
        ("sample --run nowhere --temperature nan", "temperature=nan; it must be at least 0"),
        ("sample --run nowhere --samples 0", "samples=0; it must be at least 1"),
    ],
)
def test_refused(workplace, capsys, words, message):
    Path("few.txt").write_text("ab\n" * 9)
    Path("long.txt").write_text("\n".join([*NAMES, "x" * 65]))
    Path("latin.txt").write_bytes(b"a\xe9\n" * 20)
    capsys.readouterr()
    assert main(*words.split()) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
