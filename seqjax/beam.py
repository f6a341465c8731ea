"""Beam search: the likeliest texts of any model that has ``step``, for a whole batch in one compiled loop."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqjax import constraints as rules
from seqjax.caching import BeamCache, Cache, Shared
from seqjax.constraints import FREE, Constraints
from seqjax.errors import InputError
from seqjax.kernels.top_k import top_k
from seqjax.types import Array, PyTree, wide


class Beams(NamedTuple):
    """The ``n_best`` texts of each row, best first.

    ``tokens [B, n_best, max_length]`` int32, 0 after the end; ``scores [B, n_best]``, by which they are ordered;
    ``lengths [B, n_best]`` int32; ``log_probs [B, n_best]``, the log-probability of each text under the model itself;
    ``attention [B, n_best, max_length, S]``, the weights with which each token was written, where they were asked for.
    All include ``eos``. Where there are fewer texts than ``n_best``, the score is -inf and the length 0.
    """

    tokens: Array
    scores: Array
    lengths: Array
    log_probs: Array
    attention: Array | None


class _Texts(NamedTuple):
    """Texts [B, n, …]: unfinished ones with the sums they are ranked by, or finished ones with their scores."""

    tokens: Array
    scores: Array
    lengths: Array
    log_probs: Array
    attention: Array | None


class _Options(NamedTuple):
    """What a search is compiled for."""

    max_length: int
    eos: int | None
    beam_size: int
    n_best: int
    length_penalty: str
    strategy: str
    stop: str
    attention: Callable | None
    keep_attention: bool


def beam_search(
    step: Callable,
    params: PyTree,
    state: PyTree,
    logits: Array,
    *,
    max_length: int,
    eos: int | None = None,
    beam_size: int = 5,
    n_best: int = 1,
    length_penalty: str = "none",
    alpha: float | Array = 1.0,
    coverage_penalty: float | Array = 0.0,
    attention: Callable[[PyTree], Array] | None = None,
    alignments: bool = False,
    constraints: Constraints = FREE,
    strategy: str = "gather",
    stop: str = "exact",
) -> Beams:
    """Keep the ``beam_size`` likeliest beginnings, token by token: ``tokens, scores, lengths …``, best first.

        score = log p(text) / lp(n) + coverage_penalty Σ_s log min(Σ_t attention_ts, 1)
        lp(n) = 1 ("none"),   n^alpha ("average"),   ((5 + n) / 6)^alpha ("wu": Wu et al., 2016)

    n counts ``eos``. At each step every beginning is continued by every token; of all continuations that end with
    ``eos``, those among the ``beam_size`` likeliest are finished, and the ``beam_size`` likeliest others go on. The
    beginnings are ranked by log p alone; a text cut off at ``max_length`` counts like a finished one.

    A row is done at ``max_length``, or, with ``stop``

        "exact": when n_best texts are finished, and no unfinished one can beat the worst of them, even if all its
                 further tokens have probability 1: lp at ``max_length`` for alpha > 0, else at the next length;
        "first": when beam_size texts are finished.

    So one beginning ("first", beam_size 1) is greedy search, and as many as there are texts is the exact maximum.

    Args:
      step: the model, ``(params, state, tokens [N]) -> (state, logits [N, V])``; pass the same object every time. It
        gets N = B · beam_size rows, those of one row of the batch together. Leaves of the state have the rows first, or
        are scalars, the same for all; what is in a `seqjax.caching.Shared` keeps B rows.
      params: its parameters.
      state: what ``prefill`` returned.
      logits: ``[B, V]`` for the first token, also from ``prefill``.
      max_length: the most tokens to write.
      eos: the token that ends a text; None never ends one.
      beam_size: how many beginnings are kept.
      n_best: how many texts are returned, at most ``beam_size``.
      length_penalty: lp.
      alpha: its exponent, traced or not.
      coverage_penalty: at least 0, traced or not; needs ``attention``.
      attention: ``state -> [N, S]``, the weights of the last step, 0 for padding; the same object every time. What
        never gets any weight counts as padding, also where a softmax in float32 rounds to 0.
      alignments: return the weights.
      constraints: see `Constraints`; tokens they remove are not renormalised, so that ``log_probs`` are the model's.
        With a repetition penalty, texts are ranked by the penalised distribution.
      strategy: how the keys and values of a `seqjax.caching.Cache` follow their beginnings: "gather" copies them at
        each step; "ancestry" leaves them, and each beginning looks at the columns that its ancestors wrote.
      stop: see above.

    Raises:
      InputError: an option is out of range or does not fit.

    >>> import numpy as np
    >>> bigram = lambda params, state, tokens: (state, params[tokens])
    >>> table = jnp.log(jnp.array([[0.0, 0.6, 0.4, 0.0], [0.0, 0.3, 0.3, 0.4], [0.0, 0.1, 0.0, 0.9], [1.0, 0, 0, 0]]))
    >>> beams = beam_search(bigram, table, (), table[:1], max_length=3, eos=3, beam_size=2, n_best=2)
    >>> print(beams.tokens[0], np.exp(beams.scores[0]).round(2))
    [[2 3 0]
     [1 3 0]] [0.36 0.24]
    """
    rows, vocab_size = _check(logits, max_length, eos, beam_size, n_best, length_penalty, strategy, stop)
    if isinstance(coverage_penalty, int | float) and coverage_penalty < 0:
        raise InputError(f"coverage_penalty={coverage_penalty}; it must be at least 0.")
    covered = not (isinstance(coverage_penalty, int | float) and coverage_penalty == 0)
    if (covered or alignments) and attention is None:
        raise InputError(
            "coverage_penalty and alignments need attention, a function of the state that gives the weights."
        )
    rules.check(constraints, rows=rows, vocab_size=vocab_size, max_length=max_length)
    arrays, static = rules.split(constraints)
    looks = attention if covered or alignments else None
    sizes = max_length, eos, beam_size, n_best
    options = _Options(*sizes, length_penalty, strategy, stop, looks, alignments)
    weights = jnp.asarray(alpha, jnp.float32), jnp.asarray(coverage_penalty, jnp.float32) if covered else None
    return _search(step, params, state, logits, arrays, weights, static=static, options=options)


@partial(jax.jit, static_argnames=("step", "static", "options"))
def _search(step, params, state, logits, arrays, weights, *, static, options: _Options) -> Beams:
    constraints = rules.join(arrays, static)
    alpha, beta = weights
    batch, width, length = logits.shape[0], options.beam_size, options.max_length

    def penalty(n):
        return _length_penalty(options.length_penalty, alpha, n)

    def final(texts: _Texts, n) -> Array:
        scores = texts.scores / penalty(n)
        if beta is None or texts.attention is None:
            return scores
        covered = jnp.sum(texts.attention, axis=2)
        logs = jnp.where(covered > 0, jnp.log(jnp.minimum(jnp.where(covered > 0, covered, 1), 1)), 0)
        return scores + beta * jnp.sum(logs, axis=-1)

    def choose(t, state, logits, live: _Texts, finished: _Texts, done):
        """Write token t: the state in the order of the new live texts, these, the finished ones, who is done."""
        logits = logits.astype(wide(logits.dtype))
        log_probs, ranked = _log_probs(constraints, logits, live.tokens.reshape(batch * width, length), t, options.eos)
        vocab_size = logits.shape[-1]
        scores = live.scores[:, :, None] + ranked.astype(jnp.float32).reshape(batch, width, vocab_size)
        scores, place = top_k(scores.reshape(batch, width * vocab_size), min(2, vocab_size) * width)
        parent, token = jnp.divmod(place, vocab_size)
        own = jnp.take_along_axis(log_probs.reshape(batch, width * vocab_size), place, axis=1)

        candidates = _pick(live, parent)
        candidates = candidates._replace(
            tokens=candidates.tokens.at[:, :, t].set(token),
            scores=scores,
            lengths=jnp.full_like(token, 1) * (t + 1),
            log_probs=candidates.log_probs + own.astype(jnp.float32),
        )
        if options.attention is not None and candidates.attention is not None:
            seen = options.attention(state).reshape(batch, width, -1)
            seen = jnp.take_along_axis(seen, parent[:, :, None], axis=1)
            candidates = candidates._replace(attention=candidates.attention.at[:, :, t].set(seen))

        ended = jnp.zeros_like(token, bool) if options.eos is None else token == options.eos
        first = jnp.arange(token.shape[1]) < width
        ends = ended & first[None] & ~done[:, None] & jnp.isfinite(scores)
        finished = _merge(finished, candidates._replace(scores=jnp.where(ends, final(candidates, t + 1), -jnp.inf)))
        going = jnp.where(ended, -jnp.inf, scores)
        order = lax.top_k(going, width)[1]
        live = _pick(candidates._replace(scores=going), order)
        done = done | is_done(t + 1, live, finished)
        return _reorder(state, jnp.take_along_axis(parent, order, axis=1)), live, finished, done

    def is_done(n, live: _Texts, finished: _Texts):
        best = jnp.max(live.scores, axis=1)
        if options.stop == "first":
            return jnp.all(jnp.isfinite(finished.scores), axis=1) | ~jnp.isfinite(best)
        return finished.scores[:, -1] >= best / penalty(jnp.where(alpha > 0, length, jnp.minimum(n + 1, length)))

    def unfinished(carry):
        t, _, _, _, done = carry
        return (t < length) & ~jnp.all(done)

    def body(carry):
        t, state, live, finished, done = carry
        last = jnp.take(live.tokens, t - 1, axis=2).reshape(-1)
        state, logits = step(params, state, last)
        return t + 1, *choose(t, state, logits, live, finished, done)

    state = _expand(state, batch, width, options.strategy)
    # Zeros that have the sharding of the batch.
    zeros = jnp.broadcast_to(jnp.zeros_like(logits[:, :1], jnp.float32), (batch, width))
    live = _empty(zeros, length, state, options)
    live = live._replace(scores=jnp.where(jnp.arange(width)[None] == 0, zeros, -jnp.inf))
    kept = width if options.stop == "first" else options.n_best
    finished = _empty(zeros[:, :kept] - jnp.inf, length, state, options)
    logits = jnp.repeat(logits, width, axis=0)
    # The first token is chosen outside: the last one then needs no step.
    carry = jnp.int32(1), *choose(jnp.int32(0), state, logits, live, finished, jnp.zeros_like(zeros[:, 0], bool))
    t, _, live, finished, done = lax.while_loop(unfinished, body, carry)
    cut = jnp.isfinite(live.scores) & ~done[:, None]
    beams = _merge(finished, live._replace(scores=jnp.where(cut, final(live, t), -jnp.inf)))
    beams = _pick(beams, jnp.broadcast_to(jnp.arange(options.n_best)[None], (batch, options.n_best)))
    real = jnp.isfinite(beams.scores)
    return Beams(
        jnp.where(real[:, :, None], beams.tokens, 0),
        beams.scores,
        jnp.where(real, beams.lengths, 0),
        jnp.where(real, beams.log_probs, -jnp.inf),
        beams.attention if options.keep_attention else None,
    )


def _length_penalty(kind: str, alpha: Array, n) -> Array:
    n = jnp.asarray(n, jnp.float32)
    return {"none": jnp.ones_like(n), "average": n**alpha, "wu": ((5 + n) / 6) ** alpha}[kind]


def _log_probs(constraints, logits, tokens, t, eos) -> tuple[Array, Array]:
    """``[N, V]``: the model's own log-probabilities, and those that texts are ranked by."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    if rules.idle(constraints):
        return log_probs, log_probs
    if constraints.repetition_penalty is None:
        return log_probs, rules.constrain(constraints, log_probs, tokens, t, eos)
    penalised = rules.constrain(Constraints(repetition_penalty=constraints.repetition_penalty), logits, tokens, t, eos)
    constraints = constraints._replace(repetition_penalty=None)
    return log_probs, rules.constrain(constraints, jax.nn.log_softmax(penalised, axis=-1), tokens, t, eos)


def _empty(scores, length, state, options: _Options) -> _Texts:
    """Texts without a token."""
    zeros = jnp.zeros_like(scores, jnp.int32)
    attention = None
    if options.attention is not None:
        weights = options.attention(state)
        attention = jnp.zeros((*scores.shape, length, weights.shape[-1]), weights.dtype)
    tokens = jnp.broadcast_to(zeros[:, :, None], (*scores.shape, length))
    return _Texts(tokens, scores, zeros, jnp.zeros_like(scores), attention)


def _pick(texts: _Texts, index: Array) -> _Texts:
    """The texts at ``index`` [B, m]."""
    return jax.tree.map(
        lambda a: jnp.take_along_axis(a, index.reshape(index.shape + (1,) * (a.ndim - 2)), axis=1), texts
    )


def _merge(best: _Texts, more: _Texts) -> _Texts:
    """The best of both, as many as there were; of equal ones the first."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), best, more)
    return _pick(both, lax.top_k(both.scores, best.scores.shape[1])[1])


def _special(node) -> bool:
    return isinstance(node, Shared | Cache | BeamCache)


def _expand(state: PyTree, batch: int, width: int, strategy: str) -> PyTree:
    """``width`` rows of everything that is not shared."""

    def wide(node):
        if isinstance(node, Shared):
            return node
        if isinstance(node, Cache) and strategy == "ancestry":
            return BeamCache.of(node, width)
        return jax.tree.map(lambda a: jnp.repeat(a, width, axis=0) if jnp.ndim(a) else a, node)

    sizes = {
        a.shape[0] for node in jax.tree.leaves(state, is_leaf=_special) for a in jax.tree.leaves(node) if jnp.ndim(a)
    }
    if sizes - {batch}:
        raise InputError(
            f"state has leaves of {sorted(sizes)} rows for logits of {batch}; its arrays must have the batch first, or "
            "be scalars"
        )
    return jax.tree.map(wide, state, is_leaf=_special)


def _reorder(state: PyTree, parent: Array) -> PyTree:
    """The rows of the parents [B, W], which become those of their children."""

    def move(a):
        # Within each row of the batch, so that a sharded batch stays where it is.
        return jax.vmap(lambda a, p: a[p])(a.reshape(*parent.shape, *a.shape[1:]), parent).reshape(a.shape)

    def moved(node):
        if isinstance(node, Shared):
            return node
        if isinstance(node, BeamCache):
            return node._replace(rows=move(node.rows))
        return jax.tree.map(lambda a: move(a) if jnp.ndim(a) else a, node)

    return jax.tree.map(moved, state, is_leaf=_special)


def check_loop(logits: Array, max_length: int, eos: int | None) -> None:
    """Raise `InputError` for what no loop over tokens can work with."""
    if logits.ndim != 2:
        raise InputError(f"logits must be [B, V], the last ones of the prompt, not {logits.shape}")
    if max_length < 1:
        raise InputError(f"max_length={max_length}; it must be at least 1.")
    if eos is not None and not 0 <= eos < logits.shape[-1]:
        raise InputError(f"eos must be a token id in [0, {logits.shape[-1]}), not {eos}; None never stops early")


def _check(logits, max_length, eos, beam_size, n_best, length_penalty, strategy, stop) -> tuple[int, int]:
    check_loop(logits, max_length, eos)
    for name, value in (("beam_size", beam_size), ("n_best", n_best)):
        if value < 1:
            raise InputError(f"{name}={value}; it must be at least 1.")
    if n_best > beam_size:
        raise InputError(f"n_best={n_best} texts need a beam_size of as many, not {beam_size}; raise it.")
    choices = {
        "length_penalty": (length_penalty, ("none", "average", "wu")),
        "strategy": (strategy, ("gather", "ancestry")),
        "stop": (stop, ("exact", "first")),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise InputError(f"{name}={value!r}; choose from {', '.join(known)}.")
    return logits.shape
