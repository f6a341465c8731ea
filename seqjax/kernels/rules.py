"""Which implementation ``implementation=None`` picks, by rules measured with ``experiments/bench/recurrence.py``."""

import jax

from seqjax.types import Array, Float


def choose(params, xs: Float[Array, "T B D"]) -> str:
    """The name of the faster implementation for this backend and shape.

    On the CPU "fused" saves the in-loop traffic of the weight gradients, (D + H) G H numbers a step, and pays with
    sequence-long buffers of pre-activations, B G H numbers a step: it wins where D + H is large beside B. On a GPU or
    TPU fewer and larger operations should win throughout; that has not been measured.
    """
    if jax.default_backend() != "cpu":
        return "fused"
    batch, d_in = xs.shape[1:]
    d_hidden = 0 if getattr(params, "w_h", None) is None else params.w_h.shape[0]
    return "fused" if d_in + d_hidden >= 32 * batch else "scan"
