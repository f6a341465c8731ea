"""Linear-chain conditional random fields (Lafferty et al., 2001): distributions over the tags of whole sequences.

    score(tags) = b_start[tags_1] + Σ_t scores_t[tags_t] + Σ_{t>1} w_transition[tags_{t-1}, tags_t] + b_end[tags_n]
    p(tags)     = exp(score(tags) - log Z),   log Z = log Σ exp(score) over all sequences of n tags

Everything is time-major: ``scores [T, B, Y]``, of each of Y tags at each step, as any network gives them; ``tags
[T, B]``; and integers ``lengths [B]`` between 0 and T, beyond which both may be anything, NaN included. A sequence of
length 0 has one tagging, with score 0. Numbers are float32, or float64 for float64 scores; they must be finite: what
may not be is forbidden by `constrain`.

    params = crf.init(key, Y)
    loss, weight = crf.negative_log_likelihood(params, scores, tags, lengths)
    tags, score = crf.viterbi(params, scores, lengths)
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from seqjax.errors import InputError
from seqjax.kernels.rules import steps_per_iteration
from seqjax.kernels.stepping import select
from seqjax.kernels.top_k import top_k
from seqjax.metrics.spans import SCHEMES as SPAN_SCHEMES
from seqjax.types import Array, PRNGKey, wide

FORBIDDEN = -1e4
"""The score of what `constrain` forbids: far below all others, and float32 still has three decimals there."""

SCHEMES = SPAN_SCHEMES | {"IOB1": "BI"}
"""The letters before a type, of each scheme. O, for words outside all spans, has no type."""


class CRF(NamedTuple):
    """Scores of pairs of tags; and of the first and the last tag."""

    w_transition: Array  # [Y, Y], from, to
    b_start: Array  # [Y]
    b_end: Array  # [Y]


AXES = CRF._make((P(None, None), P(None), P(None)))
"""What the axes mean, see `seqjax.nn.logical_axes`: whole on every device, for they are small."""


def init(key: PRNGKey, n_tags: int, *, dtype=jnp.float32) -> CRF:
    """Parameters for Y = ``n_tags`` tags: transitions uniform in ±0.1, the rest 0.

    Raises:
      InputError: there are no tags.
    """
    if n_tags < 1:
        raise InputError(f"n_tags={n_tags}; there must be at least one tag.")
    w = jax.random.uniform(key, (n_tags, n_tags), dtype, -0.1, 0.1)
    return CRF(w, jnp.zeros(n_tags, dtype), jnp.zeros(n_tags, dtype))


@jax.jit
def score(params: CRF, scores: Array, tags: Array, lengths: Array) -> Array:
    """The score of given tags, ``[B]``.

        score = b_start[tags_1] + Σ_t scores_t[tags_t] + Σ_{t>1} w_transition[tags_{t-1}, tags_t] + b_end[tags_n]

    Args:
      params: see `CRF`.
      scores: ``[T, B, Y]``.
      tags: integers in ``[0, Y)``, ``[T, B]``; one outside of it, before the row's length, gives NaN.
      lengths: integers ``[B]``.

    Raises:
      InputError: shapes do not fit, or tags or lengths are not integers.

    >>> scores, lengths = jnp.array([[[1.0, 2.0]], [[3.0, 5.0]]]), jnp.array([2])
    >>> print(score(CRF(jnp.eye(2), jnp.zeros(2), jnp.zeros(2)), scores, jnp.array([[1], [1]]), lengths))
    [8.]
    """
    params, scores, lengths, valid = _prepare(params, scores, lengths)
    if tags.shape != valid.shape or not jnp.issubdtype(tags.dtype, jnp.integer):
        raise InputError(f"tags must be integers [T, B] = {valid.shape}, not {tags.dtype} {tags.shape}")
    # One-hot vectors instead of indices: products have a derivative without a scatter, and go over any mesh.
    hot = tags[:, :, None] == jnp.arange(scores.shape[2], dtype=tags.dtype)[None, None]
    start = jnp.zeros_like(scores[:1]) + params.b_start[None, None]
    before = jnp.concatenate([start, hot[:-1].astype(scores.dtype) @ params.w_transition])
    is_last = jnp.arange(valid.shape[0], dtype=lengths.dtype)[:, None] == lengths[None] - 1
    after = jnp.where(is_last[:, :, None], params.b_end[None, None], 0)
    steps = jnp.sum(jnp.where(hot, scores + before + after, 0), axis=2)
    steps = jnp.where(jnp.any(hot, axis=2), steps, jnp.nan)
    return jnp.sum(jnp.where(valid, steps, 0), axis=0)


def log_partition(params: CRF, scores: Array, lengths: Array, *, implementation: str | None = None) -> Array:
    """log Z, the logarithm of the sum of exp(score) over all taggings, ``[B]``.

        α_1 = b_start + scores_1
        α_t[j] = scores_t[j] + log Σ_i exp(α_{t-1}[i] + w_transition[i, j])
        log Z = log Σ_j exp(α_n[j] + b_end[j])

    Args:
      params: see `CRF`.
      scores: ``[T, B, Y]``.
      lengths: integers ``[B]``.
      implementation: None is what was the fastest at every length: on a CPU "fused", on a GPU "associative".
        "scan": the equations above in `lax.scan`, differentiable in every mode, the reference;
        "fused": each step is one product of matrices, ``exp(α - max α) exp(w_transition)``, and so is each step back;
          reverse mode only. Where that product loses digits, which takes scores some 70 apart (in float32), "scan" is
          run instead; under ``vmap`` over parameters both are;
        "associative": a tree of products of matrices [Y, Y] in the log semiring (Särkkä and García-Fernández, 2021):
          log₂ T steps instead of T, each with Y times the work, and memory for 2 T B Y² numbers.

    Raises:
      InputError: shapes do not fit, lengths are not integers, or there is no such implementation.

    >>> params = CRF(jnp.zeros((2, 2)), jnp.zeros(2), jnp.zeros(2))
    >>> print(jnp.exp(log_partition(params, jnp.zeros((3, 2, 2)), jnp.array([3, 1]))).round(3))  # 2³ and 2 taggings
    [8. 2.]
    """
    if implementation not in {None, *IMPLEMENTATIONS}:
        raise InputError(f"implementation={implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)} or None.")
    return _log_partition(params, scores, lengths, implementation=implementation)


# jit, so that a call outside of jit compiles once and not at every call; inside jit it is inlined.
@partial(jax.jit, static_argnames="implementation")
def _log_partition(params, scores, lengths, *, implementation) -> Array:
    params, scores, lengths, valid = _prepare(params, scores, lengths)
    # Plus a zero, which XLA drops: under shard_map the gradient is then summed over devices once, after all steps.
    w = params.w_transition + jnp.sum(jnp.zeros_like(scores))
    first = scores[0] + params.b_start[None]
    chosen = implementation or ("associative" if jax.default_backend() == "gpu" else "fused")
    last = IMPLEMENTATIONS[chosen](w, first, scores[1:], valid[1:])
    return jnp.where(lengths > 0, jax.nn.logsumexp(last + params.b_end[None], axis=1), 0)


def negative_log_likelihood(
    params: CRF, scores: Array, tags: Array, lengths: Array, *, implementation: str | None = None
) -> tuple[Array, Array]:
    """``(Σ log Z - score(tags), number of tokens)``, in nats.

    The weight is the number of tokens, Σ lengths, not of sequences: so the loss is as large as the cross-entropy of
    single tags, and learning rates that suit one suit the other. Arguments and errors are those of `score`, and of
    `log_partition`.

    >>> params = CRF(jnp.zeros((2, 2)), jnp.zeros(2), jnp.zeros(2))
    >>> scores, tags = jnp.zeros((3, 2, 2)), jnp.zeros((3, 2), int)
    >>> total, weight = negative_log_likelihood(params, scores, tags, jnp.array([3, 1]))
    >>> print(f"{total / weight:.4f} = log 2 = {np.log(2):.4f}, {weight:.0f} tokens")
    0.6931 = log 2 = 0.6931, 4 tokens
    """
    log_z = log_partition(params, scores, lengths, implementation=implementation)
    total = jnp.sum(log_z - score(params, scores, tags, lengths))
    return total, jnp.sum(jnp.clip(lengths, 0, scores.shape[0])).astype(total.dtype)


def marginals(params: CRF, scores: Array, lengths: Array, *, implementation: str | None = None) -> Array:
    """p(tags_t = j), ``[T, B, Y]``; 0 past the lengths.

        p(tags_t = j) = ∂ log Z / ∂ scores_t[j]

    The derivative is the forward-backward algorithm, so nothing else is written here: these are the numbers with which
    the network is trained. Arguments and errors are those of `log_partition`.

    >>> params = CRF(jnp.array([[0.0, -1e4], [-1e4, 0.0]]), jnp.zeros(2), jnp.zeros(2))
    >>> p = marginals(params, jnp.log(jnp.array([[[3.0, 1.0]], [[1.0, 1.0]]])), jnp.array([2]))
    >>> print(f"{p[0, 0, 0]:.2f}, {p[1, 0, 0]:.2f}")  # the second step alone leaves it open
    0.75, 0.75
    """
    total = lambda scores: jnp.sum(log_partition(params, scores, lengths, implementation=implementation))  # noqa: E731
    return jax.grad(total)(scores.astype(wide(scores.dtype)))


@jax.jit
def viterbi(params: CRF, scores: Array, lengths: Array) -> tuple[Array, Array]:
    """The tagging with the greatest score (Viterbi, 1967): ``(tags [T, B] int32, score [B])``.

        δ_1 = b_start + scores_1,   δ_t[j] = scores_t[j] + max_i (δ_{t-1}[i] + w_transition[i, j])
        tags_n = argmax_j (δ_n[j] + b_end[j]),   tags_{t-1} = argmax_i (δ_{t-1}[i] + w_transition[i, tags_t])

    There are no pointers: on the way back only the best tag before the one that was chosen is looked for, in δ. Of
    equally good tags the first is taken. Past the lengths tags are 0.

    Args:
      params: see `CRF`.
      scores: ``[T, B, Y]``.
      lengths: integers ``[B]``.

    Raises:
      InputError: shapes do not fit, or lengths are not integers.

    >>> params = CRF(jnp.array([[0.0, -9.0], [-9.0, 0.0]]), jnp.zeros(2), jnp.zeros(2))
    >>> tags, best = viterbi(params, jnp.array([[[3.0, 1.0]], [[0.0, 1.0]]]), jnp.array([2]))
    >>> print(tags[:, 0], best)
    [0 0] [3.]
    """
    params, scores, lengths, valid = _prepare(params, scores, lengths)
    w = params.w_transition

    # The first step is one like the others, with b_start for what came before: so T may be open (`jax.export`).
    def forward(delta, inputs):
        is_first, scores, valid = inputs
        moved = jnp.where(is_first, params.b_start[None], jnp.max(delta[:, :, None] + w[None], axis=1))
        return select(valid, scores + moved, delta), delta

    def backward(tag, inputs):
        delta, valid = inputs
        before = jnp.argmax(delta + w.T[tag], axis=1).astype(jnp.int32)
        return jnp.where(valid, before, tag), tag

    last, deltas = lax.scan(forward, jnp.zeros_like(scores[0]), (_is_first(valid), scores, valid))
    last += params.b_end[None]
    _, tags = lax.scan(backward, jnp.argmax(last, axis=1).astype(jnp.int32), (deltas, valid), reverse=True)
    return jnp.where(valid, tags, 0), jnp.where(lengths > 0, jnp.max(last, axis=1), 0)


@partial(jax.jit, static_argnames="k")
def k_best(params: CRF, scores: Array, lengths: Array, k: int) -> tuple[Array, Array]:
    """The k taggings with the greatest scores, best first: ``(tags [B, k, T] int32, scores [B, k])``.

    No tagging comes twice. Where there are fewer than k, scores are -inf and tags 0, as tags are past the lengths. What
    `constrain` forbids comes after all that is allowed, each violation with a score lower by `FORBIDDEN`.

    Args:
      params: see `CRF`.
      scores: ``[T, B, Y]``.
      lengths: integers ``[B]``.
      k: at least 1, static; time grows with it as Y² k.

    Raises:
      InputError: shapes do not fit, lengths are not integers, or k is below 1.

    >>> params = CRF(jnp.zeros((2, 2)), jnp.zeros(2), jnp.zeros(2))
    >>> tags, best = k_best(params, jnp.array([[[3.0, 1.0]], [[0.0, 0.5]]]), jnp.array([2]), 3)
    >>> print(tags[0].tolist(), best[0])
    [[0, 1], [0, 0], [1, 1]] [3.5 3.  1.5]
    """
    if k < 1:
        raise InputError(f"k={k}; it must be at least 1.")
    params, scores, lengths, valid = _prepare(params, scores, lengths)
    batch, n_tags = scores.shape[1:]
    moves = params.w_transition.T[None, :, :, None]

    def forward(delta, inputs):
        """δ [B, Y, k], of the k best taggings that end with each tag; and where each came from, tag · k + rank."""
        is_first, scores, valid = inputs
        paths = delta[:, None] + moves  # to, from, rank
        best, place = top_k(paths.reshape(batch * n_tags, n_tags * k), k)
        best = jnp.where(is_first, start[None], best.reshape(batch, n_tags, k)) + scores[:, :, None]
        return select(valid, best, delta), place.reshape(batch, n_tags * k)

    def backward(place, inputs):
        places, valid = inputs
        return select(valid, jnp.take_along_axis(places, place, axis=1), place), place // k

    one = jnp.where(jnp.arange(k) == 0, 0, -jnp.inf).astype(scores.dtype)
    start = params.b_start[:, None] + one[None]
    delta, places = lax.scan(
        forward, jnp.zeros_like(scores[0])[:, :, None] + one[None, None], (_is_first(valid), scores, valid)
    )
    best, place = top_k((delta + params.b_end[None, :, None]).reshape(batch, n_tags * k), k)
    _, tags = lax.scan(backward, place, (places, valid), reverse=True)
    tags = jnp.moveaxis(tags, 0, 2)
    best = jnp.where(lengths[:, None] > 0, best, one[None])
    return jnp.where(valid.T[:, None] & (best > -jnp.inf)[:, :, None], tags, 0), best


def _is_first(valid: Array) -> Array:
    return jnp.arange(valid.shape[0]) == 0


# --- constraints


def allowed_transitions(labels: Sequence[str], scheme: str = "BIO") -> CRF:
    """Which tags may follow each other, begin and end a sequence: bools in the form of `CRF`, for `constrain`.

        BIO (IOB2)     B begins a span, I continues it
        BIOES (IOBES)  E ends a span of several words, S is a span of one
        IOB1           I begins and continues a span, B begins one right after another of its type

    Args:
      labels: the name of each tag: O, or a letter, a hyphen and the type of the span.
      scheme: "BIO", "BIOES" or "IOB1".

    Raises:
      InputError: there is no such scheme, or a label is none of it.

    >>> labels = ["O", "B-PER", "I-PER", "I-LOC"]
    >>> allowed = allowed_transitions(labels)
    >>> [label for label, may in zip(labels, allowed.w_transition[1]) if may]  # after B-PER
    ['O', 'B-PER', 'I-PER']
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme={scheme!r}: there is no such scheme; choose one of {', '.join(SCHEMES)}.")
    for label in labels:
        if label != "O" and not (label[:1] in SCHEMES[scheme] and label[1:2] == "-" and label[2:]):
            letters = ", ".join(SCHEMES[scheme])
            raise InputError(f"label {label!r}: is none of {scheme}; write O, or one of {letters} and -TYPE.")

    def follows(before: str, after: str) -> bool:
        same = before[1:] == after[1:] and before != "O"
        if scheme == "IOB1":
            return after[0] != "B" or same
        if scheme == "BIO":
            return after[0] != "I" or same
        inside = before[0] in "BI"
        return (after[0] in "IE") == inside and (same or not inside)

    # The edges of a sequence are like words outside.
    transitions = [[follows(before, after) for after in labels] for before in labels]
    starts, ends = [follows("O", label) for label in labels], [follows(label, "O") for label in labels]
    return CRF(*(jnp.asarray(np.array(a, bool)) for a in (transitions, starts, ends)))


def constrain(params: CRF, allowed: CRF) -> CRF:
    """Parameters with which what is not ``allowed`` has score `FORBIDDEN`, and gradient 0.

    So forbidden sequences have probability 0 in float32, unless all are forbidden; and a forbidden sequence among the
    training data has a finite loss. Apply it in the loss as in `viterbi`, or in `viterbi` alone.

    >>> params = constrain(init(jax.random.key(0), 2), allowed_transitions(["O", "I-PER"], "BIO"))
    >>> print(params.w_transition[0, 1], params.b_start)
    -10000.0 [     0. -10000.]
    """
    return jax.tree.map(lambda keep, a: jnp.where(keep, a, jnp.asarray(FORBIDDEN, a.dtype)), allowed, params)


# --- the implementations: (w [Y, Y], α_1 [B, Y], scores [T - 1, B, Y], valid [T - 1, B]) -> α_n [B, Y]


def _scan(w: Array, alpha: Array, scores: Array, valid: Array) -> Array:
    """Computed again on the way back: else there would be Y² numbers for each token."""

    @jax.checkpoint
    def step(w, alpha, scores):
        return scores + jax.nn.logsumexp(alpha[:, :, None] + w[None], axis=1)

    def body(alpha, inputs):
        scores, valid = inputs
        return select(valid, step(w, alpha, scores), alpha), None

    return lax.scan(body, alpha, (scores, valid))[0]


def _fused(w: Array, alpha: Array, scores: Array, valid: Array) -> Array:
    last, least = _products(w, alpha, scores, valid)
    # Terms that became 0 are below `tiny`. Beside sums of this size they would have been rounded away as well.
    info = jnp.finfo(last.dtype)
    return lax.cond(least > info.tiny / info.eps, lambda: last, lambda: _scan(w, alpha, scores, valid))


@jax.custom_vjp
def _products(w: Array, alpha: Array, scores: Array, valid: Array) -> tuple[Array, Array]:
    """α_n, and the least of the sums s of which logarithms were taken.

        e[i, j] = exp(w[i, j] - max_i w[i, j])
        p = exp(α_{t-1} - max α_{t-1}),   s = p e,   α_t = scores_t + max_i w[i, :] + max α_{t-1} + log s

    and back, with g = ∂ log Z / ∂ α, which for t = n are the marginals of the last tag:

        h = g_t / s,   g_{t-1} = p (h eᵀ),   dscores_t = g_t,   dw = e Σ_t pᵀ h

    Each column of e has its own maximum: so a tag that nothing may precede is as exact as others. The maxima cancel
    out, and count as constants also in second derivatives.
    """
    return _products_forward(w, alpha, scores, valid)[0]


def _top(a: Array, axis: int) -> Array:
    return lax.stop_gradient(jnp.max(a, axis=axis, keepdims=True))


def _unroll(valid: Array) -> int:
    return steps_per_iteration(max(1, len(valid)))


def _products_forward(w, alpha, scores, valid):
    greatest = _top(w, 0)
    e = jnp.exp(w - greatest)

    def body(alpha, inputs):
        scores, valid = inputs
        top = _top(alpha, 1)
        p = jnp.exp(alpha - top)
        s = p @ e
        return select(valid, scores + (top + jnp.log(s)), alpha), (p, s)

    last, (p, s) = lax.scan(body, alpha, (scores + greatest[None], valid), unroll=_unroll(valid))
    least = jnp.min(jnp.where(valid[:, :, None], s, 1), initial=1)
    return (last, least), (w, p, s, valid)


def _products_backward(residuals, cotangents):
    w, p, s, valid = residuals
    g, _ = cotangents
    transposed = jnp.exp(w - _top(w, 0)).T
    # Where a sum is 0 the result is not used, and g is 0: it must not meet an infinity.
    inverse = jnp.where(valid[:, :, None] & (s > jnp.finfo(s.dtype).tiny), 1 / s, 0)

    def body(g, inputs):
        p, inverse, valid = inputs
        return select(valid, p * ((g * inverse) @ transposed), g), g

    first, gs = lax.scan(body, g, (p, inverse, valid), reverse=True, unroll=_unroll(valid))
    # One product of all steps, as the derivative of one: so it is right on every mesh.
    _, pull = jax.vjp(lambda w: p @ jnp.exp(w - _top(w, 0)), w)
    return *pull(gs * inverse), first, jnp.where(valid[:, :, None], gs, 0), None


_products.defvjp(_products_forward, _products_backward)


def _associative(w: Array, alpha: Array, scores: Array, valid: Array) -> Array:
    """Only the product of all matrices is needed, not those of all beginnings, which `lax.associative_scan` gives."""

    @jax.checkpoint
    def times(a, b):
        return jax.nn.logsumexp(a[..., :, :, None] + b[..., None, :, :], axis=-2)

    # -inf would be NaN in the derivative. Padding is the matrix that changes nothing.
    one = jnp.where(jnp.eye(w.shape[0], dtype=bool), 0, -1e30).astype(w.dtype)
    steps = jnp.where(valid[:, :, None, None], w[None, None] + scores[:, :, None, :], one[None, None])
    while (n := steps.shape[0]) > 1:
        pairs = times(steps[: n - n % 2 : 2], steps[1::2])
        steps = jnp.concatenate([pairs, steps[n - n % 2 :]])
    if not n:
        return alpha
    return jax.nn.logsumexp(alpha[:, :, None] + steps[0], axis=1)


IMPLEMENTATIONS = {"scan": _scan, "fused": _fused, "associative": _associative}


def _prepare(params: CRF, scores: Array, lengths: Array) -> tuple[CRF, Array, Array, Array]:
    """All in one dtype, scores with 0 for padding, lengths within the sequence, which steps are valid [T, B]."""
    if scores.ndim != 3 or scores.shape[0] == 0 or not jnp.issubdtype(scores.dtype, jnp.floating):
        raise InputError(f"scores must be floats [T, B, Y] with T of at least 1, not {scores.dtype} {scores.shape}")
    steps, batch, n = scores.shape
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InputError(f"lengths must be integers [B] = ({batch},), not {lengths.dtype} {lengths.shape}")
    if (found := tuple(a.shape for a in params)) != ((n, n), (n,), (n,)):
        raise InputError(
            f"params have shapes {found}, which do not fit scores of {n} tags: make them with init(key, {n})"
        )
    dtype = wide(scores.dtype)
    lengths = jnp.clip(lengths.astype(jnp.int32), 0, steps)
    valid = jnp.arange(steps, dtype=jnp.int32)[:, None] < lengths[None]
    # Before the first operation: 0 · NaN is NaN.
    scores = jnp.where(valid[:, :, None], scores.astype(dtype), 0)
    return CRF(*(a.astype(dtype) for a in params)), scores, lengths, valid
