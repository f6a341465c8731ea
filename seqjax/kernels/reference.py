"""``implementation="scan"``: a plain `lax.scan` over single steps with plain autodiff. Slow, obvious, never deleted."""

import functools

from jax import lax

from seqjax.cells import Cell
from seqjax.kernels.stepping import advance, enter, project, recomputed, select, zeros_like
from seqjax.types import Array, Bool, Float


def scan(
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
    """Project, multiply and apply ``pointwise`` one step at a time; differentiable in every mode."""

    def body(carry, inputs):
        x, keep, reset = inputs
        after, y = advance(cell, params, enter(start, carry, reset), project(cell, params, x))
        return select(keep, after, carry), select(keep, y, zeros_like(y))

    if checkpoint_every is not None:
        return recomputed(
            functools.partial(scan, cell, params, start), carry, (xs, valid, resets), checkpoint_every, reverse
        )
    return lax.scan(body, carry, (xs, valid, resets), reverse=reverse)
