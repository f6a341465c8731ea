"""``implementation="linear"``: cells whose carry is h_t = a_t ∘ h_{t-1} + u_t, with a and u computed before the loop.

The derivative is the same recurrence run backwards, so it is written as one, with nothing saved but a and h:

    dh_t = dy_t + conj(a_{t+1}) dh_{t+1},     du_t = dh_t,     da_t = dh_t conj(h_{t-1})

Complex states are pairs (re, im) of real arrays: XLA compiles loops over complex numbers slowly, and TPUs have none.

How it runs: on a GPU a step of a loop costs a launch or two whatever its size, and ``lax.associative_scan`` was eight
times faster than a loop over chunks. On the CPU XLA compiles the loop into one function that costs some ten
nanoseconds a step, and time goes into memory: one plain loop reads a and u once
(``experiments/bench/linear_recurrence.py``).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from seqjax.cells import Cell
from seqjax.kernels.stepping import add, project, recomputed, replacing_scan, without_matrices
from seqjax.types import Array, Bool, Float, PyTree

Sequences = Float[Array, "T *B H"] | tuple[Float[Array, "T *B H"], Float[Array, "T *B H"]]
States = Float[Array, "*B H"] | tuple[Float[Array, "*B H"], Float[Array, "*B H"]]


def linear_recurrence(
    a: Sequences,
    u: Sequences,
    h0: States,
    *,
    reverse: bool = False,
    run: Callable | None = None,
):
    """h_t = a_t ∘ h_{t-1} + u_t for t = 0 … T-1 with h_{-1} = h0; all h, [T, B, H], in at least float32.

    Args:
      a: factors [T, B, H], or a pair (re, im) of such arrays.
      u: inputs, as ``a``.
      h0: the state before the first step [B, H], or a pair.
      reverse: h_t = a_t ∘ h_{t+1} + u_t from t = T-1 with h_T = h0.
      run: how, ``(a, u, h0, reverse, adjoint) -> (last state, all outputs)`` of ``step``: ``loop``, ``associative``,
        or None for the faster.

    Reverse mode only, of any order.

    >>> import jax.numpy as jnp
    >>> a, u = jnp.full((3, 1, 1), 0.5), jnp.ones((3, 1, 1))
    >>> linear_recurrence(a, u, jnp.zeros((1, 1)))[:, 0, 0].tolist()
    [1.0, 1.5, 1.75]
    """
    if jax.tree.map(jnp.shape, a) != jax.tree.map(jnp.shape, u):
        raise ValueError(
            f"a is {jax.tree.map(jnp.shape, a)} and u is {jax.tree.map(jnp.shape, u)}; they must have one shape "
            "[T, B, H], or be two pairs (re, im); use jnp.broadcast_to."
        )
    dtype = functools.reduce(np.promote_types, (leaf.dtype for leaf in jax.tree.leaves((a, u, h0))), np.float32)
    a, u, h0 = jax.tree.map(lambda leaf: leaf.astype(dtype), (a, u, h0))
    # + 0, which XLA drops, gives all of them the sharding and the varying axes of the inputs.
    a = jax.tree.map(lambda a, u: a + jnp.zeros_like(u), a, u)
    h0 = jax.tree.map(lambda h, u: h + jnp.zeros_like(u[0]), h0, u)
    if run is None:
        run = loop if jax.default_backend() == "cpu" else associative
    return _compiled(run, a, u, h0, reverse)


# jit, so that a call outside of jit compiles once and not at every call.
@functools.partial(jax.jit, static_argnames=("run", "reverse"))
def _compiled(run, a, u, h0, reverse):
    return _recurrence(run, a, u, h0, reverse, False)[1]


def linear(
    cell: Cell,
    params,
    start,
    carry,
    xs: Float[Array, "T B D"],
    valid: Bool[Array, "T B"] | None,
    resets: Bool[Array, "T B"] | None,
    reverse: bool,
    checkpoint_every: int | None = None,
    *,
    run: Callable | None = None,
):
    """All steps of a cell with ``linear``: a reset puts a ``start`` into u, an invalid step is a = 1, u = 0.

    ``run`` is that of ``linear_recurrence``.
    """
    if cell.linear is None:
        raise ValueError(
            f"cell {cell.name!r} has no linear form, which implementation='linear' needs; use 'fused' or None."
        )
    if checkpoint_every is not None:
        whole = functools.partial(linear, cell, params, start, run=run)
        return recomputed(whole, carry, (xs, valid, resets), checkpoint_every, reverse)

    rest = without_matrices(params)
    zx = project(cell, params, xs)
    leaves, form = jax.tree.flatten(carry)
    a, u = jax.tree.map(lambda leaf: leaf.astype(leaves[0].dtype), cell.linear(rest, zx))
    first, h0 = (tuple(c) if isinstance(u, tuple) else c[0] for c in (jax.tree.leaves(start), leaves))
    if resets is not None:
        restart = add(_times(a, jax.tree.map(lambda s, u: jnp.broadcast_to(s, u.shape), first, u)), u)
        u = _where(resets, restart, u)
        a = _where(resets, jax.tree.map(jnp.zeros_like, a), a)
    if valid is not None:
        a = _where(valid, a, _ones_like(a))
        u = _where(valid, u, jax.tree.map(jnp.zeros_like, u))

    hs = linear_recurrence(a, u, h0, reverse=reverse, run=run)
    hs = jax.tree.unflatten(form, hs if isinstance(hs, tuple) else (hs,))
    last = jax.tree.map(lambda h: h[0] if reverse else h[-1], hs)
    if valid is not None:
        hs = _where(valid, hs, jax.tree.map(jnp.zeros_like, hs))
    ys = jnp.concatenate(jax.tree.leaves(hs), axis=-1).astype(zx.dtype)
    # ``unroll(return_carries=True)`` asks for the carries by a pointwise that emits (y, carry).
    emitted = jax.eval_shape(cell.pointwise, rest, carry, zx[0], None)[1]
    return last, (ys, hs) if isinstance(emitted, tuple) else ys


def _apply(run: Callable, a: PyTree, u: PyTree, h0: PyTree, reverse: bool, adjoint: bool) -> tuple[PyTree, PyTree]:
    """(last state, all outputs)."""
    return run(a, u, h0, reverse, adjoint)


def _recurrence_fwd(run, a, u, h0, reverse, adjoint):
    last, ys = _recurrence(run, a, u, h0, reverse, adjoint)  # not run: so second derivatives are these too
    return (last, ys), (a, h0, ys)


def _recurrence_bwd(run, reverse, adjoint, residuals, cotangents):
    a, h0, ys = residuals
    dlast, dys = cotangents
    dh0, du = _recurrence(run, a, dys, dlast, not reverse, not adjoint)
    if adjoint:
        return _factor_gradient(ys, du, dlast, not reverse), du, dh0
    return _factor_gradient(du, ys, h0, reverse), du, dh0


_recurrence: Callable = jax.custom_vjp(_apply, nondiff_argnums=(0, 4, 5))
_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)


def _factor_gradient(dhs: PyTree, hs: PyTree, h0: PyTree, reverse: bool) -> PyTree:
    """da_t = dh_t conj(h_{t-1}), one product after the loop: in it, reading h_{t-1} would need a shifted copy of h."""
    shift = (lambda h, h0: [h[1:], h0[None]]) if reverse else (lambda h, h0: [h0[None], h[:-1]])
    return _times(dhs, _conj(jax.tree.map(lambda h, h0: jnp.concatenate(shift(h, h0)), hs, h0)))


def step(h: PyTree, a: PyTree, u: PyTree, adjoint: bool) -> tuple[PyTree, PyTree]:
    """(state, output): forward both are a h + u; for the adjoint h + u is the output, conj(a) (h + u) the state."""
    if adjoint:
        y = add(h, u)
        return _times(_conj(a), y), y
    h = add(_times(a, h), u)
    return h, h


def loop(a: PyTree, u: PyTree, h0: PyTree, reverse: bool, adjoint: bool) -> tuple[PyTree, PyTree]:
    """A step after another."""

    def body(h, u_t, a_t):
        h, y = step(h, a_t, u_t, adjoint)
        return h, y, None

    last, ys, _ = replacing_scan(body, h0, u, a, reverse)
    return last, ys


def associative(a: PyTree, u: PyTree, h0: PyTree, reverse: bool, adjoint: bool) -> tuple[PyTree, PyTree]:
    """All steps as a tree of products of the maps h -> a h + u, which starts from u_0 + a_0 h0."""
    if reverse:
        a, u = jax.tree.map(lambda x: x[::-1], (a, u))
    final = _conj(jax.tree.map(lambda x: x[-1], a))
    if adjoint:  # y_t = u_t + conj(a_{t-1}) y_{t-1}, with factor 1 before h0
        ones = _ones_like(jax.tree.map(lambda x: x[:1], a))
        a = jax.tree.map(lambda one, x: jnp.concatenate([one, x[:-1]]), ones, _conj(a))
    first = _times(jax.tree.map(lambda x: x[0], a), h0)
    u = jax.tree.map(lambda x, f: x.at[0].add(f), u, first)
    _, ys = lax.associative_scan(lambda f, g: (_times(g[0], f[0]), add(_times(g[0], f[1]), g[1])), (a, u))
    last = jax.tree.map(lambda y: y[-1], ys)
    if reverse:
        ys = jax.tree.map(lambda y: y[::-1], ys)
    return (_times(final, last) if adjoint else last), ys


def _times(a: PyTree, h: PyTree) -> PyTree:
    if not isinstance(a, tuple):
        return a * h
    (a_re, a_im), (h_re, h_im) = a, h
    return a_re * h_re - a_im * h_im, a_re * h_im + a_im * h_re


def _conj(a: PyTree) -> PyTree:
    return (a[0], -a[1]) if isinstance(a, tuple) else a


def _ones_like(a: PyTree) -> PyTree:
    return (jnp.ones_like(a[0]), jnp.zeros_like(a[1])) if isinstance(a, tuple) else jnp.ones_like(a)


def _where(mask: Bool[Array, "T B"], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda n, o: jnp.where(mask[:, :, None], n, o), new, old)
