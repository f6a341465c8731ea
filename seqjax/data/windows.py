"""Batches for truncated backpropagation through time, each a pure function of the step.

Take the n tokens of a corpus as a ring of n - 1 transitions: transition i has the input `tokens[i]` and the target
`tokens[i + 1]`, and after the last comes the first, with a reset. An epoch cuts the ring into B streams of equal
length, one a row of the batch, and walks them in step, T transitions a window; it omits what is left over (fewer than
B*T transitions). Epoch 0 starts at transition 0, every later epoch at a place drawn from the seed and the epoch, so
that window borders and the omitted part move. The end of the corpus needs no care: no transition joins it to the
beginning.
"""

import operator
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from seqjax.errors import InputError
from seqjax.text import EOS, PAD
from seqjax.types import Array


class Batch(NamedTuple):
    """One window, or several with a leading axis. Row b continues row b of the window before."""

    inputs: np.ndarray | Array  # [B, T] int32
    targets: np.ndarray | Array  # [B, T] int32: the token after each input
    resets: (
        np.ndarray | Array
    )  # [B, T] bool: the input begins a document, or a pass over the data; clear the carry before it
    where: np.ndarray | Array  # [B, T] bool: count this target in the loss


AnyBatch = TypeVar("AnyBatch", bound=tuple, covariant=True)


@runtime_checkable
class Steps(Protocol[AnyBatch]):
    """Batches by step, each a pure function of the step: `BPTTWindows`, `Buckets`, `PairBuckets`."""

    def __getitem__(self, step: int, /) -> AnyBatch:
        """The batch of a step >= 0."""
        ...


class BPTTWindows:
    """Training windows by step: `windows[step]` for any step >= 0, the same whenever and wherever it is asked for.

    `tokens` [n] may be memory-mapped; only the windows asked for are read.

    With `rows`, a batch of n rows is read in part: `rows(n)` [m] says which, as `seqjax.sharding.local_rows` does for
    one of several processes.

    Raises InputError if the corpus is too short for one window.

    >>> windows = BPTTWindows(np.arange(4, 12), batch_size=2, window=2, seed=0)
    >>> windows.steps_per_epoch
    1
    >>> windows[0].inputs.tolist(), windows[0].targets.tolist()
    ([[4, 5], [6, 7]], [[5, 6], [7, 8]])
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        batch_size: int,
        window: int,
        seed: int,
        rows: Callable[[int], np.ndarray] = np.arange,
    ):
        _check_sizes(batch_size, window)
        if seed < 0:
            raise InputError(f"seed: {seed} is negative; give 0 or more.")
        if len(tokens) < batch_size * window + 1:
            raise InputError(
                f"the corpus has {len(tokens)} tokens, fewer than the batch_size*window+1 = {batch_size * window + 1} "
                f"of one batch; lower batch_size ({batch_size}) or window ({window}), or give more text."
            )
        self.tokens = np.asarray(tokens)
        self.batch_size, self.window, self.seed = batch_size, window, seed
        self.steps_per_epoch = (len(tokens) - 1) // (batch_size * window)
        self._rows = rows(batch_size)

    def __getitem__(self, step: int) -> Batch:
        step = operator.index(step)
        if step < 0:
            raise IndexError(f"step {step} is negative")
        epoch, index = divmod(step, self.steps_per_epoch)
        stream = self.steps_per_epoch * self.window
        rows = self._rows[:, None] * stream
        places = self._start(epoch) + rows + index * self.window + np.arange(self.window)
        places %= len(self.tokens) - 1
        return _batch(self.tokens, places, np.ones(places.shape, bool), first=index == 0)

    def _start(self, epoch: int) -> int:
        if epoch == 0:
            return 0
        # The raw words of a SeedSequence never change between NumPy versions; a Generator's integers may.
        word = np.random.SeedSequence(self.seed, spawn_key=(epoch,)).generate_state(1, np.uint64)[0]
        return int(word) % (len(self.tokens) - 1)


def batches(source: Steps[AnyBatch], *, start: int = 0, stop: int, accumulate: int = 1) -> Iterator[AnyBatch]:
    """The batches of the steps `start` to `stop` - 1, read ahead in a thread.

    With `accumulate` = A > 1 a step takes the batches s*A to s*A + A - 1, stacked on a new leading axis [A, B, T]; they
    must have one shape, as windows have. Starting at `start` gives exactly what skipping that many steps gives.
    """
    import grain

    if accumulate < 1:
        raise InputError(f"accumulate: {accumulate} is below 1; 1 takes one window a step.")

    def stacked(step: int) -> AnyBatch:
        parts = [source[step * accumulate + a] for a in range(accumulate)]
        return type(parts[0])(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))

    steps = grain.MapDataset.range(start, stop)
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(steps.map(stacked if accumulate > 1 else source.__getitem__).to_iter_dataset(read))


def evaluation_windows(tokens: np.ndarray, *, batch_size: int, window: int) -> Iterator[Batch]:
    """One pass over a corpus [n] in which each of its n - 1 targets counts exactly once, all batches [B, T].

    The transitions are cut into B streams as in training; the ends of the streams are padded with `where` False. A
    short corpus leaves rows short or empty. Raises InputError for a corpus without a transition.
    """
    _check_sizes(batch_size, window)
    transitions = len(tokens) - 1
    if transitions < 1:
        raise InputError(f"the corpus to evaluate on has {len(tokens)} tokens; it needs at least 2.")
    tokens = np.asarray(tokens)
    stream = -(-transitions // batch_size)
    rows = np.arange(batch_size)[:, None] * stream
    for begin in range(0, stream, window):
        columns = np.arange(begin, begin + window)
        places = rows + columns
        where = (columns < stream) & (places < transitions)
        yield _batch(tokens, np.where(where, places, 0), where, first=begin == 0)


def _batch(tokens: np.ndarray, places: np.ndarray, where: np.ndarray, *, first: bool) -> Batch:
    """The transitions at `places` [B, T]; `first`: row by row, no window comes before this one."""
    # Place 0 has no token before it: that it then reads tokens[-1] does not matter.
    resets = (places == 0) | (tokens[places - 1] == EOS)
    resets[:, 0] |= first
    return Batch(
        np.where(where, tokens[places], PAD).astype(np.int32),
        np.where(where, tokens[places + 1], PAD).astype(np.int32),
        resets & where,
        where,
    )


def _check_sizes(batch_size: int, window: int) -> None:
    for name, value in (("batch_size", batch_size), ("window", window)):
        if value < 1:
            raise InputError(f"{name}: {value} is below 1.")
