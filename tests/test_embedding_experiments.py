"""Embeddings from the command line: what runs write and answer, how they fail, and how one goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import counts_svd, embedding_runs, fasttext, word2vec
from seqjax.config import Run
from seqjax.embeddings import Subwords, WordVectors, compose, load_word2vec
from seqjax.embeddings.streaming import Progress
from seqjax.embeddings.vectors import check_finite
from seqjax.errors import TrainingError
from seqjax.reporting import read_metrics

ROOT = Path(__file__).parent.parent
EXPERIMENTS = {"word2vec": word2vec, "fasttext": fasttext, "counts_svd": counts_svd}
FILES = {"config.json", "summary.json", "vectors.bin", "vocabulary.txt", "words.png"}
TINY = (
    *("smoke", "--data.path", "topics.txt", "--model.vector_size", "8", "--model.min_count", "1"),
    *("--model.sample", "0", "--model.block", "64", "--model.tile", "16", "--model.epochs", "150"),
)


def main(name, *words):
    return EXPERIMENTS[name].main([str(word) for word in words])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The working directory: files, and a run of each experiment on Shakespeare's plays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("embeddings"))
        draw = np.random.default_rng(0)
        words = np.array([[f"{topic}{i}" for i in range(10)] for topic in "ab"])
        lines = (" ".join(words[draw.integers(2)][draw.integers(0, 10, 8)]) for _ in range(200))
        Path("topics.txt").write_text("\n".join(lines))
        Path("questions.txt").write_text(": family\nking queen father mother\nking queen wizard witch\n")
        Path("pairs.txt").write_text("king\tqueen\t8.5\nking\tmoon\t1.5\nday\tnight\t8\nwizard\twitch\t7\n")
        options = ("--eval.analogies", "questions.txt", "--eval.similarity", "pairs.txt")
        for name in EXPERIMENTS:
            assert main(name, "smoke", *options, "--run", f"runs/{name}/first") == 0
        yield Path("runs")


@pytest.fixture
def printed(workplace, capsys):
    """Run a command; returns what it prints."""

    def run(*words):
        capsys.readouterr()
        assert main(*words) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_run_directory(workplace, name):
    directory = workplace / name / "first"
    assert {path.name for path in directory.iterdir()} >= FILES
    vectors = load_word2vec(directory / "vectors.bin", binary=True)
    lines = (directory / "vocabulary.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == vectors.words
    assert lines[0].startswith("the ")
    assert embedding_runs.load(directory).counts.tolist() == [int(line.split()[1]) for line in lines]
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["analogies"]["asked"] == summary["analogies"]["oov"] == 1
    assert summary["similarity"]["pairs.txt"]["oov"] == (0 if name == "fasttext" else 0.25)


def test_the_metrics_of_word2vec(workplace):
    directory = workplace / "word2vec/first"
    rows = read_metrics(directory / "metrics.jsonl")
    assert [(row["step"], row["split"]) for row in rows] == [(i, "train") for i in range(1, len(rows) + 1)]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["words_per_second"] > 0
    summary = json.loads((directory / "summary.json").read_text())
    assert summary.items() >= {key: rows[-1][key] for key in ("loss", "words_per_second", "seconds")}.items()
    assert {path.name for path in directory.iterdir()} >= {"checkpoints", "learning_curve.png"}


def test_counts_know_kings(printed):
    nearest = printed("counts_svd", "query", "--word", "king", "--topn", 20)
    assert {"duke", "prince"} <= set(nearest.split())


def test_prose_is_words_without_punctuation(workplace):
    Path("prose.txt").write_text("Naïve “Война и мир”!\nIt's 1869.")
    assert list(embedding_runs.Prose(Path("prose.txt"))) == [["naïve", "война", "и", "мир"], ["it's"]]


def test_two_devices_in_a_process_of_its_own(workplace):
    command = [sys.executable, "-m", "experiments.word2vec", *TINY, "--devices", "2", "--run", "two"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in Path("two").iterdir()} >= FILES


def test_speeches():
    speeches = embedding_runs.plays()
    assert ["words", "words", "words"] in speeches  # Hamlet's answer: neither his name nor a heading
    assert not any(word in ("scene", "exeunt") for speech in speeches[:1000] for word in speech[:1])
    assert sum(map(len, speeches)) > 800_000


# --- questions to a run


def test_query(printed):
    out = printed("word2vec", "query", "--word", "king", "love", "--positive", "king", "woman", "--negative", "man")
    headings = [line for line in out.splitlines() if not line.startswith(" ")]
    assert headings == ["king", "love", "king + woman - man"]
    assert len(out.splitlines()) == 3 * 11
    assert printed("word2vec", "query", "--negative", "man", "--topn", 1).startswith(" - man\n")


def test_words_are_asked_for_on_a_terminal(printed, monkeypatch):
    typed = iter(["king", "", "king - man + woman", "kng", "king -"])

    def type_next(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", type_next)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    _, *lines = printed("counts_svd", "query", "--topn", 1).splitlines()
    headings = [line for line in lines if not line.startswith(" ")]
    assert headings == ["king", "king + woman - man", headings[2], "king", ""]
    assert "did you mean 'king'" in headings[2]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_evaluate(printed, name):
    assert "family" in printed(name, "evaluate", "--analogies", "questions.txt")
    out = printed(name, "evaluate", "--run", f"runs/{name}/first", "--similarity", "pairs.txt", "pairs.txt")
    assert out.count("pairs.txt: Pearson") == 2


def test_export(printed, workplace):
    vectors = embedding_runs.load(workplace / "word2vec/first")
    for form in ("text", "binary"):
        assert "wrote" in printed("word2vec", "export", "--format", form, "--to", form)
        again = load_word2vec(form, binary=form == "binary")
        np.testing.assert_array_equal(again.vectors, vectors.vectors)
    printed("word2vec", "export", "--format", "projector", "--to", "projector")
    assert Path("projector/metadata.tsv").read_text().startswith("word\tcount\nthe\t")


def test_fasttext_answers_for_unknown_words_and_exports_its_model(printed, workplace):
    assert printed("fasttext", "query", "--word", "kinglike", "--topn", 2).startswith("kinglike\n")
    printed("fasttext", "export", "--format", "fasttext", "--to", "model.bin")
    assert Path("model.bin").read_bytes() == (workplace / "fasttext/first/fasttext.bin").read_bytes()


def test_a_run_with_subwords_answers_for_unknown_words(printed):
    words, rows = ["king", "kings", "queen"], np.random.default_rng(0).normal(size=(3 + 50, 4)).astype(np.float32)
    subwords = Subwords(rows, None, min_n=3, max_n=5, bucket=50)
    composed = compose(subwords, words, index={word: i for i, word in enumerate(words)})
    vectors = WordVectors(words, composed, counts=np.array([3, 2, 1]), context_vectors=composed, subwords=subwords)
    Path("subwords").mkdir()
    embedding_runs.save(vectors, Path("subwords"))
    out = printed("word2vec", "query", "--run", "subwords", "--word", "kingly", "--topn", 2)
    assert out.startswith("kingly\n")
    np.testing.assert_array_equal(embedding_runs.load(Path("subwords"))["kingly"], vectors["kingly"])


def test_words_of_another_language_are_shown():
    words = [f"слово{i}" for i in range(500)]
    assert embedding_runs.telling(WordVectors(words, np.ones((500, 2)))) == words[10:90]
    english = WordVectors(embedding_runs.WORDS[5:], np.ones((len(embedding_runs.WORDS) - 5, 2)))
    assert embedding_runs.telling(english) == english.words


# --- bad input: status 2, one line, and nothing left behind


@pytest.fixture
def one_line(workplace, capsys):
    """Run a command that must be refused; returns the line that says why."""

    def refused(*words, status=2):
        capsys.readouterr()
        assert main(*words) == status
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return refused


@pytest.mark.parametrize("name", ["word2vec", "counts_svd"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data.path nowhere.txt", "corpus nowhere.txt cannot be read"),
        ("--data.path .", "corpus . cannot be read"),
        ("--data.path empty.txt", "data.path=empty.txt holds no words"),
        ("--data.path topics.txt --model.min_count 9999", "min_count=9999 leaves no word: the most frequent of 20"),
        ("text8", "corpus text8 cannot be read"),
        ("shakespere", "did you mean 'shakespeare'?"),
        ("--model.windw 3", "did you mean --model.window?"),
        ("--model.window 0", "window=0; it must be at least 1"),
        ("--eval.analogies nowhere.txt", "nowhere.txt cannot be read"),
        ("--eval.similarity pairs.txt empty.txt", "empty.txt: no pairs in it"),
        ("query --word kng", "word 'kng' is not among the"),
        ("query", "no words: give --word WORD"),
        ("query --word king --topn 0", "topn=0; it must be at least 1"),
        ("query --run nowhere --word king", "run=nowhere holds no vectors: name the directory of a run"),
        ("query --run unfinished --word king", "run=unfinished holds no vectors: finish it with --resume"),
        ("evaluate", "nothing to evaluate with"),
        ("evaluate --analogies empty.txt", "empty.txt: no questions in it"),
        ("export", "--to"),
        ("export --to .", "to=. is a directory"),
        ("export --to empty.txt/vectors", "to=empty.txt/vectors cannot be written"),
    ],
)
def test_refused(one_line, workplace, name, words, message):
    Path("empty.txt").write_text("")
    Path("unfinished").mkdir(exist_ok=True)
    Path("unfinished/config.json").touch()
    before = sorted(Path("runs").rglob("*"))
    assert message in one_line(name, *words.split())
    assert sorted(Path("runs").rglob("*")) == before


def test_sentences_of_one_word_are_refused(one_line):
    Path("single.txt").write_text("\n".join(Path("topics.txt").read_text().split()))
    options = ("--data.path", "single.txt", "--run", "single")
    assert "no two words stood together" in one_line("word2vec", *TINY, *options)
    options = ("--data.path", "single.txt", "--model.min_count", 1)
    assert "of 0 pairs of words none has mutual information" in one_line("counts_svd", "smoke", *options)


def test_other_bad_options_are_named(one_line):
    for name in ("word2vec", "fasttext"):
        assert "checkpoint_every=0; it must be at least 1" in one_line(name, "--checkpoint_every", 0)
    assert "devices=9, but there are 4: lower it" in one_line("word2vec", "--devices", 9)
    assert "needs a run of experiments.fasttext" in one_line("word2vec", "export", "--format", "fasttext", "--to", "x")
    assert "rank=0; it must be at least 1" in one_line("counts_svd", "--model.rank", 0)
    tiny = ("smoke", "--data.path", "topics.txt", "--model.min_count", 1)
    assert "rank=99 does not fit a matrix of (20, 20)" in one_line("counts_svd", *tiny, "--model.rank", 99)


def test_divergence_is_an_error(tmp_path):
    def train(losses):
        with embedding_runs.recording(Run(tmp_path, resume=False)) as record:
            for step, loss in enumerate(losses, 1):
                record(Progress(step, 3, 0, step / 3, 9, 9.0, loss))

    with pytest.raises(TrainingError, match="the training diverged"):
        train([4.1, 3e9, 2.0])
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    with pytest.raises(TrainingError, match="the training diverged"):
        check_finite(WordVectors(["a"], np.array([[np.nan]])))


# --- a run that is stopped


def rows(run):
    keys = ("step", "split", "loss")
    return [tuple(row[key] for key in keys) for row in read_metrics(run / "metrics.jsonl")]


def test_sigterm_and_resume(workplace):
    words = (*TINY, "--checkpoint_every", 50, "--run")
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.word2vec", *map(str, words), "stopped"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = Path("stopped/metrics.jsonl")
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 12:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 143, err
    assert "go on with --resume" in out
    done = len(rows(Path("stopped")))
    assert 12 <= done < 150
    assert main("word2vec", "--run", "stopped", "--resume") == 0
    assert main("word2vec", *words, "whole") == 0
    assert rows(Path("stopped")) == rows(Path("whole"))
    assert len(rows(Path("whole"))) == 150
    for name in ("vectors.bin", "vocabulary.txt"):
        assert Path("stopped", name).read_bytes() == Path("whole", name).read_bytes()
    seconds = [row["seconds"] for row in read_metrics(metrics)]
    assert seconds == sorted(seconds)


def test_counts_svd_is_computed_anew(workplace):
    path = workplace / "counts_svd/first/vectors.bin"
    before = path.read_bytes()
    path.unlink()
    assert main("counts_svd", "--run", path.parent, "--resume") == 0
    assert path.read_bytes() == before
