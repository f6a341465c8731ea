"""The Flax shell, in both modes of Flax: graph mode, and tree mode, which is to become the default."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import seqjax
from seqjax import nn
from seqjax.cells import CELLS
from seqjax.errors import InputError
from seqjax.layers import affine, dropout
from seqjax.scores import attend, dot
from seqjax.seq2seq import covered_additive
from tests.oracles import random_like


@pytest.fixture(params=["graph", "tree"])
def mode(request):
    graph = request.param == "graph"
    with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
        yield request.param


class Tagger(nnx.Module):
    """All parts of the shell in one model."""

    def __init__(self, *, rngs):
        self.embed = nn.Embed(7, 5, rngs=rngs)
        self.rnn = nn.Recurrent(CELLS["elman"], 5, 4, 2, rngs=rngs)
        self.out = nn.Dense(4, 3, rngs=rngs)

    def __call__(self, tokens, *, lengths=None):
        carry, hs = self.rnn(self.embed(tokens), lengths=lengths)
        return carry, self.out(hs)

    def scale(self, factor):
        return factor * self.out.b.get_value()


def make(key):
    return Tagger(rngs=nnx.Rngs(key))


TOKENS = jnp.array([[1, 2, 3], [4, 5, 6]], jnp.int32)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.fast
def test_purify_gives_a_plain_dict_and_pure_functions(mode, key):
    init, apply = seqjax.purify(make)
    params = init(key)
    assert type(params) is dict
    assert list(params) == ["embed", "out", "rnn"]
    assert {type(part) for part in (params["embed"], params["rnn"], params["rnn"]["layers"])} == {dict}
    assert not any(
        isinstance(leaf, nnx.Variable) for leaf in jax.tree.leaves(params, is_leaf=lambda x: x is not params)
    )
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert all(type(layer).__name__ == "Params" for layer in params["rnn"]["layers"].values())
    assert params["rnn"]["layers"][1].w_x.shape == (4, 4)

    _, expected = make(key)(TOKENS)
    for run in (apply, jax.jit(apply)):
        np.testing.assert_allclose(run(params, TOKENS)[1], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.fast
def test_apply_reads_nothing_but_its_arguments(mode, key):
    """What comes back is a function of the params given, and not of the model that `purify` looked at."""
    init, apply = seqjax.purify(make)
    params = random_like(np.random.default_rng(0), jax.eval_shape(init, key))
    before = leaves(params)
    first = apply(params, TOKENS)
    apply(jax.tree.map(jnp.ones_like, params), TOKENS)
    jax.tree.map(np.testing.assert_array_equal, apply(params, TOKENS), first)
    jax.tree.map(np.testing.assert_array_equal, leaves(params), before)
    zeros = jax.tree.map(jnp.zeros_like, params)
    assert not np.any(apply(zeros, TOKENS)[1])


def test_init_under_transformations_is_init(mode, key):
    init, _ = seqjax.purify(lambda key: nn.Embed(7, 5, rngs=nnx.Rngs(key)))
    expected = [jax.jit(init)(k) for k in jax.random.split(key, 2)]
    together = jax.jit(jax.vmap(init))(jax.random.split(key, 2))
    shapes = jax.eval_shape(init, key)
    for i, params in enumerate(expected):
        assert jax.tree.structure(params) == jax.tree.structure(together) == jax.tree.structure(shapes)
        for one, many in zip(leaves(params), leaves(together), strict=True):
            np.testing.assert_allclose(one, many[i], rtol=1e-5, atol=1e-6)
    assert not np.array_equal(expected[0]["w"], expected[1]["w"])


def test_the_dict_serves_grad_optax_and_vmap(mode, key):
    init, apply = seqjax.purify(make)
    params = random_like(np.random.default_rng(0), jax.eval_shape(init, key))

    @jax.jit
    def loss(params):
        return jnp.sum(jnp.square(apply(params, TOKENS, lengths=jnp.array([3, 2]))[1]))

    grads = jax.jit(jax.grad(loss))(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert all(np.any(grad) for grad in leaves(grads))
    optimizer = optax.sgd(1e-2)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert loss(optax.apply_updates(params, updates)) < loss(params)
    many = jax.vmap(loss)(jax.tree.map(lambda a: jnp.stack([a, -a, 2 * a]), params))
    assert many.shape == (3,)


def test_apply_calls_other_methods(mode, key):
    init, apply = seqjax.purify(make)
    params = random_like(np.random.default_rng(0), jax.eval_shape(init, key))
    params["out"]["b"] = jnp.arange(3.0)
    np.testing.assert_array_equal(apply(params, 2.0, method="scale"), [0, 2, 4])


def test_params_of_one_mode_serve_the_other(key):
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        init, apply = seqjax.purify(make)
        params = random_like(np.random.default_rng(0), jax.eval_shape(init, key))
        expected = apply(params, TOKENS)
    jax.tree.map(np.testing.assert_array_equal, seqjax.purify(make)[1](params, TOKENS), expected)


def test_recurrent_is_a_transposed_stack(key):
    init, apply = seqjax.purify(lambda key: nn.Recurrent(CELLS["elman"], 3, 4, 2, rngs=nnx.Rngs(key)))
    params = random_like(np.random.default_rng(0), jax.eval_shape(init, key))
    xs = jax.random.normal(key, (2, 5, 3))
    lengths = jnp.array([5, 3])
    resets = jnp.zeros((2, 5), bool).at[0, 2].set(True)
    carry = jax.tree.map(lambda a: a + 0.5, apply(params, xs[:, 0], method="initial"))
    options = {"lengths": lengths, "dropout": 0.5, "key": key}
    after, ys = jax.jit(apply)(params, xs, carry, resets=resets, **options)
    layers = list(params["layers"].values())
    expected, expected_ys = seqjax.stack(
        CELLS["elman"], layers, jnp.swapaxes(xs, 0, 1), carry, resets=resets.T, **options
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        (after, ys),
        (expected, jnp.swapaxes(expected_ys, 0, 1)),
    )


@pytest.mark.parametrize("cell", list(CELLS))
def test_initial_is_what_no_carry_means(cell, key):
    init, apply = seqjax.purify(lambda key: nn.Recurrent(CELLS[cell], 3, 4, 2, rngs=nnx.Rngs(key)))
    params = random_like(np.random.default_rng(0), jax.eval_shape(init, key))
    xs = jax.random.normal(key, (2, 5, 3))

    @jax.jit
    def both(params):
        carry = apply(params, xs[:, 0], method="initial")
        return carry, apply(params, xs, carry), apply(params, xs)

    carry, given, default = both(params)
    assert not any(np.any(leaf) for leaf in leaves(carry))
    jax.tree.map(np.testing.assert_array_equal, given, default)


def test_the_gradient_of_a_bias_is_a_sum_over_all_rows_in_bfloat16_too():
    x, w = jnp.ones((4, 2048, 3), jnp.bfloat16), jnp.ones((3, 2))
    slope = jax.jit(jax.grad(lambda b: jnp.sum(affine(x, w, b).astype(jnp.float32))))(jnp.zeros(2))
    assert slope.tolist() == [8192, 8192]


def test_dropout_refuses_what_is_no_rate(key):
    for rate in (-0.5, 1.5):
        with pytest.raises(InputError, match=f"dropout rate={rate}; it must be from 0 to 1"):
            dropout(key, jnp.ones(3), rate)


def test_embed_and_dense(key):
    init, apply = seqjax.purify(lambda key: nn.Embed(1000, 16, rngs=nnx.Rngs(key)))
    table = init(key)
    np.testing.assert_allclose(np.linalg.norm(table["w"], axis=1).mean(), 1, atol=0.05)
    np.testing.assert_array_equal(apply(table, TOKENS), table["w"][TOKENS])
    scores = apply(table, apply(table, TOKENS), method="attend")
    assert scores.shape == (2, 3, 1000)
    w = np.asarray(table["w"])
    np.testing.assert_allclose(scores, w[np.asarray(TOKENS)] @ w.T, rtol=1e-5, atol=1e-5)

    init, apply = seqjax.purify(lambda key: nn.Dense(3, 2, rngs=nnx.Rngs(key)))
    params = random_like(np.random.default_rng(0), jax.eval_shape(init, key))
    x = np.ones((4, 3), np.float32)
    expected = x @ np.asarray(params["w"]) + np.asarray(params["b"])
    np.testing.assert_allclose(apply(params, jnp.asarray(x)), expected, rtol=1e-6)
    assert apply(params, jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_recurrent_steps_are_a_call(key):
    init, apply = seqjax.purify(lambda key: nn.Recurrent(CELLS["lru"], 3, 4, 2, rngs=nnx.Rngs(key)))
    params = random_like(np.random.default_rng(0), jax.eval_shape(init, key))
    xs = jax.random.normal(key, (2, 3, 3))
    after, ys = apply(params, xs)
    carry = apply(params, xs[:, 0], method="initial")
    step = jax.jit(lambda rate, *arguments: apply(params, *arguments, dropout=rate, key=key, method="step"))
    for t in range(3):
        carry, y = step(0.0, xs[:, t], carry)
        np.testing.assert_allclose(y, ys[:, t], rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), carry, after)
    # Dropout acts between the layers only.
    (below, above), _ = step(0.0, xs[:, 0], carry)
    (same, other), _ = step(0.9, xs[:, 0], carry)
    jax.tree.map(np.testing.assert_array_equal, same, below)
    assert not np.array_equal(other.h, above.h)


def test_bidirectional_layers_read_both_halves_of_the_layer_below(key):
    cell = CELLS["lstm"]
    init, apply = seqjax.purify(lambda key: nn.Bidirectional(cell, 3, 4, 2, rngs=nnx.Rngs(key)))
    params = random_like(np.random.default_rng(0), jax.eval_shape(init, key))
    xs, lengths = jax.random.normal(key, (2, 5, 3)), jnp.array([5, 3])
    carries, ys = jax.jit(apply)(params, xs, lengths=lengths, dropout=0.5, key=key)
    expected = jnp.swapaxes(xs, 0, 1)
    for depth, (forward, backward) in params["layers"].items():
        assert forward.w_h.shape == (2, 8)
        if depth == 1:
            expected = dropout(jax.random.fold_in(key, 1), expected, 0.5)
        halves, expected = seqjax.bidirectional(cell, forward, backward, expected, lengths=lengths)
        for name in ("h", "c"):
            both = np.concatenate([getattr(half, name) for half in halves], axis=-1)
            np.testing.assert_allclose(getattr(carries[depth], name), both, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ys, jnp.swapaxes(expected, 0, 1), rtol=1e-6, atol=1e-6)
    with pytest.raises(InputError, match="d_hidden=5: two directions have half of it each; make it even"):
        jax.eval_shape(lambda key: nn.Bidirectional(cell, 3, 5, rngs=nnx.Rngs(key)), key)


@pytest.mark.parametrize("score", ["dot", "additive"])
def test_attention_is_attend_with_its_own_parameters(mode, score, key):
    covered = score == "additive"
    make = lambda key: nn.Attention(score, 4, 4, d_score=3, longest=5, coverage=covered, rngs=nnx.Rngs(key))  # noqa: E731
    init, apply = seqjax.purify(make)
    assert not covered or not np.any(init(key)["w_coverage"])  # as if there were no coverage
    params = random_like(np.random.default_rng(0), jax.eval_shape(init, key))
    assert set(params) == ({"w_q", "w_k", "b", "w_score", "w_coverage"} if covered else set())
    q, values = jax.random.normal(key, (2, 3, 4)), jax.random.normal(jax.random.key(1), (2, 5, 4))
    mask = jnp.arange(5)[None] < jnp.array([[5], [2]])
    coverage = jax.random.uniform(key, (2, 3, 5))
    keys = apply(params, values, method="keys")
    result = apply(params, q, keys, values, mask=mask, coverage=coverage if covered else None)
    if covered:
        w_k = params.pop("w_k")
        expected = attend(
            q, values @ w_k, values, score=lambda q, k: covered_additive(q, k, coverage, **params), mask=mask[:, None]
        )
    else:
        expected = attend(q, values, score=dot, mask=mask[:, None])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), result, expected)
