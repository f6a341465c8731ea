"""What runs where: rules measured with ``experiments/bench/recurrence.py`` and ``linear_recurrence.py`` there."""

import jax

from seqjax.cells import Cell


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


def chunk_length(steps: int, size: int) -> int:
    """Steps of a chunk of "fused", a divisor of ``steps`` if one is near; a step has ``size`` pre-activations.

    On a CPU a chunk of zx takes at most 4 MiB in float32, which the caches keep. A GPU or TPU takes the whole sequence
    at once: fewer and larger operations.
    """
    if jax.default_backend() != "cpu":
        return steps
    most = max(1, min(steps, 2**20 // max(1, size)))
    divisors = [every for every in range(1, most + 1) if steps % every == 0]
    return divisors[-1] if 2 * divisors[-1] >= most else most
