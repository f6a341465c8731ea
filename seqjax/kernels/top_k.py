"""The greatest of many numbers, without sorting them all."""

import jax
import jax.numpy as jnp
from jax import lax

from seqjax.types import Array

CHUNK = 16  # 32 and 64 are as fast for rows of 8,000 and 40,000 numbers, 8 is slower


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """`jax.lax.top_k` of ``[B, n]``: the k greatest of each row and their places, of equal ones the first.

    On a CPU that is a scalar loop in one thread, as `jnp.argmax` is; maxima of chunks are vector code in all threads.
    So the k chunks with the greatest maxima are found first, in the same way; they hold the k greatest numbers. For
    the logits of a beam search that is 4 to 5 times as fast; with k = 1 it is ten times as fast as argmax.
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
