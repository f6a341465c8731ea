"""Translation edit rate, equal to sacrebleu's and, but for pathological texts, to tercom's."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from seqjax.metrics.texts import signature, strings

# The limits of tercom's search, and the last one sacrebleu's.
MAX_SHIFT = 10  # words that are moved at once
MAX_DISTANCE = 50  # between the two places of equal words
BEAM = 25  # columns of the table on either side of its diagonal
MAX_TRIALS = 1000  # shifts that are tried for a sentence

_NEVER = 10**9  # the cost of a cell outside the beam


class Ter(NamedTuple):
    """TER and what it is made of."""

    score: float  # 0 for equal texts; 100 for as many edits as the references have words, and it may be more
    edits: int
    reference_length: float  # words; the mean where a hypothesis has several references
    signature: str


def ter(hypotheses: Sequence[str], references: Sequence[str | Sequence[str]]) -> Ter:
    """Translation edit rate of a corpus (Snover et al., 2006), with the defaults of sacrebleu and tercom.

        score = 100 Σ edits / Σ reference_length

    edits is the smallest number found of words to insert, to delete and to replace, and of runs of words to move, that
    makes the reference from the hypothesis. The best sequence of moves is out of reach: as long as the edit distance
    falls, that run which is found in the reference too, and whose move lowers it most, is moved. Texts are split at
    spaces and compared in lower case; punctuation stays on its word, unless the texts are in tokens. Of several
    references the one with the fewest edits counts, and the mean of their lengths. Where all references are empty the
    score is 100, or 0 without edits.

    Args:
      hypotheses: strings.
      references: for each hypothesis a string or several.

    Returns:
      a `Ter`.

    Raises:
      InputError: hypotheses and references do not fit, see `texts.pairs`.

    >>> ter(["on the mat the cat sat"], ["The cat sat on the mat"]).edits  # one move of three words
    1
    """
    paired = strings(hypotheses, references)
    edits, length = 0, 0.0
    for hypothesis, listed in paired:
        words, others = hypothesis.lower().split(), [reference.lower().split() for reference in listed]
        edits += min(_edits(words, other) for other in others)
        length += sum(map(len, others)) / len(others)
    score = 100 * (edits / length) if length else 100.0 * (edits > 0)
    label = signature(paired, case="lc", tok="tercom", norm="no", punct="yes", asian="no")
    return Ter(score, edits, length, label)


def _edits(words: list[str], reference: list[str]) -> int:
    """Moves, found greedily, plus the edit distance after them."""
    if not reference:
        return len(words)
    rows = _table(words, reference, [list(range(len(reference) + 1))])
    moves = trials = 0
    while True:
        gain, moved, table, trials = _best_move(words, reference, rows, trials)
        if gain <= 0 or trials >= MAX_TRIALS:
            return moves + rows[-1][-1]
        moves, words, rows = moves + 1, moved, table


def _table(words: list[str], reference: list[str], rows: list[list[int]]) -> list[list[int]]:
    """The edit distances between all beginnings of two texts; ``rows`` are its first rows, known already."""
    n = len(reference)
    ratio = n / len(words) if words else 1.0
    beam = BEAM if ratio / 2 <= BEAM else math.ceil(ratio / 2 + BEAM)  # else a row might not touch the one before
    rows = rows.copy()
    for i in range(len(rows), len(words) + 1):
        word, above, middle = words[i - 1], rows[-1], math.floor(i * ratio)
        low, high = max(0, middle - beam), min(n + 1, middle + beam)
        row = [_NEVER] * low or [i]
        left, start = row[-1], len(row)
        for diagonal, up, other in zip(above[start - 1 :], above[start:high], reference[start - 1 :], strict=False):
            cost = diagonal if word == other else diagonal + 1
            if up < cost:
                cost = up + 1
            if left < cost:
                cost = left + 1
            left = cost
            row.append(cost)
        rows.append(row + [_NEVER] * (n + 1 - high))
    return rows


def _align(words: list[str], reference: list[str], rows: list[list[int]]) -> tuple[list[int], list[bool], list[bool]]:
    """Follow the edits back through the table.

    Returns for each word of the reference the index of the word that it is aligned to, of the one before where there
    is none; which words of the hypothesis are edited; which of the reference.
    """
    at, edited, missed = [0] * len(reference), [True] * len(words), [True] * len(reference)
    i, j = len(words), len(reference)
    while i or j:
        # The order of the three cases decides which of equally short ways is taken, as in tercom.
        if i and j and rows[i][j] == rows[i - 1][j - 1] + (words[i - 1] != reference[j - 1]):
            i, j = i - 1, j - 1
            at[j], edited[i] = i, words[i] != reference[j]
            missed[j] = edited[i]
        elif i and rows[i][j] == rows[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
            at[j] = i - 1
    return at, edited, missed


def _runs(words: list[str], reference: list[str]) -> Iterator[tuple[int, int, int]]:
    """All (start, place, length) with words[start : start + length] = reference[place : place + length]."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(reference):
        places.setdefault(word, []).append(place)
    for start, word in enumerate(words):
        for place in places.get(word, ()):
            if abs(place - start) > MAX_DISTANCE:
                continue
            pairs = zip(words[start : start + MAX_SHIFT], reference[place : place + MAX_SHIFT], strict=False)
            for length, (a, b) in enumerate(pairs, 1):
                if a != b:
                    break
                yield start, place, length


def _best_move(
    words: list[str], reference: list[str], rows: list[list[int]], trials: int
) -> tuple[int, list[str], list[list[int]], int]:
    """The move after which the edit distance is smallest: what it gains, the words and the table after it.

    Of equals it is the longest run, then the one that starts first, then the one that lands first.
    """
    at, edited, missed = _align(words, reference, rows)
    best, moved, table = (0,), words, rows
    for start, place, length in _runs(words, reference):
        end = start + length
        # Only words that are wrong where they are, to a place that lacks them, and which is not among them.
        if not any(edited[start:end]) or not any(missed[place : place + length]) or start <= at[place] < end:
            continue
        before = at[place - 1] + 1 if place else 0
        rest = words[:start] + words[end:]
        for target in dict.fromkeys([before, *(index + 1 for index in at[place : place + length])]):
            position = target - length if target > end else target
            candidate = rest[:position] + words[start:end] + rest[position:]
            # The first words are the same, and so are their rows.
            known = _table(candidate, reference, rows[: min(start, position) + 1])
            rank = (rows[-1][-1] - known[-1][-1], length, -start, -target)
            trials += 1
            if moved is words or rank > best:
                best, moved, table = rank, candidate, known
        if trials >= MAX_TRIALS:
            break
    return best[0], moved, table, trials
