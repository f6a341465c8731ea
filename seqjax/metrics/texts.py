"""What the measures of texts share: hypotheses with their references, counts of n-grams, signatures."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

import seqjax
from seqjax.errors import InputError


def pairs(hypotheses: Sequence, references: Sequence) -> list[tuple[Any, list]]:
    """Each hypothesis with the list of its references.

    A text is a string, or a sequence of tokens, which are strings or numbers. Where the hypothesis is a string, its
    references are a string or a sequence of strings; else a sequence of tokens or a sequence of such.

    Raises:
      InputError: a string instead of a list of them; different numbers of hypotheses and references; none at all; a
        hypothesis without a reference; a string paired with tokens.

    >>> pairs(["a b", "c"], ["a", ["c", "d"]])
    [('a b', ['a']), ('c', ['c', 'd'])]
    >>> pairs([[1, 2], [3]], [[1], [[3], [4]]])
    [([1, 2], [[1]]), ([3], [[3], [4]])]
    """
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str):
            raise InputError(f"{name}={texts!r} is one string; put it into a list.")
    if len(hypotheses) != len(references):
        raise InputError(
            f"{len(hypotheses)} hypotheses but {len(references)} references; give one reference, or a list of them, "
            "for each hypothesis."
        )
    if len(hypotheses) == 0:
        raise InputError("hypotheses=[]; there is nothing to measure.")
    result = []
    for i, (hypothesis, given) in enumerate(zip(hypotheses, references, strict=True)):
        if isinstance(hypothesis, str):
            several = not isinstance(given, str)
        else:
            several = len(given) > 0 and isinstance(given[0], list | tuple | np.ndarray)
        listed = list(given) if several else [given]
        if not listed:
            raise InputError(f"references[{i}]=[]; give at least one reference, which may be the empty string.")
        if any(isinstance(reference, str) != isinstance(hypothesis, str) for reference in listed):
            raise InputError(
                f"hypotheses[{i}] or references[{i}] is a string and the other is not; split both or none."
            )
        result.append((hypothesis, listed))
    return result


def strings(hypotheses: Sequence, references: Sequence) -> list[tuple[str, list[str]]]:
    """`pairs` of strings. Raises InputError for tokens too."""
    result = pairs(hypotheses, references)
    for i, (hypothesis, _) in enumerate(result):
        if not isinstance(hypothesis, str):
            raise InputError(
                f"hypotheses[{i}] is a {type(hypothesis).__name__}; give a string, such as ' '.join(tokens)."
            )
    return result


def ngrams(tokens: Sequence[Hashable], n: int) -> Counter:
    """How often each sequence of n tokens occurs.

    >>> ngrams("abab", 2)
    Counter({('a', 'b'): 2, ('b', 'a'): 1})
    """
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def overlap(a: Counter, b: Counter) -> int:
    """How many elements two multisets share: ``Σ_g min(a_g, b_g)``."""
    return sum(min(a[gram], b[gram]) for gram in a.keys() & b.keys())


def signature(paired: Sequence[tuple[Any, list]], **settings: object) -> str:
    """How a number came about, as sacrebleu writes it; ``nrefs:var`` where the numbers of references differ.

    >>> signature([("a", ["b", "c"])], case="lc")  # doctest: +ELLIPSIS
    'nrefs:2|case:lc|version:seqjax-...'
    """
    counts = {len(references) for _, references in paired}
    known = {"nrefs": counts.pop() if len(counts) == 1 else "var", **settings}
    return "|".join(f"{name}:{value}" for name, value in (known | {"version": f"seqjax-{seqjax.__version__}"}).items())
