"""The six score functions against their formulas, and attention with any of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import attention
from seqjax.attention import SCORES, attend
from seqjax.errors import InputError

B, T, S, D = 2, 3, 5, 4
RNG = np.random.default_rng(1)


def oracle(name, p, q, k, j):
    """The score of one query and key, the j-th."""
    return {
        "dot": lambda: q @ k,
        "scaled_dot": lambda: q @ k / np.sqrt(D),
        "cosine": lambda: p["g"] * (q @ k) / np.sqrt((q @ q + 1e-12) * (k @ k + 1e-12)),
        "general": lambda: q @ p["w"] @ k,
        "additive": lambda: np.tanh(q @ p["w_q"] + k @ p["w_k"] + p["b"]) @ p["w_score"],
        "location": lambda: q @ p["w"][:, j] + p["b"][j],
    }[name]()


def made(name, d_key=D):
    params = SCORES[name].init(jax.random.key(0), D, d_key, 6, 7)
    return jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape)), params)


@pytest.mark.fast
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SCORES)
def test_scores_and_attention_equal_loops(name):
    params = made(name)
    q, k, v = (jnp.asarray(RNG.normal(size=shape)) for shape in ((B, T, D), (B, S, D), (B, S, 2)))
    mask = jnp.asarray(np.arange(S) < np.array([[3], [S]]))
    keys = SCORES[name].project(params, k)
    contexts, weights = attend(q, keys, v, score=partial(SCORES[name].score, params), mask=mask[:, None])
    for b, t in np.ndindex(B, T):
        z = [oracle(name, params, q[b, t], k[b, j], j) for j in range(3 if b == 0 else S)]
        np.testing.assert_allclose(SCORES[name].score(params, q, keys)[b, t, : len(z)], z, rtol=1e-12)
        e = np.exp(np.array(z) - max(z))
        np.testing.assert_allclose(weights[b, t], np.pad(e / e.sum(), (0, S - len(z))), rtol=1e-10)
        np.testing.assert_allclose(contexts[b, t], (e / e.sum()) @ v[b, : len(z)], rtol=1e-10)


def test_any_callable_is_a_score_and_its_gradient_passes(key):
    q, k = jax.random.normal(key, (2, B, T, D))

    def loss(scale):
        return jnp.sum(attend(q, k, score=lambda q, k: -scale * jnp.sum((q[:, :, None] - k[:, None]) ** 2, -1))[0] ** 2)

    assert jnp.isfinite(jax.grad(loss)(0.3))


def test_a_query_that_keeps_nothing_gets_zero(key):
    q, k = jax.random.normal(key, (2, B, T, D))
    f = lambda q: attend(q, k, mask=jnp.zeros((1, 1, T), bool))[0]  # noqa: E731
    np.testing.assert_array_equal(f(q), 0)
    np.testing.assert_array_equal(jax.grad(lambda q: jnp.sum(f(q)))(q), 0)


@pytest.mark.parametrize("name", SCORES)
def test_padded_states_have_finite_gradients(name):
    params = made(name)
    mask = jnp.asarray(np.arange(S) < 3)[None, None]
    k = jnp.ones((1, S, D)).at[:, 3:].set(0)
    q = jnp.zeros((1, 1, D))

    def loss(params, q, k):
        keys = SCORES[name].project(params, k)
        return jnp.sum(attend(q, keys, k, score=partial(SCORES[name].score, params), mask=mask)[0])

    for gradient in jax.tree.leaves(jax.grad(loss, (0, 1, 2))(params, q, k)):
        assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize(
    ("mask", "message"),
    [(jnp.zeros((1, 1, S)), "mask must be bool"), (jnp.ones((B, S), bool), "does not fit scores")],
)
def test_bad_masks(mask, message):
    with pytest.raises(InputError, match=message):
        attend(jnp.ones((B, T, D)), jnp.ones((B, S, D)), mask=mask)


@pytest.mark.parametrize("name", SCORES)
def test_low_precision_and_initial_scores(name, key):
    params = SCORES[name].init(key, 64, 64, 64, 20)
    q, k = jax.random.normal(key, (2, B, 20, 64))
    z = SCORES[name].score(params, q, SCORES[name].project(params, k))
    assert 0.2 < jnp.std(z) < 10
    low = q.astype(jnp.bfloat16), k.astype(jnp.bfloat16)
    score = partial(SCORES[name].score, params)
    contexts, weights = attend(low[0], SCORES[name].project(params, low[1]), low[1], score=score)
    assert (contexts.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)


def test_sizes_may_differ_where_a_matrix_joins_them():
    for name in ("general", "additive", "location"):
        params = made(name, d_key=3)
        assert SCORES[name].score(params, jnp.ones((B, T, D)), SCORES[name].project(params, jnp.ones((B, S, 3)))).shape
    with pytest.raises(InputError, match="one size, not 4 and 3; try 'general'"):
        made("dot", d_key=3)
    with pytest.raises(InputError, match="made for 7 keys, not 8"):
        attention.location(jnp.ones((1, 1, D)), jnp.ones((1, 8, 3)), **made("location"))
