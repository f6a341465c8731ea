"""Generation: compiled loops over any model that has ``step``.

    step(params, state, tokens [B]) -> (state, logits [B, V])

``state`` and the first logits come from the model's ``prefill``. A function is compiled once for each ``step``,
``max_length``, ``eos`` and shapes: pass the same function object every time, not a fresh lambda.

Here are `sample`, `greedy`, and `score` for given texts; `beam_search` is in `seqjax.beam`. All take `Constraints`, and
the ``step`` of one model or of an `ensemble`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from seqjax import constraints as rules
from seqjax.beam import Beams as Beams
from seqjax.beam import beam_search as beam_search
from seqjax.beam import check_loop
from seqjax.constraints import FREE
from seqjax.constraints import Constraints as Constraints
from seqjax.errors import InputError
from seqjax.kernels.top_k import top_k
from seqjax.types import Array, PRNGKey, PyTree, wide

Step = Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]]
Option = ArrayLike | None  # one value for all rows or [B], traced or not; None is off


class Samples(NamedTuple):
    """Generated tokens, one row each.

    ``tokens [B, max_length]`` int32, 0 (padding) after the end; ``scores [B]`` float32, the log-probability of the row
    under the model itself (temperature 1, nothing filtered); ``lengths [B]`` int32. All three include ``eos``.
    """

    tokens: Array
    scores: Array
    lengths: Array


def filter_logits(
    logits: Array, *, temperature: Option = 1.0, top_k: Option = None, top_p: Option = None, min_p: Option = None
) -> Array:
    """Reshape a distribution before sampling: temperature, then top-k, then top-p, then min-p; removed tokens are -inf.

    Temperature divides the logits; 0 keeps the argmax alone. Top-k (Fan et al. 2018) keeps exactly the k likeliest
    tokens, of equal ones those with lower ids. Top-p (nucleus, Holtzman et al. 2020) renormalises what is left, keeps
    the fewest likeliest tokens whose probabilities reach p, the one that crosses p included. Min-p (Nguyen et al. 2024)
    keeps tokens at least min_p times as likely as the likeliest. The likeliest token always stays.

    Each option is a scalar or ``[...]``, one for each row, traced or not; None costs nothing.

    Args:
      logits: ``[..., V]``.
      temperature: at least 0, finite.
      top_k: integers, at least 1; more than V keeps all.
      top_p: in (0, 1].
      min_p: in [0, 1].

    Returns:
      ``[..., V]``, float32, or float64 for float64 logits.

    Raises:
      InputError: an option has another shape or, where its value is known, is out of range.

    >>> print(filter_logits(jnp.array([1.0, 4.0, 3.0, 2.0]), temperature=0.5, top_k=2))
    [-inf   8.   6. -inf]
    """
    check_options(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, rows=logits.shape[:-1])
    logits = _lift(logits)
    ids = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)

    def column(option, dtype):
        return jnp.broadcast_to(jnp.asarray(option, dtype), logits.shape[:-1])[..., None]

    if temperature is not None:
        t = column(temperature, logits.dtype)
        best = lax.argmax(logits, logits.ndim - 1, jnp.int32)[..., None]
        logits = jnp.where((t > 0) | (ids == best), logits, -jnp.inf) / jnp.where(t > 0, t, 1)

    if top_k is not None or top_p is not None:
        order = jnp.argsort(logits, axis=-1, stable=True, descending=True)
        ranked = jnp.take_along_axis(logits, order, axis=-1)
        if top_k is not None:
            ranked = jnp.where(ids < column(top_k, jnp.int32), ranked, -jnp.inf)
        if top_p is not None:
            p = column(top_p, logits.dtype)
            probabilities = jax.nn.softmax(ranked, axis=-1)
            before = jnp.cumsum(probabilities, axis=-1) - probabilities
            # The sum may round to 1 before the last token.
            ranked = jnp.where((before < p) | (p >= 1), ranked, -jnp.inf)
        logits = jnp.take_along_axis(ranked, jnp.argsort(order, axis=-1), axis=-1)

    if min_p is not None:
        least = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(column(min_p, logits.dtype))
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def check_options(
    *,
    temperature: Option = None,
    top_k: Option = None,
    top_p: Option = None,
    min_p: Option = None,
    rows: tuple[int, ...] = (),
) -> None:
    """Raise InputError for an option of `filter_logits` out of range, or neither a scalar nor of the shape ``rows``.

    A traced value passes. For whoever wants to refuse before a model is loaded.
    """
    finite = "at least 0 and finite (0 takes the likeliest token)"
    valid = {
        "temperature": (temperature, lambda x: (x >= 0) & np.isfinite(x), finite),
        "top_k": (top_k, lambda x: (x >= 1) & (x == np.floor(x)), "at least 1 and whole (None keeps all tokens)"),
        "top_p": (top_p, lambda x: (x > 0) & (x <= 1), "above 0 and at most 1 (None keeps all tokens)"),
        "min_p": (min_p, lambda x: (x >= 0) & (x <= 1), "from 0 to 1 (None keeps all tokens)"),
    }
    for name, (value, holds, domain) in valid.items():
        if value is None:
            continue
        if np.shape(value) not in ((), rows):
            raise InputError(
                f"{name} must be a scalar or have the shape {rows}, one for each row, not {np.shape(value)}"
            )
        if not isinstance(value, Tracer) and not np.all(holds(np.asarray(value))):
            raise InputError(f"{name}={value}; it must be {domain}.")


def sample(
    step: Step,
    params: PyTree,
    state: PyTree,
    logits: Array,
    key: PRNGKey,
    *,
    max_length: int,
    temperature: Option = 1.0,
    top_k: Option = None,
    top_p: Option = None,
    min_p: Option = None,
    eos: int | None = None,
    constraints: Constraints = FREE,
) -> Samples:
    """Draw tokens until every row has drawn `eos` or has `max_length` of them.

    Token t of row b is drawn with ``fold_in(fold_in(key, b), t)``: a row does not depend on its batch neighbours.
    Inside ``shard_map`` rows are numbered in each shard: fold ``lax.axis_index`` into the key first.

    Args:
      step: the model, ``(params, state, tokens [B]) -> (state, logits [B, V])``; pass the same object every time.
      params: its parameters.
      state: what ``prefill`` returned.
      logits: ``[B, V]`` for the first token, also from ``prefill``.
      key: a typed key.
      max_length: the most tokens to draw.
      temperature: see `filter_logits`, as are `top_k`, `top_p` and `min_p`.
      top_k: how many of the likeliest tokens to keep.
      top_p: how much of the probability to keep.
      min_p: the least probability to keep, relative to the largest.
      eos: the token that ends a row.
      constraints: rules for the texts, applied to the logits before all else.

    Raises:
      InputError: `logits`, `max_length`, `eos`, an option or a rule is out of range.

    >>> bigram = lambda params, state, tokens: (state, params[tokens])
    >>> table = jnp.log(jnp.array([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]))
    >>> samples = sample(bigram, table, (), table[jnp.array([0, 0])], jax.random.key(0), max_length=6, eos=2)
    >>> print(samples.tokens)
    [[1 1 1 1 2 0]
     [1 2 0 0 0 0]]
    >>> print(samples.lengths, samples.scores / jnp.log(0.5))
    [5 2] [4. 1.]
    """
    _check_loop(logits, max_length, eos, constraints)
    check_options(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, rows=logits.shape[:-1])
    # One type for each, so that 1, 1.0 and numpy's numbers share a compiled program.
    options = {"temperature": temperature, "top_p": top_p, "min_p": min_p}
    options = {name: None if value is None else jnp.asarray(value, jnp.float32) for name, value in options.items()}
    options["top_k"] = None if top_k is None else jnp.asarray(top_k, jnp.int32)
    arrays, static = rules.split(constraints)
    return _sample(step, params, state, logits, key, options, arrays, max_length=max_length, eos=eos, static=static)


def greedy(
    step: Step,
    params: PyTree,
    state: PyTree,
    logits: Array,
    *,
    max_length: int,
    eos: int | None = None,
    constraints: Constraints = FREE,
) -> Samples:
    """Take the likeliest token, of equal ones that with the lowest id, until `eos` or `max_length`; see `sample`.

    Raises:
      InputError: `logits`, `max_length`, `eos` or a rule is out of range.
    """
    _check_loop(logits, max_length, eos, constraints)
    arrays, static = rules.split(constraints)
    return _greedy(step, params, state, logits, arrays, max_length=max_length, eos=eos, static=static)


def score(step: Step, params: PyTree, state: PyTree, logits: Array, tokens: Array, lengths: Array) -> Array:
    """The log-probability of each token of given texts, ``[B, L]`` float32, 0 after the end (forced decoding).

        log_prob_t = log_softmax(logits_t)[token_t]

    Their sum is what `sample` and `greedy` give as score, and `beam_search` as log-probability.

    Args:
      step: the model, as in `sample`, as are `params`, `state` and `logits`.
      tokens: int ``[B, L]``.
      lengths: int ``[B]``.

    Raises:
      InputError: the shapes do not fit.

    >>> bigram = lambda params, state, tokens: (state, params[tokens])
    >>> table = jnp.log(jnp.array([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]))
    >>> print(jnp.exp(score(bigram, table, (), table[:1], jnp.array([[1, 1, 2, 0]]), jnp.array([3]))))
    [[0.5 0.5 0.5 1. ]]
    """
    if logits.ndim != 2 or tokens.ndim != 2 or tokens.shape[0] != logits.shape[0] or lengths.shape != tokens.shape[:1]:
        raise InputError(
            f"tokens {tokens.shape} and lengths {lengths.shape} do not fit logits {logits.shape}; pass [B, L], [B] and "
            "[B, V]"
        )
    if tokens.shape[1] == 0:
        return jnp.zeros(tokens.shape, jnp.float32)
    return _score(step, params, state, logits, tokens, lengths)


def ensemble(function: Callable) -> Callable:
    """``prefill`` or ``step`` of several sets of weights at once, whose probabilities are averaged.

        logits = log mean_m softmax(logits_m)

    ``(params, state, tokens, *rest) -> (state, logits)`` as before, where each array of ``params`` has the members
    first, ``[M, …]``, and each array of the state has them second, ``[B, M, …]``; scalars of the state are common to
    all. Call it once for each function, and pass the result every time.

    >>> bigram = ensemble(lambda params, state, tokens: (state, params[tokens]))
    >>> tables = jnp.log(jnp.array([[[0.5, 0.5]], [[1.0, 0.0]]]))
    >>> print(jnp.exp(bigram(tables, (), jnp.array([0]))[1]))
    [[0.75 0.25]]
    """

    def averaged(params, state, *arguments):
        def members(tree):
            return jax.tree.map(lambda a: 1 if jnp.ndim(a) else None, tree)

        one = jax.tree.map(lambda a: a[0], params), jax.tree.map(lambda a: a[:, 0] if jnp.ndim(a) else a, state)
        after = members(jax.eval_shape(function, *one, *arguments)[0])
        axes = 0, members(state), *(None for _ in arguments)
        state, logits = jax.vmap(function, in_axes=axes, out_axes=(after, 0))(params, state, *arguments)
        return state, mixture(logits)

    return averaged


def mixture(logits: Array) -> Array:
    """``log mean_m softmax(logits_m)``, the mean of the distributions of M models: [M, ..., V] -> [..., V].

    >>> print(jnp.exp(mixture(jnp.log(jnp.array([[0.5, 0.5], [1.0, 0.0]])))))
    [0.75 0.25]
    """
    log_probs = jax.nn.log_softmax(_lift(logits), axis=-1)
    return jax.nn.logsumexp(log_probs, axis=0) - np.log(log_probs.shape[0]).astype(log_probs.dtype)


@partial(jax.jit, static_argnames=("step", "max_length", "eos", "static"))
def _sample(step, params, state, logits, key, options, arrays, *, max_length, eos, static):
    # The zeros give the row numbers the sharding of the batch.
    rows = jnp.arange(logits.shape[0]) + jnp.zeros_like(logits[:, 0], dtype=int)
    row_keys = jax.vmap(partial(jax.random.fold_in, key))(rows)
    constraints = rules.join(arrays, static)

    def choose(t, logits, tokens):
        logits = rules.constrain(constraints, logits, tokens, t, eos)
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, t)
        return jax.vmap(jax.random.categorical)(keys, filter_logits(logits, **options))

    return _generate(step, choose, params, state, logits, max_length, eos)


@partial(jax.jit, static_argnames=("step", "max_length", "eos", "static"))
def _greedy(step, params, state, logits, arrays, *, max_length, eos, static):
    def choose(t, logits, tokens):
        return top_k(rules.constrain(rules.join(arrays, static), logits, tokens, t, eos), 1)[1][:, 0]

    return _generate(step, choose, params, state, logits, max_length, eos)


@partial(jax.jit, static_argnames="step")
def _score(step, params, state, logits, tokens, lengths):
    def read(logits, token):
        log_probs = jax.nn.log_softmax(_lift(logits), axis=-1)
        return jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0].astype(jnp.float32)

    def body(state, tokens):
        before, token = tokens
        state, logits = step(params, state, before)
        return state, read(logits, token)

    first = read(logits, tokens[:, 0])[None]
    _, rest = lax.scan(body, state, (tokens.T[:-1], tokens.T[1:]))
    written = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    return jnp.where(written, jnp.concatenate([first, rest]).T, 0)


def _generate(step, choose, params, state, logits, max_length, eos) -> Samples:
    """Run the loop; ``choose(t, logits [B, V], tokens [B, max_length]) -> tokens [B]``."""

    def draw(t, logits, tokens):
        logits = _lift(logits)
        token = choose(t, logits, tokens).astype(jnp.int32)
        score = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), token[:, None], axis=-1)[:, 0]
        done = jnp.zeros_like(token, bool) if eos is None else token == eos
        return token, score.astype(jnp.float32), done

    def unfinished(carry):
        t, _, _, done, _ = carry
        return (t < max_length) & ~jnp.all(done)

    def body(carry):
        t, state, token, done, (tokens, scores, lengths) = carry
        state, logits = step(params, state, token)
        drawn, score, ended = draw(t, logits, tokens)
        token = jnp.where(done, 0, drawn)
        scores = jnp.where(done, scores, scores + score)
        samples = Samples(tokens.at[:, t].set(token), scores, lengths + (~done).astype(jnp.int32))
        return t + 1, state, token, done | ended, samples

    # The first token is drawn outside: the last one then needs no step.
    blank = jnp.broadcast_to(jnp.zeros_like(logits[:, :1], jnp.int32), (logits.shape[0], max_length))
    token, score, done = draw(jnp.int32(0), logits, blank)
    first = Samples(blank.at[:, 0].set(token), score, jnp.ones_like(token))
    *_, samples = lax.while_loop(unfinished, body, (jnp.int32(1), state, token, done, first))
    return samples


def _lift(logits):
    return logits.astype(wide(logits.dtype))


def _check_loop(logits, max_length, eos, constraints):
    check_loop(logits, max_length, eos)
    rules.check(constraints, rows=logits.shape[0], vocab_size=logits.shape[-1], max_length=max_length)
