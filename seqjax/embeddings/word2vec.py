"""Word2Vec: skip-gram and CBOW, trained on the device (Mikolov et al., 2013).

The host ships word ids. A chunk of them is one compiled program: it leaves out frequent words, moves the rest together
and steps through it. A step takes a block of neighbouring words in tiles whose centres share their negatives
(`seqjax.embeddings.skipgram`; what else can be minimized is in `seqjax.embeddings.objectives`), and adds the updates
of the whole block at once.

A word that occurs many times in a block, because it is frequent or in a burst, would take as many steps in one
direction, and diverge. The guard scales the steps of a row to those of at most ``guard`` pairs a block; rows with fewer
pairs are not touched.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seqjax.embeddings.objectives import (
    cbow_hidden,
    cbow_loss,
    cbow_update,
    huffman_tree,
    sampled_softmax_loss,
    softmax_loss,
    tree_loss,
    tree_update,
)
from seqjax.embeddings.sampling import alias_table, keep_probability, make_chunk, occurrences, read_block
from seqjax.embeddings.skipgram import Tiles, pair_weights, skipgram_loss, skipgram_update
from seqjax.embeddings.streaming import Progress, encoded, in_shards, run
from seqjax.embeddings.vectors import WordVectors, check_finite
from seqjax.embeddings.vocabulary import Corpus, Vocabulary, count_words, make_vocabulary
from seqjax.errors import InputError
from seqjax.types import Array, Float, Int, PRNGKey


@dataclass(frozen=True)
class Word2VecConfig:
    """The options of word2vec; their names and defaults are gensim's where it has them."""

    architecture: Literal["skipgram", "cbow"] = "skipgram"
    """A context word predicts the centre, or the mean of all of them does."""
    objective: Literal["negative_sampling", "hierarchical_softmax", "sampled_softmax", "softmax"] = "negative_sampling"
    """Logistic, against ``negative`` drawn words; decisions down a Huffman tree; a softmax over the word and
    ``negative`` drawn words, the same for a tile; a softmax over the vocabulary, for small ones."""
    vector_size: int = 100
    window: int = 5
    windows: Literal["expected", "random", "fixed"] = "expected"
    """word2vec draws the size of each window from 1 to ``window``: "random". "expected" gives each pair its mean weight
    instead, "fixed" weight 1."""
    negative: int = 5
    """Words drawn against each pair."""
    cbow_mean: bool = True
    """The mean of the context, or its sum."""
    cbow_gradient: Literal["word2vec", "exact"] = "word2vec"
    """word2vec does not divide the gradient of a mean by the number of words, and divides that of a sum."""
    ns_exponent: float = 0.75
    """Negatives are drawn by count to this power."""
    sample: float = 1e-3
    """Words above this share of the corpus are left out at random; 0 keeps all."""
    min_count: int = 5
    max_final_vocab: int | None = None
    alpha: float = 0.025
    """Step size at the beginning; falls linearly."""
    min_alpha: float = 1e-4
    epochs: int = 5
    block: int = 512
    """Words a step; its updates are added at once."""
    tile: int | None = None
    """Neighbouring words that share negatives. None: 32, or 2 for skip-gram with a tree, whose paths are not shared."""
    shared_negatives: int = 16
    """Negatives a tile; they stand for ``negative`` of each pair."""
    guard: float | None = 64.0
    """Pairs a block, beyond which the steps of a row are scaled down; None: never."""

    def __post_init__(self):
        least = {"vector_size": 1, "window": 1, "negative": 1, "min_count": 1, "epochs": 1}
        for name, bound in (least | {"shared_negatives": 1}).items():
            if getattr(self, name) < bound:
                hint = " Without negatives choose another objective." * (name == "negative")
                raise InputError(f"{name}={getattr(self, name)}; it must be at least {bound}.{hint}")
        if self.tile is not None and self.tile < 1:
            raise InputError(f"tile={self.tile}; it must be at least 1.")
        if self.block < self.tile_size or self.block % self.tile_size:
            raise InputError(f"block={self.block}; it must be a multiple of tile={self.tile_size}.")
        for name, fine in {
            "sample": self.sample >= 0,
            "alpha": self.alpha > 0,
            "min_alpha": 0 <= self.min_alpha <= self.alpha,
            "guard": self.guard is None or self.guard > 0,
        }.items():
            if not fine:
                raise InputError(f"{name}={getattr(self, name)} is out of range.")

    @property
    def tile_size(self) -> int:
        """``tile``, or its default."""
        tree = self.objective == "hierarchical_softmax" and self.architecture == "skipgram"
        return self.tile or (2 if tree else 32)

    @property
    def pairs(self) -> int:
        """How many pairs a word makes, on average."""
        return 2 * self.window if self.windows == "fixed" else self.window + 1


MEASURED = 16  # of so many blocks, the loss of one is computed, where that takes more time


class Tables(NamedTuple):
    """The weights: the vectors of words as context, which are the result, and as centre, or of the tree's nodes."""

    w_in: Array  # [V, D]
    w_out: Array  # [V, D]; a tree has V - 1 nodes, the last row is for what is past the end of a path


class Sampler(NamedTuple):
    """What the frequencies of the words decide. Without a tree, its tables are empty."""

    keep: Array  # [V], probability of staying in the text
    accept: Array  # [V], of Walker's alias table
    alias: Array  # int32[V]
    scale: Array  # [V], the guard of the output table
    nodes: Array  # int32[V, P], see `Tree`
    signs: Array  # [V, P]


def make_sampler(counts: Int[np.ndarray, "V"], config: Word2VecConfig) -> Sampler:
    """The probabilities, the tree and the guard, float32.

        scale = min(1, guard / pairs)

    where pairs is how many pairs of a block an output row takes part in, on average: in those of its word, f · block of
    them times the size of the window, and as a negative, or as a node on the way to words. f is a word's share of what
    is left of the text. Bursts of words are guarded against when they come.
    """
    keep = keep_probability(counts, config.sample)
    p = counts.astype(float) ** config.ns_exponent
    f, p = counts * keep / (counts * keep).sum(), p / p.sum()
    trained = f
    nodes, signs = np.zeros((0, 0), np.int32), np.zeros((0, 0), np.int8)
    if config.objective == "hierarchical_softmax":
        nodes, signs = huffman_tree(counts)
        trained = np.bincount(nodes.ravel(), (f[:, None] * np.abs(signs)).ravel(), len(counts))
    elif config.objective != "softmax":
        trained = f + config.negative * p
    pairs = config.block * trained * (config.pairs if config.architecture == "skipgram" else 1)
    scale = np.minimum(1, (config.guard or np.inf) / np.maximum(pairs, 1e-9))
    accept, alias = alias_table(p)
    keep, accept, scale, signs = (jnp.asarray(x, np.float32) for x in (keep, accept, scale, signs))
    return Sampler(keep, accept, jnp.asarray(alias, np.int32), scale, jnp.asarray(nodes), signs)


@partial(jax.jit, static_argnames="config", donate_argnames="tables")
def train_chunk(
    config: Word2VecConfig,
    sampler: Sampler,
    tables: Tables,
    ids: Int[Array, "N"],
    n: Array,
    alphas: Float[Array, "2 *K"],
    key: PRNGKey,
) -> tuple[Tables, Array, tuple[Array, Array]]:
    """Train on the first ``n`` of ``ids``, with step sizes from alphas[0] to alphas[1].

    With K step sizes the tables are [V, K D]: K trainings side by side, each with D columns and a step size. They share
    text and negatives, so a row is read once for all.

    Returns the tables, the number of words that stayed, and the loss, nats and pairs, of all or some of the blocks.
    """
    window, tile = config.window, config.tile_size
    guard = (config.guard or np.inf) / config.pairs
    n_drawn = config.shared_negatives if config.objective == "negative_sampling" else config.negative
    options = {"window": window, "block": config.block, "tile": tile, "negatives": n_drawn}
    text, blocks, places, negatives, sizes = make_chunk(
        ids, n, sampler.keep, sampler.accept, sampler.alias, key, **options
    )

    def block(i, carry):
        tables, seen, sums = carry
        span, sentence = read_block(text, i, window=window, block=config.block)
        often, seen = occurrences(seen, span, sentence)
        scale = jnp.minimum(1, guard / jnp.maximum(often, 1))[places]
        # Rows are read by this index for all tiles: XLA is several times slower at cutting them out of one block.
        rows, sentence = span[places], sentence[places]
        centres = rows[:, window : window + tile]
        weights = pair_weights(config.windows, sentence, sizes[i], window=window)
        alpha = (alphas[0] + (alphas[1] - alphas[0]) * (i / blocks).astype(alphas.dtype))[..., None]
        alpha = jnp.broadcast_to(alpha, (*alphas.shape[1:], config.vector_size)).ravel()  # of each column
        # All is read before anything is written, and no branch sees the tables: otherwise XLA copies them each time.
        x = tables.w_in[rows]
        tree = config.objective == "hierarchical_softmax"
        if config.objective == "softmax":
            out, o = None, tables.w_out
        else:
            out = sampler.nodes[centres] if tree else jnp.concatenate([centres, negatives[i]], 1)
            o = tables.w_out[out]
        differs = centres[:, :, None] != negatives[i][:, None, :]
        kind = config.architecture, config.objective
        words, measure = (centres, sampler.signs), i % MEASURED == 0
        update = UPDATES.get(kind, _other)
        loss, (d_in, d_out) = _members(
            lambda x, o: update(config, x, o, weights, differs, words, measure=measure), alphas.shape[1:], x, o
        )
        w_in = tables.w_in.at[rows].add(_times(alpha, d_in) * scale[:, :, None])
        if out is None:
            w_out = tables.w_out + _times(alpha, d_out) * sampler.scale[:, None]
        else:
            own = scale[:, window : window + tile]  # of the centre, for its nodes too; negatives come in no bursts
            own = own[:, :, None] if tree else jnp.pad(own, ((0, 0), (0, n_drawn)), constant_values=1)
            own = jnp.minimum(jnp.broadcast_to(own, out.shape), sampler.scale[out])
            w_out = tables.w_out.at[out].add(_times(alpha, d_out) * own[..., None])
        return Tables(w_in, w_out), seen, jax.tree.map(jnp.add, sums, loss)

    none = jnp.zeros(alphas.shape[1:], jnp.float32)
    start = tables, jnp.zeros(len(tables.w_in), jnp.float32), (none, none)
    tables, _, loss = lax.fori_loop(0, blocks, block, start)
    return tables, text.n, loss


def _members(update, shape, x, o):
    """``update`` for each of the members, whose columns stand side by side; without members, for the only one."""
    if not shape:
        return update(x, o)
    x, o = (rows.reshape(*rows.shape[:-1], *shape, -1) for rows in (x, o))
    axes = x.ndim - 2, o.ndim - 2
    loss, (d_in, d_out) = jax.vmap(update, axes, ((0, 0), axes))(x, o)
    return loss, (d_in.reshape(*d_in.shape[:-2], -1), d_out.reshape(*d_out.shape[:-2], -1))


def _times(alpha, step):
    """Each column times its step size."""
    return alpha.reshape(*[1] * (step.ndim - 1), -1) * step


def _negative_sampling(config, x, o, weights, differs, _, *, measure):
    """The loss of skip-gram with negative sampling, if it is asked for, and the steps of the rows."""
    n = weights.shape[2]
    tiles = Tiles(x, o[:, :n], o[:, n:])
    loss = lax.cond(
        measure,
        lambda: skipgram_loss(tiles, weights, differs, negative=config.negative),
        lambda: (jnp.float32(0), jnp.float32(0)),
    )
    d_in, *d_out = skipgram_update(tiles, weights, differs, negative=config.negative)
    return loss, (d_in, jnp.concatenate(d_out, 1))


def _tree(_, x, o, weights, __, words, *, measure):
    """The same of skip-gram with a tree."""
    centres, signs = words
    g, c, p, d = o.shape
    nodes, signs, pairs = o.reshape(g, c * p, d), signs[centres].reshape(g, c * p), jnp.repeat(weights, p, axis=2)
    loss = lax.cond(
        measure,
        lambda: (tree_loss(jnp.einsum("gnd,grd->grn", nodes, x), signs, pairs), jnp.sum(weights)),
        lambda: (jnp.float32(0), jnp.float32(0)),
    )
    d_in, d_out = tree_update(x, nodes, signs, pairs)
    return loss, (d_in, d_out.reshape(o.shape))


def _cbow(config, x, o, weights, differs, _, *, measure):
    """The same of CBOW with negative sampling."""
    n = weights.shape[2]
    forward, backward, present = _shares(config, weights)
    hidden = cbow_hidden(x, forward)
    args = hidden, o[:, :n], o[:, n:], present, differs
    loss = lax.cond(
        measure,
        lambda: cbow_loss(*args, negative=config.negative),
        lambda: (jnp.float32(0), jnp.float32(0)),
    )
    d_hidden, *d_out = cbow_update(*args, negative=config.negative)
    return loss, (jnp.einsum("grc,gcd->grd", backward, d_hidden), jnp.concatenate(d_out, 1))


def _shares(config, weights):
    """How much of each context goes into a mean, how much of its gradient comes back, and which centres have any."""
    size = jnp.sum(weights, 1, keepdims=True)
    mean = weights / jnp.where(size > 0, size, 1)
    forward, other = (mean, weights) if config.cbow_mean else (weights, mean)
    backward = forward if config.cbow_gradient == "exact" else other
    return forward, backward, (size[:, 0] > 0).astype(weights.dtype)


def _other(config, x, o, weights, differs, words, *, measure):
    """The same of the other objectives, by automatic differentiation, which gives the loss as well."""
    del measure
    if config.architecture == "skipgram":
        hidden, backward = x, None
    else:
        forward, backward, weights = _shares(config, weights)
        hidden = cbow_hidden(x, forward)
    loss = partial(_loss, config, weights, differs, *words)
    (nats, pairs), (d_hidden, d_out) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, o)
    d_in = d_hidden if backward is None else jnp.einsum("grc,gcd->grd", backward, d_hidden)
    return (nats, pairs), (-d_in, -d_out)


def _loss(config, weights, differs, centres, signs, hidden, o):
    """The loss of hidden vectors: contexts, with weights [G, R, C] for pairs; or those of CBOW, [G, C]."""
    pairs, n = config.architecture == "skipgram", centres.shape[1]
    match config.objective:
        case "hierarchical_softmax":  # each centre as a tile of its own
            scores = jnp.einsum("gcd,gcpd->gcp", hidden, o).reshape(weights.size, 1, -1)
            each = jnp.broadcast_to(weights.reshape(-1, 1, 1), scores.shape)
            return tree_loss(scores, signs[centres].reshape(weights.size, -1), each), jnp.sum(weights)
        case "softmax":
            scores = jnp.einsum("grd,vd->grv", hidden, o).reshape(-1, len(o))
            targets = jnp.broadcast_to(centres[:, None], weights.shape) if pairs else centres[:, :, None]
            return softmax_loss(scores, targets.reshape(len(scores), -1), weights.reshape(len(scores), -1))
        case _:
            own, others = o[:, :n], jnp.einsum("grd,gmd->grm", hidden, o[:, n:])
            if pairs:
                return sampled_softmax_loss(jnp.einsum("grd,gcd->grc", hidden, own), others, weights, differs)
            rows = (jnp.sum(hidden * own, 2), others, weights, differs)  # each centre as a tile of its own
            own, others, weights, differs = (x.reshape(weights.size, 1, -1) for x in rows)
            return sampled_softmax_loss(own, others, weights, differs)


UPDATES = {  # the others are differentiated
    ("skipgram", "negative_sampling"): _negative_sampling,
    ("cbow", "negative_sampling"): _cbow,
    ("skipgram", "hierarchical_softmax"): _tree,
}


def train_word2vec(
    corpus: Corpus,
    config: Word2VecConfig | None = None,
    *,
    key: PRNGKey,
    vocabulary: Vocabulary | None = None,
    start: WordVectors | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoints: str | os.PathLike | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    mesh: Mesh | None = None,
) -> WordVectors:
    """Train word vectors on a corpus, a path or an iterable of lists of words (see `seqjax.embeddings.vocabulary`).

    The same key gives the same bytes. The corpus is read twice, to count and to encode it; its ids are kept in a
    temporary file, so it may be larger than memory.

    Args:
      vocabulary: words and counts, if they are known; otherwise the corpus is counted.
      start: vectors to go on from. Words that they lack are added, words of theirs that the corpus lacks stay.
      progress: is called after every chunk of about 260,000 words; with a mesh that has "data", a million a device.
      checkpoints: a directory to save to every ``checkpoint_every`` chunks, at the end, and before SIGTERM ends the
        process with status 143.
      resume: go on from the last checkpoint there, to the same bytes as without an interruption.
      mesh: devices that share the work, with axes of type Auto. Along an axis "data" each takes a part of the text and
        has tables of its own, which they add up (`streaming.in_shards`): the way to use the cores of a CPU,
        after ``jax.config.update("jax_num_cpu_devices", 2)``. Along other axes each has some columns of the tables;
        what they exchange are partial sums of scores, no vectors, and the result is that of one device.

    >>> corpus = [["a", "b", "a", "c"]] * 20
    >>> train_word2vec(corpus, Word2VecConfig(vector_size=8, min_count=1, epochs=1), key=jax.random.key(0)).words
    ['a', 'b', 'c']

    Raises:
      InputError: the corpus cannot be read or has no word often enough; the tables do not fit into memory; ``start``
        has vectors of another size.
      TrainingError: the vectors are not finite: the step size was too large, or so was the block for few words.
    """
    config = config or Word2VecConfig()
    if vocabulary is None:
        vocabulary = make_vocabulary(
            count_words(corpus), min_count=config.min_count, max_final_vocab=config.max_final_vocab
        )
    if start is not None:
        vocabulary = _joined(vocabulary, start)
    check_memory(len(vocabulary.words), config.vector_size)
    key_init, key_train = jax.random.split(key)
    tables = init_tables(key_init, len(vocabulary.words), config.vector_size)
    if start is not None:
        tables = _warm(tables, vocabulary, start)
    sampler = make_sampler(vocabulary.counts, config)
    shards, chunk = 1, partial(train_chunk, config, sampler)
    if mesh is not None:
        tables = jax.device_put(tables, column_sharding(mesh, config.vector_size))
        if (shards := mesh.shape.get("data", 1)) > 1:
            chunk = partial(in_shards(train_chunk, config, mesh), sampler)
    with encoded(corpus, vocabulary) as ids:
        tables = run(
            chunk,
            tables,
            ids,
            epochs=config.epochs,
            alphas=(config.alpha, config.min_alpha),
            key=key_train,
            progress=progress,
            checkpoints=checkpoints,
            checkpoint_every=checkpoint_every,
            resume=resume,
            shards=shards,
        )
    return check_finite(_vectors(config, vocabulary, tables))


def train_word2vec_study(
    corpus: Corpus,
    config: Word2VecConfig | None = None,
    *,
    alphas: Sequence[float],
    key: PRNGKey,
    vocabulary: Vocabulary | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[WordVectors]:
    """`train_word2vec` with several step sizes at once, in place of ``config.alpha``; each as if it were alone.

    One table holds the vectors of all of them, [V, K D], so that rows are read and words drawn once for all:
    ``jax.vmap`` over tables takes several times longer. The loss that ``progress`` gets is the mean.
    """
    config = config or Word2VecConfig()
    if not alphas or min(alphas) < config.min_alpha or min(alphas) <= 0:
        raise InputError(f"alphas={alphas}; give step sizes above 0, and not below min_alpha={config.min_alpha}")
    if vocabulary is None:
        vocabulary = make_vocabulary(
            count_words(corpus), min_count=config.min_count, max_final_vocab=config.max_final_vocab
        )
    check_memory(len(vocabulary.words), config.vector_size * len(alphas))
    key_init, key_train = jax.random.split(key)
    one = init_tables(key_init, len(vocabulary.words), config.vector_size)
    with encoded(corpus, vocabulary) as ids:
        tables = run(
            partial(train_chunk, config, make_sampler(vocabulary.counts, config)),
            jax.tree.map(lambda table: jnp.tile(table, (1, len(alphas))), one),
            ids,
            epochs=config.epochs,
            alphas=(np.asarray(alphas), config.min_alpha),
            key=key_train,
            progress=progress,
        )
    return [
        _vectors(config, vocabulary, Tables(*member))
        for member in zip(*(np.split(np.asarray(table), len(alphas), axis=1) for table in tables), strict=True)
    ]


def _vectors(config: Word2VecConfig, vocabulary: Vocabulary, tables: Tables) -> WordVectors:
    tree = config.objective == "hierarchical_softmax"  # then the rows of w_out are not words
    w_in, w_out = (np.ascontiguousarray(table) for table in tables)
    return WordVectors(vocabulary.words, w_in, counts=vocabulary.counts, context_vectors=None if tree else w_out)


def column_sharding(mesh: Mesh, size: int) -> NamedSharding:
    """Columns of a table [V, size] over the devices of a mesh, along all its axes but "data"."""
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise InputError(f"mesh has axes of type {mesh.axis_types}: make it with axis_types=(AxisType.Auto, …)")
    names = tuple(name for name in mesh.axis_names if name != "data")
    if size % (n := math.prod(mesh.shape[name] for name in names)):
        raise InputError(f"vector_size={size} is not a multiple of the {n} devices of mesh that share columns")
    return NamedSharding(mesh, PartitionSpec(None, names))


def init_tables(key: PRNGKey, n_words: int, size: int) -> Tables:
    """Input vectors uniform in ±1 / size, as gensim's; output vectors 0."""
    w_in = jax.random.uniform(key, (n_words, size), jnp.float32, minval=-1 / size, maxval=1 / size)
    return Tables(w_in, jnp.zeros_like(w_in))


def check_memory(n_words: int, size: int) -> None:
    """Raise `InputError` if two tables cannot fit into the memory of the device."""
    device = jax.devices()[0]
    have = (device.memory_stats() or {}).get("bytes_limit")
    if have is None and device.platform == "cpu" and hasattr(os, "sysconf"):
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    need = 2 * 4 * n_words * size
    if have is not None and need > have:
        raise InputError(
            f"{n_words:,} words times vector_size={size} need {need / 2**30:.1f} GiB for two tables, and there are "
            f"{have / 2**30:.1f} GiB: raise min_count, or lower max_final_vocab or vector_size"
        )


def _joined(vocabulary: Vocabulary, start: WordVectors) -> Vocabulary:
    """The words of both, with the sum of their counts."""
    old = np.ones(len(start), np.int64) if start.counts is None else np.maximum(start.counts, 1)
    counts = Counter(dict(zip(start.words, old.tolist(), strict=True)))
    counts.update(dict(zip(vocabulary.words, vocabulary.counts.tolist(), strict=True)))
    return make_vocabulary(counts, min_count=1)


def _warm(tables: Tables, vocabulary: Vocabulary, start: WordVectors) -> Tables:
    """Fresh tables with the rows of the words that ``start`` knows."""
    if start.vectors.shape[1] != tables.w_in.shape[1]:
        raise InputError(
            f"start has vectors of size {start.vectors.shape[1]}: set vector_size to it, not {tables.w_in.shape[1]}"
        )
    rows = np.array([vocabulary.index[word] for word in start.words])
    w_in = tables.w_in.at[rows].set(start.vectors)
    w_out = tables.w_out if start.context_vectors is None else tables.w_out.at[rows].set(start.context_vectors)
    return Tables(w_in, w_out)
