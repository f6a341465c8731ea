"""Question answering about a story of facts, by one word: memory networks (Sukhbaatar et al., 2015), or recurrence.

With attention there are K hops over the facts, each a bag of words that knows places and age:

    u_1 = Σ_j p_j * E_1[question_j];   p_j = (1 - j/J) - (d/D) (1 - 2j/J)     of words j = 1 … J and features d = 1 … D
    m_i = Σ_j p_j * E_k[fact_ij] + A_k[age_i];   c_i = Σ_j p_j * E_{k+1}[fact_ij] + A_{k+1}[age_i]
    weights = softmax_i(u_k · m_i);   u_{k+1} = u_k + Σ_i weights_i c_i
    p(answer) = softmax(E_{K+1} u_{K+1})

The newest fact has age 0. Without attention (K = 0) a recurrent network reads story and question as one text, and
p(answer) = softmax(h W + b) follows from its last state.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.cells import CELLS
from seqjax.errors import InputError, check_least
from seqjax.kernels.attention import softmax
from seqjax.layers import dropout as apply_dropout
from seqjax.nn import Dense, Embed, Recurrent
from seqjax.seq2seq import last_output
from seqjax.text import PAD
from seqjax.types import Array, Bool, Float, Int, PRNGKey, Scalar


@dataclass(frozen=True)
class StoryReaderConfig:
    """Shape of a reader of stories."""

    d_embed: int = 32
    n_hops: int = 3
    """Times that attention reads the facts; 0 reads story and question by recurrence, without attention."""
    longest: int = 64
    """Facts that attention can tell apart by age; older ones count as of this age."""
    noise: float = 0.1
    """In training, the rate at which a gap makes all earlier facts look older by one."""
    cell: str = "gru"
    """Without attention: any cell of seqjax.CELLS."""
    d_hidden: int = 64
    """Without attention: size of the state."""

    def __post_init__(self):
        if self.cell not in CELLS:
            raise InputError(f"model.cell={self.cell!r} is unknown; choose from {', '.join(CELLS)}.")
        check_least(self, "model.", d_embed=1, n_hops=0, longest=1, d_hidden=1)
        if not 0 <= self.noise < 1:
            raise InputError(f"model.noise={self.noise}; it must be at least 0 and below 1.")


class Reading(NamedTuple):
    """Scores of the answers [B, V], and the attention of each hop to the facts [B, K, F]."""

    logits: Float[Array, "B V"]
    attention: Float[Array, "B K F"]


def bag(x: Float[Array, "*B J D"], n: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """Σ_{j ≤ n} p_j * x_j, a bag of n words that knows places; n ≥ 1 words, or none, which gives 0.

    >>> print(bag(jnp.ones((2, 2)), jnp.array(2)))
    [1.  1.5]
    """
    j = jnp.arange(1, x.shape[-2] + 1, dtype=jnp.int32)
    j, d = jnp.expand_dims(j, range(n.ndim)), jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype) / x.shape[-1]
    share = (j.astype(x.dtype) / jnp.maximum(n, 1)[..., None].astype(x.dtype))[..., None]
    p = (1 - share) - jnp.expand_dims(d, range(share.ndim - 1)) * (1 - 2 * share)
    return jnp.sum(jnp.where((j <= n[..., None])[..., None], p * x, jnp.zeros_like(x)), axis=-2)


def ages(facts: Bool[Array, "B F"], gaps: Int[Array, "B F"]) -> Int[Array, "B F"]:
    """How many facts, and gaps after a fact, came later.

    >>> ages(jnp.array([[True, True, False]]), jnp.array([[1, 0, 0]])).tolist()
    [[2, 0, 0]]
    """
    steps = facts.astype(jnp.int32) + gaps
    later = jnp.cumsum(steps[:, ::-1], axis=1)[:, ::-1]
    return jnp.maximum(later - 1, 0)


def packed(tokens: Int[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B"]]:
    """The tokens of each row without <pad> among them, and how many.

    >>> [a.tolist() for a in packed(jnp.array([[0, 5, 0, 4]]))]
    [[[5, 4, 0, 0]], [2]]
    """
    order = jnp.argsort(tokens == PAD, axis=1, stable=True)
    return jnp.take_along_axis(tokens, order, axis=1), jnp.sum(tokens != PAD, axis=1, dtype=jnp.int32)


class StoryReader(nnx.Module):
    """Memory network, or recurrent network."""

    def __init__(self, config: StoryReaderConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config, d = config, config.d_embed
        n_tables = config.n_hops + 1
        self.words = nnx.List([Embed(vocab_size, d, rngs=rngs) for _ in range(n_tables)])
        n_ages = n_tables if config.n_hops else 0
        self.ages = nnx.List([Embed(config.longest, d, rows="position", rngs=rngs) for _ in range(n_ages)])
        self.recurrent = None if config.n_hops else Recurrent(CELLS[config.cell], d, config.d_hidden, rngs=rngs)
        self.out = None if config.n_hops else Dense(config.d_hidden, vocab_size, outputs="vocab", rngs=rngs)

    def __call__(
        self,
        facts: Int[Array, "B F W"],
        question: Int[Array, "B Q"],
        *,
        linear: Bool[Array, ""] | bool = False,
        dropout: Scalar = 0.0,
        key: PRNGKey | None = None,
    ) -> Reading:
        """Scores of the words as answers. <pad> is no word, and a fact without words is none.

        ``linear`` leaves out the softmax over facts, with which training begins best. Noise, and dropout on what the
        answer follows from, act only with a ``key``.
        """
        key_noise, key_drop = (None, None) if key is None else jax.random.split(key)

        def drop(x):
            return x if key_drop is None else apply_dropout(key_drop, x, dropout)

        if self.recurrent is not None and self.out is not None:
            tokens, lengths = packed(jnp.concatenate([facts.reshape(facts.shape[0], -1), question], axis=1))
            _, hs = self.recurrent(self.words[0](tokens), lengths=lengths)
            logits = self.out(drop(last_output(hs, lengths)[:, 0]))
            return Reading(logits, jnp.zeros((facts.shape[0], 0, facts.shape[1]), jnp.float32))

        mask = jnp.any(facts != PAD, axis=2)
        gaps = jnp.zeros_like(mask, jnp.int32)
        if key_noise is not None and self.config.noise > 0:
            gaps = (jax.random.bernoulli(key_noise, self.config.noise, mask.shape) & mask).astype(jnp.int32)
        age = jnp.minimum(ages(mask, gaps), self.config.longest - 1)
        n_fact, n_question = (jnp.sum(a != PAD, axis=-1, dtype=jnp.int32) for a in (facts, question))
        tables = zip(self.words, self.ages, strict=True)
        memories = [bag(words(facts), n_fact) + times(age) for words, times in tables]
        u, looks = bag(self.words[0](question), n_question), []
        for m, c in itertools.pairwise(memories):
            z = jnp.einsum("bd,bfd->bf", u, m)
            weights = softmax(z, mask)
            if linear is not False:
                weights = jnp.where(linear, jnp.where(mask, z, jnp.zeros_like(z)), weights)
            u = u + jnp.einsum("bf,bfd->bd", weights, c)
            looks.append(weights)
        return Reading(self.words[-1].attend(drop(u)), jnp.stack(looks, axis=1))
