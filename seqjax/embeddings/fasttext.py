"""FastText: skip-gram whose words are made of character n-grams (Bojanowski et al., 2017).

    x_w = (r_w + Σ_g r_g) / (n_w + 1)    over the n_w n-grams g of word w

predicts the words around w as in Word2Vec (`seqjax.embeddings.word2vec`). Two things make it fast. The rows of a word
are read and written once a block, not once a pair. And n-grams that occur in the same words always move together: so
one row does for all of them and weighs more in the mean, and that of an n-gram of one word only is the row of the word.

The paper is https://arxiv.org/abs/1607.04606. Details are those of https://github.com/facebookresearch/fastText: the
gradient of the mean is not divided, each of its rows gets all of it.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial, reduce
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from seqjax.embeddings.sampling import make_chunk, occurrences, read_block
from seqjax.embeddings.skipgram import Tiles, pair_weights, skipgram_loss, skipgram_update
from seqjax.embeddings.streaming import Progress, encoded, run
from seqjax.embeddings.subwords import FastTextHeader, Subwords, compose, ngram_table
from seqjax.embeddings.vectors import WordVectors, check_finite
from seqjax.embeddings.vocabulary import Corpus, Vocabulary, count_words, make_vocabulary
from seqjax.embeddings.word2vec import MEASURED, Sampler, Tables, Word2VecConfig, check_memory, make_sampler
from seqjax.errors import InputError
from seqjax.types import Array, Float, Int, PRNGKey


@dataclass(frozen=True)
class FastTextConfig:
    """The options of FastText. What `Word2VecConfig` has too means the same; the defaults are Facebook's."""

    vector_size: int = 100
    window: int = 5
    windows: Literal["expected", "random", "fixed"] = "expected"
    negative: int = 5
    ns_exponent: float = 0.5
    sample: float = 1e-4
    min_n: int = 3
    """Characters of the shortest n-grams of ``<word>``."""
    max_n: int = 6
    """Characters of the longest n-grams."""
    bucket: int = 2_000_000
    """n-grams are hashed into so many buckets. Only those that a word of the vocabulary hits take memory."""
    average: Literal["facebook", "gensim"] = "facebook"
    """In training, gensim divides the sum of a word's n + 1 rows by n."""
    min_count: int = 5
    max_final_vocab: int | None = None
    alpha: float = 0.05
    min_alpha: float = 0.0
    epochs: int = 5
    block: int = 256
    tile: int = 32
    shared_negatives: int = 32
    """Twice Word2Vec's, since alpha is twice as high."""
    guard: float | None = 16.0
    """Pairs a block, beyond which the steps of a word or n-gram are scaled down; None: never. Lower than in Word2Vec,
    since alpha is higher, and words move with all that have n-grams in common with them."""

    def __post_init__(self):
        _ = self.word2vec  # which checks itself
        if not 1 <= self.min_n <= self.max_n:
            raise InputError(
                f"min_n={self.min_n}, max_n={self.max_n}; there must be 1 <= min_n <= max_n. Without n-grams use "
                "train_word2vec."
            )
        if not 1 <= self.bucket < 2**31:
            raise InputError(f"bucket={self.bucket}; it must be at least 1 and below 2**31.")

    @property
    def word2vec(self) -> Word2VecConfig:
        """The options that Word2Vec has too."""
        shared = {field.name for field in fields(Word2VecConfig)}.intersection(vars(self))
        return Word2VecConfig(**{name: getattr(self, name) for name in shared})


class Layout(NamedTuple):
    """Which of G rows the V words and the R buckets that they hit have."""

    of: np.ndarray  # int32 [V + R], the row of each word and bucket
    buckets: np.ndarray  # int32 [R]
    owners: np.ndarray  # int64 [G], how many words and buckets have a row
    frequency: np.ndarray  # [G], how often a word of the text has a row, falling: what is read often lies together
    rows: np.ndarray  # int32 [E], the rows of the first word, of the second, …; once for all owners
    offsets: np.ndarray  # int32 [V + 1], where each word begins
    n_ngrams: np.ndarray  # int64 [V]


def share_rows(words: Sequence[str], share: Float[np.ndarray, "V"], config: FastTextConfig) -> Layout:
    """Give one row to all buckets that the same words hit equally often, and to a word with those it alone hits once.

    ``share`` is how much of the text each word is.
    """
    v = len(words)
    flat, offsets = ngram_table(words, min_n=config.min_n, max_n=config.max_n, bucket=config.bucket)
    buckets, bucket = np.unique(flat, return_inverse=True)
    # Who hits a bucket is known by the sum of their random numbers. If two sums should ever be equal by chance, with a
    # probability of 2^-64 a pair, those buckets share a row as n-grams of one hash do.
    number = np.random.default_rng(0).integers(0, 2**64, v, np.uint64)
    total = np.zeros(len(buckets), np.uint64)
    np.add.at(total, bucket, np.repeat(number, np.diff(offsets)))
    _, first, group, owners = np.unique(
        np.concatenate([number, total]), return_index=True, return_inverse=True, return_counts=True
    )
    word = np.concatenate([np.arange(v), np.repeat(np.arange(v), np.diff(offsets))])
    owner = np.concatenate([np.arange(v), v + bucket])
    once = first[group[owner]] == owner
    word, group_of = word[once], group[owner[once]]
    frequency = np.bincount(group_of, share[word])
    order = np.argsort(-frequency, kind="stable")
    row = np.empty(len(order), np.int32)
    row[order] = np.arange(len(order))
    return Layout(
        of=row[group],
        buckets=buckets,
        owners=owners[order],
        frequency=frequency[order],
        rows=row[group_of[np.argsort(word, kind="stable")]],
        offsets=np.searchsorted(np.sort(word), np.arange(v + 1)).astype(np.int32),
        n_ngrams=np.diff(offsets),
    )


class Summands(NamedTuple):
    """What the vectors of words are sums of: ``x_w = Σ_e weights_e table[rows_e]``, offsets_w <= e < offsets_w+1."""

    rows: Array  # int32 [E]
    weights: Array  # [E]
    offsets: Array  # int32 [V + 1]


def make_summands(layout: Layout, config: FastTextConfig) -> tuple[Summands, Float[np.ndarray, "G"]]:
    """The summands of each word, and the guard of each row.

        scale  = min(1, guard / pairs),   pairs = block · frequency · (window + 1)
        weight = owners · scale / (n + 1)

    The table holds the rows divided by their scale. So a step of the table is a scaled step of the row, and costs no
    more for it.
    """
    pairs = config.block * layout.frequency * config.word2vec.pairs
    scale = np.minimum(1, (config.guard or np.inf) / np.maximum(pairs, 1e-9))
    divisor = layout.n_ngrams + 1 if config.average == "facebook" else np.maximum(layout.n_ngrams, 1)
    weights = (layout.owners * scale)[layout.rows] / np.repeat(divisor, np.diff(layout.offsets))
    return Summands(jnp.asarray(layout.rows), jnp.asarray(weights, np.float32), jnp.asarray(layout.offsets)), scale


def init_tables(key: PRNGKey, layout: Layout, scale: Float[np.ndarray, "G"], size: int) -> Tables:
    """Input rows uniform in ±1 / size, output rows 0; a row of several owners is as small as the mean of theirs.

    Columns of zeros, which stay so, make their number a multiple of 8: then XLA takes 8 at a time on CPU.
    """
    bound = jnp.asarray(1 / (size * np.sqrt(layout.owners) * scale), np.float32)[:, None]
    w_in = jax.random.uniform(key, (len(bound), size), jnp.float32, minval=-1, maxval=1) * bound
    w_in = jnp.pad(w_in, ((0, 0), (0, -size % 8)))
    return Tables(w_in, jnp.zeros((len(layout.offsets) - 1, w_in.shape[1]), jnp.float32))


LAYER = 8  # rows of each word that are read at a time


def _layers(summands, words, past):
    """The number of layers, and a function that gives rows and weights of one, [T, LAYER].

    Where a word has no more rows, its row is ``past`` the table and its weight 0.
    """
    begin, end = summands.offsets[words][:, None], summands.offsets[words + 1][:, None]

    def layer(k):
        at = begin + k * LAYER + jnp.arange(LAYER, dtype=jnp.int32)[None]
        rows, weights = summands.rows.at[at].get(mode="clip"), summands.weights.at[at].get(mode="clip")
        return jnp.where(at < end, rows, past), jnp.where(at < end, weights, 0)

    return (jnp.max(end - begin) + LAYER - 1) // LAYER, layer


def read_vectors(table: Float[Array, "G D"], summands: Summands, words: Int[Array, "T"]) -> Float[Array, "T D"]:
    """The vectors of words."""
    n, layer = _layers(summands, words, len(table))

    def add(k, x):
        rows, weights = layer(k)
        # XLA's CPU backend is twice as fast at a sum of separate reads as at one read of all rows and its sum.
        return x + sum(weights[:, j, None] * table.at[rows[:, j]].get(mode="clip") for j in range(LAYER))

    return lax.fori_loop(0, n, add, jnp.zeros((len(words), table.shape[1]), table.dtype))


def add_steps(
    table: Float[Array, "G D"], summands: Summands, words: Int[Array, "T"], steps: Float[Array, "T D"]
) -> Float[Array, "G D"]:
    """The table with the step of each word added to all of its rows."""
    n, layer = _layers(summands, words, len(table))

    def add(k, table):
        rows, _ = layer(k)
        return reduce(lambda table, j: table.at[rows[:, j]].add(steps, mode="drop"), range(LAYER), table)

    return lax.fori_loop(0, n, add, table)


@partial(jax.jit, static_argnames="config", donate_argnames="tables")
def train_chunk(
    config: FastTextConfig,
    sampler: Sampler,
    summands: Summands,
    tables: Tables,
    ids: Int[Array, "N"],
    n: Array,
    alphas: Float[Array, "2"],
    key: PRNGKey,
) -> tuple[Tables, Array, tuple[Array, Array]]:
    """Train on the first ``n`` of ``ids``, with step sizes from alphas[0] to alphas[1].

    Returns the tables, the number of words that stayed, and the loss, nats and pairs, of every sixteenth block.
    """
    window, tile = config.window, config.tile
    guard = (config.guard or np.inf) / config.word2vec.pairs
    options = {"window": window, "block": config.block, "tile": tile, "negatives": config.shared_negatives}
    text, blocks, places, negatives, sizes = make_chunk(
        ids, n, sampler.keep, sampler.accept, sampler.alias, key, **options
    )

    def block(i, carry):
        tables, seen, sums = carry
        words, sentence = read_block(text, i, window=window, block=config.block)
        weights = pair_weights(config.windows, sentence[places], sizes[i], window=window)
        centres = words[places[:, window : window + tile]]
        differs = centres[:, :, None] != negatives[i][:, None, :]
        out = jnp.concatenate([centres, negatives[i]], 1)
        # All is read before anything is written, and no branch sees the tables: otherwise XLA copies them each time.
        x = read_vectors(tables.w_in, summands, words)
        o = tables.w_out[out]
        tiles = Tiles(x[places], o[:, :tile], o[:, tile:])
        loss = lax.cond(
            i % MEASURED == 0,
            lambda: skipgram_loss(tiles, weights, differs, negative=config.negative),
            lambda: (jnp.float32(0), jnp.float32(0)),
        )
        alpha = alphas[0] + (alphas[1] - alphas[0]) * (i / blocks).astype(alphas.dtype)
        update = skipgram_update(tiles, alpha * weights, differs, negative=config.negative)
        # Words come in bursts, which their frequency does not tell: so they are counted. Negatives do not.
        often, seen = occurrences(seen, words, sentence)
        scale = jnp.minimum(1, guard / jnp.maximum(often, 1))
        own = jnp.pad(
            scale[places[:, window : window + tile]], ((0, 0), (0, config.shared_negatives)), constant_values=1
        )
        d_x = jnp.zeros_like(x).at[places].add(update.contexts) * scale[:, None]
        d_out = jnp.concatenate([update.centres, update.negatives], 1)
        d_out = d_out * jnp.minimum(own, sampler.scale[out])[:, :, None]
        tables = Tables(add_steps(tables.w_in, summands, words, d_x), tables.w_out.at[out].add(d_out))
        return tables, seen, jax.tree.map(jnp.add, sums, loss)

    none = jnp.float32(0)
    start = tables, jnp.zeros(len(tables.w_out), jnp.float32), (none, none)
    tables, _, loss = lax.fori_loop(0, blocks, block, start)
    return tables, text.n, loss


def train_fasttext(
    corpus: Corpus,
    config: FastTextConfig | None = None,
    *,
    key: PRNGKey,
    vocabulary: Vocabulary | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoints: str | os.PathLike | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
) -> WordVectors:
    """Train FastText on a corpus, a path or an iterable of lists of words (see `seqjax.embeddings.vocabulary`).

    The vectors have ``.subwords``, so unknown words have vectors too, and `save_fasttext` writes a model that
    Facebook's program and gensim read. The same key gives the same bytes. The other arguments are those of
    `train_word2vec`.

    Beside those of Word2Vec here, differences to Facebook's program are: the ends of lines are no words ``</s>``; a
    negative that is the centre itself is left out, not drawn again; n-grams that occur in the same words, and those of
    one word, begin with equal rows.

    >>> corpus = [["walk", "walking", "talk", "talking"]] * 20
    >>> config = FastTextConfig(vector_size=8, min_count=1, epochs=1, bucket=1000)
    >>> vectors = train_fasttext(corpus, config, key=jax.random.key(0))
    >>> vectors["balking"].shape
    (8,)

    Raises:
      InputError: the corpus cannot be read or has no word often enough; the tables do not fit into memory.
      TrainingError: the vectors are not finite: the step size was too large, or so was the block for few words.
    """
    config = config or FastTextConfig()
    if vocabulary is None:
        vocabulary = make_vocabulary(
            count_words(corpus), min_count=config.min_count, max_final_vocab=config.max_final_vocab
        )
    words, counts = vocabulary.words, vocabulary.counts
    check_memory(len(words), config.vector_size)
    # Facebook's frequencies are shares of the whole text, rare words included.
    sample = config.sample * vocabulary.n_tokens / int(counts.sum())
    sampler = make_sampler(counts, replace(config.word2vec, sample=sample))
    kept = counts * np.asarray(sampler.keep, np.float64)
    layout = share_rows(words, kept / kept.sum(), config)
    summands, scale = make_summands(layout, config)
    key_init, key_train = jax.random.split(key)
    with encoded(corpus, vocabulary) as ids:
        tables = run(
            partial(train_chunk, config, sampler, summands),
            init_tables(key_init, layout, scale, config.vector_size),
            ids,
            epochs=config.epochs,
            alphas=(config.alpha, config.min_alpha),
            key=key_train,
            progress=progress,
            checkpoints=checkpoints,
            checkpoint_every=checkpoint_every,
            resume=resume,
        )
    w_in, w_out = (np.asarray(table)[:, : config.vector_size] for table in tables)
    subwords = make_subwords(w_in * scale.astype(np.float32)[:, None], layout, config, n_tokens=vocabulary.n_tokens)
    vectors = compose(subwords, words, index=vocabulary.index)
    return check_finite(WordVectors(words, vectors, counts=counts, context_vectors=w_out, subwords=subwords))


def make_subwords(rows: Float[np.ndarray, "G D"], layout: Layout, config: FastTextConfig, *, n_tokens: int) -> Subwords:
    """The model in Facebook's form: each word and bucket has a row of its own."""
    slots = np.full(config.bucket, -1, np.int32)
    slots[layout.buckets] = np.arange(len(layout.buckets))
    header = FastTextHeader(
        window=config.window,
        epochs=config.epochs,
        min_count=config.min_count,
        negative=config.negative,
        sample=config.sample,
        n_tokens=n_tokens,
    )
    return Subwords(rows[layout.of], slots, config.min_n, config.max_n, config.bucket, header=header)
