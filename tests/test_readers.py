"""Readers of data sets: what is written is read again, and what is wrong is named with its file and line."""

import csv
import gzip
import io
import json
import zipfile

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from seqjax.data import (
    Labelled,
    Sentence,
    SquadAnswer,
    SquadQuestion,
    Story,
    babi_file,
    conll_file,
    conllu_file,
    labelled_files,
    labelled_folder,
    labelled_lines,
    labelled_tsv,
    read_lines,
    read_text,
    squad_file,
)
from seqjax.errors import InputError

# Anything but what ends lines or separates columns. Much of it is white space to Python: \x85, \u2028, no-break spaces.
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\t \ufeff")
WORDS = st.one_of(st.text(LETTERS, min_size=1, max_size=3), st.sampled_from(["#", '"', "don't", "1-2", "\x85", "日本"]))
SPACED = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
TEXTS = SPACED.map(str.strip).filter(bool)
LABELS = st.sampled_from(["0", "NUM:dist", "neg", "日本"])
LABELLED = st.lists(st.tuples(st.lists(LABELS, min_size=1, max_size=2), TEXTS), min_size=1, max_size=3)
ENDS = st.sampled_from(["\n", "\r\n"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readers")


def written(folder, text, name="data.txt", encoding="utf-8"):
    """The text as a file, as .gz and in an archive."""
    content, packed = text.encode(encoding), folder / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"inside/{name}", content)
    (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    (folder / name).write_bytes(content)
    return folder / name, folder / f"{name}.gz", packed / "inside" / name


def wrong(read, folder, text, message):
    """The message has the file and then this."""
    path = folder / "wrong"
    path.write_bytes(text.encode())
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}{message}")


def sentences(words):
    return st.lists(
        st.lists(st.tuples(words, WORDS), min_size=1, max_size=3).map(
            lambda rows: Sentence(*(tuple(column) for column in zip(*rows, strict=True)))
        ),
        min_size=1,
        max_size=3,
    )


@pytest.mark.fast
@settings(max_examples=40)
@given(st.data(), st.sampled_from([" ", "\t"]), ENDS)
def test_conll(folder, data, gap, end):
    # Only between tabs can a word have spaces.
    expected = data.draw(sentences(SPACED if gap == "\t" else WORDS))
    lines = [f"-DOCSTART-{gap}-X-{gap}O", "", ""]
    for sentence in expected:
        lines += [gap.join(("x", word, tag, "y")) for word, tag in zip(*sentence, strict=True)] + [gap * 3]
    text = end.join(["-DOCSTART-", *lines])
    for path in written(folder, text):
        assert conll_file(path, columns=(1, -2)) == expected


def test_comments_and_encodings(folder):
    path = folder / "comments"
    path.write_bytes("# one\n# O\n#a B-X\n\nü\x85 O\n".encode("latin-1"))
    assert conll_file(path, comment="# o", encoding="latin-1") == [(("#", "#a"), ("O", "B-X")), (("ü\x85",), ("O",))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\n\nb c O\n", ":3: has 3 columns, the lines before it 2;"),
        ("a\n", ":1: has 1 columns, too few for a word and a tag at columns=(0, -1)."),
        ("a\tO\nb\t\n", ":2: 'b\\t' has an empty word or tag;"),
        ("\n\n", ": has no sentences;"),
    ],
)
def test_wrong_conll(folder, text, message):
    wrong(conll_file, folder, text, message)


@settings(max_examples=40)
@given(sentences(SPACED), ENDS)
def test_conllu(folder, expected, end):
    lines = []
    for sentence in expected:
        lines += ["# text = x", "1-2\tdon't" + "\t_" * 8, "0.1\t_" + "\t_" * 8]
        for i, (word, tag) in enumerate(zip(*sentence, strict=True), 1):
            lines += [f"{i}\t{word}\t{word}\t{tag}" + "\t_" * 6, f"{i}.1\tx" + "\t_" * 8]
        lines.append("")
    for path in written(folder, end.join(lines)):
        assert conllu_file(path) == expected
    assert conllu_file(path, tag="lemma") == [Sentence(words, words) for words, _ in expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\ta\ta\tX" + "\t_" * 5, ":1: has 9 columns between tabs, not 10;"),
        ("#\n1\ta\ta\tX" + "\t_" * 6 + "\n3\tb\tb\tX" + "\t_" * 6, ":3: is word '3', but 2 comes next;"),
        ("1\ta\ta\t" + "\t_" * 6, ":1: has an empty word or upos;"),
        ("# nothing\n", ": has no sentences;"),
    ],
)
def test_wrong_conllu(folder, text, message):
    wrong(conllu_file, folder, text, message)


def test_wrong_column_of_conllu(folder):
    with pytest.raises(InputError, match="tag: 'pos' is no column of CoNLL-U; choose one of id, form"):
        conllu_file(folder / "absent", tag="pos")


@settings(max_examples=40)
@given(LABELLED, st.booleans(), ENDS)
@example([(["0"], "__label__a")], False, "\n")
def test_labelled_lines(folder, rows, fasttext, end):
    rows = [(labels if fasttext else labels[:1], text) for labels, text in rows]
    prefix = "__label__" if fasttext else ""
    lines = [" ".join([*(prefix + label for label in labels), text]) for labels, text in rows]
    for path in written(folder, end.join(["", *lines, ""])):
        assert labelled_lines(path) == [Labelled(text, tuple(labels)) for labels, text in rows]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 a\n1\n", ":2: has no text, only the label '1';"),
        ("0 a\n 1 b\n", ":2: has no label;"),
        ("__label__0 a\n\n1 b\n", ":3: has no label;"),
        ("__label__0 __label__1\n", ":1: has no text"),
        ("\n", ": has no texts;"),
    ],
)
def test_wrong_labelled_lines(folder, text, message):
    wrong(labelled_lines, folder, text, message)


@settings(max_examples=40)
@given(st.lists(st.tuples(LABELS, st.lists(TEXTS, max_size=3).map("\n\t".join).filter(bool)), min_size=1, max_size=3))
@example([("0", 70000 * '"a')])  # longer than what csv allows at first
def test_labelled_tsv(folder, rows):
    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerows([("id", "text", "label"), *((i, text, label) for i, (label, text) in enumerate(rows))])
    expected, limit = [Labelled(text, (label,)) for label, text in rows], csv.field_size_limit()
    for path in written(folder, file.getvalue()):
        assert labelled_tsv(path, text="text", label="label") == expected
    names = Labelled("text", ("label",))
    assert labelled_tsv(path, text=1, label=-1) == [names, *expected]
    assert csv.field_size_limit() == limit


@settings(max_examples=20)
@given(st.lists(st.tuples(LABELS, TEXTS), min_size=1, max_size=3), ENDS)
def test_labelled_tsv_with_quotation_marks(folder, rows, end):
    text = end.join("\t".join(row) for row in rows)
    for path in written(folder, text):
        assert labelled_tsv(path, quoted=False) == [Labelled(text, (label,)) for label, text in rows]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('0\t"a\nb"\n\n0\n', {}, ":4: has 1 columns, the first row 2; correct it, or give quoted=False."),
        ('0\ta\n0\t"b" c\n', {}, ":2: '\t' expected after '\"' in the row that begins here;"),
        ('0\ta\n0\t"b\n\n', {}, ":2: unexpected end of data in the row that begins here;"),
        ("0\ta\n0\t\n", {"quoted": False}, ":2: has no text, only the label '0';"),
        ("0\ta\n\tb\n", {}, ":2: has no label;"),
        ("0\ta\n", {"text": 2}, ":1: there is no column 2 among the 2 of ['0', 'a']."),
        ("label\ttext\n", {"text": "texts"}, ":1: there is no column 'texts' among the 2 of ['label', 'text']."),
        ("label\ttext\n", {"text": "text"}, ": has no texts;"),
    ],
)
def test_wrong_labelled_tsv(folder, text, options, message):
    wrong(lambda path: labelled_tsv(path, **options), folder, text, message)


def test_labelled_folder(tmp_path):
    texts = {("neg", "1"): "bad\nfilm", ("neg", "10.gz"): "awful", ("pos", "2"): "naïve\x85"}
    for (label, name), text in texts.items():
        (tmp_path / label).mkdir(exist_ok=True)
        content = text.encode("latin-1")
        (tmp_path / label / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / "README").write_text("about")
    (tmp_path / "pos" / ".DS_Store").write_bytes(b"\xff")
    expected = [Labelled(text.strip(), (label,)) for (label, _), text in texts.items()]
    assert labelled_folder(tmp_path, encoding="latin-1") == expected
    (tmp_path / "pos" / "3").write_text(" \n")
    with pytest.raises(InputError, match=r"pos.3: has no text, only the label 'pos'"):
        labelled_folder(tmp_path, encoding="latin-1")
    (tmp_path / "zero").mkdir()
    (tmp_path / "pos" / "3").unlink()
    with pytest.raises(InputError, match="zero: holds no texts"):
        labelled_folder(tmp_path, encoding="latin-1")
    for path in (tmp_path / "zero", tmp_path / "README"):
        with pytest.raises(InputError, match=f"{path.name}: holds no folders"):
            labelled_folder(path)


@settings(max_examples=20)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.lists(TEXTS, min_size=1, max_size=3), ENDS)
def test_labelled_files(folder, negative, positive, end):
    first = written(folder, end.join(negative), "mr.neg")
    second = written(folder, end.join(["", *positive, ""]), "mr.pos")
    expected = [*(Labelled(text, ("neg",)) for text in negative), *(Labelled(text, ("pos",)) for text in positive)]
    assert labelled_files([first[0], second[1]]) == labelled_files([str(first[1]), second[2]]) == expected


def test_wrong_labelled_files(folder):
    path = written(folder, "a", "a.x")[0]
    with pytest.raises(InputError, match=r"b\.x: .*a\.x ends so too; give a file a class"):
        labelled_files([path, folder / "b.x"])
    with pytest.raises(InputError, match=r"x\.gz: has no ending"):
        labelled_files([folder / "x.gz"])
    with pytest.raises(InputError, match=r"empty\.x: has no texts"):
        labelled_files([written(folder, "\n", "empty.x")[0]])


@st.composite
def articles(draw):
    """Articles as in the file, and the questions to read from them."""
    content, expected = [], []
    for title in draw(st.lists(TEXTS, min_size=1, max_size=2)):
        paragraphs = []
        for context in draw(st.lists(st.text(min_size=1, max_size=9).filter(str.isprintable), min_size=1, max_size=2)):
            rows = []
            for number in range(draw(st.integers(1, 2))):
                spans = draw(st.lists(st.integers(0, len(context) - 1), min_size=1, max_size=2))
                answers = [(context[start:][: draw(st.integers(1, 3))], start) for start in spans]
                question = SquadQuestion(str(number), title, context, "?", tuple(SquadAnswer(*row) for row in answers))
                found = [{"text": text, "answer_start": start} for text, start in answers]
                rows.append({"id": question.id, "question": "?", "answers": found})
                expected.append(question)
            paragraphs.append({"context": context, "qas": rows})
        content.append({"title": title, "paragraphs": paragraphs})
    return content, expected


@settings(max_examples=40)
@given(articles())
def test_squad(folder, drawn):
    content, expected = drawn
    for path in written(folder, json.dumps({"version": "1.1", "data": content}), "squad.json"):
        found = squad_file(path)
        assert found == expected
    assert len({id(question.context) for question in found}) <= sum(len(article["paragraphs"]) for article in content)


def article(**changes):
    """A file with one question, changed."""
    answers = changes.pop("answers", [{"text": "b", "answer_start": changes.pop("answer_start", 1)}])
    row = {"id": "q", "question": "?", "answers": answers} | changes.pop("row", {})
    paragraph = {"context": "abc", "qas": [row]} | changes
    return json.dumps({"data": [{"title": "T", "paragraphs": [paragraph]}]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data":\n}', ":2: is not JSON ("),
        ("[]", ": has no field 'data' of type list;"),
        ('{"data": []}', ": has no questions;"),
        ('{"data": [{"paragraphs": []}]}', ", article 1: has no field 'title' of type str;"),
        (article(context=None), ", article 'T', paragraph 1: has no field 'context' of type str;"),
        (article(row={"id": 1}), ", article 'T', paragraph 1: has no field 'id' of type str;"),
        (article(row={"question": 1}), ", article 'T', paragraph 1, question 'q': has no field 'question'"),
        (article(answers=[]), ", article 'T', paragraph 1, question 'q': has no answer;"),
        (article(answers=["b"]), ", article 'T', paragraph 1, question 'q': has no field 'text'"),
        (article(answer_start=True), ", article 'T', paragraph 1, question 'q': has no field 'answer_start'"),
        (
            article(answer_start=2),
            ", article 'T', paragraph 1, question 'q': at answer_start=2 stands 'c', not the answer 'b';",
        ),
        (article(answer_start=-2), ", article 'T', paragraph 1, question 'q': at answer_start=-2 stands 'a'"),
    ],
)
def test_wrong_squad(folder, text, message):
    wrong(squad_file, folder, text, message)


@st.composite
def stories(draw):
    """Lines of a task, and the questions to read from them."""
    lines, expected = [], []
    for _ in range(draw(st.integers(1, 2))):
        facts, numbers = [], []
        for number in range(1, draw(st.integers(2, 5))):
            if draw(st.booleans()):
                numbers.append(number)
                facts.append(draw(TEXTS))
                lines.append(f"{number} {facts[-1]}")
                continue
            supporting = draw(st.lists(st.sampled_from(range(len(facts))), max_size=3)) if facts else []
            story = Story(tuple(facts), draw(TEXTS), draw(TEXTS), tuple(supporting))
            given_numbers = " ".join(str(numbers[fact]) for fact in supporting)
            lines.append(f"{number} {story.question} \t{story.answer}\t{given_numbers}")
            expected.append(story)
    return lines, expected


@settings(max_examples=40)
@given(stories(), ENDS)
def test_babi(folder, drawn, end):
    lines, expected = drawn
    for path in written(folder, end.join([*lines, "1 Who? \tMary\t"])):
        assert babi_file(path) == [*expected, Story((), "Who?", "Mary", ())]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Mary left.\n", ":1: 'Mary left.' is no number and fact or question;"),
        ("1 Mary left.\n3 She came.\n", ":2: has the number 3, but 2 or 1 comes next;"),
        ("2 Mary left.\n", ":1: has the number 2, but 1 or 1 comes next;"),
        ("1 Who?\tMary\n", ":1: '1 Who?\\tMary' is no question, answer and supporting facts"),
        ("1 Mary left.\n2 Who?\t\t1\n", ":2: '2 Who?\\t\\t1' is no question"),
        ("1 Mary left.\n2 Who?\tMary\t1 2\n", ":2: supported by 1 2, but the facts before are 1;"),
        ("1 Mary left.\n2 Who?\tMary\tone\n", ":2: supported by one"),
        ("1 Mary left.\n", ": has no questions;"),
    ],
)
def test_wrong_babi(folder, text, message):
    wrong(babi_file, folder, text, message)


@pytest.mark.fast
def test_files(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\x85\n")
    with pytest.raises(InputError) as caught:
        read_text(path)
    assert str(caught.value).startswith(f"{path}:2: the byte 0x85 is not utf-8; convert the file, or give its encoding")
    with pytest.raises(InputError, match="encoding: 'hex' is no encoding"):
        read_text(path, encoding="hex")
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n")
    assert read_text(path) == "one\r\n\n"
    assert read_lines(path) == ["one", ""]
    for name in ("absent", "absent.zip/text", "text/more"):
        with pytest.raises(InputError, match=f"{name}: cannot read the text"):
            read_text(tmp_path / name)
    archive = written(tmp_path, "x")[2].parents[1]
    for inside in (archive, archive / "inside", archive / "inside/none"):
        with pytest.raises(InputError, match=r"is no file in .*; give .*packed\.zip/ and one of inside/data\.txt"):
            read_text(inside)
    for name in ("text.gz", "text.zip", "other.zip/text"):
        (tmp_path / name.partition("/")[0]).write_bytes(b"neither")
        with pytest.raises(InputError, match=f"{name}: cannot read the text"):
            read_text(tmp_path / name)
