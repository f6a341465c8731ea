"""One step of any cell: the pieces from which every implementation is built."""

import jax
import jax.numpy as jnp
from jax import lax

from seqjax.cells import Cell
from seqjax.kernels.rules import steps_per_iteration
from seqjax.layers import biased
from seqjax.types import Array, Bool, Float, PyTree, Size

MATRICES = ("w_x", "w_h", "w_g", "w_o")


def without_matrices(params, *names: str):
    """Params with these matrices (default: all of them, which leaves ``rest``) set to None."""
    return params._replace(**{name: None for name in names or MATRICES if name in params._fields})


def project(cell: Cell, params, xs: Float[Array, "*T B D"]) -> Float[Array, "*T B n"]:
    """zx = xs w_x + b, or the cell's own projection."""
    if cell.project is not None:
        return cell.project(params, xs)
    return add_bias(params, product(xs, params.w_x))


def add_bias(params, zx: Float[Array, "*T B n"]) -> Float[Array, "*T B n"]:
    """zx + b, the second half of the default projection."""
    return biased(zx, params.b)


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


def add(a: PyTree, b: PyTree) -> PyTree:
    """Two trees, added leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


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


def replacing_scan(
    body, state: PyTree, rows: PyTree, inputs: PyTree, reverse: bool, load=lambda row: row
) -> tuple[PyTree, PyTree, PyTree]:
    """``state, row, out = body(state, load(row), inputs_t)`` for each step: ``state, rows, outs``, each row replaced.

    A new row None leaves the rows as they are.

    The meaning is that of ``lax.scan``. Done so on a GPU or TPU; on a CPU the new rows are written over the old, and a
    row is loaded one step before it is used. For XLA:CPU fills a buffer for stacked results with zeros, of memory that
    the system has yet to provide; and a dynamic slice that a fusion cuts up again, as gates are cut, it evaluates by a
    function call a number, ten times slower than the arithmetic.
    """
    if jax.default_backend() != "cpu":

        def plain(state, xs):
            row, inputs = xs
            state, *outs = body(state, load(row), inputs)
            return state, outs

        unroll = steps_per_iteration(_length(rows))
        state, (replaced, outs) = lax.scan(plain, state, (rows, inputs), reverse=reverse, unroll=unroll)
        return state, rows if replaced is None else replaced, outs
    steps = _length(rows)

    def step(carry, inputs):
        (state, row, rows), (t, inputs) = carry, inputs
        state, row, out = body(state, row, inputs)
        if row is not None:
            rows = jax.tree.map(lambda all_, new: lax.dynamic_update_index_in_dim(all_, new, t, 0), rows, row)
        following = jnp.maximum(t - 1, 0) if reverse else jnp.minimum(t + 1, steps - 1)
        row = load(jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, following, keepdims=False), rows))
        return (state, row, rows), out

    first = load(jax.tree.map(lambda a: a[-1 if reverse else 0], rows))
    (state, _, rows), outs = lax.scan(step, (state, first, rows), (jnp.arange(steps), inputs), reverse=reverse)
    return state, rows, outs


def in_chunks(run, state: PyTree, inputs: PyTree, marks: PyTree, every: Size, reverse: bool) -> tuple[PyTree, PyTree]:
    """Run over chunks of ``every`` steps and a shorter last one: ``state, (outs, mark) = run(state, inputs, mark)``.

    Leaves of ``inputs`` and ``outs`` have a row for each step, ``marks`` one for each chunk.
    """
    steps = _length(inputs)
    if every >= steps:
        state, (outs, mark) = run(state, inputs, jax.tree.map(lambda a: a[0], marks))
        return state, (outs, jax.tree.map(lambda a: a[None], mark))
    count = steps // every
    whole = count * every
    chunks = jax.tree.map(lambda a: a[:whole].reshape(count, every, *a.shape[1:]), inputs)
    tail = jax.tree.map(lambda a: a[whole:], inputs)
    parts = []

    def run_tail(state):
        state, (outs, mark) = run(state, tail, jax.tree.map(lambda a: a[count], marks))
        parts.append((outs, jax.tree.map(lambda a: a[None], mark)))
        return state

    has_tail = whole < steps
    if has_tail and reverse:
        state = run_tail(state)
    state, (outs, mark) = lax.scan(
        lambda state, chunk: run(state, *chunk),
        state,
        (chunks, jax.tree.map(lambda a: a[:count], marks)),
        reverse=reverse,
    )
    parts.insert(0, (jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), outs), mark))
    if has_tail and not reverse:
        state = run_tail(state)
    return state, jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def recomputed(whole, carry: PyTree, inputs: tuple, every: int, reverse: bool):
    """``whole(carry, *inputs, reverse)`` in chunks of ``every`` steps, each run again in the backward pass."""

    @jax.checkpoint
    def chunk(carry, inputs, _):
        carry, ys = whole(carry, *inputs, reverse)
        return carry, (ys, None)

    carry, (ys, _) = in_chunks(chunk, carry, inputs, None, every, reverse)
    return carry, ys


def _length(tree: PyTree) -> Size:
    return jax.tree.leaves(tree)[0].shape[0]
