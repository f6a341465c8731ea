"""chrF and chrF++ of a corpus, equal to sacrebleu's."""

import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from seqjax.errors import InputError
from seqjax.metrics.texts import ngrams, overlap, signature, strings

ORDER = 6  # the longest n-grams of characters
BETA = 2  # recall counts BETA times as much as precision


class Chrf(NamedTuple):
    """chrF and how it came about."""

    score: float  # 0 to 100
    signature: str


def chrf(
    hypotheses: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    word_order: int = 0,
    lowercase: bool = False,
) -> Chrf:
    """chrF2 of a corpus (Popović, 2015), with ``word_order=2`` chrF2++ (Popović, 2017).

        P     = mean_n Σ matches_n / Σ hypothesis_n,    R = mean_n Σ matches_n / Σ reference_n
        score = 100 (1 + β²) P R / (β² P + R),    β = 2

    over n-grams of characters, n = 1 … 6, spaces left out, and over n-grams of words, n = 1 … word_order, a
    punctuation mark at the end of a word, or else at its beginning, being split off. hypothesis_n, reference_n and
    matches_n are numbers of n-grams, in the hypothesis, in the reference and in both; the sums are over sentences. An
    order counts only where both texts have n-grams of it. Of several references the one with the highest score for
    the sentence is taken.

    Args:
      hypotheses: strings. Text in tokens scores as text that is written, if word_order is 0.
      references: for each hypothesis a string or several.
      word_order: words of the longest n-gram of words.
      lowercase: compare in lower case.

    Returns:
      a `Chrf`.

    Raises:
      InputError: hypotheses and references do not fit, see `texts.pairs`; word_order is negative.

    >>> print(f"{chrf(['the cat sat'], ['The cat sits.']).score:.2f}")
    42.06
    """
    if word_order < 0:
        raise InputError(f"word_order={word_order}; give 0 for chrF, 2 for chrF++.")
    paired = strings(hypotheses, references)
    sums = [(0, 0, 0)] * (ORDER + word_order)
    for hypothesis, listed in paired:
        grams = _grams(hypothesis, word_order, lowercase)
        found = [_counts(grams, _grams(reference, word_order, lowercase)) for reference in listed]
        best = max(found, key=_score)  # the first of equals
        sums = [(a + x, b + y, c + z) for (a, b, c), (x, y, z) in zip(sums, best, strict=True)]
    label = signature(paired, case="lc" if lowercase else "mixed", eff="yes", nc=ORDER, nw=word_order, space="no")
    return Chrf(_score(sums), label)


def _grams(text: str, word_order: int, lowercase: bool) -> list[Counter]:
    text = text.lower() if lowercase else text
    characters = "".join(text.split())
    # Slices, since hashing a string takes a fraction of hashing a tuple of strings.
    counts = [Counter([characters[i : i + n] for i in range(len(characters) - n + 1)]) for n in range(1, ORDER + 1)]
    if word_order:
        words = [part for word in text.split() for part in _parts(word)]
        counts += [ngrams(words, n) for n in range(1, word_order + 1)]
    return counts


def _parts(word: str) -> list[str]:
    """A word without its punctuation mark, and the mark: one only, so that "(hi)" becomes "(hi" and ")"."""
    if len(word) > 1 and word[-1] in string.punctuation:
        return [word[:-1], word[-1]]
    if len(word) > 1 and word[0] in string.punctuation:
        return [word[0], word[1:]]
    return [word]


def _counts(hypothesis: list[Counter], reference: list[Counter]) -> list[tuple[int, int, int]]:
    """For each order the numbers of n-grams in the hypothesis, in the reference and in both."""
    # A hypothesis's n-grams do not count where the reference has none, as in sacrebleu.
    return [(a.total() if b else 0, b.total(), overlap(a, b)) for a, b in zip(hypothesis, reference, strict=True)]


def _score(counts: list[tuple[int, int, int]]) -> float:
    known = [(both / a, both / b) for a, b, both in counts if a and b]
    precision = sum(p for p, _ in known) / max(len(known), 1)
    recall = sum(r for _, r in known) / max(len(known), 1)
    if not precision:  # then there is no match, and recall is 0 too
        return 0.0
    return 100 * ((1 + BETA**2) * precision * recall / (BETA**2 * precision + recall))
