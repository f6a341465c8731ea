"""Which implementation ``implementation=None`` picks, by rules measured with ``experiments/bench/recurrence.py``."""

import jax

from seqjax.types import Array, Float


def choose(params, xs: Float[Array, "T B D"]) -> str:
    """The name of the fastest implementation for this backend and shape.

    On the CPU "fused" saves the in-loop traffic of the weight gradients, (D + H) G H numbers a step, and pays with
    sequence-long buffers of pre-activations, B G H numbers a step: with gradients it wins where D + H is large beside
    B. Without gradients it wins only where the weights outweigh the batch by far, or are too large for the caches. On
    a GPU or TPU fewer and larger operations should win throughout; that has not been measured.
    """
    if jax.default_backend() != "cpu":
        return "fused"
    w_h = getattr(params, "w_h", None)
    batch, d_in = xs.shape[1:]
    d_hidden, width = (0, 0) if w_h is None else w_h.shape
    if d_in + d_hidden < 32 * batch:
        return "scan"
    return "fused" if d_in + d_hidden >= 128 * batch or width >= 2048 else "hybrid"
