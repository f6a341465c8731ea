"""The parts of recurrent encoder-decoders against loops: last outputs, coverage, copying, scheduled sampling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import scores, seq2seq
from tests import oracles

B, T, S, V, N_EXTRA = 2, 3, 4, 5, 2
SOURCE = np.array([[1, 4, 1, 6], [5, 2, 3, 3]])
WEIGHTS = np.array([[[0.4, 0.3, 0.3, 0]] * T, [[0.1, 0.2, 0.3, 0.4]] * T])  # the first source ends before its 6


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in shapes]


@pytest.mark.fast
@pytest.mark.usefixtures("x64")
def test_pointer_generator_equals_loops():
    logits, gate = arrays((B, T, V), (B, T))
    words = jax.jit(partial(seq2seq.pointer_generator, n_extra=N_EXTRA))
    result = words(*map(jnp.asarray, (logits, gate, WEIGHTS, SOURCE)))
    assert result.shape == (B, T, V + N_EXTRA)
    for b, t in np.ndindex(B, T):
        generate = oracles.sigmoid(gate[b, t])
        p = np.zeros(V + N_EXTRA)
        for v in range(V):
            p[v] = generate * np.exp(logits[b, t, v]) / np.sum(np.exp(logits[b, t]))
        for s in range(S):
            p[SOURCE[b, s]] += (1 - generate) * WEIGHTS[b, t, s]
        assert p.sum() == pytest.approx(1)
        possible = p > 0
        np.testing.assert_allclose(result[b, t][possible], np.log(p[possible]), rtol=1e-12)
        # To copy what is not there has probability 1e-30.
        np.testing.assert_allclose(result[b, t][~possible], np.log((1 - generate) * 1e-30), rtol=1e-12)


def test_pointer_generator_has_finite_numbers_and_gradients_for_sure_and_impossible_words():
    logits = jnp.asarray([[[200.0, -200.0, 0.0, 0.0, 0.0]] * 2], jnp.float32)
    gate = jnp.asarray([[100.0, -100.0]])
    weights = jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]])
    source = jnp.asarray([[1, 6]])

    def loss(*inputs):
        words = seq2seq.pointer_generator(*inputs, source, n_extra=N_EXTRA)
        return jnp.sum(100 * words), words

    gradients, words = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(logits, gate, weights)
    assert all(np.all(np.isfinite(a)) for a in (words, *gradients))
    np.testing.assert_allclose(words[0, 0, 0], 0, atol=1e-5)
    np.testing.assert_allclose(words[0, 1, 6], 0, atol=1e-5)
    assert (
        seq2seq.pointer_generator(*(x.astype(jnp.bfloat16) for x in (logits, gate)), weights, source).dtype == "float32"
    )


@pytest.mark.fast
@pytest.mark.usefixtures("x64")
def test_covered_additive_equals_loops():
    d, a = 3, 2
    q, keys, coverage, w_q, b, w_coverage, w_score = arrays((B, T, d), (B, S, a), (B, T, S), (d, a), (a,), (a,), (a,))
    weights = {"w_q": w_q, "b": b, "w_score": w_score}
    z = jax.jit(seq2seq.covered_additive)(q, keys, coverage, w_coverage=w_coverage, **weights)
    for i, t, s in np.ndindex(B, T, S):
        expected = np.tanh(q[i, t] @ w_q + keys[i, s] + coverage[i, t, s] * w_coverage + b) @ w_score
        np.testing.assert_allclose(z[i, t, s], expected, rtol=1e-12)
    weights = jax.tree.map(jnp.asarray, weights)
    without = seq2seq.covered_additive(*map(jnp.asarray, (q, keys, coverage)), w_coverage=jnp.zeros(a), **weights)
    np.testing.assert_allclose(without, scores.additive(jnp.asarray(q), jnp.asarray(keys), **weights), rtol=1e-12)


def test_last_output_is_that_of_each_rows_own_end():
    ys, lengths = arrays((3, S, 2))[0], np.array([S, 2, 0])
    ys[2] = 0  # what `unroll` puts out of nothing
    last = seq2seq.last_output(jnp.asarray(ys, jnp.float32), jnp.asarray(lengths), bidirectional=True)
    np.testing.assert_allclose(last[:, 0], [[ys[0, 3, 0], ys[0, 0, 1]], [ys[1, 1, 0], ys[1, 0, 1]], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(seq2seq.last_output(jnp.asarray(ys), jnp.asarray(lengths))[1, 0], ys[1, 1], rtol=1e-6)


N = 4000
TABLE = np.array([[0.2, 0.8, 0.0], [0.5, 0.0, 0.5], [0.1, 0.6, 0.3]])  # p(next token | token), never 0 -> 2


@pytest.mark.fast
def test_scheduled_inputs_are_drawn_from_the_model_at_the_rate(key):
    """The state counts the steps and every token's distribution is that of the token fed before it."""
    inputs = jnp.full((N, T + 1), 2, jnp.int32).at[:, 0].set(0)

    def step(count, tokens):
        return count + 1, jnp.log(jnp.asarray(TABLE, jnp.float32))[tokens] + 0 * count[:, None]

    draw = jax.jit(lambda rate, key: seq2seq.scheduled_inputs(step, jnp.zeros(N), inputs, rate, key))
    np.testing.assert_array_equal(draw(0.0, key), inputs)
    fed = np.asarray(draw(1.0, key))
    assert draw._cache_size() == 1
    np.testing.assert_array_equal(fed[:, 0], 0)
    for t in range(T):
        for token in range(3):
            following = fed[fed[:, t] == token, t + 1]
            if len(following) > 300:
                np.testing.assert_allclose(
                    np.bincount(following, minlength=3) / len(following), TABLE[token], atol=0.05
                )
    mixed = np.asarray(draw(0.4, key))
    # The model never goes from 0 to 2: so the share that is not 2 is that of the coins.
    assert abs(np.mean(mixed[:, 1] != 2) - 0.4) < 0.03
    coins = mixed[:, 1] != 2
    own = np.where(coins, (TABLE[mixed[:, 1]] @ [1, 1, 0]), TABLE[2, :2].sum())
    assert abs(np.mean(mixed[:, 2] != 2) - 0.4 * own.mean()) < 0.03
    assert not np.array_equal(mixed, draw(0.4, jax.random.fold_in(key, 1)))


def test_scheduled_inputs_keep_nothing_for_the_backward_pass(key):
    steps = 6
    inputs = jnp.zeros((B, steps + 1), jnp.int32)

    def loss(w):
        step = lambda state, tokens: (jnp.tanh(state @ w), state[:, :3])  # noqa: E731
        tokens = seq2seq.scheduled_inputs(step, jnp.ones((B, 4)) @ w, inputs, 0.5, key)
        return jnp.sum(w * jnp.sum(tokens).astype(jnp.float32))

    gradient = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((4, 4))))
    assert f"i32[{steps},{B}]" in gradient
    assert f"f32[{steps},{B},4]" not in gradient
