"""The GloVe experiment from the command line; tests/test_glove.py has the mathematics."""

import json
import os
import random
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments import embedding_runs, glove
from seqjax.reporting import read_metrics

WORDS = ["king", "queen", "love", "day", "night", "sword"]
TINY = ("smoke", "--data.path", "text.txt", "--model.vector_size", 8, "--model.min_count", 1, "--model.epochs", 3)


def main(*words):
    return glove.main([str(word) for word in words])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The working directory: a text, and a run trained on it."""
    draw = random.Random(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("glove"))
        lines = (" ".join(draw.choices(WORDS, k=9)) for _ in range(50))
        Path("text.txt").write_text("\n".join(lines))
        Path("single.txt").write_text("king\nqueen\n")
        run = Path("runs/glove/first")
        assert main(*TINY, "--run", run) == 0
        yield run


def test_the_run_directory(workplace):
    assert {path.name for path in workplace.iterdir()} >= {"config.json", "vectors.bin", "vocabulary.txt", "words.png"}
    rows = read_metrics(workplace / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert json.loads((workplace / "summary.json").read_text())["loss"] == rows[-1]["loss"]
    assert set(embedding_runs.load(workplace).words) == set(WORDS)


def test_query(workplace, capsys):
    assert main("query", "--word", "king", "--topn", 2) == 0
    heading, *answers = capsys.readouterr().out.splitlines()
    assert heading == "king"
    assert len(answers) == 2


def test_an_interrupted_run_goes_on_to_the_same_bytes(workplace, monkeypatch, capsys):
    @contextmanager
    def interrupted(run, *, unit):
        with recording(run, unit=unit) as record:
            yield lambda progress: (record(progress), progress.step == 2 and os.kill(os.getpid(), signal.SIGTERM))

    recording = glove.recording
    monkeypatch.setattr(glove, "recording", interrupted)
    with pytest.raises(SystemExit, match="143"):
        main(*TINY, "--run", "second")
    assert "go on with --resume" in capsys.readouterr().out
    monkeypatch.setattr(glove, "recording", recording)
    assert main("--resume", "--run", "second") == 0
    assert [row["step"] for row in read_metrics(Path("second/metrics.jsonl"))] == [1, 2, 3]
    assert Path("second/vectors.bin").read_bytes() == (workplace / "vectors.bin").read_bytes()


def test_a_corpus_without_pairs_is_refused(workplace, capsys):
    assert main(*TINY, "--data.path", "single.txt", "--run", "third") == 2
    assert "no word occurs near another" in capsys.readouterr().err
    assert not Path("third").exists()
