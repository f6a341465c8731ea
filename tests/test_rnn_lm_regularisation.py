"""Variational dropout, word dropout and weight drop of the recurrent language model (AWD-LSTM)."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from seqjax.errors import InputError
from seqjax.layers import dropout
from seqjax.models import rnn_lm
from tests import oracles

V, T, D, H = 40, 8, 16, 16
TOKENS = jnp.arange(T)[None] + 3  # one row of distinct words
PLAIN = {"cell": "elman", "d_embed": D, "d_hidden": H, "n_layers": 2}


@cache
def model(**options):
    """(logits, gradients of a random combination of them, weights): functions of params, key, rate and tokens."""
    config = rnn_lm.Config(**{**PLAIN, **options})
    init, apply = seqjax.purify(lambda key: rnn_lm.RNNLM(config, V, rngs=nnx.Rngs(key)))
    params = oracles.random_like(np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0)))
    target = jax.random.normal(jax.random.key(9), (1, T, V))

    def logits(params, key=None, rate=0.0, tokens=TOKENS):
        return apply(params, tokens, key=key, dropout=rate)[1]

    return jax.jit(logits), jax.jit(jax.grad(lambda *arguments: jnp.sum(logits(*arguments) * target))), params


def layer(params, depth):
    return params["rnn"]["layers"][depth]


@pytest.mark.fast
@pytest.mark.parametrize("variational", [True, False])
def test_variational_masks_do_not_change_with_time(key, variational):
    """An entry that a mask drops at every step gets no gradient through it, at none of the three places."""
    _, gradients, params = model(variational=variational)
    grads = gradients(params, key, 0.5)
    inputs = np.asarray(grads["embed"]["w"][TOKENS[0]]) == 0  # [T, D]: one step has one word
    between = np.all(np.asarray(layer(grads, 1).w_x) == 0, axis=1)  # [H]: dropped at every step
    outputs = np.all(np.asarray(grads["out"]["w"]) == 0, axis=1)
    assert 0.2 < inputs.mean() < 0.8
    if variational:
        assert np.all(inputs == inputs[:1])
        for dropped in (inputs[0], between, outputs):
            assert 0.1 < dropped.mean() < 0.9
        assert len({tuple(mask) for mask in (inputs[0], between, outputs)}) == 3
    else:
        assert np.any(inputs != inputs[:1])
        assert not np.any(between)
        assert not np.any(outputs)


def test_a_shared_mask_keeps_the_mean_and_differs_from_row_to_row(key):
    xs = jax.random.normal(key, (3, 5, 4))
    drop = jax.jit(jax.vmap(lambda key: dropout(key, xs, 0.3, shared_axis=1)))
    factors = np.asarray(drop(jax.random.split(key, 4000)) / xs[None])
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :, :1], factors.shape), atol=1e-5)
    np.testing.assert_allclose(np.unique(factors.round(4)), [0, round(1 / 0.7, 4)])
    np.testing.assert_allclose(factors.mean(0), 1, atol=0.06)
    assert abs(np.corrcoef(factors[:, 0, 0, 0], factors[:, 1, 0, 0])[0, 1]) < 0.06


@pytest.mark.fast
def test_weight_drop_is_dropout_of_the_recurrent_matrices(key):
    rate, (logits, gradients, params) = 0.3, model(cell="lstm", weight_drop=0.3)
    plain_logits, plain_gradients, _ = model(cell="lstm")
    grads = gradients(params, key)
    masks = [(np.asarray(layer(grads, depth).w_h) != 0).astype(np.float32) for depth in (0, 1)]
    assert not np.array_equal(*masks)
    for mask in masks:
        assert abs(mask.mean() - (1 - rate)) < 0.06
    dropped = {**params, "rnn": {"layers": {}}}
    for depth, mask in enumerate(masks):
        weights = layer(params, depth)
        dropped["rnn"]["layers"][depth] = weights._replace(w_h=weights.w_h * mask / (1 - rate))
    np.testing.assert_allclose(logits(params, key), plain_logits(dropped), rtol=1e-4, atol=1e-5)
    expected = plain_gradients(dropped)
    for depth, mask in enumerate(masks):
        factor = mask / (1 - rate)
        np.testing.assert_allclose(layer(grads, depth).w_h, layer(expected, depth).w_h * factor, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer(grads, depth).w_x, layer(expected, depth).w_x, rtol=1e-4, atol=1e-5)


def test_word_dropout_is_dropout_of_the_rows_of_the_table(key):
    rate, (logits, gradients, params) = 0.4, model(word_dropout=0.4)
    plain_logits, _, _ = model()
    repeated = jnp.asarray([[5, 5, 6, 5, 6, 6, 5, 6]])
    kept = []
    for one in jax.random.split(key, 60):
        rows = np.asarray(gradients(params, one, 0.0, repeated)["embed"]["w"][5:7]) != 0
        assert np.all(rows == rows[:, :1])  # whole rows
        kept.append(rows[:, 0])
    # A word is dropped wherever it stands: were each place drawn by itself, one of four would nearly always stay.
    assert abs(np.mean(kept) - (1 - rate)) < 0.1
    factors = jnp.asarray(kept[-1], jnp.float32) / (1 - rate)
    table = params["embed"]["w"].at[5:7].multiply(factors[:, None])
    expected = plain_logits({**params, "embed": {"w": table}}, None, 0.0, repeated)
    np.testing.assert_allclose(logits(params, one, 0.0, repeated), expected, rtol=1e-4, atol=1e-5)


ALL = {"variational": True, "word_dropout": 0.2, "weight_drop": 0.5}


def test_nothing_changes_without_a_key():
    logits, _, params = model(**ALL)
    expected, _, plain = model()
    assert jax.tree.structure(params) == jax.tree.structure(plain)
    np.testing.assert_array_equal(logits(params), expected(params))
    np.testing.assert_array_equal(logits(params, None, 0.5), expected(params))


@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
def test_the_rate_of_dropout_is_traced(key, options):
    logits, _, params = model(**options)
    first = logits(params, key, jnp.float32(0.1))
    compiled = logits._cache_size()
    second = logits(params, key, jnp.float32(0.7))
    assert logits._cache_size() == compiled
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, logits(params, key, jnp.float32(0.7)))


def test_what_is_off_draws_nothing(key):
    """Neither a mask nor its random numbers are in the program."""
    _, apply = seqjax.purify(lambda key: rnn_lm.RNNLM(rnn_lm.Config(**PLAIN), V, rngs=nnx.Rngs(key)))
    params = model()[2]
    program = jax.jit(lambda key: apply(params, TOKENS, key=key)[1]).lower(key).compile().as_text()
    assert "rng" not in program
    assert "threefry" not in program.lower()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_dropout": 1.0}, "model.word_dropout=1.0; it must be at least 0 and below 1"),
        ({"weight_drop": -0.1}, "model.weight_drop=-0.1; it must be at least 0 and below 1"),
        ({"cell": "lru", "weight_drop": 0.5}, "cell 'lru' has no recurrent matrix w_h; set it to 0"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(InputError, match=message):
        rnn_lm.Config(**options)
