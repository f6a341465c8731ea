"""The character language model from the command line: what it writes and answers, how it fails, how it survives."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import char_lm, lm_runs
from seqjax import export
from seqjax.errors import InputError
from seqjax.reporting import read_metrics

ROOT = Path(__file__).parent.parent
TEXT = "".join(f"{n % 7} is what the quick brown fox says to the lazy dog;\nand so it goes.\n" for n in range(40))
TINY = (
    *("smoke", "--model.d_embed", "8", "--model.d_hidden", "8", "--batch_size", "4", "--window", "8", "--warmup", "3"),
    *("--loop.steps", "24", "--loop.log_every", "6", "--loop.eval_every", "12", "--loop.checkpoint_every", "8"),
)


def main(*words):
    return char_lm.main([str(word) for word in words])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The working directory: a text, and a run trained on it after a false start."""
    directory = tmp_path_factory.mktemp("char_lm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        Path("text.txt").write_text(TEXT)
        Path("invalid.txt").write_bytes(TEXT.encode() + b"\xff" + TEXT.encode())
        run = Path("runs/char_lm/first")
        assert main(*TINY, "--data.path", "invalid.txt", "--run", run) == 2
        assert not run.exists()
        assert main(*TINY, "--data.path", "text.txt", "--run", run) == 0
        yield run


@pytest.fixture
def one_line(workplace, capsys):
    """Run a command that must be refused; returns the line that says why."""

    def refused(*words):
        capsys.readouterr()
        assert main(*words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return refused


@pytest.mark.fast
def test_the_run_directory(workplace):
    assert {path.name for path in workplace.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "tokenizer.json",
        "summary.json",
        "learning_curve.png",
        "tensorboard",
        "tokens",
    }
    written = read_metrics(workplace / "metrics.jsonl")
    assert [(row["step"], row["split"]) for row in written] == [
        (6, "train"),
        (12, "train"),
        (12, "validation"),
        (18, "train"),
        (24, "train"),
        (24, "validation"),
    ]
    validation = [row for row in written if row["split"] == "validation"]
    for row in validation:
        assert {"loss", "bits", "perplexity", "accuracy", "seconds"} <= set(row)
    assert validation[1]["loss"] < validation[0]["loss"]
    summary = json.loads((workplace / "summary.json").read_text())
    assert summary == {name: x for name, x in validation[1].items() if name not in ("step", "split", "seconds")}
    assert summary["bits_per_byte"] == pytest.approx(summary["bits"])  # ASCII
    record = json.loads((workplace / "config.json").read_text())
    assert record["experiment"] == "char_lm"
    assert record["config"]["model"]["d_hidden"] == 8


@pytest.mark.fast
def test_evaluate(workplace, capsys):
    summary = json.loads((workplace / "summary.json").read_text())
    for words in (("--run", workplace), ()):  # without --run, the newest
        capsys.readouterr()
        assert main("evaluate", *words) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{workplace} validation: ")
        for name, value in summary.items():
            assert f"{name} {value:.4f}" in out
    assert main("evaluate", "--split", "train") == 0
    assert "train: " in capsys.readouterr().out


@pytest.mark.fast
def test_sample(workplace, capsys):
    def sample(*words):
        capsys.readouterr()
        assert main("sample", "--run", workplace, "--length", 20, *words) == 0
        return capsys.readouterr().out

    greedy = sample("--prompt", "the ", "--temperature", 0)
    assert greedy.startswith("the ")
    assert len(greedy) == len("the ") + 20 + 1
    assert greedy == sample("--prompt", "the ", "--temperature", 0, "--seed", 5)
    drawn = sample("--prompt", "the ", "--samples", 3, "--temperature", 1.5)
    headings, texts = zip(*(part.split("\n", 1) for part in drawn.split("--- ")[1:]), strict=True)
    assert headings == ("1", "2", "3")
    assert len({*texts}) == 3
    assert all(text.startswith("the ") for text in texts)
    # A row does not depend on the others, but on the seed.
    assert texts[0] == sample("--prompt", "the ", "--temperature", 1.5)
    assert texts[0] != sample("--prompt", "the ", "--temperature", 1.5, "--seed", 1)
    assert sample().startswith("\n")


# --- bad input: status 2, one line, and nothing left behind


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model.d_hiden 3", "unrecognised option --model.d_hiden; did you mean --model.d_hidden?"),
        ("--d_hidden 3", "unrecognised option --d_hidden; did you mean --model.d_hidden?"),
        ("--lr=0.1", "unrecognised option --lr; did you mean --hyper.lr?"),
        ("sample --temprature 3", "unrecognised option --temprature; did you mean --temperature?"),
        ("--xyzzy", "unrecognised option --xyzzy; see python -m experiments.char_lm --help"),
        ("smoke extra", "unexpected argument 'extra'; see python -m experiments.char_lm --help"),
        ("--model.d_hidden many", "--model.d_hidden: invalid literal for int() with base 10: 'many'"),
        ("--model.d_hidden", "Missing value for argument '--model.d_hidden'"),
        ("--run", "Missing value for argument '--run'"),
        ("--model.dtype float16", "invalid choice 'float16' for argument '--model.dtype'. Expected one of"),
        ("--data.path nowhere.txt", "nowhere.txt: cannot read the text (No such file or directory)"),
        ("--data.path .", ".: cannot read the text (Is a directory)"),
        ("--data.path empty.txt", "empty.txt: 0 bytes are too few to split"),
        ("--data.path short.txt", "the corpus has 28 tokens, fewer than the batch_size*window+1 = 33"),
        ("--data.path text.txt --data.fraction 0.9999", "the corpus to evaluate on has 1 tokens; it needs at least 2"),
        ("--data.path text.txt --data.fraction 1", "fraction: 1.0 is not between 0 and 1"),
        ("--data.path text.txt --data.min_count 0", "min_count: 0 is below 1"),
        ("--data.path text.txt --data.min_count 99999", "data.min_count=99999 leaves the vocabulary empty"),
        ("--data.path invalid.txt", f"invalid.txt: byte {len(TEXT)} is not valid UTF-8"),
        ("--data.path invalid.txt --data.fraction 0.4", f"invalid.txt: byte {len(TEXT)} is not valid UTF-8"),
        ("--data.path text.txt --seed -1", "seed=-1; it must be at least 0"),
        ("--data.path text.txt --hyper.dropout 1.5", "hyper.dropout=1.5; it must be at least 0 and below 1"),
        ("--data.path text.txt --hyper.lr nan", "hyper.lr=nan; it must be at least 0"),
        ("--model.n_layers 0", "model.n_layers=0; it must be at least 1"),
        ("--loop.steps 0", "loop.steps=0; it must be at least 1"),
        ("--batch_size 0", "batch_size=0; it must be at least 1"),
        ("--warmup -1", "warmup=-1; it must be at least 0"),
        ("--run runs/char_lm/first", "runs/char_lm/first already holds a run"),
        ("--run runs/char_lm/first --resume --model.d_hidden 9", "another configuration: model.d_hidden is 8 there"),
        ("--run runs/char_lm/first --resume --data.path other.txt", "another configuration: data.path is 'text.txt'"),
    ],
)
def test_training_refused(one_line, workplace, words, message):
    Path("empty.txt").write_text("")
    Path("short.txt").write_text("x" * 32)
    before = sorted(Path("runs").rglob("*"))
    # A preset's options would differ from those of a run that is to be resumed.
    tiny = [] if "--resume" in words or words.startswith(("sample", "smoke")) else TINY
    assert message in one_line(*tiny, *words.split())
    assert sorted(Path("runs").rglob("*")) == before


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample --prompt ROMEO™", "prompt: ['R', 'O', 'M', 'E', '™'] are not in the vocabulary of this run"),
        ("sample --prompt=", "prompt='' holds no token"),
        # Seen before the run is looked for, let alone loaded.
        ("sample --run nowhere --temperature -0.1", "temperature=-0.1; it must be at least 0"),
        ("sample --run nowhere --temperature nan", "temperature=nan; it must be at least 0"),
        ("sample --run nowhere --top_k 0", "top_k=0; it must be at least 1"),
        ("sample --run nowhere --top_p 0", "top_p=0.0; it must be above 0 and at most 1"),
        ("sample --run nowhere --min_p 1.5", "min_p=1.5; it must be from 0 to 1"),
        ("sample --run nowhere --samples 0", "samples=0; it must be at least 1"),
        ("sample --run nowhere --length -1", "length=-1; it must be at least 1"),
        ("sample --run nowhere", "nowhere: No such file or directory; name a run directory"),
        ("sample --run bare", "bare/config.json: No such file or directory; name a run directory"),
        ("sample --run untrained", "untrained holds no checkpoint yet"),
        ("evaluate --run nowhere", "nowhere: No such file or directory"),
        ("evaluate --split test", "split='test': this corpus has train, validation"),
    ],
)
def test_sampling_refused(one_line, workplace, words, message):
    Path("bare").mkdir(exist_ok=True)
    Path("untrained").mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(workplace / name, Path("untrained"))
    assert message in one_line(*words.split())


@pytest.mark.fast
def test_export(workplace, tmp_path, capsys):
    """Of a named run into a .zip, which writes what the run writes."""
    capsys.readouterr()
    assert main("export", workplace, "--to", tmp_path / "b.zip") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"wrote {tmp_path / 'b.zip'}:\n  apply.stablehlo ")
    assert f'seqjax.export.load_bundle("{tmp_path / "b.zip"}")' in out
    bundle = export.load_bundle(tmp_path / "b.zip")
    _, model, tokenizer, params = lm_runs.load(workplace, char_lm.Config)
    assert bundle.about["experiment"] == "char_lm"
    assert bundle.tokenizers == {"tokenizer": tokenizer}
    tokens = tokenizer.encode("the fox")[None]
    expected = jax.jit(lambda params, tokens: model.apply(params, tokens)[1])(params, tokens)
    np.testing.assert_array_equal(bundle.functions["apply"](bundle.params, tokens), expected)


def test_no_checkpoint_to_export(workplace, tmp_path, one_line):
    for file in ("config.json", "tokenizer.json"):
        shutil.copy(workplace / file, tmp_path)
    assert "holds no checkpoint yet; train it further with" in one_line("export", tmp_path)


def test_no_run_to_sample_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main("sample") == 2
    assert "no run in runs/char_lm: train one with `python -m experiments.char_lm`" in capsys.readouterr().err


@pytest.fixture
def training(monkeypatch, tmp_path):
    """Replace what `train` does."""
    monkeypatch.chdir(tmp_path)

    def replace(function):
        monkeypatch.setattr(char_lm, "run", function)

    return replace


def test_a_false_start_leaves_what_was_there_before(training):
    def fail(config, run):
        (run.directory / "tokens").mkdir()
        (run.directory / "tokens" / "train.npy").touch()
        raise InputError("no")

    training(fail)
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep")
    for directory in ("mine", "new/one"):
        assert main("--run", directory) == 2
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]
    assert not Path("new/one").exists()


def test_bad_input_after_a_checkpoint_removes_nothing(training):
    def fail(config, run):
        (run.directory / "checkpoints" / "10").mkdir(parents=True)
        raise InputError("no")

    training(fail)
    assert main("--run", "a") == 2
    assert {path.name for path in Path("a").iterdir()} == {"config.json", "checkpoints"}


def test_resume_never_removes(training):
    def fail(config, run):
        raise InputError("no")

    training(lambda config, run: None)
    assert main("--run", "a") == 0
    training(fail)
    assert main("--run", "a", "--resume") == 2
    assert Path("a/config.json").exists()


# --- the other tokenizers, and the other options together


def test_words_of_a_text_without_line_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text8").write_text(TEXT.replace("\n", " "))
    assert main(*TINY, "--data.path", "text8", "--data.tokenizer", "word", "--run", "words") == 0
    capsys.readouterr()
    assert main("sample", "--run", "words", "--prompt", "the lazy  dog", "--length", 4) == 0
    text = capsys.readouterr().out
    assert text.startswith(("the lazy dog ", "the lazy dog;", "the lazy dog."))
    assert main("sample", "--run", "words", "--prompt", "cats and dogs") == 2
    assert "prompt: ['cats', 'dogs'] are not in the vocabulary" in capsys.readouterr().err


def test_bytes_and_every_other_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT.replace("fox", "Füchsin"), encoding="utf-8")
    options = (
        "--data.tokenizer byte --accumulate 2 --hyper.dropout 0.1 --hyper.ema 0.9 --hyper.label_smoothing 0.1 "
        "--model.cell elman --model.tied --model.dtype bfloat16 --optimizer sgd --schedule linear"
    )
    assert main(*TINY, "--data.path", "text.txt", "--run", "bytes", *options.split()) == 0
    summary = json.loads(Path("bytes/summary.json").read_text())
    capsys.readouterr()
    assert main("evaluate", "--run", "bytes") == 0
    assert f"loss {summary['loss']:.4f}" in capsys.readouterr().out


# --- kill -9

LONG = [
    *TINY,
    "--loop.steps",
    "240",
    "--loop.log_every",
    "10",
    "--loop.eval_every",
    "60",
    "--loop.checkpoint_every",
    "25",
]


def start(*words):
    """The experiment in a process of its own, with the settings of this one."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.char_lm", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(run):
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at(process, run, n):
    """Kill a training process at a random moment after the n-th line of its metrics."""
    while lines(run) < n:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()


def rows(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run / "metrics.jsonl")]


def test_kill_9_and_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    words = (*LONG, "--data.path", "text.txt", "--run")
    killed, whole = Path("killed"), Path("whole")
    kill_at(start(*words, killed), killed, random.randint(1, 15))
    assert main("--run", killed, "--resume") == 0
    assert main(*words, whole) == 0
    assert rows(killed) == rows(whole)
    assert len(rows(whole)) == 24 + 4
    for name in ("summary.json", "tokenizer.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.full
def test_kill_9_five_times(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    words = (*LONG, "--loop.steps", 1200, "--hyper.dropout", 0.2, "--data.path", "text.txt", "--run")
    killed, whole = Path("killed"), Path("whole")
    process = start(*words, killed)
    for _ in range(5):
        kill_at(process, killed, lines(killed) + random.randint(2, 20))
        process = start("--run", killed, "--resume")
    assert main(*words, whole) == 0
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert rows(killed) == rows(whole)
    assert len(rows(whole)) == 120 + 20
    assert (killed / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()
