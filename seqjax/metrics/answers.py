"""Answers to questions, compared as SQuAD's script does."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from seqjax.metrics.texts import overlap, strings

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class SquadScores(NamedTuple):
    """Shares between 0 and 1; SQuAD's script prints percentages."""

    exact_match: float
    f1: float


def squad_scores(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> SquadScores:
    """Exact match and F1 of answers, as the script of SQuAD v1.1 computes them (Rajpurkar et al., 2016).

        f1 = 2 common / (words of the answer + words of the reference),    common: words they share, with repetitions

    for each question, of the reference where it is best, and the mean over questions. Answers are compared by their
    words in lower case, without ASCII punctuation and a, an and the. No common word gives F1 = 0, even where there are
    no words on both sides, which is an exact match.

    Args:
      predictions: an answer a question; "" for none.
      references: for each a right answer, or several.

    Returns:
      a `SquadScores`.

    Raises:
      InputError: predictions and references do not fit, see `texts.strings`.

    >>> squad_scores(["The cat!", "on a mat"], [["cat", "a dog"], "the red mat"])
    SquadScores(exact_match=0.5, f1=0.75)
    """
    exact, f1 = 0, 0.0
    paired = strings(predictions, references)
    for prediction, listed in paired:
        words, others = _words(prediction), [_words(reference) for reference in listed]
        exact += words in others
        f1 += max(_f1(words, other) for other in others)
    return SquadScores(exact / len(paired), f1 / len(paired))


def _words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def _f1(words: list[str], other: list[str]) -> float:
    return 2 * overlap(Counter(words), Counter(other)) / max(len(words) + len(other), 1)
