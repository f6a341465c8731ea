"""One step of any cell: the pieces from which every implementation is built."""

import jax
import jax.numpy as jnp

from seqjax.cells import Cell
from seqjax.types import Array, Bool, Float, PyTree

MATRICES = ("w_x", "w_h", "w_g")


def without_matrices(params, *names: str):
    """Params with these matrices (default: all of them, which leaves ``rest``) set to None."""
    return params._replace(**{name: None for name in names or MATRICES if name in params._fields})


def project(cell: Cell, params, xs: Float[Array, "*T B D"]) -> Float[Array, "*T B n"]:
    """zx = xs w_x + b, or the cell's own projection."""
    if cell.project is not None:
        return cell.project(params, xs)
    zx = product(xs, params.w_x)
    return zx + jnp.broadcast_to(params.b.astype(zx.dtype), zx.shape)


def product(x: Float[Array, "*B n"], w: Float[Array, "n m"]) -> Float[Array, "*B m"]:
    """x w in the dtype of x: float32 weights serve bfloat16 compute."""
    return x @ w.astype(x.dtype)


def select(mask: Bool[Array, "B"] | None, new: PyTree, old: PyTree) -> PyTree:
    """Rows of ``new`` where the mask holds, of ``old`` elsewhere; ``new`` itself without a mask."""
    if mask is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(mask.reshape(mask.shape + (1,) * (n.ndim - 1)), n, o), new, old)


def zeros_like(tree: PyTree) -> PyTree:
    """A tree of zeros of the same types."""
    return jax.tree.map(jnp.zeros_like, tree)


def enter(start: PyTree, carry: PyTree, reset: Bool[Array, "B"] | None) -> PyTree:
    """The carry with which a step begins: ``start`` where a reset is marked."""
    return carry if reset is None else select(reset, start, carry)


def advance(cell: Cell, params, carry, zx: Float[Array, "B n"]):
    """``(carry, y)`` after one step, given the projected input."""
    return cell.pointwise(without_matrices(params), carry, zx, *recurrent_products(cell, params, carry, zx))


def recurrent_products(cell: Cell, params, carry, zx: Float[Array, "B n"]) -> tuple:
    """``(zh,)`` or, for a cell with a second product, ``(zh, zg)``; zh is None without a recurrent matrix."""
    zh = None
    if getattr(params, "w_h", None) is not None:
        zh = product(cell.hidden(carry).astype(zx.dtype), params.w_h)
    if cell.second is None:
        return (zh,)
    g = cell.second(without_matrices(params), carry, zx, zh)
    return zh, product(g.astype(zx.dtype), params.w_g)
