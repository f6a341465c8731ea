"""A text that streams through a device: ids in chunks, step sizes that fall, progress, checkpoints.

`run` is what Word2Vec and its kin share. They differ in the program for a chunk.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from seqjax.embeddings.vocabulary import Corpus, Vocabulary, encode
from seqjax.errors import InputError
from seqjax.types import PRNGKey, PyTree

CHUNK = 1 << 18  # ids
SHARDED = 1 << 20  # ids of a chunk of one of several devices, after which they exchange whole tables
PART = 1 << 16  # ids, after which they exchange the first rows
FREQUENT = 8192  # rows, the first of a table: of frequent words


class Progress(NamedTuple):
    """How far training is: given after every chunk."""

    step: int  # chunks that are done
    steps: int  # of all epochs
    epoch: int
    fraction: float  # of all epochs
    words: int  # trained on so far, without those left out
    words_per_second: float
    loss: float  # nats a pair, over the last chunk


@contextmanager
def encoded(corpus: Corpus, vocabulary: Vocabulary) -> Iterator[np.ndarray]:
    """The ids of a corpus (`encode`), int32 [N], mapped from a temporary file that goes when the context ends.

    Raises:
      InputError: the corpus cannot be read, or has no word of the vocabulary.
    """
    with tempfile.TemporaryFile(prefix="seqjax-") as file:
        n = 0
        for piece in encode(corpus, vocabulary):
            piece.tofile(file)
            n += len(piece)
        if n == 0:
            raise InputError("the corpus holds no word of the vocabulary: give the corpus that it was made from")
        file.flush()
        yield np.memmap(file, np.int32, "r")


def run(
    train_chunk: Callable,
    tables: PyTree,
    ids: np.ndarray,
    *,
    epochs: int,
    alphas: tuple[float | np.ndarray, float],
    key: PRNGKey,
    progress: Callable[[Progress], None] | None = None,
    checkpoints: str | os.PathLike | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    shards: int = 1,
) -> PyTree:
    """Take the ids, as `encode` gives them, ``epochs`` times through ``train_chunk``.

    ``train_chunk(tables, ids, n, alphas, key) -> (tables, words, (loss, pairs))`` gets chunks of one size, of which
    the first n count and which begin and end with a sentence; the step sizes at its ends, on a line from alphas[0], a
    number or several, to alphas[1]; and a key of its own. So the result does not depend on where a run was interrupted.

    With ``shards`` above 1 it gets so many chunks at once, stacked: see `in_shards`.

    The directory ``checkpoints`` gets the tables every ``checkpoint_every`` chunks, at the end, and when SIGTERM
    comes, which then ends the process with status 143. ``resume`` goes on from the last of them.
    """
    first = np.asarray(alphas[0])
    share = -(-len(ids) // shards)
    size = min(CHUNK if shards == 1 else SHARDED, max(1 << 10, 1 << (share - 1).bit_length()))
    pieces = list(_pieces(ids, size))
    rounds = [pieces[i : i + shards] for i in range(0, len(pieces), shards)]
    steps, fold, clock, done = epochs * len(rounds), jax.jit(jax.random.fold_in), _Clock(progress), 0
    with Saver(checkpoints, checkpoint_every) as saver:
        if resume:
            done, tables, clock.words = saver.restore(tables)
        else:
            saver.begin()
        pending = []  # a chunk is reported when the next one runs: to ask for its results at once would stop the device
        for step in range(done, steps):
            epoch, i = divmod(step, len(rounds))
            places = np.array(rounds[i] + [(len(ids), len(ids))] * (shards - len(rounds[i])))  # the last are empty
            progressed = (epoch + places / len(ids)) / epochs
            alpha = (first + (alphas[1] - first) * progressed.reshape(*progressed.shape, *[1] * first.ndim)).astype(
                np.float32
            )
            chunks = np.zeros((shards, size), np.int32)
            for chunk, (begin, end) in zip(chunks, places, strict=True):
                chunk[: end - begin] = ids[begin:end]
            inputs = chunks, np.diff(places)[:, 0].astype(np.int32), alpha
            if shards == 1:
                inputs = (x[0] for x in inputs)
            tables, *results = train_chunk(tables, *inputs, fold(key, np.int32(step)))
            pending.append((step + 1, steps, epoch, progressed.max(), *results))
            saving = saver.due(step + 1, steps)
            while len(pending) > (0 if saving else 1):
                clock.report(*pending.pop(0))
            if saving:
                saver.save(step + 1, tables, clock.words)
        for results in pending:
            clock.report(*results)
    return tables


@lru_cache(maxsize=16)  # so that a second training with equal options compiles nothing
def in_shards(train_chunk: Callable, config: Hashable, mesh: Mesh) -> Callable:
    """``train_chunk(config, sampler, …)`` on several chunks at once, a device for each, along the axis "data".

        table += Σ_s (table_s - table)

    Each device has tables of its own, to which the changes that all have made are added: to the first rows, those of
    frequent words, every 65,000 ids, to the others at the end. So it is as if one device had gone through all chunks,
    but what two devices learn about a word before they exchange it counts twice; rare words meet few of them. Further
    axes of the mesh may share out columns (`word2vec.column_sharding`).
    """

    def add_up(new, old):
        return old + lax.psum(new - old, "data")

    def with_rest(new, old):
        if len(new) <= FREQUENT:
            return new
        return lax.dynamic_update_slice(new, add_up(new[FREQUENT:], old[FREQUENT:]), (FREQUENT, 0))

    def body(sampler, tables, ids, n, alphas, key):
        key = jax.random.fold_in(key, lax.axis_index("data"))
        parts = ids[0].reshape(-1, min(PART, ids.shape[1]))
        size = parts.shape[1]

        def part(i, carry):
            tables, frequent, *results = carry
            progress = (i + jnp.arange(2)) / len(parts)
            alpha = alphas[0, 0] + (alphas[0, 1] - alphas[0, 0]) * progress.astype(alphas.dtype)
            left = jnp.clip(n[0] - i * size, 0, size)
            tables, *more = train_chunk(config, sampler, tables, parts[i], left, alpha, jax.random.fold_in(key, i))
            # The rows before this part come from the carry: XLA would copy the tables to read them from there.
            frequent = jax.tree.map(lambda new, old: add_up(new[: len(old)], old), tables, frequent)
            tables = jax.tree.map(lambda table, rows: lax.dynamic_update_slice(table, rows, (0, 0)), tables, frequent)
            return tables, frequent, *jax.tree.map(jnp.add, results, more)

        frequent = jax.tree.map(lambda table: table[:FREQUENT], tables)
        start = tables, frequent, jnp.int32(0), (jnp.float32(0), jnp.float32(0))
        after, _, *results = lax.fori_loop(0, len(parts), part, start)
        merged = jax.tree.map(with_rest, after, tables)
        return merged, *jax.tree.map(lambda x: lax.psum(x, "data"), results)

    data, none = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(none, none, data, data, data, none),
        out_specs=(none, none, none),
        axis_names={"data"},
        check_vma=False,  # the loops make as many steps as there are words, and differ from device to device
    )
    return jax.jit(mapped, donate_argnums=1)


def _pieces(ids: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Where to cut the ids: at the last border of sentences that a chunk holds, so that no pair is lost."""
    begin = 0
    while len(ids) - begin > size:
        borders = np.flatnonzero(ids[begin + 1 : begin + size + 1] < 0)
        end = begin + 1 + int(borders[-1]) if len(borders) else begin + size
        yield begin, end
        begin = end
    yield begin, len(ids)


class Saver:
    """Checkpoints of the tables, where a directory is given; a context manager, in which SIGTERM waits for them."""

    def __init__(self, directory, every):
        self._directory, self._every, self._contexts = directory, every, ExitStack()

    def __enter__(self):
        if self._directory is not None:
            from seqjax.checkpoint import Checkpoints  # needs Orbax
            from seqjax.train import sigterm

            self._checkpoints = self._contexts.enter_context(Checkpoints(self._directory))
            self._stop = self._contexts.enter_context(sigterm())
        return self

    def __exit__(self, *error):
        return self._contexts.__exit__(*error)

    def begin(self):
        """Refuse a directory with the checkpoints of another training."""
        if self._directory is not None:
            self._checkpoints.begin()

    def restore(self, tables):
        """The chunks that are done, the tables and the number of words, of the last checkpoint or of the beginning."""
        if self._directory is None:
            raise InputError("resume=True needs checkpoints=, the directory to go on from")
        template = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if x.committed else None), tables
        )
        restored = self._checkpoints.restore(template)
        return (0, tables, 0) if restored is None else (restored.step, restored.tree, restored.metadata["words"])

    def due(self, step, last):
        """Whether to save now."""
        return self._directory is not None and (self._stop.is_set() or step % self._every == 0 or step == last)

    def save(self, step, tables, words):
        """Save; if SIGTERM has come, leave with status 143."""
        self._checkpoints.save(step, tables, {"words": words})
        if self._stop.is_set():
            self._checkpoints.wait()
            raise SystemExit(143)


class _Clock:
    """Reports progress; the speed leaves out the first chunk, which waits for the compiler."""

    def __init__(self, progress):
        self.words, self._progress, self._first = 0, progress, None

    def report(self, step, steps, epoch, fraction, n, loss):
        self.words += int(n)
        if self._progress is None:
            return
        nats, pairs = (float(np.sum(x)) for x in loss)
        now = time.perf_counter()
        words, began = self._first = self._first or (self.words, now)
        rate = (self.words - words) / (now - began) if now > began else math.nan
        self._progress(Progress(step, steps, epoch, fraction, self.words, rate, nats / pairs if pairs else math.nan))
