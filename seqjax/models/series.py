"""Recurrent network over sequences of vectors: pixels, frames, measurements.

    h_t = stack of cells over x_t, dropout between layers
    y   = dropout(v) W + b      v = the last or the mean of h: one output for a sequence
    y_t = dropout(h_t) W + b    "frames": one for each of its places, which has seen those up to it

Beside every cell of `seqjax.CELLS` there is "irnn", a ReLU network that begins as the identity (Le et al., 2015, "A
simple way to initialize recurrent networks of rectified linear units").
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax import pooling
from seqjax.cells import CELLS, Cell, elman
from seqjax.errors import InputError, check_least
from seqjax.nn import Dense, Recurrent
from seqjax.transformer import dropper
from seqjax.types import Array, Float, Int, PRNGKey, Scalar

Readout = Literal["last", "mean", "frames"]
"""What the outputs are made of: the state at the end, the mean of all states, or each of them."""


def _init_irnn(key: PRNGKey, d_in: int, d_hidden: int, *, dtype=jnp.float32) -> elman.Params:
    """w_h = 1, b = 0, and weights of the input so small that the state hardly moves at first."""
    w_x = 0.001 * jax.random.normal(key, (d_in, d_hidden), dtype)
    return elman.Params(w_x, jnp.eye(d_hidden, dtype=dtype), jnp.zeros(d_hidden, dtype))


IRNN = elman.make(jax.nn.relu, "irnn")._replace(init=_init_irnn)
SERIES_CELLS: dict[str, Cell] = {**CELLS, IRNN.name: IRNN}


@dataclass(frozen=True)
class SeriesRNNConfig:
    """Shape of a recurrent network for series."""

    cell: str = "gru"
    """Any cell of seqjax.CELLS, such as lstm, gru or elman; or irnn."""
    d_hidden: int = 128
    n_layers: int = 1
    readout: Readout = "last"
    """One output from the last state or from the mean of all states; or frames, one for each."""

    def __post_init__(self):
        check_sizes(self, "d_hidden", "n_layers")
        if self.cell not in SERIES_CELLS:
            raise InputError(f"model.cell={self.cell!r} is unknown; choose from {', '.join(sorted(SERIES_CELLS))}.")


class SeriesRNN(nnx.Module):
    """Stacked cells and an output layer."""

    def __init__(self, config: SeriesRNNConfig, d_in: int, d_out: int, *, rngs: nnx.Rngs):
        self.config = config
        self.rnn = Recurrent(SERIES_CELLS[config.cell], d_in, config.d_hidden, config.n_layers, rngs=rngs)
        self.out = Dense(config.d_hidden, d_out, rngs=rngs)

    def __call__(
        self,
        inputs: Float[Array, "B T D"],
        lengths: Int[Array, "B"],
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B *T C"]:
        """[B, C], or [B, T, C] of frames, whatever padding holds; dropout acts only where ``key`` is given."""
        key_rnn, key_out = (None, None) if key is None else jax.random.split(key)
        _, hs = self.rnn(inputs, lengths=lengths, dropout=dropout, key=key_rnn)
        return self.out(dropper(dropout, key_out)(read_out(self.config.readout, hs, lengths)))


def read_out(kind: Readout, hs: Float[Array, "B T H"], lengths: Int[Array, "B"]) -> Float[Array, "B *T H"]:
    """The states that outputs are made of, [B, H] or [B, T, H]."""
    match kind:
        case "last":
            return pooling.last(hs, lengths)
        case "mean":
            return pooling.mean(hs, lengths)
    return hs


def check_sizes(config: Any, *names: str) -> None:
    """Raise `InputError` for a size below 1."""
    check_least(config, "model.", **dict.fromkeys(names, 1))
