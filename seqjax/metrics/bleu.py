"""BLEU of a corpus and of a sentence, equal to sacrebleu's."""

import functools
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from seqjax.errors import InputError
from seqjax.metrics.texts import ngrams, overlap, signature, strings

ORDER = 4  # the longest n-grams


class Bleu(NamedTuple):
    """BLEU and what it is made of."""

    score: float  # 0 to 100
    precisions: tuple[float, ...]  # of 1-grams to 4-grams, smoothed, 0 to 100
    brevity_penalty: float
    hypothesis_length: int  # tokens
    reference_length: int  # tokens of the references that are nearest in length
    signature: str


# The rules of mteval-v13a.pl, one after the other. A match uses its neighbour up: in "5...5" the second rule splits the
# second dot off and not the third, so that lookbehind would not do the same.
_RULES = [
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),  # all punctuation of ASCII but ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
]
_ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}


def tokenize_13a(text: str) -> list[str]:
    """Tokens as in mteval-v13a.pl, the script of WMT; what sacrebleu calls "13a".

    Splits at spaces and around punctuation and symbols of ASCII, but

    - not around apostrophes and hyphens, save a hyphen after a digit;
    - not around a full stop or comma between digits. Abbreviations fall apart: "U.S." is four tokens;
    - punctuation beyond ASCII („ “ ” … ¿ 。) stays on the word: straighten quotes in both texts or in neither.

    Line ends are spaces, ``&quot; &amp; &lt; &gt;`` are read as the characters that they stand for, ``<skipped>`` is
    left out.

    >>> tokenize_13a('"It is 3.5%-4%," the well-known U.S. don said.')[:8]
    ['"', 'It', 'is', '3.5', '%', '-4', '%', ',']
    """
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    text = f" {text} "
    for rule, replacement in _RULES:
        text = rule.sub(replacement, text)
    return text.split()


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "13a": tokenize_13a,
    "char": lambda text: list("".join(text.split())),
    "none": str.split,
}


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    tokenize: str = "13a",
    lowercase: bool = False,
) -> Bleu:
    """BLEU of a corpus (Papineni et al., 2002), as in sacrebleu (Post, 2018).

        p_n   = 100 Σ matches_n / Σ totals_n,                n = 1 … 4
        score = BP exp(mean_n log p_n),     BP = exp(1 - max(1, reference_length / hypothesis_length))

    The sums are over sentences. totals_n counts the hypothesis's n-grams, matches_n those that are in a reference,
    each as often at most as in the reference that has most of it. Of several references the one nearest in length
    counts for reference_length, the shorter of two. An order without a match gets half a match, the next such order a
    quarter and so on (smoothing "exp"; method 3 of Chen and Cherry, 2014); without any match, and where no hypothesis
    has 4 tokens, the score is 0.

    Args:
      hypotheses: strings.
      references: for each hypothesis a string or several.
      tokenize: "13a" as WMT (`tokenize_13a`), for text as it is written; "char" makes every character a token, spaces
        excepted; "none" splits at spaces, for text in tokens.
      lowercase: compare in lower case.

    Returns:
      a `Bleu`.

    Raises:
      InputError: hypotheses and references do not fit, see `texts.pairs`; an unknown `tokenize`.

    >>> found = bleu(["the cat sat on the mat ."], [["The cat sat on a mat.", "A cat sat on the mat."]])
    >>> print(f"{found.score:.2f} {found.signature}")  # doctest: +ELLIPSIS
    80.91 nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:seqjax-...
    """
    return _bleu(strings(hypotheses, references), tokenize, lowercase, effective=False)


def sentence_bleu(
    hypothesis: str, references: str | Sequence[str], *, tokenize: str = "13a", lowercase: bool = False
) -> Bleu:
    """BLEU of one sentence: as `bleu`, but n stops at the hypothesis's length if that is below 4 ("effective order").

    Sentences with few matches get a score from smoothing alone. The mean over sentences is not the BLEU of the corpus.

    Raises:
      InputError: as `bleu`.

    >>> print(f"{sentence_bleu('A cat', 'A cat sat').score:.2f} {bleu(['A cat'], ['A cat sat']).score:.2f}")
    60.65 0.00
    """
    return _bleu(strings([hypothesis], [references]), tokenize, lowercase, effective=True)


def _bleu(paired: list[tuple[str, list[str]]], tokenize: str, lowercase: bool, effective: bool) -> Bleu:
    if tokenize not in TOKENIZERS:
        raise InputError(f"tokenize={tokenize!r}; choose from {', '.join(TOKENIZERS)}.")
    split = TOKENIZERS[tokenize]
    matches, totals, length, reference_length = [0] * ORDER, [0] * ORDER, 0, 0
    for texts in paired:
        hypothesis, references = texts if not lowercase else (texts[0].lower(), [text.lower() for text in texts[1]])
        tokens, others = split(hypothesis), [split(reference) for reference in references]
        length += len(tokens)
        reference_length += min((abs(len(other) - len(tokens)), len(other)) for other in others)[1]
        for n in range(1, ORDER + 1):
            most = functools.reduce(operator.or_, [ngrams(other, n) for other in others])
            matches[n - 1] += overlap(ngrams(tokens, n), most)
            totals[n - 1] += max(len(tokens) - n + 1, 0)

    precisions, share = [0.0] * ORDER, 1.0
    if any(matches):
        for n, (match, total) in enumerate(zip(matches, totals, strict=True)):
            share = share if match else share / 2
            precisions[n] = 100 * (match or share) / total if total else 0.0
    used = precisions[: sum(total > 0 for total in totals)] if effective else precisions
    penalty = math.exp(min(0.0, 1 - reference_length / length)) if length else float(not reference_length)
    score = penalty * math.exp(sum(map(math.log, used)) / len(used)) if used and all(used) else 0.0
    label = signature(
        paired,
        case="lc" if lowercase else "mixed",
        eff="yes" if effective else "no",
        tok=tokenize,
        smooth="exp",
    )
    return Bleu(score, tuple(precisions), penalty, length, reference_length, label)
