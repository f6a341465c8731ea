"""The Flax shell: modules that hold weights and call the pure functions, and ``purify``, the way out.

Modules hold Params and nothing else: carries, caches and keys are arguments and results. Of Flax only nine names are
used (Module, Param, List, Rngs, graphdef, state, merge, eval_shape, to_pure_dict), which mean the same in its graph
mode and in its tree mode. Modules are batch-major, [B, T, …].
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.cells import Cell
from seqjax.layers import affine
from seqjax.recurrence import initial_carry, stack
from seqjax.types import Array, Bool, Float, Int, Params, PRNGKey, PyTree, Scalar


def purify(make: Callable[[PRNGKey], nnx.Module]) -> tuple[Callable[[PRNGKey], Params], Callable[..., Any]]:
    """Turn a model into two pure functions over a plain dict: ``(init, apply)``.

        params = init(key)
        outputs = apply(params, *arguments, method="__call__", **options)

    Args:
      make: builds the model from a key, e.g. ``lambda key: RNNLM(config, rngs=nnx.Rngs(key))``.

    >>> import jax, seqjax
    >>> from flax import nnx
    >>> init, apply = seqjax.purify(lambda key: seqjax.nn.Dense(3, 2, rngs=nnx.Rngs(key)))
    >>> params = init(jax.random.key(0))
    >>> apply(params, jax.numpy.ones((4, 3))).shape
    (4, 2)
    """
    graphdef = nnx.graphdef(nnx.eval_shape(make, jax.random.key(0)))

    def init(key: PRNGKey) -> Params:
        return nnx.to_pure_dict(nnx.state(make(key), nnx.Param))

    def apply(params: Params, *arguments, method: str = "__call__", **options):
        return getattr(nnx.merge(graphdef, params), method)(*arguments, **options)

    return init, apply


class Embed(nnx.Module):
    """A table of V vectors; ``w`` [V, D], unit-variance rows scaled by 1/√D."""

    def __init__(self, vocab_size: int, d_embed: int, *, rngs: nnx.Rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (vocab_size, d_embed)) / jnp.sqrt(float(d_embed)))

    def __call__(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """The vectors of the tokens."""
        return self.w.get_value()[tokens]

    def attend(self, h: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """h wᵀ: the scores of all tokens, with the table as output matrix (Press and Wolf, 2017)."""
        return affine(h, self.w.get_value().T)


class Dense(nnx.Module):
    """x w + b."""

    def __init__(self, d_in: int, d_out: int, *, rngs: nnx.Rngs):
        self.w = nnx.Param(jax.nn.initializers.lecun_normal()(rngs.params(), (d_in, d_out)))
        self.b = nnx.Param(jnp.zeros(d_out))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
        """The affine map, in the dtype of x."""
        return affine(x, self.w.get_value(), self.b.get_value())


class Recurrent(nnx.Module):
    """Layers of one cell. ``layers[i]`` holds the cell's Params as one Param."""

    def __init__(self, cell: Cell, d_in: int, d_hidden: int, n_layers: int = 1, *, rngs: nnx.Rngs):
        sizes = [d_in] + [d_hidden] * (n_layers - 1)
        self.cell = cell
        self.layers = nnx.List([nnx.Param(cell.init(rngs.params(), size, d_hidden)) for size in sizes])

    def __call__(
        self,
        xs: Float[Array, "B T D"],
        carry: PyTree | None = None,
        *,
        lengths: Int[Array, "B"] | None = None,
        resets: Bool[Array, "B T"] | None = None,
        dropout: Scalar = 0.0,
        variational: bool = False,
        weight_drop: float = 0.0,
        key: PRNGKey | None = None,
        implementation: str | None = None,
    ) -> tuple[tuple, Float[Array, "B T H"]]:
        """``(carries, ys)``; the options are those of ``seqjax.stack``, batch-major."""
        carry, ys = stack(
            self.cell,
            [layer.get_value() for layer in self.layers],
            jnp.swapaxes(xs, 0, 1),
            carry,
            lengths=lengths,
            resets=None if resets is None else resets.T,
            dropout=dropout,
            variational=variational,
            weight_drop=weight_drop,
            key=key,
            implementation=implementation,
        )
        return carry, jnp.swapaxes(ys, 0, 1)

    def initial(self, x: Float[Array, "B D"]) -> tuple:
        """A carry of zeros for each layer, on a batch like x."""
        carries = []
        for layer in self.layers:
            params = layer.get_value()
            carries.append(initial_carry(self.cell, params, x))
            x = self.cell.hidden(carries[-1])
        return tuple(carries)
