"""Averages of weights: a moving one over the steps of training, and the mean over checkpoints."""

from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seqjax.checkpoint import Checkpoints
from seqjax.errors import InputError
from seqjax.types import PyTree, wide


class AverageState(NamedTuple):
    """State of `weight_average`."""

    average: PyTree


def weight_average(decay) -> optax.GradientTransformation:
    """The last link of a chain: an exponential moving average of the weights after each update.

        average ← d average + (1 - d) params,   d = min(decay, (1 + t) / (10 + t))

    The bound on d forgets the random initial weights early. The average is in float32 or wider: in bfloat16 a small
    step of it would be rounded away. Read it with `averaged_params`.
    """

    def init(params):
        return jnp.zeros((), jnp.int32), AverageState(jax.tree.map(_widened, params))

    def update(updates, state, params=None):
        assert params is not None, "weight_average needs the weights: optimizer.update(grads, state, params)"
        count, (average,) = state
        d = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
        after = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: (d * a + (1 - d) * p.astype(a.dtype)).astype(a.dtype), average, after)
        return updates, (count + 1, AverageState(average))

    return optax.GradientTransformation(init, update)


def _widened(p: jax.Array) -> jax.Array:
    return p.astype(wide(p.dtype), copy=True)


def averaged_params(state: Any) -> PyTree:
    """The averaged weights of a `seqjax.train.State` where the optimizer keeps them, else the weights."""
    found = [s for s in jax.tree.leaves(state.opt_state, is_leaf=_is_average) if _is_average(s)]
    return jax.tree.map(lambda a, p: a.astype(p.dtype), found[0].average, state.params) if found else state.params


def _is_average(node) -> bool:
    return isinstance(node, AverageState)


def average_checkpoints(checkpoints: Checkpoints, template: Any, n: int) -> PyTree:
    """The mean of the weights in the n newest intact checkpoints on disk (Vaswani et al., 2017, section 6.1).

        params = Σ_i params_i / n

    The weights of a checkpoint are those that are evaluated, `averaged_params`. They are read one after the other
    and summed in float32 or wider. ``loop.keep`` says how many there are.

    Raises:
      InputError: n is below 1, there are fewer than n, or they are of another model.
      CheckpointError: none is intact.
    """
    if n < 1:
        raise InputError(f"n={n}; it must be at least 1.")
    total, count = None, 0
    for restored in islice(checkpoints.restore_each(template), n):
        params = averaged_params(restored.tree)
        params = jax.tree.map(_widened, params)
        total = params if total is None else jax.tree.map(jnp.add, total, params)
        count += 1
    if count < n:
        raise InputError(f"n={n}; there are {count} intact checkpoints: ask for fewer, or train with a larger keep")
    return jax.tree.map(lambda s, p: (s / n).astype(p.dtype), total, template.params)
