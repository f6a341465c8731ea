"""bAbI: questions to little stories (Weston et al. 2015)."""

import re
from typing import NamedTuple

from seqjax.data.files import PathLike, read_lines
from seqjax.errors import InputError


class Story(NamedTuple):
    """A question, all that was told before it, and the answer."""

    facts: tuple[str, ...]
    question: str
    answer: str  # several are between commas
    supporting: tuple[int, ...]  # which facts the answer follows from, from 0


def babi_file(path: PathLike) -> list[Story]:
    """The questions of a bAbI task, .gz too, each with the facts of its story that come before it.

    A line is a number and a fact, or a number and a question, its answer and the numbers of supporting facts with tabs
    between them. A story begins at the number 1, and numbers count its facts and questions.

    Raises InputError if the file cannot be read or has no question, a line is none of those, has a number that is not
    the next, or a supporting fact that is no fact before it.
    """
    found, facts, places, number = [], [], {}, 0
    for row, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{row}"
        match = re.fullmatch(r"([0-9]+) +(\S.*)", line)
        if match is None:
            raise InputError(f"{where}: {line!r} is no number and fact or question; correct it.")
        if int(match[1]) == 1:
            facts, places, number = [], {}, 0
        number += 1
        if int(match[1]) != number:
            raise InputError(f"{where}: has the number {match[1]}, but {number} or 1 comes next; correct it.")
        fields = [field.strip() for field in match[2].split("\t")]
        if len(fields) == 1:
            places[number] = len(facts)
            facts.append(fields[0])
        elif len(fields) == 3 and fields[0] and fields[1]:
            question, answer, numbers = fields
            found.append(Story(tuple(facts), question, answer, _supporting(numbers, places, where)))
        else:
            raise InputError(f"{where}: {line!r} is no question, answer and supporting facts with tabs between them.")
    if not found:
        raise InputError(f"{path}: has no questions; give a file of a bAbI task.")
    return found


def _supporting(numbers: str, places: dict[int, int], where: str) -> tuple[int, ...]:
    try:
        return tuple(places[int(number)] for number in numbers.split())
    except (ValueError, KeyError) as error:
        known = ", ".join(map(str, places))
        raise InputError(f"{where}: supported by {numbers}, but the facts before are {known}; correct it.") from error
