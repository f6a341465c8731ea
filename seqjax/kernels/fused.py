"""``implementation="fused"``: projections by chunks, and a backward pass with one large product a weight and chunk.

Autodiff of a scan multiplies and accumulates every weight gradient inside the reversed loop, T small products each with
a read and a write of the whole matrix. Here the sequence is cut into chunks. A chunk projects its inputs in one
product; its reversed loop only finds the cotangents of the pre-activations, with one recurrent product a step; its
weight gradients are one product each after that loop:

    zx = xs w_x + b                                        a chunk at a time
    dcarry, dzx_t, dzh_t = vjp(pointwise)(dcarry, dy_t);   dcarry += vjp(hidden)(dzh_t w_hᵀ)
    dw_h += Σ_t h_{t-1}ᵀ dzh_t;   dw_x, db, dxs += vjp(project)(dzx)

The derivative of ``pointwise`` is JAX's own, so this serves every cell. Saved for the backward pass are, for each step,
the carry before it, zx and zh, or their sum where that is all ``pointwise`` uses: an LSTM saves 6 H numbers for a step
and a row (h, c and four pre-activations), a GRU 7 H. The cotangents take the place of what was saved. With
``checkpoint_every`` only the carry before each chunk is saved, and the chunk's forward loop runs again.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from seqjax.cells import Cell
from seqjax.kernels.rules import chunk_length, spread
from seqjax.kernels.stepping import (
    add,
    add_bias,
    advance,
    enter,
    in_chunks,
    product,
    project,
    recurrent_products,
    replacing_scan,
    select,
    without_matrices,
    zeros_like,
)
from seqjax.layers import flat
from seqjax.types import Array, Bool, Float, PyTree, wide


class _Plan(NamedTuple):
    """What is static about one recurrence."""

    cell: Cell
    reverse: bool
    every: int  # steps of a chunk
    recompute: bool  # save only the carry before each chunk
    only_sum: bool  # pointwise uses zx + zh and neither alone


def fused(
    cell: Cell,
    params,
    start,
    carry,
    xs: Float[Array, "T B D"],
    valid: Bool[Array, "T B"] | None,
    resets: Bool[Array, "T B"] | None,
    reverse: bool,
    checkpoint_every: int | None = None,
):
    """Run the recurrence with its own derivative."""
    zx_t = jax.eval_shape(functools.partial(project, cell), params, xs[0])
    _reject_closures(cell, params, carry, xs[0], zx_t)
    every = chunk_length(xs.shape[0], zx_t.size) if checkpoint_every is None else checkpoint_every
    plan = _Plan(cell, reverse, every, checkpoint_every is not None, _uses_only_sum(cell, params, carry, zx_t))
    return _recurrence(plan, params, start, carry, xs, valid, resets)


def _reject_closures(cell: Cell, params, carry, x, zx_t) -> None:
    """A traced value that a cell's functions close over would get no gradient: say so instead."""
    consts = jax.make_jaxpr(functools.partial(advance, cell))(params, carry, zx_t).consts
    if cell.project is not None:
        consts += jax.make_jaxpr(cell.project)(params, x).consts
    if any(isinstance(const, Tracer) for const in consts):
        raise ValueError(
            f"the functions of cell {cell.name!r} (pointwise, second, hidden or project) close over a traced value, "
            "which implementation='fused' cannot differentiate; make it a field of the cell's Params, or use "
            "implementation='scan'."
        )


def _uses_only_sum(cell: Cell, params, carry, zx_t) -> bool:
    """Whether ``pointwise`` adds zx and zh and uses neither again."""
    zh = jax.eval_shape(lambda carry, zx: recurrent_products(cell, params, carry, zx)[0], carry, zx_t)
    state = jax.tree.leaves(carry)[0]
    if cell.second is not None or zh is None or zh.shape != zx_t.shape or state.dtype != zx_t.dtype:
        return False
    jaxpr = jax.make_jaxpr(functools.partial(cell.pointwise, without_matrices(params)))(carry, zx_t, zh).jaxpr
    both = {id(variable) for variable in jaxpr.invars[-2:]}
    uses = [equation for equation in jaxpr.eqns if both & {id(variable) for variable in equation.invars}]
    adds = [equation for equation in uses if equation.primitive.name == "add"]
    results = {id(variable) for variable in jaxpr.outvars}
    return len(uses) == len(adds) == 1 and {id(variable) for variable in adds[0].invars} == both and not both & results


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(plan, params, start, carry, xs, valid, resets):
    def chunk(carry, inputs, _):
        carry, (ys, _) = _forward(plan, params, start, carry, inputs, save=False)
        return carry, (ys, None)

    carry, (ys, _) = in_chunks(chunk, carry, (xs, valid, resets), None, plan.every, plan.reverse)
    return carry, ys


def _recurrence_fwd(plan, params, start, carry, xs, valid, resets):
    def chunk(carry, inputs, _):
        after, (ys, saved) = _forward(plan, params, start, carry, inputs, save=not plan.recompute)
        return after, ((ys, saved), carry if plan.recompute else None)

    carry, ((ys, saved), entries) = in_chunks(chunk, carry, (xs, valid, resets), None, plan.every, plan.reverse)
    return (carry, ys), (params, start, xs, valid, resets, saved, entries)


def _forward(plan: _Plan, params, start, carry, inputs, *, save: bool):
    """One chunk: ``carry, (ys, saved)`` with saved = (carries before, products), time first."""
    cell, (xs, valid, resets) = plan.cell, inputs

    def body(carry, zx_t, inputs):
        keep, reset = inputs
        before = enter(start, carry, reset)
        products = recurrent_products(cell, params, before, zx_t)
        after, y = cell.pointwise(without_matrices(params), before, zx_t, *products)
        y = select(keep, y, zeros_like(y))
        after = select(keep, after, carry)
        if not save:
            return after, None, (y, None)
        if plan.only_sum:
            return after, zx_t + products[0], (y, (before, ()))
        return after, None, (y, (before, products))

    zx = project(cell, params, xs) if cell.project else product(xs, params.w_x)
    carry, zx, (ys, saved) = replacing_scan(
        body, carry, zx, (valid, resets), plan.reverse, functools.partial(_load, cell, params)
    )
    return carry, (ys, (saved[0], (zx, *saved[1])) if save else None)


def _load(cell: Cell, params, zx_t: Float[Array, "B n"]) -> Float[Array, "B n"]:
    """A step of zx: the default projection adds its bias only here, which spares a pass over the long buffer."""
    return zx_t if cell.project else add_bias(params, zx_t)


def _recurrence_bwd(plan: _Plan, residuals, cotangents):
    params, start, xs, valid, resets, saved, entries = residuals
    dcarry, dys = cotangents
    like = jax.tree.leaves(dcarry)[0]
    # A row of its own for every parameter vector: their gradients add up elementwise inside the loop and are reduced
    # over the batch once, after it (and over devices, where the batch is sharded); as all sums in at least float32.
    rest_rows, sum_rows = jax.vjp(
        lambda rest: jax.tree.map(lambda v: _rows(v.astype(wide(v.dtype)), like), rest), without_matrices(params)
    )

    def chunk(state, inputs, entry):
        state, dparams = state
        inputs, saved, dys = inputs
        if plan.recompute:
            _, (_, saved) = _forward(plan, params, start, entry, inputs, save=True)
        state, more, dxs = _backward(plan, params, rest_rows, state, inputs, saved, dys)
        return (state, add(dparams, more)), (dxs, None)

    state = ((dcarry, zeros_like(rest_rows), zeros_like(start)), zeros_like(params))
    inputs = ((xs, valid, resets), saved, dys)
    state, (dxs, _) = in_chunks(chunk, state, inputs, entries, plan.every, not plan.reverse)
    (dcarry, drest, dstart), dparams = state
    dparams = jax.tree.map(lambda d, more: d if more is None else d + more, dparams, *sum_rows(drest))
    return dparams, dstart, dcarry, dxs, None, None


def _backward(plan: _Plan, params, rest_rows, state, inputs, saved, dys):
    """One chunk, back in time: the loop's state, the gradients of the matrices and of ``project``, and dxs."""
    cell, (xs, valid, resets), (befores, products) = plan.cell, inputs, saved
    w_h_transposed: PyTree = None if getattr(params, "w_h", None) is None else params.w_h.T
    by_row = functools.partial(_by_row, without_matrices(params))

    def body(state, products, inputs):
        dcarry, drest, dstart = state
        dy, before, keep, reset = inputs
        zx_t, *products = (products[0], zeros_like(products[0])) if plan.only_sum else products
        dafter = select(keep, dcarry, zeros_like(dcarry))
        dy = select(keep, dy, zeros_like(dy))

        _, pull = jax.vjp(by_row(cell.pointwise), rest_rows, before, zx_t, *products)
        drest_t, dbefore, dzx, dzh, *dzg = pull((dafter, dy))
        drest = add(drest, drest_t)
        g = None
        if cell.second is not None:
            g, pull = jax.vjp(by_row(cell.second), rest_rows, before, zx_t, products[0])
            more = pull(product(dzg[0], params.w_g.T).astype(g.dtype))
            drest, dbefore, dzx, dzh = add((drest, dbefore, dzx, dzh), more)
            g = g.astype(zx_t.dtype)
        if dzh is not None:
            h, pull = jax.vjp(cell.hidden, before)
            dbefore = add(dbefore, pull(product(dzh, w_h_transposed).astype(h.dtype))[0])
        if reset is not None:
            dstart = add(dstart, select(reset, dbefore, zeros_like(dbefore)))
            dbefore = select(reset, zeros_like(dbefore), dbefore)
        dproducts = (dzx,) if plan.only_sum else (dzx, dzh, *dzg)
        return (select(keep, dbefore, dcarry), drest, dstart), dproducts, g

    inputs = (dys, befores, valid, resets)

    def load(products):
        zx, *others = products
        return products if plan.only_sum else (_load(cell, params, zx), *others)

    state, (dzx, *others), gs = replacing_scan(body, state, products, inputs, not plan.reverse, load)
    dzh, *dzg = (dzx,) if plan.only_sum else others

    dparams, dxs = _projection_gradients(cell, params, xs, dzx)
    if dzh is not None:
        hs = jax.vmap(cell.hidden)(befores).astype(xs.dtype)
        dparams = dparams._replace(w_h=_weight_gradient(hs, params.w_h, dzh))
    if cell.second is not None:
        dparams = dparams._replace(w_g=_weight_gradient(gs, params.w_g, dzg[0]))
    return state, dparams, dxs


_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)


def _projection_gradients(cell: Cell, params, xs: Float[Array, "T B D"], dzx: Float[Array, "T B n"]):
    """The gradients of params and xs through ``project``."""
    rows = _flat(xs)
    _, pull = jax.vjp(functools.partial(project, cell), params, rows)
    dparams, dxs = pull(dzx.reshape(rows.shape[:-1] + dzx.shape[-1:]))
    return dparams, dxs.reshape(xs.shape)


def _weight_gradient(left, w: Float[Array, "n m"], cotangent: Float[Array, "T B m"]):
    """dw = Σ_tb leftᵀ cotangent, as JAX transposes the product: right under shard_map and Explicit meshes too."""
    left = _flat(left)
    return jax.vjp(lambda w: product(left, w), w)[1](cotangent.reshape(left.shape[:-1] + cotangent.shape[-1:]))[0]


def _flat(xs: Float[Array, "T B n"]) -> Array:
    """All steps of all rows on one axis, unless the rows are on several devices: XLA would gather them first."""
    return xs if spread() else flat(xs)


def _rows(vector: Float[Array, "*n"], like: Float[Array, "B m"]) -> Float[Array, "B *n"]:
    """A copy of a parameter for each batch row, sharded and varying as ``like`` is."""
    batch = like[:, 0].reshape(like.shape[:1] + (1,) * vector.ndim)
    shape = like.shape[:1] + vector.shape
    return jnp.broadcast_to(vector[None], shape) + jnp.broadcast_to(jnp.zeros_like(batch, vector.dtype), shape)


def _by_row(own, function):
    """``function`` with batched parameters as its first argument, cast to the dtypes of its ``own``.

    Each row still sees a batch, of one.
    """

    def mapped(rest, *inputs):
        rest = jax.tree.map(lambda a, like: a.astype(like.dtype), rest, own)
        single = jax.tree.map(lambda a: a[:, None], inputs)
        return jax.tree.map(lambda a: a[:, 0], jax.vmap(function)(rest, *single))

    return mapped
