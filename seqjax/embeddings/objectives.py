"""What Word2Vec can minimize besides `skipgram_loss`, for tiles of neighbouring words.

Each loss is ``(nats, pairs)``, two sums. In skip-gram (Mikolov et al., 2013) a pair is a context r and a centre c, and
has a weight; in CBOW it is a centre and the mean of its contexts, and ``weights[g, c]`` says whether there are any.
Letters: G tiles, R contexts, C centres, M negatives, P nodes of a path.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from seqjax.types import Array, Bool, Float, Int

Loss = tuple[Float[Array, ""], Float[Array, ""]]


def cbow_hidden(contexts: Float[Array, "G R D"], shares: Float[Array, "G R C"]) -> Float[Array, "G C D"]:
    """The mean of the contexts of each centre, or their sum: ``h_c = Σ_r shares_rc x_r``."""
    return jnp.einsum("gcr,grd->gcd", _transposed(shares), contexts)


def cbow_loss(
    hidden: Float[Array, "G C D"],
    centres: Float[Array, "G C D"],
    negatives: Float[Array, "G M D"],
    weights: Float[Array, "G C"],
    differs: Bool[Array, "G C M"],
    *,
    negative: int,
) -> Loss:
    """Negative sampling for CBOW.

    loss = -Σ_c weights_c [log σ(h_c · o_c) + negative / M Σ_m differs_cm log σ(-h_c · o_m)]
    """
    own = jnp.sum(hidden * centres, axis=2)
    others = jnp.einsum("gcd,gmd->gcm", hidden, negatives)
    against = weights[:, :, None] * differs.astype(weights.dtype) * (negative / differs.shape[2])
    loss = jnp.sum(weights * jax.nn.softplus(-own)) + jnp.sum(against * jax.nn.softplus(others))
    return loss, jnp.sum(weights)


def cbow_update(
    hidden: Float[Array, "G C D"],
    centres: Float[Array, "G C D"],
    negatives: Float[Array, "G M D"],
    weights: Float[Array, "G C"],
    differs: Bool[Array, "G C M"],
    *,
    negative: int,
) -> tuple[Float[Array, "G C D"], Float[Array, "G C D"], Float[Array, "G M D"]]:
    """The negative gradient of `cbow_loss` with respect to hidden vectors, centres and negatives."""
    own = weights * jax.nn.sigmoid(-jnp.sum(hidden * centres, axis=2))
    against = weights[:, :, None] * differs.astype(weights.dtype) * (negative / differs.shape[2])
    others = -against * jax.nn.sigmoid(jnp.einsum("gcd,gmd->gcm", hidden, negatives))
    d_hidden = own[:, :, None] * centres + jnp.einsum("gcm,gmd->gcd", others, negatives)
    return d_hidden, own[:, :, None] * hidden, jnp.einsum("gmc,gcd->gmd", _transposed(others), hidden)


def _transposed(x: Float[Array, "G A B"]) -> Float[Array, "G B A"]:
    """XLA's CPU backend is a fifth slower at contracting a matrix over its first axis than at copying it transposed."""
    return lax.optimization_barrier(jnp.swapaxes(x, 1, 2))


def sampled_softmax_loss(
    own: Float[Array, "G R C"],
    others: Float[Array, "G R M"],
    weights: Float[Array, "G R C"],
    differs: Bool[Array, "G C M"],
) -> Loss:
    """Cross-entropy of the centre among itself and M drawn words, from the scores of a row r with each.

    loss = Σ_rc weights_rc [log(exp own_rc + Σ_m differs_cm exp others_rm) - own_rc]

    CBOW has one centre a row: R is then 1 and G counts the centres.
    """
    top = lax.stop_gradient(jnp.maximum(jnp.max(others, 2, keepdims=True), jnp.max(own, 2, keepdims=True)))
    drawn = jnp.einsum("grm,gcm->grc", jnp.exp(others - top), differs.astype(others.dtype))
    loss = jnp.log(jnp.exp(own - top) + drawn) + top - own
    return jnp.sum(weights * loss), jnp.sum(weights)


def tree_loss(
    scores: Float[Array, "G R N"], signs: Float[Array, "G N"], weights: Float[Array, "G R N"]
) -> Float[Array, ""]:
    """Hierarchical softmax (Morin and Bengio, 2005): the product of decisions on the way from the root to the word.

        loss = -Σ_rn weights_rn |signs_n| log σ(signs_n scores_rn)

    N counts the nodes on the paths of all centres of a tile; ``signs`` are +1 or -1, and 0 past the end of a path;
    ``weights`` are those of the pair of a row and the centre of the node. The loss is in nats, for all pairs.
    """
    signs = signs[:, None]
    return jnp.sum(weights * jnp.abs(signs) * jax.nn.softplus(-signs * scores))


def tree_update(
    x: Float[Array, "G R D"], nodes: Float[Array, "G N D"], signs: Float[Array, "G N"], weights: Float[Array, "G R N"]
) -> tuple[Float[Array, "G R D"], Float[Array, "G N D"]]:
    """The negative gradient of `tree_loss` with respect to the rows and the nodes."""
    signs = signs[:, None]
    scores = jnp.einsum("gnd,grd->grn", nodes, x)
    gradient = weights * signs * jax.nn.sigmoid(-signs * scores)
    return jnp.einsum("grn,gnd->grd", gradient, nodes), jnp.einsum("gnr,grd->gnd", _transposed(gradient), x)


def softmax_loss(scores: Float[Array, "N V"], targets: Int[Array, "N C"], weights: Float[Array, "N C"]) -> Loss:
    """Full softmax over the vocabulary, C targets for a row of scores.

    loss = Σ_nc weights_nc [log Σ_v exp scores_nv - scores_n,targets_nc]
    """
    normalizer = jax.nn.logsumexp(scores, axis=1, keepdims=True)
    own = jnp.take_along_axis(scores, targets, axis=1)
    return jnp.sum(weights * (normalizer - own)), jnp.sum(weights)


class Tree(NamedTuple):
    """Huffman's binary tree over the words: for each word the inner nodes from the root down, and which way it goes."""

    nodes: np.ndarray  # int32 [V, P], of V - 1 inner nodes, the root 0; past the end: V - 1, which is no node
    signs: np.ndarray  # int8 [V, P]: 1 to the rarer side, -1 to the other, 0 past the end


def huffman_tree(counts: Int[np.ndarray, "V"]) -> Tree:
    """The tree in which the mean length of a path, weighted by ``counts`` (falling), is least (Huffman, 1952).

    >>> tree = huffman_tree(np.array([4, 2, 1, 1]))
    >>> np.abs(tree.signs).sum(1).tolist()  # how long the path of each word is
    [1, 2, 3, 3]
    """
    n = len(counts)
    weight: list[int] = np.concatenate([counts[::-1], np.zeros(n - 1, np.int64)]).tolist()
    parent, sign = np.zeros(2 * n - 1, np.int64), np.zeros(2 * n - 1, np.int8)
    leaf, inner = 0, n  # the lightest of either kind that has no parent yet: both lists rise
    for new in range(n, 2 * n - 1):
        for side in (1, -1):
            if leaf < n and (inner >= new or weight[leaf] <= weight[inner]):
                lightest, leaf = leaf, leaf + 1
            else:
                lightest, inner = inner, inner + 1
            parent[lightest], sign[lightest] = new, side
            weight[new] += weight[lightest]
    steps, at = [], np.arange(n)[::-1]
    while (at < 2 * n - 2).any():  # all words climb towards the root, a node at a time
        below = at < 2 * n - 2
        steps.append((np.where(below, parent[at], 0), np.where(below, sign[at], 0), below))
        at = np.where(below, parent[at], at)
    length = np.zeros(n, np.int64)
    for *_, below in steps:
        length += below
    nodes = np.full((n, max(len(steps), 1)), n - 1, np.int32)
    signs = np.zeros((n, max(len(steps), 1)), np.int8)
    for i, (node, side, below) in enumerate(steps):
        rows = np.flatnonzero(below)
        nodes[rows, length[rows] - 1 - i] = 2 * n - 2 - node[rows]  # frequent ones first, as words are
        signs[rows, length[rows] - 1 - i] = side[rows]
    return Tree(nodes, signs)
