"""What runs where: rules measured with ``experiments/bench/recurrence.py`` and ``linear_recurrence.py`` there."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from seqjax.cells import Cell
from seqjax.types import Array, Size

T = TypeVar("T")


def at_least(size: Size, least: int) -> bool | Array:
    """size >= least; of a size that ``jax.export`` leaves open, an array, which is known when XLA compiles."""
    try:
        return size >= least
    except jax.errors.InconclusiveDimensionOperation:
        return jnp.asarray(size) >= least


def branch(condition: bool | Array, yes: Callable[[], T], no: Callable[[], T]) -> T:
    """yes() or no(); of a condition that ``at_least`` left open, both, of which XLA drops one."""
    if isinstance(condition, bool):
        return yes() if condition else no()
    return lax.cond(condition, yes, no)


def choose(cell: Cell) -> str:
    """The implementation that ``implementation=None`` stands for.

    With gradients "fused" was faster than "scan" at nearly every shape, on a CPU and on a GPU (H100). Without gradients
    "scan" is faster on a CPU where steps are small or very large, by up to a quarter.
    """
    return "fused" if cell.linear is None else "linear"


def steps_per_iteration(steps: int) -> int:
    """Steps in one iteration of a compiled loop: on a GPU an iteration costs as much as a step."""
    return min(16, steps) if jax.default_backend() == "gpu" else 1


def batches_directions() -> bool:
    """Whether both directions of a bidirectional layer run as one batched loop: where a step's cost is its launches."""
    return jax.default_backend() != "cpu"


def spread() -> bool:
    """Whether arrays may be spread over devices by XLA, which plans for a mesh with Auto axes (`jax.set_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(n > 1 and kind == AxisType.Auto for n, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True))


def chunk_length(steps: Size, size: Size) -> Size:
    """Steps of a chunk of "fused", a divisor of ``steps`` if one is near; a step has ``size`` pre-activations.

    On a CPU a chunk of zx takes at most 4 MiB in float32, which the caches keep. A GPU or TPU takes the whole sequence
    at once: fewer and larger operations; and so does a mesh, which adds up gradients after every chunk. So does a
    program for any size, as ``jax.export`` makes it: its chunks must be known.
    """
    if jax.default_backend() != "cpu" or spread() or jax.export.is_symbolic_dim(steps * size):
        return steps
    most = max(1, min(steps, 2**20 // max(1, size)))
    divisors = [every for every in range(1, most + 1) if steps % every == 0]
    return divisors[-1] if 2 * divisors[-1] >= most else most
