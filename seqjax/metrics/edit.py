"""Exact matches, edit distances and the error rates made of them: of phonemes, words or characters."""

import math
from collections.abc import Hashable, Sequence

import numpy as np

from seqjax.metrics.texts import pairs

Tokens = Sequence[Hashable] | np.ndarray


def exact_match(hypotheses: Sequence[Tokens], references: Sequence[Tokens | Sequence[Tokens]]) -> float:
    """The share of hypotheses that equal their reference, or one of their references.

    Args:
      hypotheses: each a string, or a sequence of tokens.
      references: for each hypothesis one such or a list of them; see `texts.pairs`.

    Raises:
      InputError: hypotheses and references do not fit.

    >>> exact_match(["42", "7"], ["42", ["8", "9"]])
    0.5
    """
    paired = pairs(hypotheses, references)
    equal = [any(_list(hypothesis) == _list(other) for other in listed) for hypothesis, listed in paired]
    return sum(equal) / len(equal)


def edit_distance(a: Tokens, b: Tokens) -> int:
    """How many tokens must at least be inserted, deleted or replaced to make b from a (Levenshtein, 1966).

        D[i, j] = min(D[i-1, j] + 1, D[i, j-1] + 1, D[i-1, j-1] + (a_i ≠ b_j)),    D[i, 0] = i,  D[0, j] = j

    and the distance is the last D. Neighbours in D differ by 1 at most: a column of differences is kept as the bits of
    two integers, and made from the column before by a dozen operations (Myers, 1999; Hyyrö, 2003).

    Args:
      a: sequence of hashable tokens, such as a string, a list of words or an array of ids.
      b: another.

    >>> edit_distance("kitten", "sitting"), edit_distance([1, 2, 3], [2, 3, 4])
    (3, 2)
    """
    if len(a) == 0:
        return len(b)
    places: dict[Hashable, int] = {}
    for i, token in enumerate(_list(a)):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    last = 1 << (len(a) - 1)
    distance = len(a)
    # Bit i-1: D[i, j] is above D[i-1, j], or below it.
    above, below = full, 0
    for token in _list(b):
        hits = places.get(token, 0)
        # Bit i-1: D[i, j] equals D[i-1, j-1]; then is above D[i, j-1], or below it.
        same = (((hits & above) + above) ^ above) | hits | below
        right, left = below | ~(same | above), same & above
        distance += (right & last > 0) - (left & last > 0)
        right, left = right << 1 | 1, left << 1  # the first row grows with j
        above, below = (left | ~(same | right)) & full, right & same & full
    return distance


def error_rate(hypotheses: Sequence[Tokens], references: Sequence[Tokens | Sequence[Tokens]]) -> float:
    """Edit distances in relation to the references' lengths: the error rate of words, characters or phonemes.

        error_rate = Σ edit_distance(hypothesis, reference) / Σ length of reference

    over a corpus, not the mean over its texts. It is the word error rate of lists of words, the character error rate
    of strings, the phoneme error rate of lists of phonemes. Of several references the nearest counts, with its length;
    the first of equally near ones.

    Args:
      hypotheses: each a string, or a sequence of tokens.
      references: for each hypothesis one such or a list of them; see `texts.pairs`.

    Returns:
      the rate, above 1 where hypotheses are much longer; NaN where all references are empty.

    Raises:
      InputError: hypotheses and references do not fit.

    >>> error_rate(["the cat".split(), ["dogs"]], ["the cats".split(), [["a", "dog"], ["dog"]]])
    0.6666666666666666
    """
    errors = length = 0
    for hypothesis, listed in pairs(hypotheses, references):
        distances = [edit_distance(hypothesis, reference) for reference in listed]
        errors += min(distances)
        length += len(listed[distances.index(min(distances))])
    return errors / length if length else math.nan


def _list(tokens: Tokens) -> list[Hashable]:
    # The elements of an array hash slowly.
    return tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)
