"""GloVe: word vectors whose products fit the logarithms of co-occurrence counts (Pennington, Socher and Manning, 2014).

A record is a cell of the co-occurrence matrix: a word, a context and their count x. The loss of a record is

    ½ f(x) (word · context + b_word + b_context - log x)²,    f(x) = min(1, x / x_max) ** alpha

and AdaGrad with learning rate 1 minimizes the sum. Its sums of squares begin at 1 / eta² for vectors and at 1 for
biases: so it is in the authors' program, which multiplies the gradients of the vectors by eta before it squares them.
eta slows the first steps only.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from seqjax.embeddings.counts import Cooccurrence, cooccurrence
from seqjax.embeddings.streaming import Progress, Saver
from seqjax.embeddings.vectors import WordVectors, check_finite
from seqjax.embeddings.vocabulary import Corpus, Vocabulary, count_words, make_vocabulary
from seqjax.errors import InputError, check_least
from seqjax.types import Array, Float, Int, PRNGKey

BLOCK = 16
"""Records of one word that are trained together: the word's row is then read and written once, not 16 times."""

_BATCHES = 4096  # at most, in one call to the device
_RECORDS = 1 << 22  # sorted into blocks at once, so that it needs little memory


@dataclass(frozen=True)
class GloVeConfig:
    """How `train_glove` counts and trains; the defaults are those of the authors' program, but for the size (50)."""

    vector_size: int = 100
    window: int = 15
    """Words to either side; a context at distance d counts 1 / d."""
    min_count: int = 5
    max_final_vocab: int | None = None
    """At most so many words, the most frequent."""
    x_max: float = 100.0
    """From this count on, all records weigh the same. The authors take 10 for a corpus of 17 million words, text8."""
    alpha: float = 0.75
    eta: float = 0.05
    epochs: int = 25
    batch_size: int = 1024
    """Records an update; a multiple of 16."""
    add_contexts: bool = True
    """The result is the sum of word and context vectors; otherwise the word vectors alone."""

    def __post_init__(self):
        check_least(self, vector_size=1, window=1, min_count=1, epochs=1, batch_size=1)
        for name in ("x_max", "eta"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)}; it must be above 0")
        if not self.alpha >= 0:
            raise InputError(f"alpha={self.alpha}; it must be at least 0, where all records weigh the same")
        if self.batch_size % BLOCK:
            raise InputError(f"batch_size={self.batch_size}; it must be a multiple of {BLOCK}")


class GloVeParams(NamedTuple):
    """What is trained."""

    words: Array  # [V, D]
    contexts: Array  # [V, D]
    b_words: Array  # [V]
    b_contexts: Array  # [V]


class GloVeState(NamedTuple):
    """Parameters and AdaGrad's sums of squared gradients."""

    params: GloVeParams
    squares: GloVeParams


def init_glove(key: PRNGKey, n_words: int, vector_size: int, *, eta: ArrayLike = 0.05) -> GloVeState:
    """Parameters uniform in ±½ / vector_size, and AdaGrad's state before the first step."""
    shapes, keys = ((n_words, vector_size),) * 2 + ((n_words,),) * 2, jax.random.split(key, 4)
    draws = (jax.random.uniform(k, shape, jnp.float32, -0.5, 0.5) for k, shape in zip(keys, shapes, strict=True))
    first = 1 / jnp.square(jnp.asarray(eta, jnp.float32))
    squares = (jnp.full(x, start, jnp.float32) for x, start in zip(shapes, (first, first, 1.0, 1.0), strict=True))
    return GloVeState(GloVeParams(*(draw / vector_size for draw in draws)), GloVeParams(*squares))


def glove_loss(
    params: GloVeParams,
    rows: Int[Array, "N"],
    cols: Int[Array, "N"],
    values: Float[Array, "N"],
    *,
    x_max: ArrayLike = 100.0,
    alpha: ArrayLike = 0.75,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss of records, and their number; those whose value is 0 do not count.

    >>> params = GloVeParams(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.zeros(2), jnp.zeros(2))
    >>> total, weight = glove_loss(params, jnp.array([0]), jnp.array([1]), jnp.array([100.0]))
    >>> print(f"{total / weight:.4f} = {0.5 * (3 - np.log(100)) ** 2:.4f}")
    1.2883 = 1.2883
    """
    weights, targets = _targets(values, x_max, alpha)
    products = jnp.sum(params.words[rows] * params.contexts[cols], axis=-1)
    errors = products + params.b_words[rows] + params.b_contexts[cols] - targets
    return jnp.sum(weights * jnp.square(errors)) / 2, jnp.sum(values > 0).astype(values.dtype)


def glove_step(
    state: GloVeState,
    rows: Int[Array, "B"],
    cols: Int[Array, "B L"],
    values: Float[Array, "B L"],
    *,
    x_max: ArrayLike = 100.0,
    alpha: ArrayLike = 0.75,
) -> tuple[GloVeState, tuple[Float[Array, ""], Float[Array, ""]]]:
    """One AdaGrad step on B·L records, and their loss before it. Block b holds L records of the word ``rows[b]``.

        g_k      = the gradient of record k
        squares += Σ_k g_k²
        params  -= Σ_k g_k / sqrt(squares)

    The squares come first (in the authors' program they come last), so that a step has a bound, however many records
    of the batch share a row: no entry of it is larger than the square root of their number.
    """
    params, squares = state
    weights, targets = _targets(values, x_max, alpha)
    words, contexts = params.words[rows], params.contexts[cols]  # [B, D], [B, L, D]
    errors = jnp.einsum("bd,bld->bl", words, contexts) - targets
    errors += params.b_words[rows][:, None] + params.b_contexts[cols]
    e = weights * errors  # the gradient of the biases
    g_contexts = e[..., None] * words[:, None]

    squares = GloVeParams(
        squares.words.at[rows].add(jnp.einsum("bl,bld->bd", jnp.square(e), jnp.square(contexts))),
        squares.contexts.at[cols].add(jnp.square(g_contexts)),
        squares.b_words.at[rows].add(jnp.sum(jnp.square(e), axis=1)),
        squares.b_contexts.at[cols].add(jnp.square(e)),
    )
    params = GloVeParams(
        params.words.at[rows].add(-jnp.einsum("bl,bld->bd", e, contexts) * lax.rsqrt(squares.words[rows])),
        params.contexts.at[cols].add(-g_contexts * lax.rsqrt(squares.contexts[cols])),
        params.b_words.at[rows].add(-jnp.sum(e, axis=1) * lax.rsqrt(squares.b_words[rows])),
        params.b_contexts.at[cols].add(-e * lax.rsqrt(squares.b_contexts[cols])),
    )
    loss = jnp.sum(e * errors) / 2, jnp.sum(values > 0).astype(values.dtype)
    return GloVeState(params, squares), loss


def _targets(values: Array, x_max: ArrayLike, alpha: ArrayLike) -> tuple[Array, Array]:
    """f(x) and log x; 0 and 0 where x is 0."""
    x_max, alpha = jnp.asarray(x_max, values.dtype), jnp.asarray(alpha, values.dtype)
    present = values > 0
    x = jnp.where(present, values, 1)
    return jnp.where(present, jnp.minimum(1, x / x_max) ** alpha, 0), jnp.log(x)


def fit_glove(
    counts: Cooccurrence,
    config: GloVeConfig | None = None,
    *,
    key: PRNGKey,
    progress: Callable[[Progress], None] | None = None,
    checkpoints: str | os.PathLike | None = None,
    resume: bool = False,
) -> GloVeParams:
    """Train on a matrix of counts; of ``config``, what concerns the counting is not used.

    The same key gives the same parameters. Memory: less than 20 bytes a record, beside the counts.

    Args:
      progress: is called after every epoch; its words are records, and its loss is their mean, each taken before its
        update.
      checkpoints: a directory to save to after every epoch; SIGTERM then ends the process at the end of an epoch, with
        status 143.
      resume: go on from the last checkpoint there, to the same bytes as without an interruption.

    Raises:
      InputError: there are no records.
    """
    config = config or GloVeConfig()
    n = len(counts.rows)
    if n == 0:
        raise InputError("counts: no word occurs near another; give sentences of two words and more")
    key_init, key_blocks, key_epochs = jax.random.split(key, 3)
    state, done = init_glove(key_init, max(counts.shape), config.vector_size, eta=config.eta), 0
    rows, cols, values = _chunks(counts, config.batch_size // BLOCK, np.asarray(jax.random.key_data(key_blocks)))
    with Saver(checkpoints, 1) as saver:
        if resume:
            done, state, _ = saver.restore(state)
        else:
            saver.begin()
        for epoch in range(done, config.epochs):
            began, total = time.perf_counter(), 0.0
            key_order, key_chunks = jax.random.split(jax.random.fold_in(key_epochs, epoch))
            for i in np.asarray(jax.random.permutation(key_order, len(rows))):
                key_chunk = jax.random.fold_in(key_chunks, i)
                state, losses = _train_chunk(state, key_chunk, rows[i], cols[i], values[i], config.x_max, config.alpha)
                # In float64, since a float32 sum would come to a standstill. Waits, so that no chunks pile up.
                total += float(np.sum(np.asarray(losses), dtype=np.float64))
            done, speed = epoch + 1, n / (time.perf_counter() - began)
            if progress is not None:
                progress(Progress(done, config.epochs, epoch, done / config.epochs, done * n, speed, total / n))
            if saver.due(done, config.epochs):
                saver.save(done, state, done * n)
    return state.params


@partial(jax.jit, donate_argnames="state")
def _train_chunk(
    state: GloVeState, key: PRNGKey, rows: Array, cols: Array, values: Array, x_max: ArrayLike, alpha: ArrayLike
) -> tuple[GloVeState, Array]:
    """One pass over batches in random order: rows [N, B], cols and values [N, B, L]; with the sum of losses of each."""

    def step(state, i):
        state, (loss, _) = glove_step(state, rows[i], cols[i], values[i], x_max=x_max, alpha=alpha)
        return state, loss

    return lax.scan(step, state, jax.random.permutation(key, len(rows)))


def _chunks(counts: Cooccurrence, batch: int, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Records as rows [C, N, B], cols and values [C, N, B, L]: C chunks of N batches of B blocks in random order.

    The records of a word, sorted by context and so by its frequency, are dealt out to its blocks like cards: each block
    gets frequent and rare contexts. What is left empty at the end of blocks, batches and chunks has the value 0.
    """
    n_records = np.bincount(counts.rows, minlength=counts.shape[0])  # of each word
    n_blocks = -(-n_records // BLOCK)
    first_record, first_block = (np.cumsum(n) - n for n in (n_records, n_blocks))
    total = int(n_blocks.sum())
    n_batches = -(-total // batch)
    n_chunks = -(-n_batches // _BATCHES)
    shape = n_chunks, -(-n_batches // n_chunks), batch
    place = np.random.default_rng(seed).permutation(int(np.prod(shape)))[:total]  # of each block

    rows = np.zeros(shape, np.int32)
    rows.reshape(-1)[place] = np.repeat(np.arange(len(n_blocks)), n_blocks)
    cols, values = np.zeros((*shape, BLOCK), np.int32), np.zeros((*shape, BLOCK), np.float32)
    for begin in range(0, len(counts.rows), _RECORDS):
        part = slice(begin, begin + _RECORDS)
        words = counts.rows[part]
        rank = np.arange(begin, begin + len(words)) - first_record[words]
        card, block = np.divmod(rank, n_blocks[words])
        slot = place[first_block[words] + block] * BLOCK + card
        cols.reshape(-1)[slot] = counts.cols[part]
        values.reshape(-1)[slot] = counts.values[part]
    return rows, cols, values


def train_glove(
    corpus: Corpus,
    config: GloVeConfig | None = None,
    *,
    key: PRNGKey,
    vocabulary: Vocabulary | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoints: str | os.PathLike | None = None,
    resume: bool = False,
) -> WordVectors:
    """Count which words of a corpus occur together, and train on the counts.

    The corpus, a path or lists of words, is read twice; it may be larger than memory, but its distinct pairs of words
    may not, see `cooccurrence` and `fit_glove`. The same key gives the same bytes.

    Args:
      vocabulary: words and counts, if they are known; otherwise the corpus is counted.
      progress, checkpoints, resume: those of `fit_glove`. The counts are not saved, they are made anew.

    >>> corpus = [["a", "b", "a", "c"]] * 20
    >>> train_glove(corpus, GloVeConfig(vector_size=8, epochs=1), key=jax.random.key(0)).words
    ['a', 'b', 'c']

    Raises:
      InputError: the corpus cannot be read, has no word often enough, or no two words near each other.
      TrainingError: the vectors are not finite: the step size was too large.
    """
    config = config or GloVeConfig()
    if vocabulary is None:
        vocabulary = make_vocabulary(
            count_words(corpus), min_count=config.min_count, max_final_vocab=config.max_final_vocab
        )
    counts = cooccurrence(corpus, vocabulary, window=config.window, weights="harmonic")
    params = fit_glove(counts, config, key=key, progress=progress, checkpoints=checkpoints, resume=resume)
    vectors = params.words + params.contexts if config.add_contexts else params.words
    table, contexts = np.asarray(vectors), np.asarray(params.contexts)
    return check_finite(WordVectors(vocabulary.words, table, counts=vocabulary.counts, context_vectors=contexts))
