"""Transformer over sequences of vectors, in which a place sees those up to it (Vaswani et al., 2017).

x   = dropout(x_t W_in + b_in + position_t)
x   = x + dropout(attention(norm(x)))         for each layer
x   = x + dropout(mlp(norm(x)))
y   = norm(x) W + b of the last place, of the mean of all, or of every place
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax import transformer
from seqjax.models.series import Readout, check_sizes, read_out
from seqjax.nn import Dense
from seqjax.pooling import kept
from seqjax.transformer import Style, dropper, init_layer_of, init_norm, read, values
from seqjax.types import Array, Float, Int, PRNGKey, Scalar


@dataclass(frozen=True)
class SeriesTransformerConfig:
    """Shape of a Transformer for series."""

    d_model: int = 64
    n_heads: int = 4
    n_layers: int = 2
    positions: Literal["rotary", "sinusoidal", "alibi", "t5", "none"] = "rotary"
    readout: Readout = "last"
    """One output from the last place or from the mean of all; or frames, one for each."""

    n_kv_heads = d_ff = None  # what `seqjax.transformer` asks for beside these
    bias = True
    style = Style()

    def __post_init__(self):
        transformer.check_sizes(self)
        check_sizes(self, "n_layers")


class SeriesTransformer(nnx.Module):
    """Input layer, layers of attention, output layer."""

    def __init__(self, config: SeriesTransformerConfig, d_in: int, d_out: int, *, rngs: nnx.Rngs):
        self.config, d = config, config.d_model
        self.into = Dense(d_in, d, rngs=rngs)
        gain = 1 / math.sqrt(2 * config.n_layers)
        self.layers = nnx.List([nnx.Param(init_layer_of(config, rngs.params(), gain)) for _ in range(config.n_layers)])
        g, b = init_norm(config.style, d)
        self.g, self.b = nnx.Param(g), nnx.Param(b)
        t5 = config.positions == "t5"
        self.table = nnx.Param(transformer.init_t5(rngs.params(), config.n_heads)) if t5 else None
        self.out = Dense(d, d_out, rngs=rngs)

    @property
    def axes(self) -> dict[str, Any]:
        """See `seqjax.nn.logical_axes`."""
        return {"layers": transformer.AXES, "g": P("embed"), "b": P("embed"), "table": transformer.T5_AXES}

    def __call__(
        self,
        inputs: Float[Array, "B T D"],
        lengths: Int[Array, "B"],
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B *T C"]:
        """[B, C], or [B, T, C] of frames, whatever padding holds; dropout acts only where ``key`` is given."""
        config, drop = self.config, dropper(dropout, key)
        g, b, table = values(self.g, self.b, self.table)
        x = self.into(jnp.where(kept(lengths, inputs.shape[1])[..., None], inputs, jnp.zeros_like(inputs)))
        x = read(config, values(*self.layers), x, lengths, drop, causal=True, norm=(g, b), table=table)
        return self.out(read_out(config.readout, x, lengths))
