"""One step of skip-gram with negative sampling (Mikolov et al., 2013), for tiles of neighbouring words.

The centres of a tile share their negatives, and each row of a table is read once a tile: three batched products take
the place of separate scores for each pair. The expected update is word2vec's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.types import Array, Float, Int


class Update(NamedTuple):
    """The gradient of the objective with respect to the rows that were read; add it to them, times a step size."""

    rows: Array  # [tiles, R, D]
    centres: Array  # [tiles, C, D]
    negatives: Array  # [tiles, M, D]


def window_weights(tile: int, window: int) -> Float[np.ndarray, "R C"]:
    """How often a word at a distance is in the window, whose size word2vec draws from 1 to ``window``.

        weights[r, c] = (window + 1 - d) / window,   d = |r - window - c|,   for 0 < d <= window, else 0

    Row r of a tile is the word r - window places from its first centre; there are tile + 2 window rows.

    >>> window_weights(1, 2).ravel().tolist()
    [0.5, 1.0, 0.0, 1.0, 0.5]
    """
    distance = np.abs(np.arange(tile + 2 * window)[:, None] - window - np.arange(tile)[None])
    inside = (distance > 0) & (distance <= window)
    return np.where(inside, (window + 1 - distance) / window, 0).astype(np.float32)


def skipgram_update(
    w_in: Float[Array, "V D"],
    w_out: Float[Array, "V D"],
    rows: Int[Array, "tiles R"],
    centres: Int[Array, "tiles C"],
    negatives: Int[Array, "tiles M"],
    weights: Float[Array, "tiles R C"],
    *,
    negative: int = 5,
) -> Update:
    """The gradient of skip-gram's objective over all pairs of a row (context) and a centre, summed with ``weights``:

        Σ_rc weights_rc [log σ(x_r · o_c) + negative / M Σ_m 1[n_m ≠ c] log σ(-x_r · o_m)],   x = w_in, o = w_out

    M negatives, shared by the tile, stand for ``negative`` private ones of each pair; those that hit the centre do not
    count, as in word2vec. If they are drawn from p, the mean over draws is the gradient of
    ``Σ_rc weights_rc [log σ(x_r · o_c) + negative Σ_v p_v 1[v ≠ c] log σ(-x_r · o_v)]``.
    """
    n, m = centres.shape[1], negatives.shape[1]
    x, o = w_in[rows], w_out[jnp.concatenate([centres, negatives], 1)]
    score = jnp.einsum("grd,god->gro", x, o)
    differs = (centres[:, :, None] != negatives[:, None, :]).astype(weights.dtype)
    against = jnp.einsum("grc,gcm->grm", weights, differs) * (negative / m)
    right = jax.nn.sigmoid(score)
    gradient = jnp.concatenate([weights * (1 - right[:, :, :n]), -against * right[:, :, n:]], 2)
    d_out = jnp.einsum("gro,grd->god", gradient, x)
    return Update(jnp.einsum("gro,god->grd", gradient, o), d_out[:, :n], d_out[:, n:])
