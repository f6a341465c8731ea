"""The greatest of many numbers, without sorting them all."""

import jax
import jax.numpy as jnp
from jax import lax

from seqjax.types import Array

CHUNK = 16  # the fastest of 8, 16, 32, 80 for 8,000 to 40,000 numbers


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """`jax.lax.top_k` of ``[B, n]``: the k greatest of each row and their places, of equal ones the first.

    XLA:CPU sorts the whole row for it, which for a row of logits takes longer than the model that made them. Here the k
    chunks with the greatest maxima are found first, in the same way; they hold the k greatest numbers.
    """
    n_chunks = x.shape[1] // CHUNK
    if jax.default_backend() != "cpu" or n_chunks <= 2 * k:
        best, places = lax.top_k(x, k)
        return best, places
    maxima = jnp.max(x[:, : n_chunks * CHUNK].reshape(-1, n_chunks, CHUNK), axis=2)
    chunks = jnp.sort(top_k(maxima, k)[1], axis=1)  # in order, so that of equal numbers the first stays first
    places = (CHUNK * chunks[:, :, None] + jnp.arange(CHUNK, dtype=chunks.dtype)[None, None]).reshape(-1, k * CHUNK)
    rest = jnp.arange(n_chunks * CHUNK, x.shape[1], dtype=places.dtype)
    places = jnp.concatenate([places, jnp.broadcast_to(rest[None], (x.shape[0], rest.shape[0]))], axis=1)
    best, order = lax.top_k(jnp.take_along_axis(x, places, axis=1), k)
    return best, jnp.take_along_axis(places, order, axis=1)
