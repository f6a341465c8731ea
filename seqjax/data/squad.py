"""SQuAD: questions whose answers are spans of a paragraph (Rajpurkar et al. 2016)."""

from typing import Any, NamedTuple

from seqjax.data.files import PathLike, read_json
from seqjax.errors import InputError


class SquadAnswer(NamedTuple):
    """``context[start : start + len(text)] == text``."""

    text: str
    start: int


class SquadQuestion(NamedTuple):
    """A question, the paragraph that answers it and the answers of several people, which may be the same."""

    id: str
    title: str  # of the article: a split that divides articles shares paragraphs between its parts
    context: str  # one object for all questions to a paragraph
    question: str
    answers: tuple[SquadAnswer, ...]


def squad_file(path: PathLike) -> list[SquadQuestion]:
    """The questions of a file of SQuAD v1.1, JSON or .json.gz, in its order.

    Raises InputError if the file cannot be read, a field is missing or of another type, a question has no answer (as
    in SQuAD 2.0), or an answer does not stand where ``answer_start`` says. The message names article, paragraph and
    question.
    """
    content = read_json(path)
    found = []
    for number, article in enumerate(_field(content, "data", list, f"{path}"), 1):
        title = _field(article, "title", str, f"{path}, article {number}")
        in_article = f"{path}, article {title!r}"
        for place, paragraph in enumerate(_field(article, "paragraphs", list, in_article), 1):
            in_paragraph = f"{in_article}, paragraph {place}"
            context = _field(paragraph, "context", str, in_paragraph)
            for row in _field(paragraph, "qas", list, in_paragraph):
                name = _field(row, "id", str, in_paragraph)
                where = f"{in_paragraph}, question {name!r}"
                question = _field(row, "question", str, where)
                answers = tuple(_answer(answer, context, where) for answer in _field(row, "answers", list, where))
                if not answers:
                    raise InputError(f"{where}: has no answer; take SQuAD v1.1, where every question has one.")
                found.append(SquadQuestion(name, title, context, question, answers))
    if not found:
        raise InputError(f"{path}: has no questions; take a file of SQuAD v1.1.")
    return found


def _answer(answer: Any, context: str, where: str) -> SquadAnswer:
    text, start = _field(answer, "text", str, where), _field(answer, "answer_start", int, where)
    if start < 0 or not text or not context.startswith(text, start):
        there = context[max(start, 0) :][: len(text)]
        raise InputError(f"{where}: at answer_start={start} stands {there!r}, not the answer {text!r}; correct it.")
    return SquadAnswer(text, start)


def _field(record: Any, name: str, kind: type, where: str) -> Any:
    value = record.get(name) if isinstance(record, dict) else None
    if type(value) is not kind:
        raise InputError(f"{where}: has no field {name!r} of type {kind.__name__}; take a file of SQuAD v1.1.")
    return value
