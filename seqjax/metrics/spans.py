"""Spans that tags mark, such as named entities, and how many of them were found."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from seqjax.errors import InputError
from seqjax.metrics.classification import Scores, count_scores

SCHEMES = {"BIO": "BI", "BIOES": "BIES"}
"""The letters before a type, of each scheme. O, for words outside all spans, has no type."""


class Span(NamedTuple):
    """The words ``start … stop - 1`` of a sentence."""

    type: str
    start: int
    stop: int


class SpanF1(NamedTuple):
    """Shares between 0 and 1, of the spans of all types together."""

    precision: float
    recall: float
    f1: float


class SpanReport(NamedTuple):
    """The scores of the spans of each type, by name, and of all together."""

    types: dict[str, Scores]
    micro: Scores


def spans(tags: Sequence[str], *, scheme: str = "BIO", strict: bool = False) -> list[Span]:
    """The spans of a sentence, from left to right.

    A tag is O, or a letter, a hyphen and the type. In the scheme BIO, or IOB2, B begins a span and I continues it. In
    BIOES, or IOBES, E is the last word of a span and S a span of one word.

    Models write I without B before it too. Every word that is not O is in a span here, and a span begins at a word if
    its letter is B or S, the word before is O, E or S, or that has another type. This is how conlleval reads BIO, and
    how seqeval reads both by default. It reads IOB1, in which B is only between neighbours of the same type, as well.

    With ``strict`` a span is B and all the I of its type after it; in BIOES B, any number of I and E of one type, or S.
    What is no part of these is in no span, as in seqeval's ``mode="strict"``.

    Args:
      tags: of the words of a sentence.
      scheme: "BIO" or "BIOES".
      strict: whether spans that begin or end wrongly are none.

    Raises:
      InputError: there is no such scheme, or a tag is none of it.

    >>> spans(["I-PER", "I-PER", "O", "B-LOC", "I-PER"])
    [Span(type='PER', start=0, stop=2), Span(type='LOC', start=3, stop=4), Span(type='PER', start=4, stop=5)]
    >>> spans(["I-PER", "I-PER", "O", "B-LOC", "I-PER"], strict=True)
    [Span(type='LOC', start=3, stop=4)]
    """
    return [span for span, proper in _spans(tags, scheme) if proper or not strict]


def span_f1(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, scheme: str = "BIO", strict: bool = False
) -> SpanF1:
    """Precision, recall and F1 of spans, of which the type and both ends must be right.

    By default they are those of conlleval (scheme BIO) and seqeval (both schemes) divided by 100 and not rounded; see
    `spans`.

    Args:
      gold: the tags of the words of each sentence.
      predicted: the tags that were found.
      scheme: "BIO" or "BIOES".
      strict: spans that begin or end wrongly are none.

    Raises:
      InputError: numbers of sentences or words differ; there are none; no such scheme, or a tag is none of it.

    >>> span_f1([["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "O", "O"]])
    SpanF1(precision=1.0, recall=0.5, f1=0.6666666666666666)
    """
    return SpanF1(*span_report(gold, predicted, scheme=scheme, strict=strict).micro[:3])


def span_report(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, scheme: str = "BIO", strict: bool = False
) -> SpanReport:
    """As `span_f1`, and of each type that occurs in gold or predicted, by their names.

    >>> span_report([["B-PER", "O", "B-LOC"]], [["B-PER", "O", "O"]]).types["LOC"]
    Scores(precision=0.0, recall=0.0, f1=0.0, support=1)
    """
    if len(gold) != len(predicted):
        raise InputError(f"gold has {len(gold)} sentences, predicted {len(predicted)}; give the tags of the same ones.")
    if not gold:
        raise InputError("gold=[]; there is nothing to measure.")
    correct, found, wanted = Counter(), Counter(), Counter()
    for i, (right, tags) in enumerate(zip(gold, predicted, strict=True)):
        if len(right) != len(tags):
            raise InputError(f"gold[{i}] has {len(right)} tags, predicted[{i}] {len(tags)}; give one for each word.")
        ours, theirs = (set(spans(row, scheme=scheme, strict=strict)) for row in (tags, right))
        for counter, found_here in ((correct, ours & theirs), (found, ours), (wanted, theirs)):
            counter.update(_types(found_here))
    types = {kind: count_scores(correct[kind], found[kind], wanted[kind]) for kind in sorted(found | wanted)}
    return SpanReport(types, count_scores(correct.total(), found.total(), wanted.total()))


def _types(found: Iterable[Span]) -> Iterator[str]:
    return (span.type for span in found)


def _spans(tags: Sequence[str], scheme: str) -> Iterator[tuple[Span, bool]]:
    """All spans, and whether each begins and ends as the scheme says."""
    if scheme not in SCHEMES:
        raise InputError(f"scheme={scheme!r}: there is no such scheme; choose one of {', '.join(SCHEMES)}.")
    start, kind, letters = 0, "", ""
    for i, tag in enumerate([*tags, "O"]):
        letter, type_here = _parts(tag, scheme)
        if letters and (letter in "BSO" or letters[-1] in "ES" or type_here != kind):
            ends = letters[0] + letters[-1]
            yield Span(kind, start, i), ends in ("BE", "SS") if scheme == "BIOES" else ends[0] == "B"
            letters = ""
        if letter != "O":
            if not letters:
                start, kind = i, type_here
            letters += letter


def _parts(tag: str, scheme: str) -> tuple[str, str]:
    """The letter and the type, which may hold hyphens, of a tag."""
    letter, _, kind = tag.partition("-")
    if tag == "O" or (len(letter) == 1 and letter in SCHEMES[scheme] and kind):
        return letter, kind
    raise InputError(f"tag {tag!r}: is none of {scheme}; write O, or one of {', '.join(SCHEMES[scheme])} and -TYPE.")
