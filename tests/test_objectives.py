"""Objectives of Word2Vec beside plain sums over pairs, in float64; Huffman's tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.embeddings.objectives import (
    cbow_loss,
    cbow_update,
    huffman_tree,
    sampled_softmax_loss,
    softmax_loss,
    tree_loss,
    tree_update,
)


def normal(key, i, *shape):
    return jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float64)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


@pytest.mark.usefixtures("x64")
def test_cbow_loss_is_the_sum_over_centres(key):
    h, o, m = normal(key, 0, 2, 3, 4), normal(key, 1, 2, 3, 4), normal(key, 2, 2, 5, 4)
    weights = jnp.array([[1.0, 1, 0], [1, 0.5, 1]])
    differs = normal(key, 3, 2, 3, 5) > 0
    total = 0.0
    for g, c in np.ndindex(2, 3):
        others = sum(float(differs[g, c, j]) * log_sigmoid(-(h[g, c] @ m[g, j])) for j in range(5))
        total -= weights[g, c] * (log_sigmoid(h[g, c] @ o[g, c]) + 7 / 5 * others)
    found, pairs = cbow_loss(h, o, m, weights, differs, negative=7)
    np.testing.assert_allclose(found, total, rtol=1e-10)
    assert pairs == weights.sum()


@pytest.mark.usefixtures("x64")
def test_sampled_softmax_is_a_softmax_over_the_word_and_those_drawn(key):
    own, others = 30 * normal(key, 0, 2, 4, 3), 30 * normal(key, 1, 2, 4, 5)
    weights, differs = normal(key, 2, 2, 4, 3) ** 2, normal(key, 3, 2, 3, 5) > 0
    total = 0.0
    for g, r, c in np.ndindex(2, 4, 3):
        scores = jnp.concatenate([own[g, r, c][None], others[g, r][differs[g, c]]])
        total -= weights[g, r, c] * jax.nn.log_softmax(scores)[0]
    np.testing.assert_allclose(sampled_softmax_loss(own, others, weights, differs)[0], total, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_softmax_loss_is_cross_entropy(key):
    scores, targets, weights = normal(key, 0, 3, 6), jnp.array([[0, 5], [2, 2], [4, 1]]), normal(key, 1, 3, 2) ** 2
    expected = -sum(weights[n, c] * jax.nn.log_softmax(scores[n])[targets[n, c]] for n, c in np.ndindex(3, 2))
    np.testing.assert_allclose(softmax_loss(scores, targets, weights)[0], expected, rtol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 3, 17, 400])
@pytest.mark.usefixtures("x64")
def test_probabilities_of_the_tree_sum_to_one(n, key):
    counts = np.sort(np.random.default_rng(n).zipf(1.5, n))[::-1].astype(np.int64)
    tree = huffman_tree(counts)
    nodes = jnp.concatenate([normal(key, 0, n - 1, 4), jnp.zeros((1, 4))])
    hidden = normal(key, 1, 4)
    signs = jnp.asarray(tree.signs, jnp.float64)
    scores = (nodes[tree.nodes] @ hidden)[:, None, None]
    nats = [tree_loss(scores[v], signs[v][None], jnp.ones_like(scores[v])) for v in range(n)]
    np.testing.assert_allclose(np.exp(-np.array(nats)).sum(), 1, rtol=1e-10)


def test_the_tree_costs_what_gensims_does():
    from gensim.models import Word2Vec

    counts = np.sort(np.random.default_rng(0).zipf(1.3, 300) % 1000 + 1)[::-1].astype(np.int64)
    model = Word2Vec(hs=1, negative=0, min_count=1)
    model.build_vocab_from_freq({str(i): int(count) for i, count in enumerate(counts)})
    theirs = sum(model.wv.get_vecattr(w, "count") * len(model.wv.get_vecattr(w, "code")) for w in model.wv.index_to_key)
    assert (np.abs(huffman_tree(counts).signs.astype(int)).sum(1) * counts).sum() == theirs


@pytest.mark.usefixtures("x64")
@pytest.mark.fast
def test_the_update_of_a_tree_is_the_gradient_of_its_loss(key):
    x, nodes = normal(key, 0, 2, 4, 3), normal(key, 1, 2, 5, 3)
    signs, weights = jnp.sign(normal(key, 2, 2, 5)).at[:, 3].set(0.0), normal(key, 3, 2, 4, 5) ** 2

    def loss(x, nodes):
        return tree_loss(jnp.einsum("grd,gnd->grn", x, nodes), signs, weights)

    gradient = jax.grad(loss, argnums=(0, 1))(x, nodes)
    update = tree_update(x, nodes, signs, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-10, atol=1e-12), update, gradient)


@pytest.mark.usefixtures("x64")
def test_the_update_of_cbow_is_the_gradient_of_its_loss(key):
    vectors = [normal(key, i, 2, n, 4) for i, n in enumerate((3, 3, 5))]
    weights, differs = normal(key, 3, 2, 3) ** 2, normal(key, 4, 2, 3, 5) > 0
    gradient, _ = jax.grad(cbow_loss, argnums=(0, 1, 2), has_aux=True)(*vectors, weights, differs, negative=4)
    update = cbow_update(*vectors, weights, differs, negative=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-10, atol=1e-12), update, gradient)
