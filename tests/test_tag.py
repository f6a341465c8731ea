"""Tagging from the command line: what it reads, learns, shows, exports and refuses."""

import functools
import io
import json
import random
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tag, text_corpora, text_runs
from experiments.highlighting import tagged, tagged_html
from experiments.tag import Config, Data, decoder, encode, in_scheme, parts, spelled
from experiments.text_corpora import Example
from experiments.text_runs import Batch
from seqjax import export
from seqjax.data import conll_file, shakespeare
from seqjax.errors import InputError
from seqjax.metrics import span_f1
from seqjax.models.tagger import Potentials
from seqjax.text import UNK

WHO = ["Ann", "Bob", "Mary Lou", "Carl"]
WHERE = ["Rome", "New York City", "Oslo"]


def sentences(seed, n=24):
    """Columns of CoNLL: a word, a number nobody needs, a tag in BIO."""
    rng = random.Random(seed)
    for _ in range(n):
        who, where = rng.choice(WHO).split(), rng.choice(WHERE).split()
        row = [(word, f"{'BI'[i > 0]}-WHO") for i, word in enumerate(who)] + [("saw", "O")]
        row += [(word, f"{'BI'[i > 0]}-LOC") for i, word in enumerate(where)]
        row += [(str(rng.randrange(1000)), "O")] * rng.randrange(3)
        yield "".join(f"{word} {i} {label}\n" for i, (word, label) in enumerate(row))


def write(order=1):
    Path("data").mkdir(exist_ok=True)
    for seed, name in enumerate(("train", "test")):
        Path(f"data/{name}.txt").write_text("\n".join([*sentences(seed)][::order]))


DATA = ("--data.path", "data", "--data.format", "conll", "--data.train", "train.txt", "--data.test", "test.txt")
SMOKE = ("smoke", *DATA, "--data.validation_share", "0.3", "--loop.steps", "60", "--hyper.lr", "3e-2")
SMOKE += ("--hyper.dropout", "0", "--batches.max_length", "8", "--loop.eval_every", "60", "--model.cell", "elman")


def main(*words):
    return tag.main([str(word) for word in words])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The working directory: names of people and cities, and a run on them. Equal models are compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tag"))
        make_step = functools.cache(partial(text_runs.make_step, task=tag.TASK))
        patch.setattr(text_runs, "make_step", lambda config, task, model: make_step(config=config, model=model))
        write()
        assert main(*SMOKE, "--run", "runs/tag/first") == 0
        yield Path("runs/tag/first")


def test_a_run_learns_spans_and_measures_itself(workplace, capsys):
    summary = json.loads((workplace / "summary.json").read_text())
    assert summary["f1_test"] == summary["accuracy_test"] == 1
    rows = [line.split("\t") for line in (workplace / "predictions.conll").read_text().splitlines() if line]
    given = conll_file("data/test.txt")
    assert [row[:2] for row in rows] == [list(row) for s in given for row in zip(s.words, s.tags, strict=True)]
    assert {row[2] for row in rows} == {"O", "B-WHO", "I-WHO", "B-LOC", "I-LOC"}
    assert span_f1([[row[1] for row in rows]], [[row[2] for row in rows]]).f1 == summary["f1_test"]
    known = json.loads((workplace / "labels.json").read_text())["labels"]
    assert known == ["B-LOC", "B-WHO", "E-LOC", "E-WHO", "I-LOC", "O", "S-LOC", "S-WHO"]
    assert main("evaluate", "--split", "validation") == 0
    out = capsys.readouterr().out
    assert f"loss {summary['loss_validation']:.4f}  precision" in out
    assert "LOC       1.0000  1.0000  1.0000" in out


def test_the_order_of_files_changes_nothing(workplace):
    config = text_runs.read_config(workplace, Config)
    write(order=-1)
    try:
        again = tag.prepare(config, Path("."))
    finally:
        write()
    first = text_corpora.load_texts(workplace), text_corpora.load_corpus(workplace)
    assert first[0] == again[0]
    assert first[1]["train"] == again[1]["train"]
    assert sorted(first[1]["validation"]) == sorted(again[1]["validation"])
    assert 0 < len(first[1]["validation"]) < 15
    batches = [encode(config, *arguments).collate(np.arange(3), (4, 6)) for arguments in _train(first, again)]
    for a, b in zip(*(batch.inputs for batch in batches), strict=True):
        np.testing.assert_array_equal(a, b)


def _train(*prepared):
    return [(texts, corpus["train"]) for texts, corpus in prepared]


def test_tags_are_the_same_in_whatever_shape(workplace):
    predictor = text_runs.load(workplace, tag.TASK)
    examples = text_corpora.load_corpus(workplace)["test"][:6]
    found = tag.tag(predictor, examples)
    assert tag.tag(predictor._replace(shapes=((2, 9),)), examples) == found
    longer = [Example(e.words * 3, ()) for e in examples]
    tags = tag.tag(predictor, longer)  # cut behind 8 words; the rest gets O
    assert all(row[8:] == ["O"] * (len(e.words) - 8) for row, e in zip(tags, longer, strict=True))


def test_a_batch_spells_each_of_its_words_once(workplace):
    predictor = text_runs.load(workplace, tag.TASK)
    sizes = predictor.config.model.max_letters
    examples = [Example(("Rome", "saw", "Zoë77", "Rome"), ("O",) * 4), Example(("saw",), ("O",))]
    (words, lengths, letters, places, rare), tags, where = encode(predictor.config, predictor.texts, examples).collate(
        np.array([0, 1]), (3, 4)
    )
    assert letters.shape == (6, sizes)
    spelling = [bytes(row[row > 0].tolist()).decode() for row in letters[places[0]]]
    assert spelling == ["Rome", "saw", "Zoë77", "Rome"]
    assert lengths.tolist() == [4, 1, 0]
    assert where.sum(axis=1).tolist() == [4, 1, 0]
    assert words[0, 2] == UNK
    assert words[1].tolist() == [words[0, 1], 0, 0, 0]
    assert np.all(tags[0] == predictor.texts.labels.index("O"))
    assert rare.tolist() == [[False, False, True, False], *[[False] * 4] * 2]
    # More different words than half of a batch.
    many = [Example(tuple("abcd"), ()), Example(tuple("efgh"), ())]
    letters, places = encode(predictor.config, predictor.texts, many).collate(np.array([0, 1]), (2, 4)).inputs[2:4]
    assert bytes(letters[places][..., 0].ravel().tolist()) == b"abcdefgh"
    assert spelled("extraordinary", 6) == b"extary"


def test_predict_highlights_tags(workplace, capsys, monkeypatch):
    assert main("predict", "--text", "Bob saw New York City 5", "--html", "tags.html") == 0
    assert capsys.readouterr().out == "Bob/WHO saw [New York City]/LOC 5\n"
    page = Path("tags.html").read_text()
    assert ">New York City <small>LOC</small></span> 5" in page
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Ann saw Rome\n\nCarl saw Oslo\n")))
    assert main("predict", "--conll", "--tokenized") == 0
    assert capsys.readouterr().out == "Ann\tB-WHO\nsaw\tO\nRome\tB-LOC\n\nCarl\tB-WHO\nsaw\tO\nOslo\tB-LOC\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Ann saw Rome\n\nCarl saw Oslo\n")))
    assert main("predict", "--tokenized") == 0  # an empty line stays one
    assert capsys.readouterr().out == "Ann/WHO saw Rome/LOC\n\nCarl/WHO saw Oslo/LOC\n"
    assert re.findall(tag.WORD, "I don't, well-known o'clock!") == ["I", "don't", "well-known", "o'clock"]
    assert tagged([("a", "X"), ("b", "")]).spans[0].style.startswith("black on rgb")
    assert tagged_html([("<a>", "B")]).endswith("&lt;a&gt; <small>B</small></span>")
    assert parts(("ADJ", "O"), ("red", "car"), ("ADJ", "O")) == [("red", "ADJ"), ("car", "")]


def test_a_bundle_finds_the_same_tags(workplace):
    assert main("export", "--to", "bundle") == 0
    bundle = export.load_bundle("bundle")
    assert bundle.about["labels"][0] == "B-LOC"
    predictor = text_runs.load(workplace, tag.TASK)
    examples = text_corpora.load_corpus(workplace)["test"][:4]
    words, lengths, letters, places, _ = (
        encode(predictor.config, predictor.texts, examples).collate(np.arange(4), (4, 7)).inputs
    )
    found = bundle.functions["tags"](bundle.params, words, lengths, letters[places])
    labels = [[bundle.about["labels"][i] for i in row[:n]] for row, n in zip(found, lengths, strict=True)]
    assert labels == tag.tag(predictor, examples)


def test_spans_are_read_in_any_scheme_and_written_in_one(tmp_path):
    (tmp_path / "iob1.txt").write_text("in O\nNew I-LOC\nYork I-LOC\nRome B-LOC\n\nhi O\n")
    (tmp_path / "bioes.txt").write_text("in O\nNew B-LOC\nYork E-LOC\nRome S-LOC\n\nhi O\n")
    for name in ("iob1.txt", "bioes.txt"):
        for scheme, expected in (("BIO", "O B-LOC I-LOC B-LOC"), ("BIOES", "O B-LOC E-LOC S-LOC")):
            data = Data(path=tmp_path, format="conll", train=name, validation=name, scheme=scheme)
            assert tag.corpus(data)["train"][0].labels == tuple(expected.split())
    assert in_scheme(["NOUN", "O"], None, "BIO") == ["NOUN", "O"]


def test_conllu_and_zipped_files(tmp_path):
    row = "{}\t{}\t_\t{}\t_\t_\t_\t_\t_\t_\n"
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.conllu").write_text(row.format(1, "a b", "DET") + row.format(2, "dog", "NOUN"))
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path, "corpus")
    for path in (tmp_path, archive):
        data = Data(path=Path(path), format="conllu", train="corpus/a.conllu", validation="corpus/a.conllu")
        assert tag.corpus(data)["train"] == [Example(("a_b", "dog"), ("DET", "NOUN"))]


def test_the_plays_are_the_default(monkeypatch):
    play = "ACT I\n\nANN:\nWhat, ho! Is't _he_?\n[Exit]\n\nBOB:\n" + "word " * 70
    splits = {split: [(play, True)] for split in ("train", "validation", "test")}
    monkeypatch.setattr(shakespeare, "shakespeare", lambda: splits)
    found = tag.corpus(Data())["test"]
    assert found[0] == Example(("what", "ho", "is't", "he"), ("COMMA", "EXCLAMATION", "O", "O"))
    assert [len(e.words) for e in found] == [4, 60, 10]


def test_decoding_keeps_to_the_scheme():
    potentials = Potentials(jnp.array([[[0.0, 9.0, 1.0]]]), None)
    batch = Batch((None, jnp.array([1])), None, None)
    assert decoder(("B-X", "I-X", "O"))(lambda *_: potentials, None, None, batch).tolist() == [[2]]
    assert decoder(("A", "B", "C"))(lambda *_: potentials, None, None, batch).tolist() == [[1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "data.limit=0; it must be at least 1"),
        ({"tag": "pos"}, "data.tag='pos' is no column of CoNLL-U; choose one of id, form"),
        ({"validation_share": 1.0}, "data.validation_share=1.0; it must be between"),
        ({"path": Path("x")}, "data.path=x: say what is there with --data.format"),
    ],
)
def test_data_that_cannot_be_read_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Data(**options)


def test_files_that_are_not_there_are_named():
    with pytest.raises(InputError, match=r"data.format='conll' needs --data.path"):
        tag.corpus(Data(format="conll", train="a"))
    with pytest.raises(InputError, match="nowhere/a: cannot read the text"):
        tag.corpus(Data(Path("nowhere"), "conll", "a"))
