"""fastText's character n-grams: which buckets a word hashes to, and its vector as the mean of their rows.

Bojanowski et al., Enriching Word Vectors with Subword Information, 2017, https://arxiv.org/abs/1607.04606; hash and
n-grams as in https://github.com/facebookresearch/fastText, so that its models give the same vectors here.
"""

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np

from seqjax.errors import InputError
from seqjax.types import Float, Int

_FNV_OFFSET, _FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
_EOS = "</s>"  # fastText's end of a line has no n-grams, known or unknown
_HASHED, _COMPOSED = 1 << 14, 1 << 8  # words at a time, so that what is computed for them stays in the cache


class FastTextHeader(NamedTuple):
    """What Facebook's file says beside words, n-grams and vectors, in its order; the defaults are its for skip-gram.

    Nothing here is needed to use the vectors: it is kept so that a file can be written again as it was.
    """

    window: int = 5
    epochs: int = 5
    min_count: int = 5
    negative: int = 5
    word_ngrams: int = 1
    loss: int = 2  # 1 hierarchical softmax, 2 negative sampling, 3 softmax, 4 one against all
    model: int = 2  # 1 cbow, 2 skip-gram, 3 supervised
    lr_update_rate: int = 100
    sample: float = 1e-4
    n_tokens: int = 0
    labels: tuple[str, ...] = ()  # of a supervised model
    label_counts: tuple[int, ...] = ()
    output: np.ndarray | None = None  # output matrix, if its rows do not belong to words: labels or nodes of a tree
    version: int = 12  # of the file; 0 for old files, which do not say
    max_n: int | None = None  # as the file has it, where Subwords.max_n differs: supervised models before version 12


class Subwords(NamedTuple):
    """Vectors of words and of the buckets of their character n-grams.

    A word's vector is the mean of its own row and the rows of its n-grams (`compose`).
    """

    rows: np.ndarray  # float32 [V + R, D]: a row for each word, then n-gram rows
    slots: np.ndarray | None  # int32 [bucket]: the n-gram row (0 to R - 1) that a bucket has, -1 none; None: row i
    min_n: int
    max_n: int  # 0: no n-grams
    bucket: int
    pruned: bool = False  # buckets without a row are left out of the mean; otherwise they count as zero vectors
    header: FastTextHeader | None = None


def ngram_table(
    words: Sequence[str], *, min_n: int, max_n: int, bucket: int
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " offsets"]]:
    """The buckets of each word's character n-grams: int32 in one row, and int64 offsets [len(words) + 1].

    Word i has ``flat[offsets[i]:offsets[i + 1]]``, in fastText's order: by first character, then by length. n-grams
    are ``min_n`` to ``max_n`` code points of ``"<" + word + ">"``; a lone ``<`` or ``>`` is none, and ``</s>`` has
    none. Their bucket is the FNV-1a hash of their UTF-8, its bytes taken as signed, modulo ``bucket``.

    >>> flat, offsets = ngram_table(["as", "</s>", "a"], min_n=3, max_n=4, bucket=100)
    >>> offsets.tolist()  # three (<as, <as>, as>), none, one (<a>)
    [0, 3, 3, 4]

    Raises:
      InputError: a word cannot be written as UTF-8; there are n-grams, but ``bucket`` is below 1.
    """
    if max_n > 0 and bucket < 1:
        raise InputError(f"bucket={bucket}: n-grams of up to max_n={max_n} characters need rows, such as 2_000_000")
    blocks = [_hash_block(words[i : i + _HASHED], min_n, max_n, bucket) for i in range(0, len(words), _HASHED)]
    flat = [np.empty(0, np.int32), *(buckets for buckets, _ in blocks)]
    counts = [np.zeros(1, np.int64), *(count for _, count in blocks)]
    return np.concatenate(flat), np.cumsum(np.concatenate(counts))


def _hash_block(words, min_n, max_n, bucket):
    """Buckets [N] and how many each word has [len(words)]. The hashes of all n-grams grow together, by a character."""
    encoded = [b"" if word == _EOS else b"<" + utf8(word) + b">" for word in words]
    data = np.frombuffer(b"".join(encoded), np.int8)
    first = np.flatnonzero((data & -64) != -128)  # where characters begin: bytes that are not 0b10xxxxxx
    width = np.diff(first, append=len(data))
    ends = np.searchsorted(first, np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded))))
    sizes = np.diff(ends, prepend=0)
    left = np.repeat(ends, sizes) - np.arange(len(first))  # characters to the end of the word, this one included
    max_n = min(max_n, sizes.max(initial=0))

    lengths = np.arange(max(min_n, 1), max_n + 1)
    present = left[:, None] >= lengths
    if 1 in lengths:
        present[:, 0] &= (left > 1) & (left < np.repeat(sizes, sizes))
    hashes = np.empty(present.shape, np.uint32)
    state = np.full(len(first), _FNV_OFFSET)
    for n in range(1, max_n + 1):
        grown = np.flatnonzero(left >= n)
        for byte in range(width.max(initial=0)):
            grown = grown[width[grown + n - 1] > byte]
            signed = data[first[grown + n - 1] + byte].astype(np.uint32)
            state[grown] = (state[grown] ^ signed) * _FNV_PRIME
        if n >= min_n:
            hashes[:, n - lengths[0]] = state
    upto = np.concatenate([[0], np.cumsum(present.sum(1))])
    return (hashes[present] % np.uint32(bucket)).astype(np.int32), np.diff(upto[ends], prepend=0)


def utf8(word: str) -> bytes:
    """The word as UTF-8; what ``errors="surrogateescape"`` kept of damaged words comes out as it was.

    Raises:
      InputError: the word holds some other lone surrogate.
    """
    try:
        return word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InputError(f"the word {word!r} cannot be written as UTF-8: remove the lone surrogate") from error


def compose(subwords: Subwords, words: Sequence[str], *, index: Mapping[str, int]) -> Float[np.ndarray, "N D"]:
    """Vectors of known and unknown words, float32 [len(words), D].

    vector(word) = mean of rows[index[word]], if the word is known, and of the rows of its n-grams

    ``index`` gives the row of each of the V words. A word that is unknown and has no n-grams gets zeros, as in
    fastText. The memory needed does not depend on the number of rows: they may be a memory-mapped file.

    Raises:
      InputError: a word cannot be written as UTF-8.
    """
    vectors = np.empty((len(words), subwords.rows.shape[1]), np.float32)
    for start in range(0, len(words), _COMPOSED):
        block = words[start : start + _COMPOSED]
        rows, offsets, divisor = _summands(subwords, block, index)
        gathered = subwords.rows[rows]
        # One by one, so that sums are rounded as in fastText; reduceat is no faster, and adds in another order.
        for i in range(len(block)):
            np.add.reduce(gathered[offsets[i] : offsets[i + 1]], axis=0, out=vectors[start + i])
        vectors[start : start + len(block)] *= (1 / np.maximum(divisor, 1)).astype(np.float32)[:, None]
    return vectors


def _summands(subwords, words, index):
    """Rows [N] and offsets [len(words) + 1]: word i is the sum of rows[offsets[i] : offsets[i + 1]] / divisor[i]."""
    own = np.fromiter(map(index.get, words, repeat(-1)), np.int64, len(words))
    known = own >= 0
    buckets, offsets = ngram_table(words, min_n=subwords.min_n, max_n=subwords.max_n, bucket=subwords.bucket)
    slots = buckets if subwords.slots is None else subwords.slots[buckets]
    stored = slots >= 0
    begins = np.concatenate([[0], np.cumsum(stored)])[offsets]
    rows = np.insert(len(index) + slots[stored].astype(np.int64), begins[:-1][known], own[known])  # its own comes first
    begins += np.concatenate([[0], np.cumsum(known)])
    return rows, begins, np.diff(begins) if subwords.pruned else np.diff(offsets) + known
