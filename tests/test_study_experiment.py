"""Studies from the command line: what they leave behind, the runs they stand for, and what they refuse."""

import json
import shlex
from pathlib import Path

import pytest

from experiments import char_lm, study, toy_seq2seq
from seqjax.reporting import read_metrics

TEXT = "".join(f"{n % 7} is what the quick brown fox says to the lazy dog;\nand so it goes.\n" for n in range(40))
SMALL = (
    *("smoke", "--model.d_embed", "4", "--model.d_hidden", "4", "--batch_size", "2", "--window", "6", "--warmup", "3"),
    *("--loop.steps", "12", "--loop.log_every", "6", "--loop.eval_every", "6", "--loop.checkpoint_every", "6"),
    *("--data.path", "text.txt", "--study.eval_batches", "4", "--study.devices", "1"),
)


def main(*words):
    return study.main([str(word) for word in words])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The working directory: a text, and a study of two cells, two rates and two seeds."""
    directory = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        Path("text.txt").write_text(TEXT)
        axes = "--grid", "lr=1e-3,0.1", "model.cell=elman,gru"
        assert main("char_lm", *SMALL, *axes, "--seeds", 2, "--run", "both") == 0
        yield Path("both")


def results(directory):
    return [json.loads(line) for line in (directory / "results.jsonl").read_text().splitlines()]


def test_results(workplace):
    rows = results(workplace)
    assert [row["rank"] for row in rows] == list(range(1, 9))
    assert sorted(row["member"] for row in rows) == list(range(8))
    assert {(row["point"]["lr"], row["point"]["model.cell"], row["seed"]) for row in rows} == {
        (lr, cell, seed) for lr in (1e-3, 0.1) for cell in ("elman", "gru") for seed in (0, 1)
    }
    values = [row["value"] for row in rows]
    assert values == sorted(values)
    assert all(row["value"] == row["metrics"]["loss"] and row["step"] == 12 for row in rows)
    lines = [row for part in (0, 1) for row in read_metrics(workplace / f"parts/{part}/metrics.jsonl")]
    last = {row["member"]: row["loss"] for row in lines if row["split"] == "validation" and row["step"] == 12}
    assert last == {row["member"]: row["value"] for row in rows}
    assert (workplace / "table.md").read_text().count("\n| ") > 8
    assert {path.name for path in workplace.glob("*.png")} == {"curves.png", "heatmap.png", "parallel.png"}


def test_a_member_by_itself(workplace, capsys):
    """The command in the results trains the same run."""
    row = next(row for row in results(workplace) if row["seed"] == 1 and row["point"]["model.cell"] == "gru")
    words = shlex.split(row["command"])
    assert words[:3] == ["python", "-m", "experiments.char_lm"]
    assert char_lm.main([*words[3:], "--run", "alone"]) == 0
    config = json.loads(Path("alone/config.json").read_text())["config"]
    assert (config["seed"], config["data_seed"], config["model"]["cell"]) == (1, 0, "gru")
    trained = [line for line in read_metrics("alone/metrics.jsonl") if line["split"] == "train"][-1]
    lines = read_metrics(workplace / "parts/1/metrics.jsonl")
    member = [line for line in lines if line["split"] == "train" and line["member"] == row["member"]][-1]
    assert trained["loss"] == pytest.approx(member["loss"], abs=1e-5)


def test_the_best_is_a_run(workplace, capsys):
    best = results(workplace)[0]
    assert json.loads((workplace / "best/summary.json").read_text()) == best["metrics"]
    assert char_lm.main(["sample", "--run", str(workplace / "best"), "--length", "5"]) == 0
    assert capsys.readouterr().out
    assert char_lm.main(["--resume", "--run", str(workplace / "best")]) == 0  # it has nothing left to do


def test_resume_of_an_ended_study_trains_nothing(workplace):
    before = results(workplace)
    times = {path: path.stat().st_mtime_ns for path in workplace.glob("parts/*/checkpoints/*/integrity")}
    assert times
    assert main("char_lm", "--resume", "--run", workplace) == 0
    assert results(workplace) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_optuna_and_pairs(workplace):
    small = "--loop.steps", 6, "--loop.log_every", 3, "--loop.eval_every", 6, "--data.pairs", 40
    options = "--optuna", "lr=1e-3:1e-1:log", "--samples", 6, "--batch", 4, "--study.devices", 1
    assert main("toy_seq2seq", "smoke", *small, *options, "--run", "pairs") == 0
    rows = results(Path("pairs"))
    assert [len(read_metrics(f"pairs/parts/{part}/metrics.jsonl")) > 0 for part in (0, 1)] == [True, True]
    assert len({row["point"]["lr"] for row in rows}) == 6
    assert toy_seq2seq.main(["evaluate", "--run", "pairs/best"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of char_lm, word_lm"),
        (["word2vec"], "'word2vec' is no experiment to study"),
        (["char_lm", *SMALL], "nothing differs"),
        (["char_lm", *SMALL, "--grid", "lr=0.1:0.01:3"], "a range goes from a lower"),
        (["char_lm", *SMALL, "--grid", "lr=0.1", "--random", "lr=0.1:1"], "both grid and random"),
        (["char_lm", *SMALL, "--grid", "lr=0.1,1", "hyper.lr=2,3"], "lr is given as two axes"),
        (["char_lm", *SMALL, "--grid", "d_hidden=4,8"], "no field d_hidden: did you mean 'model.d_hidden'?"),
        (["char_lm", *SMALL, "--grid", "seed=1,2"], "use --seeds"),
        (["char_lm", *SMALL, "--grid", "loop.steps=1,2"], "run a study for each of its values"),
        (["char_lm", *SMALL, "--grid", "model.cell=lstm,lstn"], "model.cell='lstn' is unknown"),
        (["char_lm", *SMALL, "--grid", "lr=-1,1"], "hyper.lr=-1"),
        (["char_lm", *SMALL, "--optuna", "model.cell=lstm,gru"], "optuna proposes numbers of hyper only"),
        (["char_lm", *SMALL, "--random", "lr=0.1:1", "--samples", "0"], "samples=0"),
        (["char_lm", *SMALL, "--grid", "lr=0.1,1", "--study.memory", "1e-6"], "2 members take"),
        (["char_lm", *SMALL, "--gird", "lr=0.1,1"], "did you mean --grid?"),
    ],
)
def test_refused(workplace, capsys, words, message):
    capsys.readouterr()
    assert main(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
