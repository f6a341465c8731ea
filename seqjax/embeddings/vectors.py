"""Word vectors and what is asked of them: look-up, similarity, nearest neighbours, analogies, evaluation."""

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from numbers import Real
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from seqjax.embeddings import evaluation, queries
from seqjax.embeddings.subwords import Subwords, compose
from seqjax.errors import InputError, TrainingError
from seqjax.types import Array

Key: TypeAlias = str | np.ndarray | Array  # a word, or a vector [D]
Term: TypeAlias = Key | tuple[Key, float]


class WordVectors:
    """Words and their vectors, with the questions that gensim's ``KeyedVectors`` answers.

    Similarity is the cosine. A vector of zeros has similarity 0 to everything. Words given in a query are never among
    its answers; equal similarities come in the order of the words. An unknown word is an error, unless there are
    ``subwords``, from which its vector is composed.

    A question is computed with NumPy, so that nothing is compiled or copied to a device for it. For many questions at
    once there are ``…_batch`` methods, which run on the device, over the functions of `seqjax.embeddings.queries`.

    Attributes:
      words: by falling frequency, where that is known.
      vectors: float32 [V, D], maybe a read-only memory map; must not be changed.
      counts: how often each word occurs, int64 [V], or None.
      context_vectors: the output vectors of training, float32 [V, D], or None.
      subwords: character n-grams, or None.
      index: word -> row.

    >>> vectors = WordVectors(["cat", "dog", "car"], np.array([[3.0, 1.0], [2.0, 1.0], [0.0, 1.0]]))
    >>> vectors["dog"]
    array([2., 1.], dtype=float32)
    >>> [(word, round(similarity, 3)) for word, similarity in vectors.most_similar("cat")]
    [('dog', 0.99), ('car', 0.316)]
    >>> vectors.doesnt_match(["cat", "dog", "car"])
    'car'

    Raises:
      InputError: words and arrays do not fit together, or a word occurs twice.
    """

    def __init__(
        self,
        words: Iterable[str],
        vectors: np.ndarray | Array,
        *,
        counts: np.ndarray | None = None,
        context_vectors: np.ndarray | Array | None = None,
        subwords: Subwords | None = None,
    ):
        self.words = list(words)
        self.vectors = np.asarray(vectors, np.float32)
        self.counts = None if counts is None else np.asarray(counts, np.int64)
        self.context_vectors = None if context_vectors is None else np.asarray(context_vectors, np.float32)
        self.subwords = subwords
        self.index = {word: row for row, word in enumerate(self.words)}
        if self.vectors.ndim != 2:
            raise InputError(f"vectors: shape {self.vectors.shape}; pass [V, D], a row for each word")
        if len(self.index) < len(self.words):
            twice = next(word for row, word in enumerate(self.words) if self.index[word] != row)
            raise InputError(f"words: {twice!r} occurs more than once; keep one row for each word")
        shapes = {"vectors": self.vectors, "counts": self.counts, "context_vectors": self.context_vectors}
        for name, array in shapes.items():
            if array is not None and array.shape != (len(self.words), *self.vectors.shape[1:])[: array.ndim]:
                raise InputError(
                    f"{name}: shape {array.shape} does not fit {len(self.words):,} words and vectors "
                    f"{self.vectors.shape}; pass a row for each word"
                )

    def __len__(self) -> int:
        """The number of words."""
        return len(self.words)

    def __repr__(self) -> str:
        subwords = "" if self.subwords is None else ", subwords"
        return f"WordVectors({len(self):,} words, {self.vectors.shape[1]} dimensions{subwords})"

    def __contains__(self, word: object) -> bool:
        """Whether the word has a vector: with subwords, every string has."""
        return word in self.index or (self.subwords is not None and isinstance(word, str))

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __getitem__(self, words: str | Sequence[str]) -> np.ndarray:
        """A copy of the vector of a word, [D], or of the vectors of several, [N, D]."""
        if isinstance(words, str):
            return self[[words]][0]
        rows = np.array([self.index.get(word, -1) for word in words], np.int64)
        found = np.zeros((len(rows), self.vectors.shape[1]), np.float32)
        found[rows >= 0] = self.vectors[rows[rows >= 0]]
        unknown = [words[i] for i in np.flatnonzero(rows < 0).tolist()]
        if unknown:
            if self.subwords is None:
                raise self._unknown(unknown[0])
            found[rows < 0] = compose(self.subwords, unknown, index=self.index)
        return found

    def get_index(self, word: str) -> int:
        """The row of a word; InputError if it has none."""
        if word not in self.index:
            raise self._unknown(word)
        return self.index[word]

    def mean_vector(
        self,
        keys: Key | Iterable[Key],
        weights: Sequence[float] | np.ndarray | None = None,
        pre_normalize: bool = True,
        post_normalize: bool = False,
    ) -> np.ndarray:
        """The weighted mean of words and vectors, ``Σ_k w_k x_k / Σ_k |w_k|``, float32 [D].

        ``pre_normalize`` scales the words' vectors to length 1, but not vectors given as keys; ``post_normalize`` the
        mean.
        """
        keys = _listed(keys)
        scale = np.ones(len(keys)) if weights is None else np.asarray(weights, np.float64)
        if not keys or scale.shape != (len(keys),):
            raise InputError(f"keys: {len(keys)} with weights {scale.shape}; pass at least one key, a weight for each")
        mean = np.zeros(self.vectors.shape[1], np.float32)
        for weight, term in zip(scale, self._terms(keys, pre_normalize), strict=True):  # a sum rounded as gensim's is
            mean += weight * term
        mean = _divide(mean, np.abs(scale).sum(keepdims=True))
        return (_unit(mean) if post_normalize else mean).astype(np.float32)

    def most_similar(
        self,
        positive: Term | Iterable[Term] = (),
        negative: Term | Iterable[Term] = (),
        topn: int | None = 10,
        *,
        restrict_vocab: int | None = None,
        method: str = "add",
    ) -> list[tuple[str, float]] | np.ndarray:
        """The words most similar to ``positive`` and least to ``negative``, with their similarities.

        Args:
          positive: a word or vector, or several; in place of one also a pair (word, weight), for ``"add"``.
          negative: a word or vector, or several.
          topn: how many; None: the similarities of all words, the query's too, as an array [V].
          restrict_vocab: only the first so many words can be answers.
          method: ``"add"`` is 3CosAdd: the cosine to the mean of the unit vectors of words, and of vectors as they are
            (Mikolov et al. 2013); ``"mul"`` is 3CosMul (Levy and Goldberg 2014), see `queries.cos_mul`.

        >>> table = np.array([[3, 1, 0], [0, 1, 0], [0, 1, 2], [3, 1, 2]])
        >>> vectors = WordVectors(["king", "man", "woman", "queen"], table)
        >>> vectors.most_similar(positive=["king", "woman"], negative=["man"], topn=1)[0][0]
        'queen'
        """
        keys, weights = _query(positive, negative, method)
        n = self._restricted(restrict_vocab)
        if method == "add":
            scores = self._cosines(self.mean_vector(keys, weights, post_normalize=True), n)
        else:
            similarity = (1 + self._cosines(_unit(self._terms(keys)), n)) / 2  # [V, W]
            scores = similarity[:, weights > 0].prod(1) / (similarity[:, weights < 0].prod(1) + np.float32(1e-6))
        if topn is None:
            return scores
        rows = [row for row in self._rows(keys) if 0 <= row < n]
        scores[rows] = -np.inf
        best = _largest(scores, min(_checked("topn", topn, 0), n - len(set(rows))))
        return self._named(scores[best], best)

    def most_similar_batch(
        self,
        batch: Sequence[Key | Sequence],
        topn: int = 10,
        *,
        restrict_vocab: int | None = None,
        method: str = "add",
    ) -> list[list[tuple[str, float]]]:
        """The answers of `most_similar` to a batch of queries, computed on the device.

        A query is a pair ``(positive, negative)``, of what `most_similar` takes, or ``positive`` alone.

        >>> vectors = WordVectors(["cat", "dog", "car"], np.array([[3.0, 1.0], [2.0, 1.0], [0.0, 1.0]]))
        >>> [[word for word, _ in answer] for answer in vectors.most_similar_batch(["cat", (["car"], ["dog"])], topn=1)]
        [['dog'], ['cat']]
        """
        if not batch:
            return []
        pairs = [query if isinstance(query, tuple) else (query, ()) for query in batch]
        split = [_query(positive, negative, method) for positive, negative in pairs]
        lengths = [len(keys) for keys, _ in split]
        keys = [key for keys, _ in split for key in keys]
        best = queries.in_blocks(
            lambda terms, weights, excluded: queries.METHODS[method](
                self._table,
                terms,
                weights,
                k=_checked("topn", topn, 1),
                excluded=excluded,
                restrict_vocab=self._restricted(restrict_vocab),
            ),
            _padded(self._terms(keys), lengths),
            _padded(np.concatenate([weights for _, weights in split]), lengths),
            _padded(self._rows(keys), lengths, -1),
        )
        return [self._named(*answer) for answer in zip(*best, strict=True)]

    def similar_by_vector(
        self, vector: np.ndarray | Array, topn: int | None = 10, *, restrict_vocab: int | None = None
    ) -> list[tuple[str, float]] | np.ndarray:
        """The words nearest to a vector [D], as `most_similar` gives them."""
        return self.most_similar([vector], (), topn, restrict_vocab=restrict_vocab)

    def similarity(self, a: str, b: str) -> float:
        """The cosine between two words."""
        x, y = _unit(self[[a, b]])
        return float(x @ y)

    def similarity_batch(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """`similarity` of each pair, float32 [Q], computed on the device."""
        return queries.in_blocks(queries.cosine, self[[a for a, _ in pairs]], self[[b for _, b in pairs]])

    def n_similarity(self, a: Iterable[str], b: Iterable[str]) -> float:
        """The cosine between the means of two sets of words, each word with the length it has."""
        x, y = (self.mean_vector(words, pre_normalize=False, post_normalize=True) for words in (a, b))
        return float(x @ y)

    def distance(self, a: str, b: str) -> float:
        """``1 - similarity(a, b)``."""
        return 1 - self.similarity(a, b)

    def distances(self, key: Key, others: Iterable[str] = ()) -> np.ndarray:
        """The distance of a word or vector to each of ``others``, or to all words, float32 [N]."""
        x, others = _unit(self._terms([key])[0]), _listed(others)
        return 1 - (_unit(self[others]) @ x if others else self._cosines(x, len(self)))

    def closer_than(self, a: str, b: str) -> list[str]:
        """The words that are closer to ``a`` than ``b`` is, in the order of the vocabulary."""
        distances = self.distances(a)
        closer = np.flatnonzero(distances < distances[self.get_index(b)])
        return [self.words[row] for row in closer if row != self.index.get(a)]

    def rank(self, a: str, b: str) -> int:
        """The place of ``b`` among the neighbours of ``a``; the nearest word has rank 1."""
        return len(self.closer_than(a, b)) + 1

    def rank_batch(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """`rank` of each pair, int32 [Q], computed on the device."""
        a = [a for a, _ in pairs]
        return queries.in_blocks(
            lambda vectors, targets, excluded: queries.rank(self._table, vectors, targets, excluded=excluded),
            self[a],
            np.array([self.get_index(b) for _, b in pairs], np.int32),
            self._rows(a)[:, None],
        )

    def relative_cosine_similarity(self, a: str, b: str, topn: int = 10) -> float:
        """The similarity of two words as a share of the sum over the ``topn`` words nearest to ``a``.

        With 10 words, more than 0.1 is more than their average: a sign of synonyms (Leeuwenberg et al. 2016).
        """
        total = sum(similarity for _, similarity in self.most_similar(a, topn=topn))
        return self.similarity(a, b) / total if total else 0.0

    def rank_by_centrality(self, words: Sequence[str]) -> list[tuple[float, str]]:
        """The words by their cosine to the mean of their unit vectors, the most central first."""
        vectors = _unit(self[words])
        return sorted(zip((vectors @ _unit(vectors.sum(0))).tolist(), words, strict=True), reverse=True)

    def doesnt_match(self, words: Sequence[str]) -> str:
        """The word that is farthest from the mean of all. gensim passes over unknown words; here they are an error."""
        if isinstance(words, str) or not words:
            raise InputError(f"words: {words!r}; pass a list of words")
        return self.rank_by_centrality(words)[-1][1]

    def doesnt_match_batch(self, groups: Sequence[Sequence[str]]) -> list[str]:
        """`doesnt_match` of each group, computed on the device."""
        lengths = [len(words) for words in groups]
        if 0 in lengths:
            raise InputError(f"groups: number {lengths.index(0)} is empty; pass at least one word")
        vectors = _padded(self[[word for words in groups for word in words]], lengths)
        where = _padded(np.ones(sum(lengths), bool), lengths)
        least: list[int] = np.argmin(queries.in_blocks(queries.centrality, vectors, where), axis=1).tolist()
        return [words[i] for words, i in zip(groups, least, strict=True)]

    def normalized(self) -> "WordVectors":
        """The words and counts with vectors of length 1, without context vectors and subwords."""
        return WordVectors(self.words, _unit(self.vectors), counts=self.counts)

    def subset(self, words: Sequence[str]) -> "WordVectors":
        """The vectors of some words, in their order; those composed from subwords too. Counts stay if all are known."""
        rows = self._rows(words)
        counts = self.counts[rows] if self.counts is not None and (rows >= 0).all() else None
        return WordVectors(words, self[words], counts=counts)

    def evaluate_analogies(
        self,
        path: str | os.PathLike,
        *,
        restrict_vocab: int = 300_000,
        case_insensitive: bool = True,
        oov: str = "skip",
        method: str = "add",
    ) -> evaluation.Analogies:
        """Answer a file of analogy questions on the device; see `evaluation.evaluate_analogies`."""
        return evaluation.evaluate_analogies(
            self.words,
            self._table,
            path,
            restrict_vocab=restrict_vocab,
            case_insensitive=case_insensitive,
            oov=oov,
            method=method,
        )

    def evaluate_similarity(
        self,
        path: str | os.PathLike,
        *,
        restrict_vocab: int = 300_000,
        case_insensitive: bool = True,
        oov: str = "skip",
    ) -> evaluation.Similarity:
        """Correlate similarities with people's judgements in a file; see `evaluation.evaluate_similarity`."""
        return evaluation.evaluate_similarity(
            self.words,
            self.vectors,
            path,
            restrict_vocab=restrict_vocab,
            case_insensitive=case_insensitive,
            oov=oov,
            compose=None if self.subwords is None else self.__getitem__,
        )

    @cached_property
    def _table(self) -> Array:
        """The vectors on the device."""
        return jnp.asarray(self.vectors)

    @cached_property
    def _norms(self) -> np.ndarray:
        """[V]. By blocks, since `norm` squares into a second array."""
        blocks = range(0, len(self), 1 << 16)
        return np.concatenate([np.linalg.norm(self.vectors[i : i + (1 << 16)], axis=1) for i in blocks])

    def _cosines(self, x: np.ndarray, n: int) -> np.ndarray:
        """The cosines of the first n words to one unit vector, [n], or to several, [n, W]."""
        products = self.vectors[:n] @ x.T
        return _divide(products, self._norms[:n].reshape(-1, *[1] * (x.ndim - 1)))

    def _rows(self, keys: Sequence[Key]) -> np.ndarray:
        """The row of each word; -1 for vectors and for words composed from subwords."""
        return np.array([self.index.get(key, -1) if isinstance(key, str) else -1 for key in keys], np.int32)

    def _terms(self, keys: Sequence[Key], normalize: bool = True) -> np.ndarray:
        """The vector of each word, scaled to length 1 if ``normalize``, and vectors as they are, [W, D]."""
        terms = np.empty((len(keys), self.vectors.shape[1]), np.float32)
        is_word = np.array([isinstance(key, str) for key in keys], bool)
        words = self[[key for key in keys if isinstance(key, str)]]
        terms[is_word] = _unit(words) if normalize else words
        for i in np.flatnonzero(~is_word).tolist():
            if np.shape(keys[i]) != terms.shape[1:]:
                raise InputError(f"key {keys[i]!r} is neither a word nor a vector of {terms.shape[1]} numbers")
            terms[i] = keys[i]
        return terms

    def _restricted(self, restrict_vocab: int | None) -> int:
        return min(_checked("restrict_vocab", len(self) if restrict_vocab is None else restrict_vocab, 1), len(self))

    def _named(self, scores: np.ndarray, rows: np.ndarray) -> list[tuple[str, float]]:
        return [(self.words[row], float(score)) for score, row in zip(scores, rows, strict=True) if row >= 0]

    def _unknown(self, word: str) -> InputError:
        """An error with words spelled alike. A few thousand frequent ones are compared: it must not take long."""
        suggestions = [w for w in (word.lower(), word.capitalize(), word.upper()) if w in self.index]
        start, length = word[:1].lower(), len(word)
        frequent = islice(self.words, 100_000)
        alike = (w for w in frequent if w[:1].lower() == start and abs(len(w) - length) <= 2)
        suggestions = suggestions or difflib.get_close_matches(word, islice(alike, 2000))
        hint = (
            f"did you mean {' or '.join(map(repr, suggestions))}?"
            if suggestions
            else "no frequent word is spelled like it"
        )
        return InputError(f"word {word!r} is not among the {len(self):,} words; {hint}")


def check_finite(vectors: WordVectors) -> WordVectors:
    """The vectors, which must be finite; else raise `TrainingError`."""
    if not np.isfinite(vectors.vectors).all():
        raise TrainingError(
            "the training diverged (some vectors are not finite): lower its step size; of few words, also how many are "
            "trained at once (block)"
        )
    return vectors


def _query(positive, negative, method) -> tuple[list[Key], np.ndarray]:
    """The words and vectors of a query, and the weight of each, float32 [W]."""
    if method not in queries.METHODS:
        raise InputError(f"method: {method!r}; choose 'add' (3CosAdd) or 'mul' (3CosMul)")
    positive, negative = _listed(positive), _listed(negative)
    if not positive and not negative:
        raise InputError("positive and negative are empty: pass at least one word or vector")
    if any(isinstance(key, tuple) for key in negative) or (
        method == "mul" and any(isinstance(key, tuple) for key in positive)
    ):
        # gensim would add a word with a positive weight here, and 3CosMul has no weights.
        raise InputError("pairs (word, weight) go into positive, with method='add'; a negative weight subtracts there")
    weighted = [key if isinstance(key, tuple) else (key, 1.0) for key in positive]
    weights = [weight for _, weight in weighted] + [-1.0] * len(negative)
    return [key for key, _ in weighted] + negative, np.array(weights, np.float32)


def _listed(keys) -> list:
    """Several keys as a list; so may one word, vector or pair (word, weight) be."""
    pair = isinstance(keys, tuple) and len(keys) == 2 and isinstance(keys[1], Real)
    vector = isinstance(keys, np.ndarray | Array) and keys.ndim == 1 and keys.dtype.kind != "U"
    return [keys] if isinstance(keys, str) or pair or vector else list(keys)


def _checked(name: str, value: int, least: int) -> int:
    if value < least:
        raise InputError(f"{name}: {value}; pass at least {least}")
    return value


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a / b``; 0 where b is 0, since a is 0 there too."""
    return a / np.where(b > 0, b, np.ones_like(b))


def _unit(x: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1; vectors of zeros remain so."""
    return _divide(x, np.linalg.norm(x, axis=-1, keepdims=True))


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Where the k largest scores are, by falling score; of equal ones the first come first."""
    if k == 0:
        return np.empty(0, np.int64)
    candidates = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


def _padded(values: np.ndarray, lengths: Sequence[int], fill: int = 0) -> np.ndarray:
    """Values [N, …] of one query after the other as [Q, W, …]; a query has ``lengths[q]`` of them."""
    padded = np.full((len(lengths), max(lengths), *values.shape[1:]), fill, values.dtype)
    padded[np.arange(max(lengths)) < np.array(lengths)[:, None]] = values
    return padded
