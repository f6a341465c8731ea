"""What a generated text may be: rules on the logits of the next token, for sampling, greedy and beam search alike."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from seqjax.errors import InputError
from seqjax.types import Array


class Constraints(NamedTuple):
    """Rules for a text. The defaults allow every text, and cost nothing.

    All but ``repetition_penalty`` remove tokens. Where they remove every token, sampling and greedy search write 0
    (padding), and beam search drops the text.
    """

    min_length: ArrayLike | None = None
    """No ``eos`` among the first so many tokens."""
    prefix: ArrayLike | None = None
    """Integers ``[B, P]``: the tokens that row b begins with, whatever the other rules say; 0 leaves a place free, so
    rows may differ in length."""
    allowed: ArrayLike | Callable[[Array, Array], Array] | None = None
    """The tokens that may be written: bool ``[V]`` or ``[B, V]``, or a function ``(tokens [N, L], t) -> bool [N, V]``
    of the first t tokens of each text, which is called in a compiled loop: pass the same object every time."""
    no_repeat_ngram: int = 0
    """No n-gram of this many tokens comes twice in a text (Paulus et al., 2018); 0 allows all."""
    repetition_penalty: ArrayLike | None = None
    """Divides the logit of each token written before, if it is positive, else multiplies it (Keskar et al., 2019)."""


FREE = Constraints()


def check(constraints: Constraints, *, rows: int, vocab_size: int, max_length: int) -> None:
    """Raise InputError for rules that do not fit a batch of ``rows`` texts."""
    min_length, prefix, allowed, n, penalty = constraints
    unknown = Tracer, type(None)
    for name, value in (("no_repeat_ngram", n), ("min_length", min_length)):
        if not isinstance(value, unknown) and (
            np.ndim(value) or not np.issubdtype(np.result_type(value), np.integer) or np.asarray(value) < 0
        ):
            raise InputError(f"{name}={value}; it must be a whole number, at least 0.")
    if not isinstance(penalty, unknown) and (np.ndim(penalty) or not np.asarray(penalty) > 0):
        raise InputError(f"repetition_penalty={penalty}; it must be a number above 0 (above 1 avoids repetition).")
    if prefix is not None:
        shape, dtype = np.shape(prefix), jnp.result_type(prefix)
        if len(shape) != 2 or shape[0] != rows or shape[1] > max_length or not jnp.issubdtype(dtype, jnp.integer):
            raise InputError(
                f"prefix must be integers [{rows}, P] with P at most max_length={max_length}, not {dtype} {shape}"
            )
        if (
            not isinstance(prefix, Tracer)
            and np.size(prefix)
            and not 0 <= np.min(prefix) <= np.max(prefix) < vocab_size
        ):
            raise InputError(f"prefix has ids {np.min(prefix)} to {np.max(prefix)}; they must be in [0, {vocab_size})")
    if allowed is not None and not callable(allowed):
        shape, dtype = np.shape(allowed), jnp.result_type(allowed)
        if shape not in ((vocab_size,), (rows, vocab_size)) or not jnp.issubdtype(dtype, bool):
            raise InputError(
                f"allowed must be bool [{vocab_size}] or [{rows}, {vocab_size}] (True = may be written), "
                f"not {dtype} {shape}"
            )


def idle(constraints: Constraints) -> bool:
    """Whether there is no rule."""
    return constraints.no_repeat_ngram == 0 and all(rule is None for rule in constraints._replace(no_repeat_ngram=None))


def split(constraints: Constraints) -> tuple[Constraints, tuple]:
    """The arrays among the rules, and the rest: what jit traces, and what it compiles for."""
    rule = constraints.allowed if callable(constraints.allowed) else None
    arrays = constraints._replace(
        min_length=None if constraints.min_length is None else jnp.asarray(constraints.min_length, jnp.int32),
        prefix=None if constraints.prefix is None else jnp.asarray(constraints.prefix, jnp.int32),
        allowed=None if rule or constraints.allowed is None else jnp.asarray(constraints.allowed),
        no_repeat_ngram=0,
        repetition_penalty=None
        if constraints.repetition_penalty is None
        else jnp.asarray(constraints.repetition_penalty, jnp.float32),
    )
    return arrays, (constraints.no_repeat_ngram, rule)


def join(arrays: Constraints, static: tuple) -> Constraints:
    """What `split` took apart."""
    n, rule = static
    return arrays._replace(no_repeat_ngram=n, allowed=rule or arrays.allowed)


def constrain(constraints: Constraints, logits: Array, tokens: Array, t: Array, eos: int | None) -> Array:
    """The logits ``[N, V]`` of token t under the rules; removed tokens are -inf.

    Args:
      constraints: for B rows; N is a multiple of B, and the texts of a row stand together.
      tokens: ``[N, L]``, of which the first t are written.
      t: how many are written, a scalar.
      eos: the token that ends a text.

    >>> rules = Constraints(no_repeat_ngram=2, min_length=9)
    >>> print(constrain(rules, jnp.zeros((1, 4)), jnp.array([[1, 2, 1, 0]]), jnp.int32(3), eos=3))
    [[  0.   0. -inf -inf]]
    """
    min_length, prefix, allowed, n, penalty = constraints
    if penalty is not None:
        written = _mark(logits, tokens, jnp.arange(tokens.shape[1]) < t)
        penalty = jnp.asarray(penalty, logits.dtype)
        logits = jnp.where(written, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    unruled = logits
    if n > 0 and n <= tokens.shape[1]:
        logits = jnp.where(_mark(logits, tokens[:, n - 1 :], _repeats(tokens, t, n)), -jnp.inf, logits)
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    if min_length is not None and eos is not None:
        logits = jnp.where((ids == eos) & (t < min_length), -jnp.inf, logits)
    if allowed is not None:
        keep = allowed(tokens, t) if callable(allowed) else _rows(jnp.asarray(allowed), logits)
        logits = jnp.where(keep, logits, -jnp.inf)
    if prefix is not None and np.shape(prefix)[1] > 0:
        # Beyond its end a prefix leaves all places free.
        forced = _rows(jnp.take(jnp.asarray(prefix), t, axis=1, mode="fill", fill_value=0)[:, None], logits)
        logits = jnp.where(forced == 0, logits, jnp.where(ids == forced, unruled, -jnp.inf))
    return logits


def _rows(rule: Array, logits: Array) -> Array:
    """A rule [V], or [B, V|1] for B rows, for each of N texts: [N, V]."""
    rule = rule[None] if rule.ndim == 1 else rule
    if rule.shape[0] > 1:
        rule = jnp.repeat(rule, logits.shape[0] // rule.shape[0], axis=0)
    return jnp.broadcast_to(rule, logits.shape)


def _mark(logits: Array, tokens: Array, where: Array) -> Array:
    """Bool [N, V]: the tokens of each row, where ``where`` [N, L] or [L] is True."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros(logits.shape, bool).at[rows, tokens].max(jnp.broadcast_to(where, tokens.shape))


def _repeats(tokens: Array, t: Array, n: int) -> Array:
    """Bool [N, L-n+1]: the n - 1 tokens from there on are the last n - 1 written ones, and were followed by one."""
    starts = tokens.shape[1] - n + 1
    match = jnp.broadcast_to(jnp.arange(starts) + n - 1 < t, (tokens.shape[0], starts))
    for i in range(n - 1):
        last = jnp.take(tokens, jnp.maximum(t - (n - 1) + i, 0), axis=1)
        match &= tokens[:, i : i + starts] == last[:, None]
    return match
