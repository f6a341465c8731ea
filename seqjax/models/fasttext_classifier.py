"""fastText's classifier: the mean of the vectors of words and of hashed word n-grams (Joulin et al., 2017).

    x = (Σ_i E[row_i]) / m,    over the m rows of a text, of its words and n-grams (`features`)
    p(label | text) = softmax(dropout(x) W)

A step touches few of the rows of E, so it is trained by plain SGD that reads and writes those only (`make_step`), at a
learning rate that falls: an optimizer with moments would go over millions of rows at every step.

The paper is https://arxiv.org/abs/1607.01759. As in its program W begins with zeros. Unlike there, a word counts once
however often it occurs, unless ``distinct`` is False: that is better at topics, and half of the work. And the hash of
an n-gram is one of ids, not of spellings.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax import pooling
from seqjax.models.text_parts import check, ngram_rows
from seqjax.nn import Embed
from seqjax.train import Hyper, State
from seqjax.transformer import dropper
from seqjax.types import Array, Float, Int, PRNGKey, PyTree, Scalar


@dataclass(frozen=True)
class FastTextClassifierConfig:
    """Shape of fastText's classifier."""

    d_embed: int = 64
    n_grams: int = 1
    """Words of the longest n-grams; 1 has none."""
    bucket: int = 1 << 18
    """Rows that all n-grams share."""
    distinct: bool = True
    """A word or n-gram counts once a text."""

    def __post_init__(self):
        check(self, "d_embed", "n_grams", "bucket")


def features(ids: np.ndarray, config: FastTextClassifierConfig, vocab_size: int) -> np.ndarray:
    """The rows of a text, int32 (`seqjax.models.text_parts.ngram_rows`), each once if ``config.distinct``.

    >>> config = FastTextClassifierConfig(n_grams=2, bucket=100)
    >>> rows = features(np.array([5, 6, 5, 6]), config, 10)
    >>> rows.shape, rows[:2].tolist()  # 5, 6, and the pairs (5, 6) and (6, 5)
    ((4,), [5, 6])
    """
    rows = ngram_rows(ids, n_grams=config.n_grams, bucket=config.bucket, first=vocab_size)
    return np.unique(rows) if config.distinct else rows


class FastTextClassifier(nnx.Module):
    """A table of words and buckets, and an output matrix; its tokens are what `features` gives."""

    def __init__(self, config: FastTextClassifierConfig, vocab_size: int, n_labels: int, *, rngs: nnx.Rngs):
        self.embed = Embed(vocab_size + config.bucket * (config.n_grams > 1), config.d_embed, rngs=rngs)
        self.w = nnx.Param(jnp.zeros((config.d_embed, n_labels)))

    @property
    def axes(self) -> dict[str, P]:
        """See `seqjax.nn.logical_axes`."""
        return {"w": P("embed", "hidden")}

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B C"]:
        """The scores of labels; ``dropout`` of x acts only where ``key`` is given."""
        return self.scores(pooling.mean(self.embed(tokens), lengths), dropout=dropout, key=key)

    def scores(
        self, x: Float[Array, "B D"], *, dropout: Scalar = 0.0, key: PRNGKey | None = None
    ) -> Float[Array, "B C"]:
        """The output layer."""
        return dropper(dropout, key)(x) @ self.w.get_value()


def add_to_rows(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], lengths: Int[Array, "B"], steps: Float[Array, "B D"]
) -> Float[Array, "V D"]:
    """The table with the step of each text added to the row of each of its tokens.

    >>> print(add_to_rows(jnp.zeros((3, 1)), jnp.array([[1, 1, 2]]), jnp.array([2]), jnp.ones((1, 1))).T)
    [[0. 2. 0.]]
    """
    rows = jnp.where(pooling.kept(lengths, tokens.shape[1]), tokens, len(table))  # past the end: dropped
    return table.at[rows].add(jnp.broadcast_to(steps[:, None], (*rows.shape, steps.shape[1])), mode="drop")


def make_step(apply: Callable, loss_fn: Callable, schedule: Callable) -> Callable:
    """``train_step(state, batch, hyper) -> (state, metrics)``, as `seqjax.train.make_step` has it, by sparse SGD.

        α = hyper.lr · schedule(step);   g = ∇ loss, the sum over the texts of a batch
        W ← W - α g_W;   E[row] ← E[row] - α · hyper.embed_lr · g_x / m    for each of the m rows of a text

    Of ``hyper`` it knows ``lr``, ``embed_lr``, ``dropout``, and what the loss uses. A step that is not finite changes
    nothing.

    Args:
      apply: of the model, from `seqjax.purify`.
      loss_fn: ``(logits, batch, hyper) -> (sum, weight)``.
      schedule: of unit peak, see `seqjax.train.unit_schedule`.
    """

    def train_step(state: State, batch: PyTree, hyper: Hyper) -> tuple[State, dict]:
        params, (tokens, lengths) = state.params, batch.inputs
        table, key = params["embed"]["w"], jax.random.fold_in(state.key, state.step)

        def loss(x, w):
            return loss_fn(apply({**params, "w": w}, x, dropout=hyper.dropout, key=key, method="scores"), batch, hyper)

        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (total, weight), (d_x, d_w) = gradient(pooling.mean(table[tokens], lengths), params["w"])
        norm = jnp.sqrt(jnp.sum(d_x**2) + jnp.sum(d_w**2))
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        alpha = jnp.asarray(hyper.lr * schedule(state.step), table.dtype)
        # Not a choice between two tables, which would copy one of them at every step.
        d_x, d_w = (jnp.where(finite, alpha * d, 0) for d in (d_x, d_w))
        d_row = jnp.asarray(hyper.embed_lr, d_x.dtype) * d_x / jnp.maximum(lengths, 1)[:, None].astype(d_x.dtype)
        table = add_to_rows(table, tokens, lengths, -d_row)
        one = jnp.ones_like(norm)
        metrics = {"loss": (total, weight), "grad_norm": (norm, one)}
        metrics = jax.tree.map(lambda m: jnp.where(finite, m, jnp.zeros_like(m)), metrics)
        metrics["skipped"] = (1 - finite.astype(norm.dtype), one)
        params = {**params, "embed": {"w": table}, "w": params["w"] - d_w}
        return state._replace(step=state.step + 1, params=params), metrics

    return train_step
