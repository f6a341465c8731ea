"""Losses. Each returns ``(sum, weight)``: the caller divides once, over the global batch."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from seqjax.errors import InputError
from seqjax.kernels.linear_cross_entropy import check, check_linear, kept, weighted_sum, weights
from seqjax.kernels.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from seqjax.types import Array, PRNGKey, wide


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    where: Array | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
) -> tuple[Array, Array]:
    """Cross-entropy of integer targets, in nats, with label smoothing and z-loss.

        lse  = log Σ_v exp(logits_v)
        loss = lse - (1 - s) logits_target - s mean_v(logits_v) + z lse²

    which is the cross-entropy to ``(1 - s) onehot(target) + s/V`` (Szegedy et al. 2016) plus the penalty that keeps
    ``lse`` near 0 (Devlin et al. 2014; the name is PaLM's, Chowdhery et al. 2022). Computed in float32, or in float64
    for float64 logits.

    Args:
      logits: ``[..., V]``.
      targets: integers in ``[0, V)``, ``[...]``; one outside of it gives NaN, unless its ``where`` is 0.
      where: ``[...]``, bool (True = keep) or weights. Where it is 0, logits and targets may be anything, NaN included.
      label_smoothing: s, a scalar, traced or not.
      z_loss: z, a scalar, traced or not.

    Returns:
      ``(Σ where·loss, Σ where)``.

    Raises:
      InputError: targets are not integers, or the shapes do not fit.

    >>> total, weight = cross_entropy(jnp.zeros((2, 3, 8)), jnp.zeros((2, 3), int))
    >>> print(f"{total / weight:.4f} = log 8 = {math.log(8):.4f}")
    2.0794 = log 8 = 2.0794
    """
    check(targets, where)
    if logits.ndim == 0 or logits.shape[:-1] != targets.shape:
        raise InputError(
            f"logits {logits.shape} do not fit targets {targets.shape}: pass logits [..., V] and targets [...]"
        )

    dtype = wide(logits.dtype)
    smoothing, z = jnp.asarray(label_smoothing, dtype), jnp.asarray(z_loss, dtype)
    weight, index = weights(targets, where, logits.shape[-1], dtype)

    # Masked logits are replaced before the first operation, not only after the last: 0 · NaN is NaN in the gradient.
    masked = kept(weight, logits).astype(dtype)
    lse = jax.nn.logsumexp(masked, axis=-1)
    # Taken from `logits`, since a gather from `masked` would write that array out.
    target = jnp.take_along_axis(logits, index[..., None], axis=-1, mode="fill", fill_value=jnp.nan).squeeze(-1)
    stats = lse, kept(weight, target).astype(dtype), jnp.mean(masked, axis=-1)
    return weighted_sum(stats, weight, smoothing, z), jnp.sum(weight)


def binary_cross_entropy(
    logits: Array, targets: Array, *, where: Array | None = None, label_smoothing: ArrayLike = 0.0
) -> tuple[Array, Array]:
    """Cross-entropy of independent yes-or-no questions, in nats: of labels that do not exclude each other.

        t    = (1 - s) target + s / 2
        loss = softplus(logit) - t logit   =   -t log σ(logit) - (1 - t) log σ(-logit)

    Computed in float32, or in float64 for float64 logits.

    Args:
      logits: ``[...]``.
      targets: ``[...]``, bool or probabilities.
      where: ``[...]``, bool (True = keep) or weights. Where it is 0, logits and targets may be anything, NaN included.
      label_smoothing: s, a scalar, traced or not.

    Returns:
      ``(Σ where·loss, Σ where)``.

    Raises:
      InputError: the shapes do not fit.

    >>> total, weight = binary_cross_entropy(jnp.zeros((2, 3)), jnp.ones((2, 3), bool))
    >>> print(f"{total / weight:.4f} = log 2 = {math.log(2):.4f}")
    0.6931 = log 2 = 0.6931
    """
    if logits.shape != targets.shape or (where is not None and where.shape != targets.shape):
        shapes = targets.shape, None if where is None else where.shape
        raise InputError(f"logits {logits.shape}, targets and where {shapes} must have one shape; broadcast them")
    dtype = wide(logits.dtype)
    weight = jnp.ones(logits.shape, dtype) if where is None else where.astype(dtype)
    # Before the first operation: 0 · NaN is NaN.
    z, t = (jnp.where(weight != 0, x.astype(dtype), jnp.zeros_like(weight)) for x in (logits, targets))
    s = jnp.asarray(label_smoothing, dtype)
    return jnp.sum(weight * (jax.nn.softplus(z) - ((1 - s) * t + s / 2) * z)), jnp.sum(weight)


def coverage(attention: Array, *, where: Array | None = None) -> tuple[Array, Array]:
    """What attention looks at again, to be added to the loss of a summariser (See et al., 2017).

        loss_t = Σ_s min(a_ts, Σ_{t' < t} a_t's)

    It is 0 while every step looks elsewhere, and 1 for a step that only repeats.

    Args:
      attention: ``[B, T, S]``, weights of each step.
      where: ``[B, T]``, bool (True = keep) or weights.

    Returns:
      ``(Σ where·loss, Σ where)``.

    Raises:
      InputError: the shapes do not fit.

    >>> print(coverage(jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]])))
    (Array(1., dtype=float32), Array(3., dtype=float32))
    """
    if attention.ndim != 3 or (where is not None and where.shape != attention.shape[:2]):
        shape = None if where is None else where.shape
        raise InputError(f"attention must be [B, T, S] and where [B, T], not {attention.shape} and {shape}")
    attention = attention.astype(wide(attention.dtype))
    weight = jnp.ones(attention.shape[:2]) if where is None else where
    weight = weight.astype(attention.dtype)
    before = jnp.cumsum(attention, axis=1) - attention
    return jnp.sum(weight[..., None] * jnp.minimum(attention, before)), jnp.sum(weight)


def log_uniform(key: PRNGKey, vocab_size: int, n: int) -> tuple[Array, Array]:
    """Draw ``n`` ids of a vocabulary sorted by falling frequency, by Zipf's law, with replacement.

        q(v) = log((v + 2) / (v + 1)) / log(V + 1)

    the proposal of `sampled_softmax` and `nce` where the words' counts are not known.

    Returns:
      ``(ids [n], log q [V])``.

    >>> ids, log_q = log_uniform(jax.random.key(0), 1000, 5)
    >>> print(ids.shape, f"{jnp.exp(log_q).sum():.3f}")
    (5,) 1.000
    """
    if vocab_size < 1 or n < 1:
        raise InputError(f"vocab_size={vocab_size} and n={n} must be at least 1")
    ids = jnp.exp(jax.random.uniform(key, (n,)) * math.log(vocab_size + 1)).astype(jnp.int32) - 1
    log_q = jnp.log(jnp.log1p(1 / jnp.arange(1, vocab_size + 1, dtype=jnp.float32)) / math.log(vocab_size + 1))
    return jnp.clip(ids, 0, vocab_size - 1), log_q


def sampled_softmax(
    hidden: Array,
    table: Array,
    targets: Array,
    negatives: Array,
    *,
    log_q: Array,
    bias: Array | None = None,
    where: Array | None = None,
) -> tuple[Array, Array]:
    """Cross-entropy in which sampled words stand for the vocabulary (Bengio and Senécal 2008; Jean et al. 2015).

        score_v = hidden · table_v + bias_v
        Z       = exp(score_target) + Σ_{k ≠ target} exp(score_k - log(S q_k)),   k over the S negatives
        loss    = log Z - score_target

    S q_k is how often word k is expected among the negatives, so Z is an unbiased estimate of the softmax's, and the
    loss and its gradient tend to those of the full softmax (Blanc and Rendle 2018). A negative that is the target (an
    accidental hit) is left out. For training only: evaluate with `linear_cross_entropy`.

    Args:
      hidden: ``[..., D]``. Where ``where`` is 0 it may be anything, NaN included.
      table: ``[V, D]``. Only S + N rows are read, but its gradient is an array ``[V, D]``.
      targets: integers in ``[0, V)``, ``[...]``; one outside of it gives NaN, unless its ``where`` is 0.
      negatives: ids ``[S]``, shared by all tokens, such as `log_uniform` draws.
      log_q: ``[V]``, the log-probability of each word under the distribution the negatives are drawn from.
      bias: ``[V]``.
      where: ``[...]``, bool (True = keep) or weights.

    Returns:
      ``(Σ where·loss, Σ where)``.

    Raises:
      InputError: targets or negatives are not integers, or the shapes do not fit.

    >>> key = jax.random.key(0)
    >>> negatives, log_q = log_uniform(key, 1000, 64)
    >>> hidden, table, targets = jnp.ones((2, 3, 4)), jax.random.normal(key, (1000, 4)), jnp.ones((2, 3), int)
    >>> total, weight = sampled_softmax(hidden, table, targets, negatives, log_q=log_q)
    """
    true, false, _, log_count, _ = _sampled(hidden, table, targets, negatives, log_q, bias, where)
    false -= jnp.broadcast_to(log_count, false.shape)
    hit = jnp.expand_dims(targets, -1) == negatives.reshape((1,) * targets.ndim + negatives.shape)
    logits = jnp.concatenate([true[..., None], jnp.where(hit, -jnp.inf, false)], axis=-1)
    return cross_entropy(logits, jnp.zeros_like(targets), where=where)


def nce(
    hidden: Array,
    table: Array,
    targets: Array,
    negatives: Array,
    *,
    log_q: Array,
    bias: Array | None = None,
    where: Array | None = None,
) -> tuple[Array, Array]:
    """Noise-contrastive estimation (Gutmann and Hyvärinen 2010; Mnih and Teh 2012).

        score_v = hidden · table_v + bias_v
        Δ_v     = score_v - log(S q_v)
        loss    = -log σ(Δ_target) - Σ_k log σ(-Δ_k),   k over the S negatives

    which tells the target from S words of noise. Its optimum is ``score_v = log p(v)``: scores learn to be normalised.

    Args:
      hidden: ``[..., D]``. Where ``where`` is 0 it may be anything, NaN included.
      table: ``[V, D]``. Only S + N rows are read, but its gradient is an array ``[V, D]``.
      targets: integers in ``[0, V)``, ``[...]``; one outside of it gives NaN, unless its ``where`` is 0.
      negatives: ids ``[S]``, shared by all tokens, such as `log_uniform` draws.
      log_q: ``[V]``, the log-probability of each word under the distribution the negatives are drawn from.
      bias: ``[V]``; start at ``-log V``, so that scores begin nearly normalised.
      where: ``[...]``, bool (True = keep) or weights.

    Returns:
      ``(Σ where·loss, Σ where)``.

    Raises:
      InputError: targets or negatives are not integers, or the shapes do not fit.

    >>> hidden, table, targets = jnp.zeros((2, 3, 4)), jnp.ones((8, 4)), jnp.ones((2, 3), int)
    >>> log_q = jnp.full(8, -math.log(8))
    >>> total, weight = nce(hidden, table, targets, jnp.arange(8), log_q=log_q)
    >>> print(f"{total / weight:.4f} = 9 log 2 = {9 * math.log(2):.4f}")
    6.2383 = 9 log 2 = 6.2383
    """
    true, false, log_true, log_false, weight = _sampled(hidden, table, targets, negatives, log_q, bias, where)
    true -= log_true
    false -= jnp.broadcast_to(log_false, false.shape)
    loss = jax.nn.softplus(-true) + jnp.sum(jax.nn.softplus(false), axis=-1)
    return jnp.sum(weight * loss), jnp.sum(weight)


class AdaptiveTail(NamedTuple):
    """Weights for one cluster of an adaptive softmax."""

    w_down: Array  # [D, d_i]
    w_out: Array  # [V_i, d_i]


class AdaptiveParams(NamedTuple):
    """Weights of an adaptive softmax: the head scores the most frequent words and the clusters of all others."""

    w_head: Array  # [V_0 + n, D]
    tails: tuple[AdaptiveTail, ...]  # n of them


def init_adaptive(
    key: PRNGKey, d_hidden: int, cutoffs: Sequence[int], *, ratio: int = 4, dtype=jnp.float32
) -> AdaptiveParams:
    """Weights for `adaptive_cross_entropy`, fan-in scaled; cluster i works in ``d_i = d_hidden / ratioⁱ`` dimensions.

    Args:
      key: a random key.
      d_hidden: D.
      cutoffs: where the head and each cluster end, such as ``(2000, 10000, 50000)``; the last is V.
      ratio: by how much the dimension falls from each cluster to the next.
      dtype: of the weights.

    Raises:
      InputError: cutoffs do not rise from above 0.
    """
    sizes = np.diff(cutoffs, prepend=0).tolist()
    if len(sizes) < 2 or min(sizes) < 1:
        raise InputError(f"cutoffs {tuple(cutoffs)} must be at least two numbers that rise from above 0; the last is V")
    init = jax.nn.initializers.lecun_normal()
    transposed = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
    key_head, *keys = jax.random.split(key, len(sizes))

    def tail(i: int, key: PRNGKey) -> AdaptiveTail:
        key_down, key_out = jax.random.split(key)
        d = max(1, d_hidden // ratio**i)
        return AdaptiveTail(init(key_down, (d_hidden, d), dtype), transposed(key_out, (sizes[i], d), dtype))

    head = transposed(key_head, (sizes[0] + len(sizes) - 1, d_hidden), dtype)
    return AdaptiveParams(head, tuple(tail(i, key) for i, key in enumerate(keys, 1)))


def adaptive_cross_entropy(
    params: AdaptiveParams, hidden: Array, targets: Array, *, cutoffs: Sequence[int], where: Array | None = None
) -> tuple[Array, Array]:
    """Cross-entropy of an adaptive softmax (Grave et al. 2017), for words sorted by falling frequency.

        p(v) = softmax(hidden w_headᵀ)_v                                            v < cutoffs_0
        p(v) = softmax(hidden w_headᵀ)_(cluster i) softmax(hidden w_down_i w_out_iᵀ)_v    elsewhere, in cluster i

    Every cluster is computed for all tokens and counts where the target lies in it: with shapes that are known
    beforehand no token can be left out. A token costs ``D (V_0 + n) + Σ_i d_i (D + V_i)`` products instead of ``D V``,
    and no more memory than in `linear_cross_entropy`, which does the work.

    Args:
      params: as `init_adaptive` makes them, for the same cutoffs.
      hidden: ``[..., D]``. Where ``where`` is 0 it may be anything, NaN included.
      targets: integers in ``[0, V)``, ``[...]``; one outside of it gives NaN, unless its ``where`` is 0.
      cutoffs: where the head and each cluster end; the last is V.
      where: ``[...]``, bool (True = keep) or weights.

    Returns:
      ``(Σ where·loss, Σ where)``.

    Raises:
      InputError: targets are not integers, or the shapes do not fit.

    >>> params = init_adaptive(jax.random.key(0), 16, (4, 10, 30))
    >>> hidden, targets = jnp.ones((2, 3, 16)), jnp.full((2, 3), 20)
    >>> total, _ = adaptive_cross_entropy(params, hidden, targets, cutoffs=(4, 10, 30))
    >>> log_p = adaptive_log_probs(params, hidden, cutoffs=(4, 10, 30))
    >>> print(jnp.allclose(total, -log_p[..., 20].sum()))
    True
    """
    check(targets, where)
    _check_adaptive(params, cutoffs)
    weight, _ = weights(targets, where, cutoffs[-1], wide(hidden.dtype))
    hidden = kept(weight, hidden)
    in_head = jnp.where(targets < cutoffs[-1], targets, len(params.w_head))
    for i, (begin, end) in enumerate(itertools.pairwise(cutoffs)):
        in_head = jnp.where((targets >= begin) & (targets < end), cutoffs[0] + i, in_head)
    total, count = linear_cross_entropy(hidden, params.w_head, in_head, where=weight)
    for tail, (begin, end) in zip(params.tails, itertools.pairwise(cutoffs), strict=True):
        inside = jnp.where((targets >= begin) & (targets < end), weight, 0)
        low = hidden @ tail.w_down.astype(hidden.dtype)
        total += linear_cross_entropy(low, tail.w_out, targets - begin, where=inside)[0]
    return total, count


def adaptive_log_probs(params: AdaptiveParams, hidden: Array, *, cutoffs: Sequence[int]) -> Array:
    """Log-probabilities of all words under an adaptive softmax, ``[..., V]``, for decoding.

    Raises:
      InputError: params were made for other cutoffs.

    >>> params = init_adaptive(jax.random.key(0), 16, (4, 10, 30))
    >>> log_p = adaptive_log_probs(params, jnp.ones((2, 16)), cutoffs=(4, 10, 30))
    >>> print(log_p.shape, f"{jnp.exp(log_p[0]).sum():.3f}")
    (2, 30) 1.000
    """
    _check_adaptive(params, cutoffs)
    head = jax.nn.log_softmax(_product(hidden, params.w_head))
    parts = [head[..., : cutoffs[0]]]
    for i, tail in enumerate(params.tails, cutoffs[0]):
        inside = jax.nn.log_softmax(_product(hidden @ tail.w_down.astype(hidden.dtype), tail.w_out))
        parts.append(inside + jnp.broadcast_to(head[..., i : i + 1], inside.shape))
    return jnp.concatenate(parts, axis=-1)


def bits(nats: ArrayLike) -> ArrayLike:
    """Convert nats to bits.

    >>> bits(math.log(8))
    3.0
    """
    return nats / math.log(2)


def perplexity(nats: ArrayLike) -> Array:
    """Perplexity of a mean loss in nats per token, ``exp(nats)``.

    >>> print(f"{perplexity(math.log(50)):.2f}")
    50.00
    """
    return jnp.exp(nats)


def _check_adaptive(params: AdaptiveParams, cutoffs: Sequence[int]) -> None:
    sizes = np.diff(cutoffs, prepend=0).tolist()
    found = [len(params.w_head) - len(params.tails), *(len(tail.w_out) for tail in params.tails)]
    if sizes != found:
        raise InputError(
            f"cutoffs {tuple(cutoffs)} do not fit params, which are for {tuple(np.cumsum(found).tolist())}: "
            "pass those that init_adaptive got"
        )


def _product(hidden: Array, table: Array) -> Array:
    """``hidden tableᵀ`` in the dtype of ``hidden``, added up in float32 at least."""
    dtype = wide(hidden.dtype)
    return jnp.matmul(hidden, table.T.astype(hidden.dtype), preferred_element_type=dtype)


def _sampled(hidden, table, targets, negatives, log_q, bias, where) -> tuple[Array, Array, Array, Array, Array]:
    """The scores of targets [...] and negatives [..., S], the logs of their expected counts [...] and [S], weights."""
    check(targets, where)
    check(negatives, None, "negatives")
    check_linear(hidden, table, targets, bias)
    if negatives.ndim != 1 or log_q.shape != table.shape[:1]:
        raise InputError(f"negatives {negatives.shape} and log_q {log_q.shape} must be [S] and [V], V = {len(table)}")
    if negatives.size == 0:
        raise InputError("there are no negatives; draw at least one, for example with log_uniform")
    dtype = wide(hidden.dtype)
    weight, index = weights(targets, where, len(table), dtype)
    hidden = kept(weight, hidden)
    rows = table.at[index].get(mode="fill", fill_value=jnp.nan)
    true = jnp.sum(hidden.astype(dtype) * rows.astype(dtype), axis=-1)
    false = _product(hidden, table[negatives])
    if bias is not None:
        true += bias.astype(dtype)[index]
        false += jnp.broadcast_to(bias.astype(dtype)[negatives], false.shape)
    log_count = log_q.astype(dtype) + math.log(len(negatives))
    return true, false, log_count[index], log_count[negatives], weight
