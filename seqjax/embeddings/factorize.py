"""Low-rank factors of count matrices: truncated SVD, the embeddings made of it, and principal components."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from seqjax.embeddings.counts import Cooccurrence
from seqjax.errors import InputError
from seqjax.types import Array, Float, PRNGKey


class SVD(NamedTuple):
    """``matrix ≈ u · diag(s) · vᵀ``; the columns of u and of v are orthonormal, s falls."""

    u: Array  # [V, K]
    s: Array  # [K]
    v: Array  # [C, K]


class PCA(NamedTuple):
    """Principal components: ``x ≈ mean + projected · components``, where ``projected = (x - mean) · componentsᵀ``."""

    projected: Array  # [N, K]
    components: Array  # [K, D], orthonormal rows
    variances: Array  # [K], of the columns of `projected`, falling
    mean: Array  # [D]


def svd_embeddings(
    matrix: Cooccurrence | Float[Array, "V C"],
    rank: int,
    *,
    key: PRNGKey,
    exponent: float = 0.5,
    oversample: int = 10,
    iterations: int = 4,
) -> tuple[Float[Array, "V K"], Float[Array, "C K"]]:
    """Word and context vectors whose products approximate a matrix, usually `ppmi`.

        words = u · s ** exponent,    contexts = v · s ** (1 - exponent),    words · contextsᵀ ≈ matrix

    With 0.5 they are treated alike; Levy, Goldberg and Dagan (2015) found 0.5 and 0 better than 1, which is classic
    LSA.
    ``rank``, ``key`` and the rest are those of `truncated_svd`.
    """
    u, s, v = truncated_svd(matrix, rank, key=key, oversample=oversample, iterations=iterations)
    return u * (s**exponent)[None], v * (s ** (1 - exponent))[None]


def truncated_svd(
    matrix: Cooccurrence | Float[Array, "V C"], rank: int, *, key: PRNGKey, oversample: int = 10, iterations: int = 4
) -> SVD:
    """The ``rank`` largest singular values and their vectors, by products with a random matrix.

        q = orth(A ω),  then q = orth(A orth(Aᵀ q)) repeated ``iterations`` times,    A ≈ q (Aᵀ q)ᵀ

    with ``rank + oversample`` columns in ω (Halko, Martinsson and Tropp, 2011). More iterations sharpen a spectrum that
    falls slowly. Exact, up to rounding, where rank + oversample reaches the matrix's rank. Signs are arbitrary.

    Raises:
      InputError: rank is not between 1 and the smaller side of the matrix, or another option is negative.
    """
    if not 1 <= rank <= min(matrix.shape):
        raise InputError(f"rank={rank} does not fit a matrix of {matrix.shape}: choose 1 to {min(matrix.shape)}")
    for name, value in (("oversample", oversample), ("iterations", iterations)):
        if value < 0:
            raise InputError(f"{name}={value}; it must be at least 0")
    columns = min(rank + oversample, *matrix.shape)
    if isinstance(matrix, Cooccurrence):
        u, s, v = _randomized(key, _blocks(matrix), matrix.shape, columns, iterations)
    else:
        u, s, v = _randomized(key, matrix, matrix.shape, columns, iterations)
    return SVD(u[:, :rank], s[:rank], v[:, :rank])


class _Blocks(NamedTuple):
    """A sparse matrix for the device: its cells in blocks, the last one filled up with zeros."""

    rows: Array  # int32[N / block, block]
    cols: Array
    values: Array


def _blocks(matrix: Cooccurrence, block: int = 4096) -> _Blocks:
    fill = -len(matrix.rows) % block
    # The last row again, so that rows stay sorted
    last = matrix.shape[0] - 1
    return _Blocks(
        *(
            jnp.asarray(np.pad(array, (0, fill), constant_values=value).reshape(-1, block))
            for array, value in zip(matrix[:3], (last, 0, 0), strict=True)
        )
    )


@partial(jax.jit, static_argnames=("shape", "columns", "iterations"))
def _randomized(key: PRNGKey, matrix: _Blocks | Array, shape: tuple[int, int], columns: int, iterations: int) -> SVD:
    def times(x):
        return _sparse_times(matrix, x, shape[0]) if isinstance(matrix, _Blocks) else matrix @ x

    def transposed_times(x):
        if isinstance(matrix, _Blocks):
            return _sparse_times(_Blocks(matrix.cols, matrix.rows, matrix.values), x, shape[1], rows_sorted=False)
        return matrix.T @ x

    def orth(x):
        return jnp.linalg.qr(x)[0]

    dtype = matrix.values.dtype if isinstance(matrix, _Blocks) else matrix.dtype
    with jax.default_matmul_precision("highest"):  # accelerators would round the products to 10 bits and fewer
        q = orth(times(jax.random.normal(key, (shape[1], columns), dtype)))
        q = lax.fori_loop(0, iterations, lambda _, q: orth(times(orth(transposed_times(q)))), q)
        z, r = jnp.linalg.qr(transposed_times(q))  # A ≈ q (z r)ᵀ = q rᵀ zᵀ
        u, s, vt = jnp.linalg.svd(r.T)
        return SVD(q @ u, s, z @ vt.T)


def _sparse_times(matrix: _Blocks, x: Array, n_rows: int, *, rows_sorted: bool = True) -> Array:
    """matrix · x, block by block: all at once would need N · K numbers, and BCOO is several times slower on a CPU."""

    def add(y, block):
        rows, cols, values = block
        return y.at[rows].add(values[:, None] * x[cols], indices_are_sorted=rows_sorted), None

    return lax.scan(add, jnp.zeros((n_rows, x.shape[1]), x.dtype), matrix)[0]


def pca(x: Float[Array, "N D"], n: int) -> PCA:
    """The n directions of the largest variance, and x projected onto them (Pearson, 1901; Hotelling, 1933).

        x - mean = u · diag(s) · vᵀ,    components = the first n rows of vᵀ,    variances = s² / (N - 1)

    Of each component, the entry that is largest in size is positive.

    >>> x = jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    >>> pca(x, 1).variances.tolist()
    [2.0]

    Raises:
      InputError: n is not between 1 and the smaller side of x.
    """
    if not 1 <= n <= min(x.shape):
        raise InputError(f"n={n} does not fit x {x.shape}: choose 1 to {min(x.shape)}")
    mean = jnp.mean(x, axis=0)
    centred = x - mean[None]
    _, s, vt = jnp.linalg.svd(centred, full_matrices=False)
    components = vt[:n]
    largest = jnp.take_along_axis(components, jnp.argmax(jnp.abs(components), axis=1, keepdims=True), axis=1)
    components = components * jnp.sign(largest)
    with jax.default_matmul_precision("highest"):
        return PCA(centred @ components.T, components, jnp.square(s[:n]) / (x.shape[0] - 1), mean)
