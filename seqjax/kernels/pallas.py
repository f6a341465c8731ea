"""``implementation="pallas"``: recurrences as one TPU kernel each way, with weights and state in VMEM throughout.

A compiled loop reads w_h from HBM and starts several kernels at every step. Here the grid goes over blocks of time and
the steps of a block are a loop inside the kernel; w_h, the carry and the sums of gradients keep their place in VMEM,
while zx comes in and ys and what the backward pass needs go out, block by block, under the arithmetic:

    forward    zh_t = hidden(carry) w_h;  carry, y_t = pointwise(carry, zx_t, zh_t)
    backward   dcarry, dzx_t, dzh_t = vjp(pointwise)(dcarry, dy_t);  dcarry += vjp(hidden)(dzh_t w_hᵀ)
    after it   dw_h = Σ_t h_{t-1}ᵀ dzh_t, one product

Cells with ``linear`` run as the diagonal recurrence of ``kernels/linear.py``, in tiles of features.

Limits. On a TPU H must be a multiple of 128 and the batch of 8 (16 in bfloat16), and w_h must fit into VMEM beside a
few steps of all else: with 16 MiB (v4) that is H = 1024 in bfloat16 at the most. On the CPU the kernels are
interpreted, which is for tests. First derivatives only, in reverse mode. ``vmap`` and ``shard_map`` work; a kernel is
not partitioned by itself, so a batch that is sharded over a mesh needs ``shard_map``. The kernels lower to Mosaic for
every cell of the library; none has run on a TPU yet.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from seqjax.cells import Cell
from seqjax.kernels.linear import linear, step
from seqjax.kernels.stepping import add, product, project, recomputed, without_matrices, zeros_like
from seqjax.types import Array, Bool, Float, PyTree, wide

STREAM_BYTES = 4 << 20  # VMEM for one block of time of all streamed arrays, of which the pipeline holds two
MAX_STEPS = 32  # of a block of time


def pallas(
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
    """Project the whole sequence in one product, then run the recurrence as a kernel."""
    _check(carry, xs.dtype)
    if cell.linear is not None:
        run = diagonal_recurrence
        return linear(cell, params, start, carry, xs, valid, resets, reverse, checkpoint_every, run=run)
    if checkpoint_every is not None:
        whole = functools.partial(pallas, cell, params, start)
        return recomputed(whole, carry, (xs, valid, resets), checkpoint_every, reverse)
    zx = project(cell, params, xs)
    masks = jax.tree.map(lambda mask: mask[:, :, None].astype(jnp.float32), (valid, resets))
    # + 0, which XLA drops, gives all of them the varying axes of the inputs, which the kernel cannot do.
    vary = functools.partial(jax.tree.map, lambda a: a + jnp.zeros_like(zx[0, 0, 0], dtype=a.dtype))
    return _recurrence(cell, reverse, *vary((without_matrices(params, "w_x"), start, carry)), zx, masks)


def _check(carry: PyTree, dtype) -> None:
    """Reject backends, shapes and shardings for which Pallas has nothing, or nothing but an obscure error."""
    backend, state = jax.default_backend(), jax.tree.leaves(carry)[0]
    if backend not in ("cpu", "tpu"):
        raise ValueError(f"implementation='pallas' is for TPUs, not for {backend!r}; use implementation='fused'.")
    rows = 32 // jnp.dtype(dtype).itemsize
    if state.size == 0 or (backend == "tpu" and (state.shape[0] % rows or state.shape[1] % 128)):
        raise ValueError(
            f"the state [B, H] is {list(state.shape)}; on a TPU implementation='pallas' needs B to be a multiple of "
            f"{rows} and H of 128, and nowhere may they be 0; use implementation='fused'."
        )
    if any(axis is not None for axis in jax.typeof(state).sharding.spec):
        raise ValueError(
            f"the state is sharded, {jax.typeof(state).sharding.spec}; implementation='pallas' is not partitioned: "
            "call it inside jax.shard_map, or use implementation='fused'."
        )


def _run(body: Callable, fixed, streams, states, outs, reverse: bool, tile: int | None = None):
    """``states, out_t = body(fixed, states, streams_t)`` over all steps, as a kernel; returns (states, outs).

    ``fixed`` and the ``states``, given with their first values, stay in VMEM; of ``streams``, arrays [T, B, n], and the
    outputs, given by the shapes of one step's, it holds a block of time. ``tile`` cuts the last axis of everything into
    tiles of that width, each a recurrence of its own.
    """
    first = jax.tree.leaves(streams)[0]
    steps, size = first.shape[0], first.shape[-1]
    shaped = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(first).manual_axis_type)
    outs = jax.tree.map(lambda out: shaped((steps, *out.shape), out.dtype), outs)
    row = sum(a.size // steps * a.dtype.itemsize for a in jax.tree.leaves((streams, outs)))
    tiles = 1 if tile is None else size // tile
    length = max(1, min(STREAM_BYTES * tiles // row, MAX_STEPS, steps))
    blocks = pl.cdiv(steps, length)
    block = (lambda n: blocks - 1 - n) if reverse else (lambda n: n)

    def streamed(a):
        shape = (length, *a.shape[1:-1], a.shape[-1] // tiles)
        return pl.BlockSpec(shape, lambda i, n: (block(n), *[0] * (a.ndim - 2), i))

    def resident(a):
        shape = (*a.shape[:-1], a.shape[-1] // tiles)
        return pl.BlockSpec(shape, lambda i, n: (*[0] * (a.ndim - 1), i))

    def kernel(fixed_refs, stream_refs, initial_refs, state_refs, out_refs):
        n = pl.program_id(1)

        @pl.when(n == 0)
        def _():
            _write(state_refs, ..., jax.tree.map(lambda ref: ref[...], initial_refs))

        count = jnp.minimum(length, steps - block(n) * length)  # the last block may be cut short

        def one(k, _):
            t = count - 1 - k if reverse else k
            fixed, states = jax.tree.map(lambda ref: ref[...], (fixed_refs, state_refs))
            states, out = body(fixed, states, jax.tree.map(lambda ref: ref[t], stream_refs))
            _write(state_refs, ..., states)
            _write(out_refs, t, out)

        lax.fori_loop(0, count, one, None)

    return pl.pallas_call(
        kernel,
        grid=(tiles, blocks),
        in_specs=[jax.tree.map(resident, fixed), jax.tree.map(streamed, streams), jax.tree.map(resident, states)],
        out_specs=[jax.tree.map(resident, states), jax.tree.map(streamed, outs)],
        out_shape=[jax.tree.map(lambda a: shaped(a.shape, a.dtype), states), outs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=jax.default_backend() == "cpu",
    )(fixed, streams, states)


def _write(refs: PyTree, index, values: PyTree) -> None:
    jax.tree.map(lambda ref, value: ref.__setitem__(index, value), refs, values)


def diagonal_recurrence(a: PyTree, u: PyTree, h0: PyTree, reverse: bool, adjoint: bool):
    """``linear_recurrence(…, run=diagonal_recurrence)``."""

    def body(_, h, streams):
        return step(h, streams[0], streams[1], adjoint)

    size = jax.tree.leaves(u)[0].shape[-1]
    outs = jax.tree.map(lambda u: jax.ShapeDtypeStruct(u.shape[1:], u.dtype), u)
    return _run(body, (), (a, u), h0, outs, reverse, tile=128 if size % 128 == 0 else None)


def _fixed(params, dtype) -> tuple[PyTree, tuple]:
    """(rest, (w_h, w_g)): vectors as one row, for VMEM has two dimensions at least; matrices in the compute dtype."""
    matrices = getattr(params, "w_h", None), getattr(params, "w_g", None)
    rest = jax.tree.map(lambda v: v[None], without_matrices(params))
    return rest, jax.tree.map(lambda w: w.astype(dtype), matrices)


def _pick(mask: Float[Array, "B one"] | None, new: PyTree, old: PyTree) -> PyTree:
    """``select`` by a column of 0 and 1."""
    if mask is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(jnp.broadcast_to(mask, n.shape) > 0, n, o), new, old)


def _enter(reset: Float[Array, "B one"] | None, start: PyTree, carry: PyTree) -> PyTree:
    return carry if reset is None else _pick(reset, start, carry)


def _matmul(x: Float[Array, "B n"], w: Float[Array, "k m"], contract: int) -> Float[Array, "B l"]:
    """x w (contract=0) or x wᵀ (contract=1), summed in at least float32."""
    dimensions = (((1,), (contract,)), ((), ()))
    return lax.dot_general(x, w, dimensions, preferred_element_type=wide(x.dtype)).astype(x.dtype)


def _products(cell: Cell, rest, matrices, before, zx):
    """(zh,) or (zh, zg), and g."""
    w_h, w_g = matrices
    zh = None if w_h is None else _matmul(cell.hidden(before).astype(zx.dtype), w_h, 0)
    if cell.second is None:
        return (zh,), None
    g = cell.second(rest, before, zx, zh).astype(zx.dtype)
    return (zh, _matmul(g, w_g, 0)), g


def _forward(cell: Cell, reverse: bool, params, start, carry, zx, masks, *, save: bool):
    def body(fixed, carry, streams):
        rest, matrices, start = fixed
        zx, (keep, reset) = streams
        rest = jax.tree.map(lambda v: v[0], rest)
        before = _enter(reset, start, carry)
        products, g = _products(cell, rest, matrices, before, zx)
        after, y = cell.pointwise(rest, before, zx, *products)
        y = _pick(keep, y, zeros_like(y))
        return _pick(keep, after, carry), (y, (before, products, g) if save else None)

    fixed = (*_fixed(params, zx.dtype), start)
    outs = jax.eval_shape(body, fixed, carry, jax.tree.map(lambda a: a[0], (zx, masks)))[1]
    return _run(body, fixed, (zx, masks), carry, outs, reverse)


def _plain(cell: Cell, reverse: bool, params, start, carry, zx, masks):
    carry, (ys, _) = _forward(cell, reverse, params, start, carry, zx, masks, save=False)
    return carry, ys


def _recurrence_fwd(cell, reverse, params, start, carry, zx, masks):
    carry, (ys, saved) = _forward(cell, reverse, params, start, carry, zx, masks, save=True)
    return (carry, ys), (params, start, zx, masks, saved)


def _recurrence_bwd(cell, reverse, residuals, cotangents):
    params, start, zx, masks, (befores, products, gs) = residuals
    dcarry, dys = cotangents

    def body(fixed, states, streams):
        rest, (w_h, w_g) = fixed
        dcarry, drest, dstart = states
        dy, before, zx, products, (keep, reset) = streams
        rest = jax.tree.map(lambda v: v[0], rest)
        cotangents = _pick(keep, (dcarry, dy), zeros_like((dcarry, dy)))
        _, pull = jax.vjp(cell.pointwise, rest, before, zx, *products)
        drest_t, dbefore, dzx, dzh, *dzg = pull(cotangents)
        if cell.second is not None:
            g, pull = jax.vjp(cell.second, rest, before, zx, products[0])
            more = pull(_matmul(dzg[0], w_g, 1).astype(g.dtype))
            drest_t, dbefore, dzx, dzh = add((drest_t, dbefore, dzx, dzh), more)
        if dzh is not None:
            h, pull = jax.vjp(cell.hidden, before)
            dbefore = add(dbefore, pull(_matmul(dzh, w_h, 1).astype(h.dtype))[0])
        drest = jax.tree.map(lambda d, more: d + more[None], drest, drest_t)
        _, pull = jax.vjp(functools.partial(_enter, reset), before, before)
        dstart_t, dbefore = pull(dbefore)
        return (_pick(keep, dbefore, dcarry), drest, add(dstart, dstart_t)), (dzx, dzh, dzg)

    fixed = _fixed(params, zx.dtype)
    outs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (zx, products[0], list(products[1:])))
    streams = (dys, befores, zx, products, masks)
    states = (dcarry, zeros_like(fixed[0]), zeros_like(start))
    (dcarry, drest, dstart), (dzx, dzh, dzg) = _run(body, fixed, streams, states, outs, not reverse)
    dparams = jax.tree.map(lambda d: d[0], drest)
    if dzh is not None:
        hs = jax.vmap(cell.hidden)(befores).astype(zx.dtype)
        dparams = dparams._replace(w_h=jax.vjp(lambda w: product(hs, w), params.w_h)[1](dzh)[0])
    if dzg:
        dparams = dparams._replace(w_g=jax.vjp(lambda w: product(gs, w), params.w_g)[1](dzg[0])[0])
    return dparams, dstart, dcarry, dzx, zeros_like(masks)


_recurrence: Callable = jax.custom_vjp(_plain, nondiff_argnums=(0, 1))
_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)
