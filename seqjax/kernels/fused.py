"""``implementation="fused"`` and ``"hybrid"``: hoisted projection and a backward pass with one large product a weight.

Autodiff of a scan multiplies and accumulates every weight gradient inside the reversed loop, T small products each with
a read and a write of the whole matrix. Here the reversed loop emits only the cotangents of the pre-activations,
one recurrent product a step, and the weight gradients are one product each after the loop:

    zx = xs w_x + b                                   before the loop; its gradient is plain autodiff
    dcarry, dzx_t, dzh_t = vjp(pointwise)(dcarry, dy_t);   dcarry += vjp(hidden)(dzh_t w_hᵀ)
    dw_h = Σ_t h_{t-1}ᵀ dzh_t                          after the loop

The derivative of ``pointwise`` is JAX's own, so this serves every cell. Saved for the backward pass: zx, zh and the
carry before each step.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from seqjax.cells import Cell
from seqjax.kernels.reference import scan
from seqjax.kernels.stepping import (
    advance,
    enter,
    product,
    project,
    recurrent_products,
    select,
    without_matrices,
    zeros_like,
)
from seqjax.types import Array, Bool, Float, PyTree


def fused(
    cell: Cell,
    params,
    start,
    carry,
    xs: Float[Array, "T B D"],
    valid: Bool[Array, "T B"] | None,
    resets: Bool[Array, "T B"] | None,
    reverse: bool,
):
    """Project the whole sequence in one product, then run the recurrence with its own derivative."""
    zx = project(cell, params, xs)
    _reject_closures(cell, params, carry, zx[0])
    return _recurrence(cell, reverse, without_matrices(params, "w_x"), start, carry, zx, valid, resets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 7))
def hybrid(
    cell: Cell,
    params,
    start,
    carry,
    xs: Float[Array, "T B D"],
    valid: Bool[Array, "T B"] | None,
    resets: Bool[Array, "T B"] | None,
    reverse: bool,
):
    """``scan`` where nothing is differentiated, ``fused`` where something is.

    Without gradients to win, the long buffer of hoisted projections only costs memory traffic.
    """
    return scan(cell, params, start, carry, xs, valid, resets, reverse)


def _hybrid_fwd(cell, params, start, carry, xs, valid, resets, reverse):
    def differentiated(params, start, carry, xs):
        return fused(cell, params, start, carry, xs, valid, resets, reverse)

    return jax.vjp(differentiated, params, start, carry, xs)


def _hybrid_bwd(cell, reverse, pull, cotangents):
    return (*pull(cotangents), None, None)


hybrid.defvjp(_hybrid_fwd, _hybrid_bwd)


def _reject_closures(cell: Cell, params, carry, zx_t: Float[Array, "B n"]) -> None:
    """A traced value that a cell's functions close over would get no gradient: say so instead."""
    consts = jax.make_jaxpr(functools.partial(advance, cell))(params, carry, zx_t).consts
    if any(isinstance(const, Tracer) for const in consts):
        raise ValueError(
            f"the functions of cell {cell.name!r} (pointwise, second or hidden) close over a traced value, which "
            "implementation='fused' cannot differentiate; make it a field of the cell's Params, or use "
            "implementation='scan'."
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrence(cell, reverse, params, start, carry, zx, valid, resets):
    carry, (ys, _) = _forward(cell, reverse, params, start, carry, zx, valid, resets, save=False)
    return carry, ys


def _forward(cell, reverse, params, start, carry, zx, valid, resets, *, save):
    def body(carry, inputs):
        zx_t, keep, reset = inputs
        before = enter(start, carry, reset)
        products = recurrent_products(cell, params, before, zx_t)
        after, y = cell.pointwise(without_matrices(params), before, zx_t, *products)
        y = select(keep, y, zeros_like(y))
        return select(keep, after, carry), (y, (before, products) if save else None)

    return lax.scan(body, carry, (zx, valid, resets), reverse=reverse)


def _recurrence_fwd(cell, reverse, params, start, carry, zx, valid, resets):
    carry, (ys, saved) = _forward(cell, reverse, params, start, carry, zx, valid, resets, save=True)
    return (carry, ys), (params, start, zx, valid, resets, saved)


def _recurrence_bwd(cell, reverse, residuals, cotangents):
    params, start, zx, valid, resets, (befores, products) = residuals
    dcarry, dys = cotangents
    # A row of its own for every parameter vector: their gradients add up elementwise inside the loop and are reduced
    # over the batch once, after it (and over devices, where the batch is sharded).
    rest_rows, sum_rows = jax.vjp(lambda rest: jax.tree.map(lambda v: _rows(v, zx[0]), rest), without_matrices(params))

    def body(state, inputs):
        dcarry, drest, dstart = state
        dy, before, zx_t, products, keep, reset = inputs
        dafter = select(keep, dcarry, zeros_like(dcarry))
        dy = select(keep, dy, zeros_like(dy))

        _, pull = jax.vjp(_by_row(cell.pointwise), rest_rows, before, zx_t, *products)
        drest_t, dbefore, dzx, dzh, *dzg = pull((dafter, dy))
        drest = _add(drest, drest_t)
        g = None
        if cell.second is not None:
            g, pull = jax.vjp(_by_row(cell.second), rest_rows, before, zx_t, products[0])
            more = pull(product(dzg[0], params.w_g.T).astype(g.dtype))
            drest, dbefore, dzx, dzh = _add((drest, dbefore, dzx, dzh), more)
            g = g.astype(zx_t.dtype)
        if dzh is not None:
            h, pull = jax.vjp(cell.hidden, before)
            dbefore = _add(dbefore, pull(product(dzh, params.w_h.T).astype(h.dtype))[0])
        if reset is not None:
            dstart = _add(dstart, select(reset, dbefore, zeros_like(dbefore)))
            dbefore = select(reset, zeros_like(dbefore), dbefore)
        # Where pointwise only adds zx and zh, both cotangents are one array: write it to memory once.
        emitted = (None if dzx is dzh else dzx, dzh, dzg, g)
        return (select(keep, dbefore, dcarry), drest, dstart), emitted

    state = (dcarry, zeros_like(rest_rows), zeros_like(start))
    inputs = (dys, befores, zx, products, valid, resets)
    (dcarry, drest, dstart), (dzx, dzh, dzg, gs) = lax.scan(body, state, inputs, reverse=not reverse)

    (dparams,) = sum_rows(drest)
    if dzh is not None:
        hs = jax.vmap(cell.hidden)(befores).astype(zx.dtype)
        dparams = dparams._replace(w_h=_weight_gradient(hs, params.w_h, dzh))
    if cell.second is not None:
        dparams = dparams._replace(w_g=_weight_gradient(gs, params.w_g, dzg[0]))
    return dparams, dstart, dcarry, dzh if dzx is None else dzx, None, None


_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)


def _weight_gradient(left, w: Float[Array, "n m"], cotangent: Float[Array, "T B m"]):
    """dw = Σ_tb leftᵀ cotangent, as JAX transposes the product: right under shard_map and Explicit meshes too."""
    return jax.vjp(lambda w: product(left, w), w)[1](cotangent)[0]


def _rows(vector: Float[Array, "*n"], like: Float[Array, "B m"]) -> Float[Array, "B *n"]:
    """A copy of a parameter for each batch row, sharded and varying as ``like`` is."""
    batch = like[:, 0].reshape(like.shape[:1] + (1,) * vector.ndim)
    shape = like.shape[:1] + vector.shape
    return jnp.broadcast_to(vector[None], shape) + jnp.broadcast_to(jnp.zeros_like(batch, vector.dtype), shape)


def _by_row(function):
    """``function`` with batched parameters as its first argument; each row still sees a batch, of one."""

    def mapped(rest, *inputs):
        single = jax.tree.map(lambda a: a[:, None], inputs)
        return jax.tree.map(lambda a: a[:, 0], jax.vmap(function)(rest, *single))

    return mapped


def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)
