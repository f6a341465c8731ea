"""Models of series: slow loops, one sequence like many, whatever padding holds; and the readers of their data."""

import json
from functools import cache
from types import SimpleNamespace

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings

import seqjax
from seqjax import pooling
from seqjax.data.chorales import KEYS, LOWEST, chorales_file, piano_roll, pitches
from seqjax.data.digits import digits, image_lines, mnist_file
from seqjax.data.packaged import packaged_file
from seqjax.data.series import series_file, sunspots
from seqjax.errors import InputError
from seqjax.models import tcn
from seqjax.models.series import IRNN, SeriesRNN, SeriesRNNConfig
from seqjax.models.series_transformer import SeriesTransformer, SeriesTransformerConfig
from seqjax.models.tcn import TCN, TCNConfig
from tests import oracles

D, C, T = 3, 2, 7
LENGTHS = np.array([T, 2, 5], np.int32)

MODELS = {
    "rnn-last": (SeriesRNN, SeriesRNNConfig("elman", 4, 2)),
    "rnn-mean": (SeriesRNN, SeriesRNNConfig("elman", 4, readout="mean")),
    "irnn-frames": (SeriesRNN, SeriesRNNConfig("irnn", 4, readout="frames")),
    "tcn-last": (TCN, TCNConfig(4, 2, 2)),
    "tcn-frames": (TCN, TCNConfig(3, 2, 3, "frames")),
    "transformer-mean": (SeriesTransformer, SeriesTransformerConfig(8, 2, 1, "t5", "mean")),
    "transformer-frames": (SeriesTransformer, SeriesTransformerConfig(8, 2, 1, readout="frames")),
}


@cache
def model(name):
    module, config = MODELS[name]

    def make(key):
        return module(config, D, C, rngs=nnx.Rngs(key))

    init, apply = seqjax.purify(make)
    params = oracles.random_like(np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0)))

    def loss(params, inputs, lengths):
        outputs = apply(params, inputs, lengths)
        if outputs.ndim == 3:
            kept = pooling.kept(lengths, outputs.shape[1])
            outputs = jnp.where(kept[..., None], outputs, jnp.zeros_like(outputs))
        return jnp.sum(outputs**2), outputs

    return SimpleNamespace(
        config=config,
        params=params,
        apply=apply,
        make=make,
        forward=jax.jit(jax.value_and_grad(loss, has_aux=True)),
    )


def sequences():
    return np.random.default_rng(1).standard_normal((len(LENGTHS), T, D)).astype(np.float32)


def padded_with(inputs, value):
    return jnp.asarray(np.where((np.arange(inputs.shape[1]) >= LENGTHS[:, None])[..., None], value, inputs))


@pytest.mark.parametrize("name", MODELS)
def test_one_sequence_is_like_many_and_padding_does_not_matter(name):
    m, inputs = model(name), sequences()
    (_, outputs), grads = m.forward(m.params, padded_with(inputs, np.nan), jnp.asarray(LENGTHS))
    assert outputs.shape == ((3, T, C) if m.config.readout == "frames" else (3, C))
    row, length = 2, LENGTHS[2]
    (_, alone), _ = m.forward(
        m.params, jnp.asarray(inputs[row : row + 1, :length]), jnp.asarray(LENGTHS[row : row + 1])
    )
    expected = outputs[row, :length] if m.config.readout == "frames" else outputs[row]
    np.testing.assert_allclose(alone[0], expected, rtol=1e-5, atol=1e-5)
    (_, others), other_grads = m.forward(m.params, padded_with(inputs, 9.0), jnp.asarray(LENGTHS))
    np.testing.assert_array_equal(others, outputs)
    jax.tree.map(np.testing.assert_array_equal, other_grads, grads)
    assert all(np.all(np.isfinite(g)) and np.any(g) for g in jax.tree.leaves(grads) if g.shape != (8,))


@pytest.mark.parametrize("name", [name for name in MODELS if "frames" in name])
def test_frames_do_not_see_what_follows(name):
    m, inputs, whole = model(name), sequences(), jnp.full(3, T, jnp.int32)
    (_, before), _ = m.forward(m.params, jnp.asarray(inputs), whole)
    later = inputs.copy()
    later[:, 4] += 1
    (_, after), _ = m.forward(m.params, jnp.asarray(later), whole)
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert np.any(after[:, 4] != before[:, 4])


@pytest.mark.fast
def test_tcn_is_the_paper_s():
    m, inputs = model("tcn-frames"), sequences().astype(np.float64)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), m.params)

    def convolve(filters, x, dilation):
        y = np.zeros((len(x), len(filters.b)))
        w = filters.w * filters.g / np.sqrt((filters.w**2).sum((0, 1)))
        for t in range(len(x)):
            y[t] = filters.b
            for k in range(len(w)):
                place = t - (len(w) - 1 - k) * dilation
                if place >= 0:
                    y[t] += x[place] @ w[k]
        return y

    (_, outputs), _ = m.forward(m.params, jnp.asarray(inputs, jnp.float32), jnp.full(3, T, jnp.int32))
    for x, found in zip(inputs, outputs, strict=True):
        for i, block in params["blocks"].items():
            y = np.maximum(convolve(block.second, np.maximum(convolve(block.first, x, 2**i), 0), 2**i), 0)
            x = np.maximum(y + (x if block.w_skip is None else x @ block.w_skip + block.b_skip), 0)
        np.testing.assert_allclose(found, x @ params["out"]["w"] + params["out"]["b"], rtol=1e-4, atol=1e-4)
    assert [block.w_skip is None for block in params["blocks"].values()] == [True, True]  # D = F here
    assert model("tcn-last").params["blocks"][0].w_skip.shape == (D, 4)


@pytest.mark.parametrize("name", ["rnn-last", "rnn-mean", "irnn-frames"])
def test_recurrent_networks_are_loops(name):
    m, inputs = model(name), sequences().astype(np.float64)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), m.params)
    (_, outputs), _ = m.forward(m.params, jnp.asarray(inputs, jnp.float32), jnp.asarray(LENGTHS))
    for row, length in enumerate(LENGTHS):
        hs = inputs[row, :length]
        for p in params["rnn"]["layers"].values():
            h, states = np.zeros(4), []
            for x in hs:
                z = x @ p.w_x + p.b + h @ p.w_h
                h = np.tanh(z) if m.config.cell == "elman" else np.maximum(z, 0)
                states.append(h)
            hs = np.array(states)
        v = {"last": hs[-1], "mean": hs.mean(0), "frames": hs}[m.config.readout]
        found = outputs[row, :length] if m.config.readout == "frames" else outputs[row]
        np.testing.assert_allclose(found, v @ params["out"]["w"] + params["out"]["b"], rtol=1e-4, atol=1e-4)


def test_irnn_begins_as_the_identity(key):
    params = IRNN.init(key, D, 4)
    np.testing.assert_array_equal(params.w_h, np.eye(4))
    assert not np.any(params.b)
    assert 0 < np.abs(params.w_x).max() < 0.01
    assert SeriesRNNConfig("irnn") == SeriesRNNConfig("irnn")


def test_a_fresh_filter_has_its_own_length(key):
    block = tcn.init_block(key, 3, 2, 4)
    for filters in (block.first, block.second):
        np.testing.assert_allclose(filters.g, np.sqrt(np.sum(np.asarray(filters.w) ** 2, axis=(0, 1))), rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_axes_have_names(name):
    seqjax.nn.logical_axes(model(name).make)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SeriesRNNConfig("gro"), "model.cell='gro' is unknown; choose from "),
        (lambda: SeriesRNNConfig(n_layers=0), "model.n_layers=0; it must be at least 1."),
        (lambda: TCNConfig(kernel=0), "model.kernel=0; it must be at least 1."),
        (lambda: SeriesTransformerConfig(n_heads=3), "model.n_heads=3 must divide model.d_model=64."),
    ],
)
def test_sizes_are_checked(make, message):
    with pytest.raises(InputError, match=f"^{message}"):
        make()


# --- data


ROLLS = st.lists(
    st.lists(st.integers(LOWEST, LOWEST + KEYS - 1), max_size=3, unique=True).map(sorted).map(tuple), min_size=1
)


@settings(max_examples=30)
@given(ROLLS)
def test_a_piano_roll_is_read_back(piece):
    roll = piano_roll(piece)
    assert roll.shape == (len(piece), KEYS)
    assert pitches(roll) == piece


def test_chorales(tmp_path):
    path = tmp_path / "music.json"
    pieces = {"train": [[[60, 64], []], [[61]]], "valid": [[[21]]], "test": [[[108, 60, 60]]]}
    path.write_text(json.dumps(pieces))
    assert chorales_file(path) == {
        "train": [[(60, 64), ()], [(61,)]],
        "validation": [[(21,)]],
        "test": [[(60, 108)]],
    }
    for wrong, message in [
        ("[1]", ': must be an object with the pieces of "train", "valid" and "test".'),
        ('{"train":\n[}', ":2: is not JSON"),
        ("[" * 100_000, ": is not JSON that can be read (it is too deep)"),
        (json.dumps({**pieces, "test": []}), ': there is no list of pieces for "test"; give one for each split.'),
        (json.dumps({**pieces, "valid": [[]]}), ": valid, piece 0: is no list of frames; give at least one."),
        (json.dumps({**pieces, "train": [[[60]], [[60], 3]]}), ": train, piece 1, frame 1: 3 is no list of pitches"),
        (
            json.dumps({**pieces, "test": [[[109]]]}),
            ": test, piece 0, frame 0: 109 is no key; pitches are MIDI numbers",
        ),
        (json.dumps({**pieces, "test": [[[float("nan")]]]}), ": test, piece 0, frame 0: nan is no key"),
    ]:
        path.write_text(wrong)
        with pytest.raises(InputError) as caught:
            chorales_file(path)
        assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.fast
def test_digits_of_the_package():
    found = digits()
    assert {split: images.pixels.shape for split, images in found.items()} == {
        "test": (360, 8, 8),
        "validation": (180, 8, 8),
        "train": (1257, 8, 8),
    }
    pixels = np.concatenate([images.pixels for images in found.values()])
    assert len(np.unique(pixels.reshape(1797, 64), axis=0)) == 1797  # no image is in two splits
    assert (pixels.min(), pixels.max()) == (0, 1)
    for images in found.values():
        assert set(images.labels.tolist()) == set(range(10))


def test_images(tmp_path):
    path = tmp_path / "images.csv"
    path.write_text("0,1,2,16,7\n16,16,0,0,3\n")
    images = image_lines(path)
    np.testing.assert_array_equal(images.pixels[0], [[0, 1 / 16], [2 / 16, 1]])
    assert images.labels.tolist() == [7, 3]
    path.write_text(f"0,1,2,16,{2**24 + 1}\n0,1,2,16,{2**31 - 1}\n")
    assert image_lines(path).labels.tolist() == [2**24 + 1, 2**31 - 1]
    for wrong, message in [
        ("", ": there is no image in it"),
        ("0,1,2,3,4\n0,1,2\n", ":2: 3 numbers are no square image and its label"),
        ("0,1,x,3,4\n", ":1: could not convert string to float: 'x'; give numbers between commas."),
        ("0,1,17,3,4\n", ":1: pixels must be from 0 to 16"),
        ("0,1,1,3,nan\n", ":1: pixels must be from 0 to 16"),
    ]:
        path.write_text(wrong)
        with pytest.raises(InputError) as caught:
            image_lines(path)
        assert str(caught.value).startswith(f"{path}{message}")


def test_mnist(tmp_path):
    path = tmp_path / "mnist.npz"
    x, y = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2), np.arange(5)
    np.savez(path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    found = mnist_file(path, validation=2)
    assert {split: images.labels.tolist() for split, images in found.items()} == {
        "train": [0, 1, 2],
        "validation": [3, 4],
        "test": [0, 1],
    }
    np.testing.assert_allclose(found["validation"].pixels, x[3:] / 255, rtol=1e-6)
    with pytest.raises(InputError, match=r"^validation: 5 of 5 training images"):
        mnist_file(path, validation=5)
    np.savez(path, x_train=x, y_train=y[:4], x_test=x, y_test=y)
    with pytest.raises(InputError, match=r"x_train uint8\(5, 2, 2\) and y_train \(4,\) must be uint8"):
        mnist_file(path)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y - 1)
    with pytest.raises(InputError, match="the labels y_test must be whole numbers, 0 or more"):
        mnist_file(path)
    np.save(tmp_path / "x.npy", x)
    for content in (b"0,1\n", b"", (tmp_path / "x.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot read the images"):
            mnist_file(path)


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2), min_size=1, max_size=4))
def test_a_series_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "series.csv"
    path.write_text("date,a,b\n" + "".join(f"day {t},{a!r},{b!r}\n" for t, (a, b) in enumerate(rows)))
    series = series_file(path)
    assert series.names == ("a", "b")
    assert series.times == tuple(f"day {t}" for t in range(len(rows)))
    np.testing.assert_array_equal(series.values, rows)
    np.testing.assert_array_equal(series_file(path, columns=["b"]).values, np.array(rows)[:, 1:])


def test_sunspots_and_what_is_no_series(tmp_path):
    series = sunspots()
    assert (series.names, series.times[0], series.times[-1]) == (("SUNACTIVITY",), "1700", "2008")
    assert series.values.shape == (309, 1)
    path = tmp_path / "series.csv"
    for wrong, message in [
        ("", ":1: 0 columns; give a time and at least one quantity"),
        ("t,a\n", ": there is no line below the names"),
        ("t,a\n1,2\n2\n", ":3: 1 fields for 2 columns"),
        ("t,a\n1,x\n", ":2: a is 'x', which is no finite number"),
        ("t,a\n1,inf\n", ":2: a is 'inf', which is no finite number"),
        ('t,a\n"1,2\n', ":2: unexpected end of data"),
        ("t,a,a\n1,2,3\n", ":1: two columns have the same name"),
        ('"t,a\n', ":1: unexpected end of data"),
    ]:
        path.write_text(wrong)
        with pytest.raises(InputError) as caught:
            series_file(path)
        assert str(caught.value).startswith(f"{path}{message}")
    path.write_text("a,b,a\n1,2,3\n")
    assert series_file(path, columns=["a"]).values.tolist() == [[3]]  # not the times
    path.write_text("t,a\n1,2\n")
    with pytest.raises(InputError, match="there is no column 'c'; choose from a"):
        series_file(path, columns=["c"])
    with pytest.raises(InputError, match=r"sunspots.csv of nosuchpackage is not installed"):
        packaged_file("nosuchpackage", "sunspots.csv")
