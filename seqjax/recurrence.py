"""Recurrent networks as pure functions: one step, a whole sequence, both directions, several layers.

Everything here is time-major, [T, B, D], and returns ``(carry, ys)``.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from seqjax.cells import Cell
from seqjax.kernels.fused import fused
from seqjax.kernels.linear import linear
from seqjax.kernels.noise import factors, noisy
from seqjax.kernels.reference import scan
from seqjax.kernels.rules import batches_directions, choose
from seqjax.kernels.stepping import advance, project
from seqjax.layers import dropout as apply_dropout
from seqjax.pooling import within
from seqjax.types import Array, Bool, Float, Int, PRNGKey, PyTree, Scalar


def _pallas(*arguments):
    from seqjax.kernels.pallas import pallas

    return pallas(*arguments)


IMPLEMENTATIONS = {"scan": scan, "fused": fused, "linear": linear, "pallas": _pallas}


def initial_carry(cell: Cell, params, x: Float[Array, "B D"]) -> PyTree:
    """The carry of zeros with which ``cell`` starts on a batch like ``x``; x [B, D].

    >>> import jax, seqjax
    >>> lstm = seqjax.cells.CELLS["lstm"]
    >>> params = lstm.init(jax.random.key(0), 3, 5)
    >>> seqjax.initial_carry(lstm, params, jax.numpy.ones((2, 3))).c.shape
    (2, 5)
    """
    return cell.initial(params, project(cell, params, x))


def step(cell: Cell, params, carry: PyTree | None, x: Float[Array, "B D"]) -> tuple[PyTree, Float[Array, "B H"]]:
    """One step: ``(carry, y)`` from the carry (None = initial) and x [B, D]."""
    zx = project(cell, params, x)
    start = cell.initial(params, zx)
    if carry is not None:
        _check_carry(cell, params, carry, start, None)
    carry, y = advance(cell, params, start if carry is None else carry, zx)
    return carry, y if cell.readout is None else cell.readout(params, y, zx)


def unroll(
    cell: Cell,
    params,
    xs: Float[Array, "T B D"],
    carry: PyTree | None = None,
    *,
    lengths: Int[Array, "B"] | None = None,
    resets: Bool[Array, "T B"] | None = None,
    reverse: bool = False,
    implementation: str | None = None,
    checkpoint_every: int | None = None,
    return_carries: bool = False,
    zoneout: Scalar = 0.0,
    h_mask: Array | None = None,
    key: PRNGKey | None = None,
):
    """Run ``cell`` over a sequence: xs [T, B, D] -> ``(carry, ys)`` with ys [T, B, H].

        carry_t, y_t = step(cell, params, carry_{t-1}, x_t)

    Args:
      cell: a member of ``seqjax.cells.CELLS`` or your own ``Cell``; static.
      params: what ``cell.init(key, D, H)`` returned.
      xs: inputs [T, B, D]. Products run in their dtype, the carry is at least float32.
      carry: the state before the first step; None is ``initial_carry``.
      lengths: int [B]. Outputs past a row's length are 0, its final carry is the one at its last step (length 0: the
        initial one). Whatever the padding holds, NaN included, has no effect.
      resets: bool [T, B]. True at t clears the carry before step t: the start of a segment, in time order also when
        ``reverse`` is set.
      reverse: start at the last step (of each row's length) and go back; ys stay aligned with xs.
      implementation: None to choose by measured rules, or
        "scan": plain `lax.scan`, differentiable in every mode, the reference;
        "fused": hoisted projections, weight gradients outside the loop; reverse mode only, of any order;
        "linear": for cells with ``linear``, whose steps need no matrix product; reverse mode only, of any order;
        "pallas": a TPU kernel that keeps the recurrent weights in fast memory; interpreted on a CPU. First derivatives
        only. It has not been measured.
      checkpoint_every: keep only every K-th carry for the backward pass and recompute the steps between: memory
        falls from O(T) to O(T/K + K), but for the inputs of a ``readout``; time grows by a third to a half.
      return_carries: also return the carry after each step, leaves [T, B, ...], as ``(carry, ys, carries)``; 0 past
        a row's length, as ys are.
      zoneout: the rate at which each number of the carry keeps its value of the step before (Krueger et al., 2017);
        may be traced. Drawn from ``key``; without a key, the mean of what would be drawn.
      h_mask: factors [B, H] on what the recurrent matrix multiplies, the same at every step: recurrent dropout (Gal and
        Ghahramani, 2016) with ``jax.random.bernoulli(key, keep, (B, H)) / keep``.
      key: randomness of zoneout.

    Raises:
      ValueError: a shape or option that does not fit, named with its value and the remedy.

    >>> import jax, seqjax
    >>> gru = seqjax.cells.CELLS["gru"]
    >>> params = gru.init(jax.random.key(0), 3, 5)
    >>> carry, ys = seqjax.unroll(gru, params, jax.numpy.ones((7, 2, 3)))
    >>> ys.shape, carry.h.shape
    ((7, 2, 5), (2, 5))
    """
    _check(params, xs, lengths, resets, implementation, checkpoint_every)
    if isinstance(zoneout, (int, float)) and not 0 <= zoneout <= 1:
        raise ValueError(f"zoneout={zoneout}; it must be from 0 to 1.")
    zoned = not (isinstance(zoneout, (int, float)) and zoneout == 0)
    if (zoned or h_mask is not None) and implementation == "linear":
        raise ValueError("implementation='linear' has neither zoneout nor h_mask; use 'fused' or None.")
    return _unroll(
        cell,
        params,
        xs,
        carry,
        lengths,
        resets,
        zoneout if zoned else None,
        h_mask,
        key,
        reverse=reverse,
        implementation=implementation,
        checkpoint_every=checkpoint_every,
        return_carries=return_carries,
    )


# jit, so that a call outside of jit compiles once and not at every call; inside jit it is inlined.
@functools.partial(jax.jit, static_argnames=("cell", "reverse", "implementation", "checkpoint_every", "return_carries"))
def _unroll(
    cell,
    params,
    xs,
    carry,
    lengths,
    resets,
    zoneout,
    h_mask,
    key,
    *,
    reverse,
    implementation,
    checkpoint_every,
    return_carries,
):
    lengths, valid = None if lengths is None else within(lengths, xs.shape[0]), None
    if lengths is not None:
        valid = jnp.arange(xs.shape[0], dtype=lengths.dtype)[:, None] < lengths[None, :]
        # Cleared before any product: 0 * NaN would poison the weight gradients.
        xs = jnp.where(valid[:, :, None], xs, jnp.zeros_like(xs))
    if resets is not None and reverse:
        resets = _resets_going_back(resets, lengths)

    start = initial_carry(cell, params, xs[0])
    before = start if carry is None else carry
    _check_carry(cell, params, before, start, h_mask)
    engine, inputs = cell, xs
    if zoneout is not None or h_mask is not None:
        z = [] if zoneout is None else [factors(zoneout, key, xs, start)]
        engine = noisy(cell, sum(a.shape[-1] for a in z), h_mask is not None)
        inputs = jnp.concatenate([xs, *z], axis=-1)
    if h_mask is not None:
        start, before = (start, h_mask), (before, h_mask)
    run = IMPLEMENTATIONS[implementation or choose(engine)]
    if return_carries:
        engine = engine._replace(pointwise=_emitting_carry(engine.pointwise))
    after, ys = run(engine, params, start, before, inputs, valid, resets, reverse, checkpoint_every)
    ys, carries = ys if return_carries else (ys, None)
    if cell.readout is not None:
        ys = cell.readout(params, ys, project(cell, params, xs))
        if valid is not None:
            ys = jnp.where(valid[:, :, None], ys, jnp.zeros_like(ys))
    if h_mask is not None:
        after, carries = after[0], carries and carries[0]
    return (after, ys, carries) if return_carries else (after, ys)


@functools.cache
def _emitting_carry(pointwise):
    """``pointwise`` with the new carry as part of its output."""

    def emitting(*arguments):
        carry, y = pointwise(*arguments)
        return carry, (y, carry)

    return emitting


def bidirectional(
    cell: Cell,
    params_fwd,
    params_bwd,
    xs: Float[Array, "T B D"],
    carry: tuple[PyTree, PyTree] | None = None,
    *,
    lengths: Int[Array, "B"] | None = None,
    resets: Bool[Array, "T B"] | None = None,
    implementation: str | None = None,
    checkpoint_every: int | None = None,
):
    """Run ``cell`` in both directions: ``((carry_fwd, carry_bwd), ys)`` with ys [T, B, 2H], forward half first.

    Schuster and Paliwal (1997). The backward direction starts at each row's last step.
    """
    options = {
        "lengths": lengths,
        "implementation": implementation,
        "checkpoint_every": checkpoint_every,
    }
    alike = jax.tree.map(jnp.shape, params_fwd) == jax.tree.map(jnp.shape, params_bwd)
    if alike and batches_directions():
        return _both_directions(cell, (params_fwd, params_bwd), xs, carry, resets, options)
    forward, backward = (None, None) if carry is None else carry
    forward, ys_fwd = unroll(cell, params_fwd, xs, forward, resets=resets, **options)
    backward, ys_bwd = unroll(cell, params_bwd, xs, backward, resets=resets, reverse=True, **options)
    return (forward, backward), jnp.concatenate([ys_fwd, ys_bwd], axis=-1)


def _both_directions(cell: Cell, params: tuple, xs: Float[Array, "T B D"], carry, resets, options: dict):
    """Both directions as one batched recurrence, the second over each row's steps in reverse order."""
    lengths = None if options["lengths"] is None else within(options["lengths"], xs.shape[0])
    if resets is not None:
        resets = jnp.stack([resets, _turned(_resets_going_back(resets, lengths), lengths)])
    weights, carries = (
        None if pair is None else jax.tree.map(lambda *p: jnp.stack(p), *pair) for pair in (params, carry)
    )
    run = jax.vmap(lambda params, xs, carry, resets: unroll(cell, params, xs, carry, resets=resets, **options))
    carries, ys = run(weights, jnp.stack([xs, _turned(xs, lengths)]), carries, resets)
    forward, backward = (jax.tree.map(lambda a, i=i: a[i], carries) for i in (0, 1))
    return (forward, backward), jnp.concatenate([ys[0], _turned(ys[1], lengths)], axis=-1)


def _turned(a: Array, lengths: Int[Array, "B"] | None) -> Array:
    """Each row's steps, up to its length, in reverse order; a [T, B, ...]."""
    if lengths is None:
        return a[::-1]
    t = jnp.arange(a.shape[0], dtype=lengths.dtype)[:, None]
    order = jnp.where(t < lengths[None], lengths[None] - 1 - t, t)
    order = order.reshape(order.shape + (1,) * (a.ndim - 2))
    return jnp.take_along_axis(a, jnp.broadcast_to(order, a.shape), axis=0)


def _resets_going_back(resets: Bool[Array, "T B"], lengths: Int[Array, "B"] | None) -> Bool[Array, "T B"]:
    """Going back, the segment that starts at t+1 has just been left when step t is reached."""
    shifted = jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    if lengths is None:
        return shifted
    return shifted & (jnp.arange(1, len(resets) + 1, dtype=lengths.dtype)[:, None] < lengths[None])


def stack(
    cell: Cell,
    layers: Sequence,
    xs: Float[Array, "T B D"],
    carry: Sequence[PyTree] | None = None,
    *,
    dropout: Scalar = 0.0,
    variational: bool = False,
    weight_drop: float = 0.0,
    key: PRNGKey | None = None,
    lengths: Int[Array, "B"] | None = None,
    resets: Bool[Array, "T B"] | None = None,
    implementation: str | None = None,
    checkpoint_every: int | None = None,
):
    """Layers of one cell, each reading the outputs of the one below: ``(carries, ys)``, a carry for each layer.

    Args:
      layers: one Params for each layer, the lowest first.
      dropout: rate between layers (Zaremba et al., 2014: never on the recurrent path); may be traced. It acts only
        where ``key`` is given.
      variational: draw one mask a sequence, the same at every step (Gal and Ghahramani, 2016).
      weight_drop: rate of dropout on ``w_h`` of every layer, drawn once a call (Merity et al., 2018); a Python number,
        for cells that have ``w_h``. It acts only where ``key`` is given.
      key: randomness of both; None evaluates without them.

    The other arguments are those of ``unroll``.
    """
    carries = [None] * len(layers) if carry is None else carry
    if len(carries) != len(layers):
        raise ValueError(f"carry has {len(carries)} entries for {len(layers)} layers; pass one a layer, or None.")
    if weight_drop > 0 and any(getattr(params, "w_h", None) is None for params in layers):
        raise ValueError(f"weight_drop={weight_drop}: cell {cell.name!r} has no recurrent matrix w_h; leave it out.")
    after = []
    for depth, (params, before) in enumerate(zip(layers, carries, strict=True)):
        if depth > 0 and key is not None:
            xs = apply_dropout(jax.random.fold_in(key, depth), xs, dropout, shared_axis=0 if variational else None)
        if weight_drop > 0 and key is not None:
            # Numbers after those of the masks between layers.
            key_w = jax.random.fold_in(key, len(layers) + depth)
            params = params._replace(w_h=apply_dropout(key_w, params.w_h, weight_drop))
        layer_carry, xs = unroll(
            cell,
            params,
            xs,
            before,
            lengths=lengths,
            resets=resets,
            implementation=implementation,
            checkpoint_every=checkpoint_every,
        )
        after.append(layer_carry)
    return tuple(after), xs


def _check_carry(cell: Cell, params, carry: PyTree, start: PyTree, h_mask) -> None:
    """Reject a carry or a mask that is not made for these inputs."""

    def form(tree):
        return jax.tree.map(lambda leaf: f"{jnp.asarray(leaf).dtype}{list(jnp.shape(leaf))}", tree)

    if jax.tree.structure(carry) != jax.tree.structure(start) or form(carry) != form(start):
        raise ValueError(
            f"carry is {form(carry)}; with these params and xs it must be {form(start)}, as initial_carry makes it and "
            "unroll returns it."
        )
    if h_mask is not None:
        h = cell.hidden(start)
        if getattr(params, "w_h", None) is None:
            raise ValueError(f"cell {cell.name!r} has no recurrent matrix w_h for h_mask to act on; leave it out.")
        if not jnp.issubdtype(h_mask.dtype, jnp.floating):
            raise ValueError(f"h_mask has dtype {h_mask.dtype}; it must hold factors, such as mask / keep.")
        if h_mask.shape != h.shape:
            raise ValueError(f"h_mask has shape {list(h_mask.shape)}; it must be {list(h.shape)}, as the hidden state.")


def _check(params, xs, lengths, resets, implementation, checkpoint_every) -> None:
    """Reject what cannot work, before JAX fails somewhere inside."""
    if xs.ndim != 3:
        raise ValueError(
            f"xs has shape {xs.shape}; it must be time-major [T, B, D] (add a batch axis with xs[:, None])."
        )
    steps, batch, size = xs.shape
    if steps == 0:
        raise ValueError(f"xs has shape {xs.shape}, a sequence of no steps; it needs T >= 1.")
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise ValueError(f"xs has dtype {xs.dtype}; embed tokens first, or pass xs.astype(jnp.float32).")
    w_x = getattr(params, "w_x", None)
    if w_x is not None and w_x.shape[0] != size:
        raise ValueError(f"xs has {size} features, but w_x has {w_x.shape[0]} rows; call cell.init(key, {size}, …).")
    if lengths is not None and not hasattr(lengths, "shape"):
        raise ValueError(f"lengths is a {type(lengths).__name__}; pass jnp.asarray(lengths).")
    if lengths is not None and (lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer)):
        raise ValueError(f"lengths is {lengths.dtype}{list(lengths.shape)}; it must be integers of shape [{batch}].")
    if resets is not None and (resets.shape != (steps, batch) or resets.dtype != jnp.bool_):
        raise ValueError(f"resets is {resets.dtype}{list(resets.shape)}; it must be bool of shape [{steps}, {batch}].")
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={implementation!r} is unknown; choose from {sorted(IMPLEMENTATIONS)} or None."
        )
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(
            f"checkpoint_every={checkpoint_every}; it must be at least 1 step, or None to keep every carry."
        )
