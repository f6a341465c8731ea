"""Skip-gram with negative sampling (Mikolov et al., 2013) for tiles of neighbouring words: the loss, and its gradient.

The centres of a tile share their negatives, and each row of a table is read once a tile: three batched products take
the place of separate scores for each pair. The expected gradient is word2vec's.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from seqjax.types import Array, Bool, Float, Int


class Tiles(NamedTuple):
    """The vectors of G tiles: rows of the input table for contexts, of the output table for centres and negatives."""

    contexts: Array  # [G, R, D]
    centres: Array  # [G, C, D]
    negatives: Array  # [G, M, D]


def window_weights(tile: int, window: int) -> Float[np.ndarray, "R C"]:
    """How often a word at a distance is in the window, whose size word2vec draws from 1 to ``window``.

        weights[r, c] = (window + 1 - d) / window,   d = |r - window - c|,   for 0 < d <= window, else 0

    Context r of a tile is the word r - window places from its first centre; there are tile + 2 window contexts.

    >>> window_weights(1, 2).ravel().tolist()
    [0.5, 1.0, 0.0, 1.0, 0.5]
    """
    distance = np.abs(np.arange(tile + 2 * window)[:, None] - window - np.arange(tile)[None])
    inside = (distance > 0) & (distance <= window)
    return np.where(inside, (window + 1 - distance) / window, 0).astype(np.float32)


def pair_weights(
    kind: Literal["expected", "random", "fixed"],
    sentence: Int[Array, "G R"],
    sizes: Int[Array, "G 1 C"],
    *,
    window: int,
) -> Float[Array, "G R C"]:
    """How often each word of a tile's reach is in the window of each of its centres: 0 beyond their sentence.

    "expected" is `window_weights`; "fixed" 1 in the whole window; "random" 1 in windows of ``sizes``. ``sentence`` is
    the number of the sentence that each word is of, -1 for none.
    """
    tile = sentence.shape[1] - 2 * window
    own = sentence[:, window : window + tile]
    same = (sentence[:, :, None] == own[:, None, :]) & (own >= 0)[:, None, :]
    expected = window_weights(tile, window)
    distance = np.rint((1 - expected) * window).astype(np.int32) + 1  # window + 1 outside
    match kind:
        case "expected":
            weights = jnp.asarray(expected)[None]
        case "fixed":
            weights = jnp.asarray(expected > 0, jnp.float32)[None]
        case "random":
            weights = (jnp.broadcast_to(jnp.asarray(distance)[None], same.shape) <= sizes).astype(jnp.float32)
    return jnp.where(same, jnp.broadcast_to(weights, same.shape), 0.0)


def skipgram_loss(
    tiles: Tiles, weights: Float[Array, "G R C"], differs: Bool[Array, "G C M"], *, negative: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Nats over all pairs of a context and a centre, and the number of pairs, summed with ``weights``.

        loss = -Σ_rc weights_rc [log σ(x_r · o_c) + negative / M Σ_m differs_cm log σ(-x_r · o_m)],   pairs = Σ weights

    M negatives, shared by the tile, stand for ``negative`` private ones of each pair; ``differs`` is False where one is
    the centre itself, which does not count, as in word2vec. If they are drawn from p, the mean over draws is
    ``-Σ_rc weights_rc [log σ(x_r · o_c) + negative Σ_v p_v 1[v ≠ c] log σ(-x_r · o_v)]``.
    """
    own = jnp.einsum("grd,gcd->grc", tiles.contexts, tiles.centres)
    others = jnp.einsum("grd,gmd->grm", tiles.contexts, tiles.negatives)
    against = _against(weights, differs, negative)
    loss = jnp.sum(weights * jax.nn.softplus(-own)) + jnp.sum(against * jax.nn.softplus(others))
    return loss, jnp.sum(weights)


def skipgram_update(
    tiles: Tiles, weights: Float[Array, "G R C"], differs: Bool[Array, "G C M"], *, negative: int
) -> Tiles:
    """The negative gradient of `skipgram_loss` with respect to the vectors: three products, on two sides at once."""
    n = tiles.centres.shape[1]
    x, o = tiles.contexts, jnp.concatenate([tiles.centres, tiles.negatives], 1)
    right = jax.nn.sigmoid(jnp.einsum("grd,god->gro", x, o))
    against = _against(weights, differs, negative)
    gradient = jnp.concatenate([weights * (1 - right[:, :, :n]), -against * right[:, :, n:]], 2)
    # XLA's CPU backend is a fifth slower at contracting a matrix over its first axis than at copying it transposed.
    transposed = lax.optimization_barrier(jnp.swapaxes(gradient, 1, 2))
    d_out = jnp.einsum("gor,grd->god", transposed, x)
    return Tiles(jnp.einsum("gro,god->grd", gradient, o), d_out[:, :n], d_out[:, n:])


def _against(weights, differs, negative):
    """How much each negative weighs for each context, [G, R, M]."""
    return jnp.einsum("grc,gcm->grm", weights, differs.astype(weights.dtype)) * (negative / differs.shape[2])
