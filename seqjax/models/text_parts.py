"""What models that read words have in common: n-grams, words that are dropped, and one vector for a text."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from seqjax import pooling
from seqjax.errors import InputError, check_least
from seqjax.nn import Dense
from seqjax.text import UNK
from seqjax.types import Array, Float, Int, PRNGKey

Pooling = Literal["last", "mean", "max", "attention", "concat"]
"""How one vector comes of those of all words; concat is the last, the maximum and the mean (Howard and Ruder, 2018)."""


def check(config: Any, *sizes: str) -> None:
    """Raise `InputError` for a size below 1, too many buckets, or a rate of word dropout that is none."""
    check_least(config, "model.", **dict.fromkeys(sizes, 1))
    if getattr(config, "bucket", 1) >= 2**30:
        raise InputError(f"model.bucket={config.bucket}; it must be below 2**30.")
    if not 0 <= getattr(config, "word_dropout", 0) < 1:
        raise InputError(f"model.word_dropout={config.word_dropout}; it must be at least 0 and below 1.")


def drop_words(tokens: Int[Array, "B T"], rate: float, key: PRNGKey | None) -> Int[Array, "B T"]:
    """Each word becomes <unk> with probability ``rate``: so that others are relied on, and <unk> means something.

    Only where there is a ``key``.
    """
    if key is None or rate == 0:
        return tokens
    return jnp.where(jax.random.bernoulli(key, rate, tokens.shape), jnp.asarray(UNK, tokens.dtype), tokens)


_PRIME = np.uint32(116049371)  # by which fastText, too, makes one hash of several words


def ngram_rows(ids: np.ndarray, *, n_grams: int, bucket: int, first: int) -> np.ndarray:
    """The words of a text and, of each n-gram of 2 to ``n_grams`` words, ``first + hash mod bucket``, int32.

    >>> rows = ngram_rows(np.array([5, 6, 5, 6]), n_grams=2, bucket=100, first=10)
    >>> rows[:4].tolist(), bool(rows[4] == rows[6] >= 10)
    ([5, 6, 5, 6], True)
    """
    ids = np.asarray(ids, np.uint32)
    rows, hashed = [ids], ids
    for n in range(2, min(n_grams, len(ids)) + 1):
        hashed = hashed[:-1] * _PRIME + ids[n - 1 :]
        rows.append(hashed % np.uint32(bucket) + np.uint32(first))
    return np.concatenate(rows).astype(np.int32)


class Pool(nnx.Module):
    """One vector for a sequence (`seqjax.pooling`); attention has the score tanh(x w + b) · w_score of each place."""

    def __init__(self, kind: Pooling, d_in: int, *, bidirectional: bool = False, rngs: nnx.Rngs):
        self.kind, self.bidirectional = kind, bidirectional
        self.d_out = 3 * d_in if kind == "concat" else d_in
        attends = kind == "attention"
        self.hidden = Dense(d_in, d_in, rngs=rngs) if attends else None
        self.w_score = nnx.Param(jax.random.normal(rngs.params(), (d_in,)) / jnp.sqrt(float(d_in))) if attends else None

    @property
    def axes(self) -> dict[str, P]:
        """See `seqjax.nn.logical_axes`."""
        return {"w_score": P("hidden")}

    def __call__(
        self, xs: Float[Array, "B T D"], lengths: Int[Array, "B"]
    ) -> tuple[Float[Array, "B E"], Float[Array, "B T"] | None]:
        """``(pooled, weights)``; weights are None but for attention."""
        match self.kind:
            case "attention":
                assert self.hidden, "made for attention"
                assert self.w_score, "made for attention"
                scores = jnp.tanh(self.hidden(xs)) @ self.w_score.get_value().astype(xs.dtype)
                return pooling.attention(xs, scores, lengths)
            case "last":
                return pooling.last(xs, lengths, bidirectional=self.bidirectional), None
            case "mean":
                return pooling.mean(xs, lengths), None
            case "max":
                return pooling.maximum(xs, lengths), None
        ends = pooling.last(xs, lengths, bidirectional=self.bidirectional)
        return jnp.concatenate([ends, pooling.maximum(xs, lengths), pooling.mean(xs, lengths)], axis=-1), None
