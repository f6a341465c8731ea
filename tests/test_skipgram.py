"""The tile step of skip-gram: its mean over all draws is the gradient of the literal objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.embeddings.skipgram import skipgram_update, window_weights


def test_weights_are_the_mean_of_drawn_windows():
    drawn = np.mean([window_weights(6, 3) >= (4 - size) / 3 - 1e-6 for size in (1, 2, 3)], 0)
    np.testing.assert_allclose(np.where(window_weights(6, 3) > 0, drawn, 0), window_weights(6, 3), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_expected_update_is_the_gradient_of_the_objective(key):
    v, d, tile, window, negative = 9, 4, 3, 2, 5
    keys = jax.random.split(key, 4)
    w_in, w_out = (jax.random.normal(k, (v, d), jnp.float64) for k in keys[:2])
    p = jax.nn.softmax(jax.random.normal(keys[2], (v,), jnp.float64))
    rows = jax.random.randint(keys[3], (2, tile + 2 * window), 0, v)
    centres = rows[:, window : window + tile]
    weights = jnp.tile(jnp.asarray(window_weights(tile, window), jnp.float64)[None], (2, 1, 1))

    def objective(tables):
        w_in, w_out = tables
        total = 0.0
        for g, r, c in np.ndindex(weights.shape):
            x = w_in[rows[g, r]]
            own = jax.nn.log_sigmoid(x @ w_out[centres[g, c]])
            others = jnp.where(jnp.arange(v) == centres[g, c], 0.0, p) @ jax.nn.log_sigmoid(-(w_out @ x))
            total += weights[g, r, c] * (own + negative * others)
        return total

    expected = jax.jit(jax.grad(objective))((w_in, w_out))
    found = [jnp.zeros_like(w_in), jnp.zeros_like(w_out)]
    for drawn in range(v):  # linear in the draws, so one negative at a time is every case
        negatives = jnp.full((2, 1), drawn)
        update = skipgram_update(w_in, w_out, rows, centres, negatives, weights, negative=negative)
        found[0] = found[0].at[rows].add(p[drawn] * update.rows)
        found[1] = found[1].at[centres].add(p[drawn] * update.centres).at[negatives].add(p[drawn] * update.negatives)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), tuple(found), expected)
