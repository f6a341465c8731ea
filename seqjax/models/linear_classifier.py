"""Linear classifier of bags of words and n-grams: counts, presence, TF-IDF, or naive Bayes log-count ratios.

    x_v = how often v occurs                                    counts
          min(1, that)                                          binary, nb
          (1 + log of it) idf_v, of length 1                    tf_idf (Salton and Buckley, 1988)
    p(label c | text) = softmax(dropout(x) (g ∘ W) + b)_c
    g_vc = 1, but for nb log (p_vc / Σ_v p_vc) - log (q_vc / Σ_v q_vc)         (Wang and Manning, 2012)

where p_vc is 1 + how many training texts of label c have v, and q_vc the same of all other labels. Training W by
cross-entropy is multinomial logistic regression. The order of words matters in n-grams alone, which are hashed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax.embeddings import bag_of_words, tf_idf
from seqjax.layers import affine
from seqjax.models.text_parts import check, ngram_rows
from seqjax.transformer import dropper
from seqjax.types import Array, Float, Int, PRNGKey, Scalar


@dataclass(frozen=True)
class LinearClassifierConfig:
    """What a linear classifier knows of a text."""

    features: Literal["counts", "binary", "tf_idf", "nb"] = "tf_idf"
    n_grams: int = 1
    """Words of the longest n-grams; 1 has none."""
    bucket: int = 1 << 17
    """Features that all n-grams share."""

    def __post_init__(self):
        check(self, "n_grams", "bucket")

    def size(self, vocab_size: int) -> int:
        """How many features there are."""
        return vocab_size + self.bucket * (self.n_grams > 1)


def features(ids: np.ndarray, config: LinearClassifierConfig, vocab_size: int) -> np.ndarray:
    """The words and n-grams of a text, int32 (`seqjax.models.text_parts.ngram_rows`)."""
    return ngram_rows(ids, n_grams=config.n_grams, bucket=config.bucket, first=vocab_size)


def statistics(
    config: LinearClassifierConfig, rows: Sequence[np.ndarray], labels: np.ndarray, vocab_size: int
) -> dict[str, np.ndarray]:
    """What the model begins with, of the training texts: ``g_idf``, ``log((1 + N) / (1 + how many have v)) + 1``; or g.

    Args:
      config: of the model.
      rows: `features` of N texts.
      labels: bool ``[N, C]``, which labels they have.
      vocab_size: V.
    """
    size = config.size(vocab_size)
    seen = [np.unique(ids) for ids in rows]
    if config.features == "tf_idf":  # `seqjax.embeddings.idf` without its counts, a table of N by V
        texts = np.bincount(np.concatenate(seen), minlength=size)
        return {"g_idf": (np.log((1 + len(rows)) / (1 + texts)) + 1).astype(np.float32)}
    if config.features == "nb":
        ratios = []
        for label in labels.T:
            parts = (
                np.concatenate([np.empty(0, np.int32), *(seen[i] for i in np.flatnonzero(has))])
                for has in (label, ~label)
            )
            p, q = (1.0 + np.bincount(ids, minlength=size) for ids in parts)
            ratios.append(np.log(p / p.sum()) - np.log(q / q.sum()))
        return {"g_ratio": np.stack(ratios, axis=1).astype(np.float32)}
    return {}


class LinearClassifier(nnx.Module):
    """An output layer over bags of features; ``g_idf`` and ``g_ratio`` are 1 unless they are set, and never trained."""

    def __init__(self, config: LinearClassifierConfig, vocab_size: int, n_labels: int, *, rngs: nnx.Rngs):
        self.config, size = config, config.size(vocab_size)
        self.w = nnx.Param(jnp.zeros((size, n_labels)))
        self.b = nnx.Param(jnp.zeros(n_labels))
        self.g_idf = nnx.Param(jnp.ones(size)) if config.features == "tf_idf" else None
        self.g_ratio = nnx.Param(jnp.ones((size, n_labels))) if config.features == "nb" else None

    @property
    def axes(self) -> dict[str, P]:
        """See `seqjax.nn.logical_axes`."""
        return {"w": P("vocab", "hidden"), "b": P("hidden"), "g_idf": P("vocab"), "g_ratio": P("vocab", "hidden")}

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        *,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Float[Array, "B C"]:
        """The scores of labels; ``dropout`` of features acts only where ``key`` is given."""
        w = self.w.get_value()
        x = bag_of_words(tokens, w.shape[0], lengths=lengths)
        if self.g_idf is not None:
            x = tf_idf(x, jax.lax.stop_gradient(self.g_idf.get_value()), sublinear=True)
        elif self.config.features != "counts":
            x = jnp.minimum(x, 1)
        if self.g_ratio is not None:
            w = jax.lax.stop_gradient(self.g_ratio.get_value()) * w
        return affine(dropper(dropout, key)(x), w, self.b.get_value())
