"""Text classification from the command line: what it reads, learns, answers and refuses."""

import functools
import gzip
import io
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import classify, text_corpora, text_runs
from experiments.classify import Config, Data, criterion, measure
from experiments.text_corpora import Example
from experiments.text_runs import Batch
from seqjax import export, train
from seqjax.data import Labelled
from seqjax.embeddings import WordVectors
from seqjax.errors import InputError
from seqjax.reporting import read_metrics
from seqjax.text import SPECIALS, SpaceTokenizer

QUESTIONS = {"HUM": "Who wrote", "LOC": "Where is", "NUM": "How many are in"}
THINGS = ["hamlet", "rome", "tea", "paris", "milk", "music", "bread", "winter", "gold", "silver"]


def lines(things, order=1):
    found = [f"{kind}:x{i} {ask} {thing} ?" for kind, ask in QUESTIONS.items() for i, thing in enumerate(things)]
    return "\n".join(found[::order]) + "\n"


DATA = ("--data.path", "data", "--data.train", "train.txt", "--data.test", "test.txt", "--data.coarse")
SMOKE = (
    *("smoke", *DATA, "--loop.steps", "40", "--loop.eval_every", "40", "--hyper.lr", "3e-2"),
    *("--hyper.dropout", "0"),
    *("--data.validation", "validation.txt", "--batches.rows", "8", "--batches.max_length", "6"),
    *("--model.d_embed", "8", "--model.d_hidden", "8"),
)


def main(*words):
    return classify.main([str(word) for word in words])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The working directory: questions in three files, and a run on them. Equal models are compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("classify"))
        make_step = functools.cache(partial(text_runs.make_step, task=classify.TASK))
        patch.setattr(text_runs, "make_step", lambda config, task, model: make_step(config=config, model=model))
        Path("data").mkdir()
        Path("data/train.txt").write_text(lines(THINGS[:7]), encoding="latin-1")
        Path("data/validation.txt").write_text(lines(THINGS[7:]))
        Path("data/test.txt").write_text(lines(THINGS[6:9]).replace("winter", "snow"))
        assert main(*SMOKE, "--run", "runs/classify/first") == 0
        yield Path("runs/classify/first")


@pytest.mark.fast
def test_a_run_learns_and_measures_itself(workplace, capsys):
    summary = json.loads((workplace / "summary.json").read_text())
    assert summary["accuracy_test"] == summary["macro_f1_test"] == 1
    row = [row for row in read_metrics(workplace / "metrics.jsonl") if row["split"] == "validation"][-1]
    assert {name: row[name] for name in ("loss", "accuracy")} == {
        name: summary[f"{name}_validation"] for name in ("loss", "accuracy")
    }
    assert (workplace / "predictions.txt").read_text().split() == ["HUM"] * 3 + ["LOC"] * 3 + ["NUM"] * 3
    assert (workplace / "confusion.png").exists()
    assert main("evaluate") == 0
    out = capsys.readouterr().out
    assert f"accuracy 1.0000  loss {summary['loss_test']:.4f}  macro_f1 1.0000" in out
    assert "HUM          1.0000  1.0000  1.0000        3" in out
    assert " 0  HUM   3   0   0\n" in out
    assert main("evaluate", "--split", "dev") == 2


def test_the_order_of_files_changes_nothing(workplace):
    for name, things in (("train", THINGS[:7]), ("validation", THINGS[7:])):
        Path(f"data/{name}.txt").write_text(lines(things, order=-1))
    assert main(*SMOKE, "--run", "runs/again") == 0
    first, again = (json.loads((run / "summary.json").read_text()) for run in (workplace, Path("runs/again")))
    assert first == pytest.approx(again, abs=1e-6)  # the validation texts are added up in another order
    assert first["loss_test"] == again["loss_test"]


def test_predict_answers_with_highlighted_words(workplace, capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Who wrote rome ?\n\nWhere is <tea> & a b c d e f g ?\n"))
    )
    assert main("predict", "--html", "words.html", "--highlight", "always") == 0
    first, nothing, long = capsys.readouterr().out.splitlines()
    assert first.startswith("HUM 0.")
    assert "\x1b[48;2;255;" in first
    assert first.count("\x1b[0m") == 4
    assert nothing.endswith("\t")  # an empty text has no words to look at
    assert "tea" in long
    page = Path("words.html").read_text()
    assert page.count("<p>") == 3
    assert "&lt;</span>" in page
    assert main("predict", "--text", "How many are in milk ?", "--run", workplace) == 0
    label, text = capsys.readouterr().out.strip().split("\t")
    assert label.startswith("NUM 0.")
    assert text == "How many are in milk ?"


def test_a_bundle_gives_the_scores_of_the_run(workplace):
    assert main("export", "--to", "bundle.zip") == 0
    bundle = export.load_bundle("bundle.zip")
    assert bundle.about["labels"] == ["HUM", "LOC", "NUM"]
    assert bundle.about["lower"]
    ids = bundle.tokenizers["tokenizer"].encode("where is gold ?")
    logits = bundle.functions["apply"](bundle.params, jnp.asarray(ids[None]), jnp.array([4], jnp.int32))
    predictor = text_runs.load(workplace, classify.TASK)
    (p, weights), *_ = predictor.predict([Example(("Where", "is", "gold", "?"), ())])
    np.testing.assert_allclose(jax.nn.softmax(logits[0]), p, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)


def test_texts_with_several_labels_and_fasttexts_sparse_steps(workplace, capsys):
    texts = {"__label__HUM __label__LOC": "who where", "__label__HUM": "who", "__label__LOC": "where here"}
    content = "".join(f"{labels} {text} {thing}\n" for thing in THINGS for labels, text in texts.items())
    with gzip.open("data/several.txt.gz", "wt") as file:
        file.write(content)
    words = (
        *("newsgroups", "--data.path", "data", "--data.format", "lines", "--data.train", "several.txt.gz"),
        *("--data.test", "several.txt.gz", "--loop.steps", "60", "--batches.n_buckets", "1", "--hyper.lr", "0.3"),
        *("--model.d_embed", "8", "--model.n_grams", "2", "--model.bucket", "50", "--hyper.label_smoothing", "0"),
    )
    assert main(*words, "--run", "several") == 0
    summary = json.loads(Path("several/summary.json").read_text())
    assert summary["accuracy_test"] == summary["micro_f1_test"] == 1
    assert Path("several/predictions.txt").read_text().splitlines()[:3] == ["LOC HUM", "HUM", "LOC"]
    assert not Path("several/confusion.png").exists()
    capsys.readouterr()
    assert main("predict", "--run", "several", "--text", "who where tea") == 0
    assert set(capsys.readouterr().out.partition("\t")[0].split()[::2]) == {"HUM", "LOC"}


def test_the_loss_of_several_labels_counts_each_of_them():
    logits = jnp.array([[0.0, 2.0], [1.0, -1.0], [9.0, 9.0]])
    batch = Batch((), jnp.array([[True, True], [True, False], [False, False]]), jnp.array([True, True, False]))
    total, weight = criterion(logits, batch, train.Hyper())
    expected = np.log(2) + np.log1p(np.exp(-2)) + 2 * np.log1p(np.exp(-1))
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert weight == 4
    assert tuple(map(float, measure(logits, batch)["accuracy"])) == (1, 2)  # 0 is not likelier than not


# --- given vectors, and how fast they learn


def test_words_have_the_vector_of_their_own_form_or_that_in_lower_case():
    names = ["gold", "tea", "Gold", "ice cream", "Oslo", "OSLO"]
    vectors = WordVectors(names, np.arange(12, dtype=np.float32).reshape(6, 2) - 5)
    table = text_corpora.look_up(vectors, (*SPECIALS, "Tea", "Gold", "milk"), str)
    np.testing.assert_array_equal(table[4:6], vectors[["tea", "Gold"]])
    assert np.isnan(table[[0, 1, 2, 3, 6]]).all()
    known = text_corpora.extended(SpaceTokenizer((*SPECIALS, "milk", "gold")), vectors, str.lower)
    assert known.vocab == (*SPECIALS, "milk", "gold", "tea", "oslo")
    np.testing.assert_array_equal(text_corpora.look_up(vectors, known.vocab, str.lower)[7], vectors["Oslo"])


def test_given_weights_stand_in_the_first_rows():
    params = {"embed": {"w": jnp.zeros((3, 2))}, "layers": [jnp.zeros(2)]}
    given = {"embed.w": np.array([[1, 2], [np.nan, np.nan]], np.float32)}
    after = text_runs.with_given(params, given)
    assert after["embed"]["w"].tolist() == [[1, 2], [0, 0], [0, 0]]
    with pytest.raises(InputError, match=r"make the sizes equal, such as model.d_embed=5"):
        text_runs.with_given(params, {"embed.w": np.zeros((2, 5))})
    with pytest.raises(InputError, match=r"has no rnn.w to start with"):
        text_runs.with_given(params, {"rnn.w": np.zeros(2)})


def test_embed_lr_freezes_or_slows_given_vectors():
    def apply(params, tokens, dropout, key):
        return jnp.sum(params["embed"]["w"][tokens], axis=1) @ params["out"]["w"]

    rng, updated = np.random.default_rng(0), {}
    params = {name: {"w": jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)} for name in ("embed", "out")}
    batch = Batch((jnp.array([[1, 2]]),), jnp.array([1]), jnp.array([True]))
    for factor in (0.0, 0.5, 1.0):
        hyper = train.Hyper(weight_decay=0.1, embed_lr=factor, clip=np.inf)
        config = Config(hyper=hyper)
        optimizer = text_runs.make_optimizer(config, classify.TASK)
        state = train.init_state(params, (), jax.random.key(1), optimizer(hyper))
        after, _ = jax.jit(text_runs.make_step(config, classify.TASK, text_runs.Model(None, apply, None)))(
            state, batch, hyper
        )
        updated[factor] = jax.tree.map(jnp.subtract, after.params, params)
    frozen, slow, tuned = (updated[factor] for factor in (0.0, 0.5, 1.0))
    assert not frozen["embed"]["w"].any()
    assert tuned["embed"]["w"].all()  # those of other words decay
    np.testing.assert_allclose(slow["embed"]["w"], tuned["embed"]["w"] / 2, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(frozen["out"]["w"], tuned["out"]["w"], rtol=1e-4)


# --- what is read


def test_folds_and_validation_are_parts_that_a_hash_decides():
    examples = [Example((str(i % 90),), ("a",)) for i in range(100)]
    folds = [classify.parts(examples, 5, i) for i in range(5)]
    tested = [example for _, test in folds for example in test]
    assert sorted(tested) == sorted(examples)
    for rest, test in folds:
        assert not {e.words for e in rest} & {e.words for e in test}  # equal texts stay together
        assert 8 < len(test) < 36
    assert classify.parts(examples, 5, 0, salt="validation")[1] != folds[0][1]


def test_speeches_are_those_of_the_speakers(monkeypatch):
    play = "Play\n\nACT I\n\nHAMLET:\n[Aside] To be, or not to be.\n\nOSRIC:\nYour lordship is right welcome back.\n\n"
    monkeypatch.setattr("seqjax.data.shakespeare.shakespeare", lambda: {"train": [(play + "HAMLET:\nWords.\n", True)]})
    assert classify.speeches() == [Labelled("To be, or not to be.", ("Hamlet",))]


def test_what_does_not_fit_is_refused(workplace, capsys):
    for words, message in {
        ("--data.path", "data"): "name the files of the training texts",
        ("--data.folds", "3", "--data.fold", "3"): "give one below data.folds=3",
        ("--data.validation_share", "1"): "one of n parts validates",
        ("--batches.rows", "0"): "batches.rows=0; it must be at least 1",
        (*DATA, "--data.min_count", "99"): "leaves the vocabulary empty",
        (*DATA, "--thaw", "3"): "thaw=3, start_random=False: they need --start",
        (*DATA, "--hyper.layer_lr", "0.5"): "hyper.layer_lr=0.5 has no effect here",
        ("--data.train", "TREC.train"): "data.path: give the folder with TREC.train",
    }.items():
        assert main("smoke", *words) == 2
        assert message in capsys.readouterr().err
    assert main("newsgroups", *DATA, "--data.format", "lines", "--hyper.clip", "2") == 2  # plain SGD
    assert "hyper.clip=2.0 has no effect here" in capsys.readouterr().err
    assert main("speakers_nb", *DATA, "--data.format", "lines", "--hyper.embed_lr", "0.5") == 2  # linear: no embedding
    assert "hyper.embed_lr=0.5 has no effect here" in capsys.readouterr().err
    texts = text_corpora.load_texts(workplace)
    with pytest.raises(InputError, match="the label 'ENTY' is none of this run: HUM, LOC, NUM"):
        texts.label_ids(["HUM", "ENTY"])
    assert Data(text="text").text == "text"


def test_words_are_cut_and_not_features(workplace):
    config = classify.PRESETS["mr"][1]
    config = replace(config, batches=replace(config.batches, max_length=4))
    texts = text_corpora.load_texts(workplace)
    [features] = text_runs.read_ids(config, classify.TASK, texts, [Example(tuple("abcdef"), ("LOC",))])
    assert len(features) == 4 + 3
    shapes = text_runs.training_buckets(config, classify.TASK, texts, [Example(tuple("abcdef"), ("LOC",))]).shapes
    assert shapes[-1][1] == 7
