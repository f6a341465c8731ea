"""Phrases: words that stand together more often than by chance, joined to one: new_york, bank_of_america.

Joined before the training, a phrase gets a vector of its own (Mikolov et al., 2013).
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from seqjax.embeddings.vocabulary import Corpus, sentences
from seqjax.errors import InputError


class Phrases(NamedTuple):
    """The phrases of a corpus, each with its score: ("new", "york"), or ("bank", "of", "america") with a connector."""

    scores: dict[tuple[str, ...], float]
    connector_words: frozenset[str]
    delimiter: str


def find_phrases(
    corpus: Corpus,
    *,
    min_count: int = 5,
    threshold: float = 10.0,
    scoring: Literal["default", "npmi"] = "default",
    connector_words: Collection[str] = frozenset(),
    delimiter: str = "_",
) -> Phrases:
    """The pairs of neighbouring words a b whose score is above ``threshold``; equal to gensim's.

        default   (n_ab - min_count) · V / (n_a n_b)      V: how many words and pairs there are, each counted once
        npmi      log(P_ab / (P_a P_b)) / -log P_ab       P: n by the number of words; only pairs with n_ab >= min_count

    The default is word2vec's (Mikolov et al., 2013). Normalized pointwise mutual information (Bouma, 2009) is 1 for
    words that occur only together, 0 for independent ones, and at least -1.

    Words of ``connector_words``, such as "of" and "the", neither begin nor end a phrase and do not count for V; those
    between two other words belong to the phrase, whose score is that of its ends.

    Every distinct pair is held in memory, about 250 bytes each.

    >>> find_phrases([["new", "york", "is", "new"], ["in", "new", "york"]], min_count=1, threshold=1.0).scores
    {('new', 'york'): 1.3333333333333333}

    Raises:
      InputError: scoring is unknown; min_count is below 1; threshold is outside of what scores can be.
    """
    if min_count < 1:
        raise InputError(f"min_count={min_count}; it must be at least 1")
    if scoring not in ("default", "npmi"):
        raise InputError(f"scoring={scoring!r} is unknown; choose default or npmi")
    if scoring == "default" and not threshold > 0:
        raise InputError(f"threshold={threshold}; with scoring='default' it must be above 0")
    if scoring == "npmi" and not -1 <= threshold <= 1:
        raise InputError(f"threshold={threshold}; scores of npmi lie between -1 and 1: try 0.5")
    connectors, words, pairs = frozenset(connector_words), Counter(), Counter()
    for sentence in sentences(corpus):
        words.update(sentence)
        pairs.update(tuple(sentence[start:end]) for start, end in _spans(sentence, connectors))
    n_words, n_types = words.total(), len(words.keys() - connectors) + len(pairs)

    def score(pair: tuple[str, ...], count: int) -> float:
        a, b = words[pair[0]], words[pair[-1]]
        if scoring == "default":
            return (count - min_count) / (a * b) * n_types
        return math.log(count * n_words / (a * b)) / -math.log(count / n_words) if count >= min_count else -math.inf

    scores = {pair: value for pair, count in pairs.items() if (value := score(pair, count)) > threshold}
    return Phrases(scores, connectors, delimiter)


def join_phrases(phrases: Phrases, sentence: Sequence[str]) -> list[str]:
    """A sentence with its phrases joined, from left to right; a word belongs to one phrase at most.

    >>> phrases = Phrases({("new", "york"): 1.5, ("york", "city"): 9.0}, frozenset(), "_")
    >>> join_phrases(phrases, ["in", "new", "york", "city"])
    ['in', 'new_york', 'city']
    """
    joined, done = [], 0
    for start, end in _spans(sentence, phrases.connector_words):
        if start >= done and (phrase := tuple(sentence[start:end])) in phrases.scores:
            joined += [*sentence[done:start], phrases.delimiter.join(phrase)]
            done = end
    return joined + list(sentence[done:])


@dataclass(frozen=True)
class PhraseCorpus:
    """A corpus whose phrases are joined while it is read: for training, or to find longer phrases in it.

    >>> phrases = Phrases({("new", "york"): 1.5}, frozenset(), "_")
    >>> list(PhraseCorpus(phrases, [["new", "york", "city"]]))
    [['new_york', 'city']]
    """

    phrases: Phrases
    corpus: Corpus

    def __iter__(self) -> Iterator[list[str]]:
        return (join_phrases(self.phrases, sentence) for sentence in sentences(self.corpus))


def _spans(sentence: Sequence[str], connectors: frozenset[str]) -> Iterator[tuple[int, int]]:
    """(start, end) of each word that is no connector together with the next such word."""
    places = [i for i, word in enumerate(sentence) if word not in connectors]
    return ((start, end + 1) for start, end in pairwise(places))
