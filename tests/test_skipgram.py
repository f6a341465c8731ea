"""The tile step of skip-gram: the gradient of its loss, and on average over draws that of the literal objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.embeddings.skipgram import Tiles, skipgram_loss, skipgram_update, window_weights

V, D, TILE, WINDOW, NEGATIVE = 9, 4, 3, 2, 5


def example(key):
    """Two tables, the context ids and centre ids of two tiles, and the weights of their pairs."""
    keys = jax.random.split(key, 3)
    w_in, w_out = (jax.random.normal(k, (V, D), jnp.float64) for k in keys[:2])
    contexts = jax.random.randint(keys[2], (2, TILE + 2 * WINDOW), 0, V)
    weights = jnp.tile(jnp.asarray(window_weights(TILE, WINDOW), jnp.float64)[None], (2, 1, 1))
    return w_in, w_out, contexts, contexts[:, WINDOW : WINDOW + TILE], weights


def test_weights_are_the_mean_of_drawn_windows():
    distance = np.abs(np.arange(TILE + 2 * 3)[:, None] - 3 - np.arange(TILE)[None])
    drawn = np.mean([(distance > 0) & (distance <= size) for size in (1, 2, 3)], 0)
    np.testing.assert_allclose(window_weights(TILE, 3), drawn, rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.fast
def test_the_update_is_the_gradient_of_the_loss(key):
    w_in, w_out, contexts, centres, weights = example(key)
    negatives = jax.random.randint(key, (2, 5), 0, V)
    tiles = Tiles(w_in[contexts], w_out[centres], w_out[negatives])
    differs = centres[:, :, None] != negatives[:, None, :]
    (_, pairs), gradient = jax.value_and_grad(skipgram_loss, has_aux=True)(tiles, weights, differs, negative=NEGATIVE)
    update = skipgram_update(tiles, weights, differs, negative=NEGATIVE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-10, atol=1e-12), update, gradient)
    np.testing.assert_allclose(pairs, weights.sum())


@pytest.mark.usefixtures("x64")
def test_the_expected_update_is_the_gradient_of_the_literal_objective(key):
    w_in, w_out, contexts, centres, weights = example(key)
    p = jax.nn.softmax(jax.random.normal(key, (V,), jnp.float64))

    def objective(tables):
        w_in, w_out = tables
        total = 0.0
        for g, r, c in np.ndindex(weights.shape):
            x = w_in[contexts[g, r]]
            own = jax.nn.log_sigmoid(x @ w_out[centres[g, c]])
            others = jnp.where(jnp.arange(V) == centres[g, c], 0.0, p) @ jax.nn.log_sigmoid(-(w_out @ x))
            total += jnp.where(weights[g, r, c] > 0, weights[g, r, c] * (own + NEGATIVE * others), 0)
        return total

    expected = jax.grad(objective)((w_in, w_out))
    found = [jnp.zeros_like(w_in), jnp.zeros_like(w_out)]
    for drawn in range(V):  # linear in the draws, so one negative at a time is every case
        negatives = jnp.full((2, 1), drawn)
        differs = centres[:, :, None] != negatives[:, None, :]
        tiles = Tiles(w_in[contexts], w_out[centres], w_out[negatives])
        update = skipgram_update(tiles, weights, differs, negative=NEGATIVE)
        found[0] = found[0].at[contexts].add(p[drawn] * update.contexts)
        found[1] = found[1].at[centres].add(p[drawn] * update.centres).at[negatives].add(p[drawn] * update.negatives)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), tuple(found), expected)


@pytest.mark.usefixtures("x64")
def test_with_enough_dimensions_the_products_become_shifted_pmi(key):
    """Levy and Goldberg (2014): w · c = log P(w, c) / (P(w) p(c)) - log negative, at the optimum."""
    v, d, negative = 5, 6, 3
    counts = 1 + jnp.asarray(np.random.default_rng(0).integers(1, 9, (v, v)), jnp.float64)
    drawn = jnp.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4])  # p is how often each word stands here
    differs = jnp.ones((1, v, len(drawn)), bool)

    def step(_, tables):
        w, c = tables
        update = skipgram_update(
            Tiles(w[None], c[None], c[drawn][None]), counts[None] / counts.sum(), differs, negative=negative
        )
        d_c = update.centres[0].at[drawn].add(update.negatives[0])
        return w + 2 * update.contexts[0], c + 2 * d_c

    tables = jax.random.normal(key, (2, v, d), jnp.float64) / 2
    w, c = jax.jit(lambda t: jax.lax.fori_loop(0, 20_000, step, t))((tables[0], tables[1]))
    p = jnp.bincount(drawn, length=v) / len(drawn)
    pmi = jnp.log(counts / counts.sum(1, keepdims=True) / p[None])
    np.testing.assert_allclose(w @ c.T, pmi - np.log(negative), atol=1e-3)
