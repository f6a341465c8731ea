"""A language model with a head: one part of it was trained before, on text without labels (Howard and Ruder, 2018).

    h = trunk.hidden(tokens), any language model's states before its output layer, dropout within as it has it
    v = norm([h_last, max_t h_t, mean_t h_t]), or another pooling               `seqjax.pooling`
    p(label | text) = softmax(dropout(relu(dropout(v) W + b)) W' + b')

The norm is that of layers, in place of their batches' one: states of different language models differ much in size.
The trunk is the language model itself, as a part of the model: what it has learned fits by its names, ``trunk.embed.w``
and so on. Its output layer is left out. Layers nearer to the words know what is of more general use, and are changed
less (``factors``). `seqjax.models.tagger` can have a trunk, too.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax.errors import InputError
from seqjax.models.text_parts import Pool, Pooling
from seqjax.nn import Dense
from seqjax.normalization import layer_norm
from seqjax.transformer import dropper
from seqjax.types import Array, Float, Int, PRNGKey, PyTree, Scalar


@dataclass(frozen=True)
class HeadConfig:
    """What a classifier has beside the language model."""

    pooling: Pooling = "concat"
    """Of the states of all tokens; concat is last, maximum and mean."""
    d_head: int = 50
    """Units between pooling and labels; 0 is none."""

    def __post_init__(self):
        if self.d_head < 0:
            raise InputError(f"head.d_head={self.d_head}; it must be at least 0.")


def without_output(trunk: Any) -> tuple[Any, int]:
    """A language model that gives states only, and how many numbers a state has."""
    size = trunk.embed.w.get_value().shape[1] if trunk.out is None else trunk.out.w.get_value().shape[0]
    trunk.out = None
    return trunk, size


class FineTunedClassifier(nnx.Module):
    """Language model, pooling, a hidden layer, output layer."""

    def __init__(self, config: HeadConfig, vocab_size: int, n_labels: int, *, trunk: Any, rngs: nnx.Rngs):
        # The vocabulary is that of the trunk, which has made its table already.
        self.trunk, size = without_output(trunk)
        self.pool = Pool(config.pooling, size, rngs=rngs)
        self.g = nnx.Param(jnp.ones(self.pool.d_out))
        d = config.d_head or self.pool.d_out
        self.enter = Dense(self.pool.d_out, d, rngs=rngs) if config.d_head else None
        self.out = Dense(d, n_labels, rngs=rngs)

    @property
    def axes(self) -> dict[str, P]:
        """See `seqjax.nn.logical_axes`."""
        return {"g": P("hidden")}

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B C"]:
        """The scores of labels; dropout of any kind acts only where ``key`` is given."""
        key_trunk, key_drop = (None, None) if key is None else jax.random.split(key)
        drop = dropper(dropout, key_drop)
        hs = self.trunk.hidden(tokens, lengths, dropout=dropout, key=key_trunk)
        x = drop(layer_norm(self.pool(hs.astype(jnp.float32), lengths)[0], self.g.get_value()))
        return self.out(x if self.enter is None else drop(jax.nn.relu(self.enter(x))))


def groups(params: PyTree) -> PyTree:
    """Which group of layers each parameter belongs to: 0 is new, 1 the trunk's last layer, the greatest its embeddings.

    >>> params = {"out": {"w": 0}, "trunk": {"embed": {"w": 0}, "rnn": {"layers": {0: 0, 1: 0}}}}
    >>> groups(params)
    {'out': {'w': 0}, 'trunk': {'embed': {'w': 3}, 'rnn': {'layers': {0: 2, 1: 1}}}}
    """
    trunk = params["trunk"]
    n_layers = len(trunk.get("rnn", trunk).get("layers", ()))

    def group(path, _):
        first, *names = (getattr(entry, "key", "") for entry in path)
        if first != "trunk":
            return 0
        if "layers" in names:
            return n_layers - int(names[names.index("layers") + 1])
        return 1 if names[0] in ("g", "b") else n_layers + 1  # the norm after the last layer

    return jax.tree_util.tree_map_with_path(group, params)


def factors(params: PyTree, step: int | Int[Array, ""], *, layer_lr: Scalar, thaw: int = 0) -> PyTree:
    """Factors of the learning rate: layer_lr^k for group k, and 0 before step k thaw (Howard and Ruder, 2018).

    So each layer learns more slowly than the one above it, and they thaw one after the other. With layer_lr 0 nothing
    but the new parts learns.

    >>> params = {"out": 0, "trunk": {"embed": 0, "rnn": {"layers": {0: 0}}}}
    >>> of = factors(params, 10, layer_lr=0.5, thaw=10)
    >>> print(of["out"], of["trunk"]["rnn"]["layers"][0], of["trunk"]["embed"])
    1.0 0.5 0.0
    """

    def factor(k: int):
        return jnp.where(step >= k * thaw, jnp.asarray(layer_lr, jnp.float32) ** k, 0.0)

    return jax.tree.map(factor, groups(params))
