"""The Flax shell: modules that hold weights and call the pure functions, and ``purify``, the way out.

Modules hold Params and nothing else: carries, caches and keys are arguments and results. Of Flax only nine names are
used (Module, Param, List, Rngs, graphdef, state, merge, eval_shape, to_pure_dict), which mean the same in its graph
mode and in its tree mode. Modules are batch-major, [B, T, …].
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax.cells import Cell
from seqjax.errors import InputError
from seqjax.layers import affine
from seqjax.layers import dropout as apply_dropout
from seqjax.recurrence import bidirectional, initial_carry, stack
from seqjax.recurrence import step as step_cell
from seqjax.scores import SCORES, attend
from seqjax.seq2seq import covered_additive
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


def logical_axes(make: Callable[[PRNGKey], nnx.Module]) -> PyTree:
    """What the axes of each parameter of a model mean: in the dict of `purify`, a ``PartitionSpec`` for each array.

    They are what the property ``axes`` of its modules says, attribute -> names; a name or None for each dimension. In
    a list all items have the same. `seqjax.sharding.RULES` has the names.

    Raises:
      ValueError: a module does not say them.

    >>> list(logical_axes(lambda key: Dense(3, 2, outputs="vocab", rngs=nnx.Rngs(key)))["w"])
    ['hidden', 'vocab']
    """

    def is_spec(x):
        return x is None or isinstance(x, P)

    def fitting(path, names, part):
        """What a layer does without is None among its parameters."""
        if part is None:
            return None
        if not isinstance(names, P) or len(names) != part.ndim:
            raise ValueError(f"{jax.tree_util.keystr(path)} has axes {names} for an array {part.shape}")
        return names

    def walk(node, params, names):
        if isinstance(node, nnx.Param):
            return jax.tree_util.tree_map_with_path(fitting, names, params, is_leaf=is_spec)
        if isinstance(node, nnx.List):
            return {i: walk(node[i], part, names) for i, part in params.items()}
        axes = getattr(node, "axes", {})
        missing = [k for k in params if k not in axes and isinstance(getattr(node, k), nnx.Param)]
        if missing:
            raise ValueError(f"{type(node).__name__}.axes does not have {', '.join(missing)}")
        return {name: walk(getattr(node, name), part, axes.get(name)) for name, part in params.items()}

    module = nnx.eval_shape(make, jax.random.key(0))
    return walk(module, nnx.to_pure_dict(nnx.state(module, nnx.Param)), None)


class Embed(nnx.Module):
    """A table of V vectors; ``w`` [V, D], unit-variance rows scaled by 1/√D."""

    def __init__(self, vocab_size: int, d_embed: int, *, rows: str = "vocab", rngs: nnx.Rngs):
        self.rows = rows  # what they mean, see `logical_axes`
        self.w = nnx.Param(jax.random.normal(rngs.params(), (vocab_size, d_embed)) / jnp.sqrt(float(d_embed)))

    @property
    def axes(self) -> dict[str, P]:
        """See `logical_axes`."""
        return {"w": P(self.rows, "embed")}

    def __call__(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """The vectors of the tokens."""
        return self.w.get_value()[tokens]

    def attend(self, h: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """h wᵀ: the scores of all tokens, with the table as output matrix (Press and Wolf, 2017)."""
        return affine(h, self.w.get_value().T)


class Dense(nnx.Module):
    """x w + b."""

    def __init__(self, d_in: int, d_out: int, *, outputs: str = "hidden", rngs: nnx.Rngs):
        self.outputs = outputs  # what they mean, see `logical_axes`
        self.w = nnx.Param(jax.nn.initializers.lecun_normal()(rngs.params(), (d_in, d_out)))
        self.b = nnx.Param(jnp.zeros(d_out))

    @property
    def axes(self) -> dict[str, P]:
        """See `logical_axes`."""
        return {"w": P("hidden", self.outputs), "b": P(self.outputs)}

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
        """The affine map, in the dtype of x."""
        return affine(x, self.w.get_value(), self.b.get_value())


class Recurrent(nnx.Module):
    """Layers of one cell. ``layers[i]`` holds the cell's Params as one Param."""

    def __init__(self, cell: Cell, d_in: int, d_hidden: int, n_layers: int = 1, *, rngs: nnx.Rngs):
        sizes = [d_in] + [d_hidden] * (n_layers - 1)
        self.cell = cell
        self.layers = nnx.List([nnx.Param(cell.init(rngs.params(), size, d_hidden)) for size in sizes])

    @property
    def axes(self) -> dict[str, PyTree]:
        """See `logical_axes`."""
        return {"layers": self.cell.axes}

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

    def step(
        self, x: Float[Array, "B D"], carry: tuple, *, dropout: Scalar = 0.0, key: PRNGKey | None = None
    ) -> tuple[tuple, Float[Array, "B H"]]:
        """``(carries, y)``: one step of all layers, for loops in which x depends on y of the step before."""
        after = []
        for depth, (layer, before) in enumerate(zip(self.layers, carry, strict=True)):
            if depth > 0 and key is not None:
                x = apply_dropout(jax.random.fold_in(key, depth), x, dropout)
            layer_carry, x = step_cell(self.cell, layer.get_value(), before, x)
            after.append(layer_carry)
        return tuple(after), x


class Bidirectional(nnx.Module):
    """Layers of one cell in both directions, each with half of the H units and reading both halves below it.

    ``layers[i]`` holds the pair (forward, backward) of the cell's Params as one Param.
    """

    def __init__(self, cell: Cell, d_in: int, d_hidden: int, n_layers: int = 1, *, rngs: nnx.Rngs):
        if d_hidden % 2:
            raise InputError(f"d_hidden={d_hidden}: two directions have half of it each; make it even.")
        sizes = [d_in] + [d_hidden] * (n_layers - 1)
        self.cell = cell
        self.layers = nnx.List(
            [nnx.Param(tuple(cell.init(rngs.params(), size, d_hidden // 2) for _ in range(2))) for size in sizes]
        )

    @property
    def axes(self) -> dict[str, PyTree]:
        """See `logical_axes`."""
        return {"layers": (self.cell.axes, self.cell.axes)}

    def __call__(
        self,
        xs: Float[Array, "B T D"],
        *,
        lengths: Int[Array, "B"] | None = None,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
        implementation: str | None = None,
    ) -> tuple[tuple, Float[Array, "B T H"]]:
        """``(carries, ys)``: a final carry for each layer, whose leaves have both halves side by side, as ys have them.

        Dropout is that of ``stack``, between layers.
        """
        carries, ys = [], jnp.swapaxes(xs, 0, 1)
        for depth, layer in enumerate(self.layers):
            if depth > 0 and key is not None:
                ys = apply_dropout(jax.random.fold_in(key, depth), ys, dropout)
            forward, backward = layer.get_value()
            halves, ys = bidirectional(self.cell, forward, backward, ys, lengths=lengths, implementation=implementation)
            carries.append(jax.tree.map(lambda *half: jnp.concatenate(half, axis=-1), *halves))
        return tuple(carries), jnp.swapaxes(ys, 0, 1)


class Attention(nnx.Module):
    """Attention with a score of `seqjax.scores.SCORES`, whose parameters are attributes, by their names there.

    With ``coverage`` the score, which must be additive, knows the sum of past weights (`covered_additive`). Its vector
    starts as zeros: training begins with the model without coverage.
    """

    def __init__(
        self,
        score: str,
        d_query: int,
        d_key: int,
        *,
        d_score: int,
        longest: int,
        coverage: bool = False,
        rngs: nnx.Rngs,
    ):
        params = SCORES[score].init(rngs.params(), d_query, d_key, d_score, longest)
        if coverage:
            params["w_coverage"] = jnp.zeros(d_score)
        self.score, self.names = score, tuple(params)
        for name in self.names:
            setattr(self, name, nnx.Param(params[name]))

    @property
    def axes(self) -> dict[str, P]:
        """See `logical_axes`: whole on every device, for they are small."""
        return {name: P(*[None] * getattr(self, name).get_value().ndim) for name in self.names}

    def keys(self, values: Float[Array, "B S E"]) -> Float[Array, "B S A"]:
        """What queries are compared with, made once a source."""
        return SCORES[self.score].project(self._params(), values)

    def __call__(
        self,
        q: Float[Array, "B T D"],
        keys: Float[Array, "B S A"],
        values: Float[Array, "B S E"],
        *,
        mask: Bool[Array, "B S"],
        coverage: Float[Array, "B T S"] | None = None,
    ) -> tuple[Float[Array, "B T E"], Float[Array, "B T S"]]:
        """``(contexts, weights)`` as from `seqjax.scores.attend`, which every query has over the same keys."""
        params = self._params()
        if coverage is None:
            score = partial(SCORES[self.score].score, params)
        else:
            used = {name: p for name, p in params.items() if name != "w_k"}
            score = partial(covered_additive, coverage=coverage, **used)
        return attend(q, keys, values, score=score, mask=mask[:, None])

    def _params(self) -> dict[str, Array]:
        return {name: getattr(self, name).get_value() for name in self.names}
