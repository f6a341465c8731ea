"""The tagger against plain loops, whatever reads its letters, words and tags."""

from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from seqjax import crf, nn
from seqjax.errors import InputError
from seqjax.models.tagger import Potentials, Tagger, TaggerConfig, best_tags, tag_loss
from seqjax.text import UNK
from tests import oracles

V, Y, B, T, W = 9, 5, 3, 4, 5
LENGTHS = np.array([T, 0, 2], np.int32)
SIZES = {"d_embed": 4, "d_letter": 3, "d_spelling": 6, "d_hidden": 8, "max_letters": W}

CONFIGS = {
    "cnn-rnn-crf": TaggerConfig(**SIZES),
    "rnn-rnn-softmax": TaggerConfig(**SIZES, letters="rnn", output="softmax", cell="elman"),
    "none-transformer-crf": TaggerConfig(**SIZES, letters="none", encoder="transformer", n_heads=2, locked=False),
}
each = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(autouse=True)
def float64(x64):
    """All in one precision, so that little is compiled."""


def make(name):
    return lambda key: Tagger(CONFIGS[name], V, Y, rngs=nnx.Rngs(key))


@cache
def model(name):
    """A tagger's weights; its loss, scores and best tags."""
    init, apply = seqjax.purify(make(name))
    params = oracles.random_like(np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0)), 0.4)
    params = jax.tree.map(lambda a: a.astype(np.float64), params)

    def forward(params, words, lengths, letters, rare, tags):
        potentials = apply(params, words, lengths, letters, None, rare)
        return tag_loss(potentials, tags, lengths)[0], potentials.scores, best_tags(potentials, lengths)

    return SimpleNamespace(apply=apply, params=params, forward=jax.jit(forward))


def batch(seed=0):
    """Words, lengths, letters [B, T, W], rare words, tags. Words beyond the lengths are no padding."""
    rng = np.random.default_rng(seed)
    words, tags = (jnp.asarray(rng.integers(0, n, (B, T)), jnp.int32) for n in (V, Y))
    letters = rng.integers(1, 256, (B, T, W)) * (np.arange(W) < rng.integers(0, W + 1, (B, T, 1)))
    return words, jnp.asarray(LENGTHS), jnp.asarray(letters, jnp.int32), words > 6, tags


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9), a, b)


@each
def test_a_batch_is_its_sentences_one_by_one_in_whatever_shape(name):
    m, (words, lengths, letters, rare, tags) = model(name), batch()
    loss, scores, found = m.forward(m.params, words, lengths, letters, rare, tags)
    assert scores.shape == (B, T, Y)
    total = 0.0
    for row, n in enumerate(LENGTHS):
        # Another bucket, with other words where it is padded; and longer words.
        longer, spelled = np.full((1, T + 2), V - 1, np.int32), np.full((1, T + 2, W + 2), 77, np.int32)
        longer[0, :n], spelled[0, :n] = words[row, :n], np.pad(letters[row, :n], ((0, 0), (0, 2)))
        right = np.zeros((1, T + 2), np.int32)
        right[0, :n] = tags[row, :n]
        one = longer, lengths[row : row + 1], spelled, np.zeros(longer.shape, bool), right
        part, alone, best = m.forward(m.params, *map(jnp.asarray, one))
        close(alone[0, :n], scores[row, :n])
        assert best[0].tolist() == [*found[row, :n].tolist(), *[0] * (T + 2 - n)]
        total += part
    close(total, loss)


@pytest.mark.fast
@pytest.mark.parametrize("name", ["cnn-rnn-crf", "rnn-rnn-softmax"])
def test_scores_are_those_of_plain_loops(name):
    config, m, (words, lengths, letters, *rest) = CONFIGS[name], model(name), batch()
    _, scores, _ = m.forward(m.params, words, lengths, letters, *rest)
    p, cell = jax.tree.map(np.asarray, m.params), seqjax.CELLS[config.cell]

    def both_ways(layer, xs):
        """Outputs [n, H] of both directions, row by row."""
        xs = jnp.asarray(xs)[:, None]
        return np.concatenate(
            [oracles.loop(cell, half, xs, None, reverse=i > 0)[1][:, 0] for i, half in enumerate(layer)], axis=1
        )

    for row, n in enumerate(LENGTHS):
        xs = []
        for t in range(n):
            spelling = [p["letters"]["w"][i] for i in letters[row, t].tolist() if i]
            c = np.zeros(6)
            if config.letters == "cnn":
                w, b = p["filters"][0]
                zeros = [np.zeros(3)] * (config.width - 1)
                rows = [*zeros, *spelling, *zeros]
                windows = [rows[i : i + config.width] for i in range(len(rows) - config.width + 1) if spelling]
                c = np.maximum(max_of([sum(x @ tap for x, tap in zip(s, w, strict=True)) for s in windows]) + b, 0)
            elif spelling:
                ys = both_ways(m.params["speller"]["layers"][0], spelling)
                c = np.concatenate([ys[-1, :3], ys[0, 3:]])
            xs.append(np.concatenate([p["embed"]["w"][words[row, t]], c]))
        if n:
            xs = both_ways(m.params["rnn"]["layers"][0], xs)
            np.testing.assert_allclose(scores[row, :n], xs @ p["out"]["w"] + p["out"]["b"], rtol=1e-9)


def max_of(responses):
    return np.max(responses, axis=0) if responses else 0.0


def test_words_that_come_often_are_spelled_once():
    m, (_, _, letters, *_) = model("cnn-rnn-crf"), batch()
    letters = letters.at[0, 1].set(letters[2, 0])
    different, places = np.unique(letters.reshape(-1, W), axis=0, return_inverse=True)
    assert len(different) < B * T
    spell = jax.jit(partial(m.apply, m.params, method="spell"))
    close(spell(jnp.asarray(different), jnp.asarray(places.reshape(B, T))), spell(letters))


def test_rare_words_become_unknown_with_a_key_and_dropout_needs_one(key):
    config = replace(CONFIGS["none-transformer-crf"], unknown=1.0)
    _, apply = seqjax.purify(lambda key: Tagger(config, V, Y, rngs=nnx.Rngs(key)))
    m, (words, lengths, letters, rare, _) = model("none-transformer-crf"), batch()
    run = jax.jit(lambda words, rare, **options: apply(m.params, words, lengths, letters, None, rare, **options).scores)
    hidden = jnp.where(rare, UNK, words)
    assert np.any(hidden != words)
    close(run(words, rare, key=key), run(hidden, None))
    random = str(jax.make_jaxpr(lambda: run(words, rare, dropout=0.5))()).count("random_bits")
    assert random == 0


@each
def test_dropout_leaves_shapes_and_all_axes_have_names(name):
    m, (words, lengths, letters, *_) = model(name), batch()
    shapes = jax.eval_shape(lambda p: m.apply(p, words, lengths, letters, dropout=0.5, key=jax.random.key(0)), m.params)
    assert shapes.scores.shape == (B, T, Y)
    assert (shapes.transitions is None) == name.endswith("softmax")
    nn.logical_axes(make(name))


def test_one_mask_of_dropout_holds_for_all_words_of_a_sentence(key):
    m = model("cnn-rnn-crf")
    words, letters = jnp.full((1, 3), 5, jnp.int32), jnp.ones((1, 3, W), jnp.int32)
    none = jax.tree.map(jnp.zeros_like, m.params["rnn"])  # all states are 0, so that dropout is that of the output
    run = jax.jit(lambda params: m.apply(params, words, jnp.array([3]), letters, dropout=0.5, key=key).scores)
    once = run(m.params | {"rnn": none})
    assert np.ptp(once, axis=1).max() == 0


@pytest.mark.parametrize("output", ["crf", "softmax"])
def test_the_loss_is_that_of_all_taggings(output):
    rng = np.random.default_rng(1)
    scores, tags, lengths = rng.normal(size=(2, 2, 3)), np.array([[2, 0], [1, 2]]), np.array([2, 1])
    transitions = crf.CRF(*(rng.normal(size=shape) for shape in ((3, 3), (3,), (3,)))) if output == "crf" else None
    expected = 0.0
    for row, n in enumerate(lengths):
        potentials = {}
        for tagging in np.ndindex(*(3,) * n):
            potentials[tagging] = sum(scores[row, t, tag] for t, tag in enumerate(tagging))
            if transitions is not None:
                w, start, end = transitions
                moves = sum(w[a, b] for a, b in pairwise(tagging))
                potentials[tagging] += start[tagging[0]] + moves + end[tagging[-1]]
        expected += np.log(sum(map(np.exp, potentials.values()))) - potentials[tuple(tags[row, :n].tolist())]
    given = Potentials(jnp.asarray(scores), jax.tree.map(jnp.asarray, transitions))
    total, weight = tag_loss(given, jnp.asarray(tags), jnp.asarray(lengths))
    np.testing.assert_allclose(total, expected, rtol=1e-9)
    assert weight == 3


@pytest.mark.parametrize("output", ["crf", "softmax"])
def test_the_best_tags_are_allowed_ones(output):
    labels = ["B-X", "I-X", "O", "B-Y", "I-Y"]
    allowed = crf.allowed_transitions(labels)
    transitions = crf.init(jax.random.key(3), Y) if output == "crf" else None
    scores = Potentials(3 * jax.random.normal(jax.random.key(0), (20, 6, Y)), transitions)
    lengths = jnp.full(20, 6)
    free, found = best_tags(scores, lengths), best_tags(scores, lengths, allowed)

    def follow(rows):
        return [allowed.b_start[row[0]] & np.all(allowed.w_transition[row[:-1], row[1:]]) for row in rows]

    assert np.all(follow(found))
    assert not np.all(follow(free))
    assert np.array_equal(found[np.array(follow(free))], free[np.array(follow(free))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_embed": 0}, "model.d_embed=0; it must be at least 1"),
        ({"unknown": 2.0}, "model.unknown=2.0; it must be between 0 and 1"),
        ({"cell": "rnn"}, "model.cell='rnn' is unknown; choose from elman"),
        ({"d_hidden": 7}, "model.d_hidden=7: two directions have half of it each"),
        ({"letters": "rnn", "d_spelling": 7}, "model.d_spelling=7: two directions"),
        ({"encoder": "transformer", "n_heads": 3}, "model.n_heads=3 must divide model.d_model=256"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        TaggerConfig(**options)
