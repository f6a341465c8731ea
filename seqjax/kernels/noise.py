"""Zoneout and recurrent dropout for any cell, as a cell around it: no implementation needs to know of them.

    zoneout      carry_t = z_t ∘ carry_{t-1} + (1 - z_t) ∘ step(…),   and the same of the output
    h_mask       zh_t = (hidden(carry) ∘ h_mask) w_h

The factors z_t come with the inputs: further columns of xs, which ``project`` hands on. The mask is the same at every
step, so it is a part of the carry.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqjax.cells import Cell
from seqjax.kernels.stepping import project
from seqjax.types import Array, Float, PRNGKey, PyTree, Scalar


def factors(zoneout: Scalar, key: PRNGKey | None, xs: Float[Array, "T B D"], carry: PyTree) -> Float[Array, "T B n"]:
    """z for each step and number of the carry: 1 with probability ``zoneout``, or, without a key, that rate itself."""
    size = sum(leaf.shape[-1] for leaf in jax.tree.leaves(carry))
    z = jnp.broadcast_to(jnp.asarray(zoneout, xs.dtype), (*xs.shape[:2], size))
    if key is not None:
        z = jax.random.bernoulli(key, z.astype(jnp.float32)).astype(xs.dtype)
    return z + jnp.zeros_like(xs[:, :, :1])  # sharded and varying as xs is


@functools.cache
def noisy(cell: Cell, zoned: int, masked: bool) -> Cell:
    """``cell`` for inputs with ``zoned`` further columns of zoneout factors, and a carry (carry, h_mask) if masked."""

    def unpack(carry):
        return carry if masked else (carry, None)

    def widened(params, xs):
        if not zoned:
            return project(cell, params, xs)
        return jnp.concatenate([project(cell, params, xs[..., :-zoned]), xs[..., -zoned:]], axis=-1)

    def hidden(carry):
        carry, mask = unpack(carry)
        h = cell.hidden(carry)
        return h if mask is None else h * mask.astype(h.dtype)

    def inner(function: Callable):
        def wrapped(rest, carry, zx, *products):
            return function(rest, unpack(carry)[0], zx[..., : zx.shape[-1] - zoned], *products)

        return wrapped

    def pointwise(rest, carry, zx, *products):
        before, mask = unpack(carry)
        after, y = inner(cell.pointwise)(rest, carry, zx, *products)
        if zoned:
            leaves, form = jax.tree.flatten(before)
            ends = [sum(leaf.shape[-1] for leaf in leaves[:i]) for i in range(1, len(leaves))]
            z = jax.tree.unflatten(form, jnp.split(zx[..., -zoned:], ends, axis=-1))
            after = jax.tree.map(_mix, z, before, after)
            h = cell.hidden(after)
            if h.shape != y.shape:
                raise ValueError(f"the output of cell {cell.name!r} is not its hidden state, which zoneout needs.")
            y = h.astype(y.dtype)
        return (after, mask) if masked else after, y

    return cell._replace(
        hidden=hidden,
        pointwise=pointwise,
        project=widened,
        second=inner(cell.second) if cell.second else None,
        linear=None,
    )


def _mix(z: Float[Array, "*B n"], old: Float[Array, "*B n"], new: Float[Array, "*B n"]) -> Float[Array, "*B n"]:
    return new + z.astype(new.dtype) * (old - new)
