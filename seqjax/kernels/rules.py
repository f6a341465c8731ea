"""Which implementation ``implementation=None`` picks. Measured by ``experiments/bench/recurrence.py``."""

from seqjax.cells import Cell
from seqjax.types import Array, Float


def choose(cell: Cell, params, xs: Float[Array, "T B D"]) -> str:
    """The name of the faster implementation for this cell and shape."""
    return "fused"
