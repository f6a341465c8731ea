"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum, equal to those of rouge-score without its stemmer."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from seqjax.metrics.texts import ngrams, overlap, strings

_WORD = re.compile("[a-z0-9]+")


class Agreement(NamedTuple):
    """How much of the hypothesis is in the reference, how much of the reference in the hypothesis; 0 to 1."""

    precision: float
    recall: float
    f1: float


class Rouge(NamedTuple):
    """Means over the pairs of hypothesis and reference."""

    score: float  # 100 rougeL.f1
    rouge1: Agreement
    rouge2: Agreement
    rougeL: Agreement
    rougeLsum: Agreement


def rouge(hypotheses: Sequence[str], references: Sequence[str | Sequence[str]]) -> Rouge:
    r"""ROUGE (Lin, 2004), the mean over the pairs.

        precision = matches / hypothesis,    recall = matches / reference
        f1        = 2 precision recall / (precision + recall)

    - rouge1, rouge2: numbers of words and of pairs of neighbouring words; a match counts as often as in the text that
      has fewer of it.
    - rougeL: numbers of words; matches is the length of the longest common subsequence.
    - rougeLsum: the same for texts of several sentences, one a line. A word of the reference matches if it is in the
      longest common subsequence of its sentence with any of the hypothesis; no word more often than in the hypothesis.
      Without line ends it is rougeL, which takes them for spaces.

    0 / 0 is 0. Words are runs of the letters a to z and of digits, in lower case; not stemmed, while many published
    numbers are. Of several references the one with the highest f1 counts, for each of the four by itself.

    Args:
      hypotheses: strings.
      references: for each hypothesis a string or several.

    Returns:
      a `Rouge`.

    Raises:
      InputError: hypotheses and references do not fit, see `texts.pairs`.

    >>> found = rouge(["The cat sat down."], ["the cat lay down"])
    >>> found.rouge1.f1, f"{found.rouge2.f1:.3f}", found.score
    (0.75, '0.333', 75.0)
    """
    rows = []
    for hypothesis, listed in strings(hypotheses, references):
        found = [_compare(_sentences(hypothesis), _sentences(reference)) for reference in listed]
        rows.append([max(kind, key=lambda agreement: agreement.f1) for kind in zip(*found, strict=True)])
    kinds = [
        Agreement(*(sum(values) / len(rows) for values in zip(*kind, strict=True))) for kind in zip(*rows, strict=True)
    ]
    return Rouge(100 * kinds[2].f1, *kinds)


def _sentences(text: str) -> list[list[str]]:
    return [_WORD.findall(line) for line in text.lower().split("\n")]


def _compare(hypothesis: list[list[str]], reference: list[list[str]]) -> list[Agreement]:
    a, b = [word for line in hypothesis for word in line], [word for line in reference for word in line]
    union = Counter(
        line[i] for line in reference for i in set().union(*(common_subsequence(line, other) for other in hypothesis))
    )
    return [
        *(_agreement(overlap(ngrams(a, n), ngrams(b, n)), len(a) - n + 1, len(b) - n + 1) for n in (1, 2)),
        _agreement(len(common_subsequence(b, a)), len(a), len(b)),
        _agreement(overlap(union, Counter(a)), len(a), len(b)),
    ]


def _agreement(matches: int, hypothesis: int, reference: int) -> Agreement:
    precision, recall = matches / max(hypothesis, 1), matches / max(reference, 1)
    return Agreement(precision, recall, 2 * precision * recall / (precision + recall) if matches else 0.0)


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> list[int]:
    """Where in ``a`` the words of a longest common subsequence of a and b are, last one first.

        L[i, j] = L[i-1, j-1] + 1 if a_i = b_j else max(L[i-1, j], L[i, j-1])

    A column of L never falls and rises by 1 at most: it is kept as the bits of one integer, bit i-1 being 0 where
    L[i, j] > L[i-1, j], and made from the column before by a handful of operations (Crochemore et al., 2001). Of
    equally long subsequences it is the one on that way back through L which steps to j-1 only where bit i-1 is 0.

    >>> common_subsequence("the cat sat".split(), "the dog sat".split())
    [2, 0]
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    columns = [full]
    for word in b:
        flat = columns[-1]
        hits = flat & places.get(word, 0)
        columns.append(((flat + hits) | (flat - hits)) & full)
    i, j, found = len(a), len(b), []
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            found.append(i)
        elif columns[j] >> (i - 1) & 1:
            i -= 1
        else:
            j -= 1
    return found
