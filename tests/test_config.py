import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqjax.checkpoint import CheckpointError
from seqjax.config import Run, newest_run, read_config, run_experiment, write_config
from seqjax.errors import InputError, check_least, check_seeds


class Hyper(NamedTuple):
    lr: float = 1e-3
    """Peak learning rate."""
    clip: float = math.inf


@dataclass(frozen=True)
class Model:
    cell: Literal["lstm", "gru"] = "lstm"
    layers: tuple[int, ...] = (4, 4)
    kernel: tuple[int, float] | None = None
    tied: bool = False


@dataclass(frozen=True)
class Config:
    model: Model = Model()
    hyper: Hyper = Hyper()
    seed: int = 0
    steps: int = 10
    name: str = ""
    data: Path | None = None
    temperature: float = 1.0

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"steps must be at least 1,\nnot {self.steps}")


@dataclass(frozen=True)
class SampleOptions:
    run: Path | None = None
    """Run directory; the newest by default."""
    temperature: float = 1.0


TINY = Config()
BASE = Config(model=Model("gru", (64, 32)), steps=1000)
PRESETS = {"tiny": ("A smoke test, 10 s.", TINY), "base": ("The real thing.", BASE)}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return []


@pytest.fixture
def toy(calls):
    """Run the toy experiment on a command line; what it does is told in `calls`."""

    def sample(options):
        """Write text with a trained model.

        More on it.
        """
        calls.append(options)

    def main(line, train=lambda config, run: calls.append((config, run))):
        return run_experiment(
            "toy",
            PRESETS,
            train=train,
            commands={"sample": (SampleOptions, sample)},
            description="A toy language model.",
            argv=line.split(),
        )

    return main


# --- the command line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", TINY),
        ("train", TINY),
        ("tiny", TINY),
        ("base", BASE),
        ("train base", BASE),
        ("--seed 3", replace(TINY, seed=3)),
        ("--temperature -1", replace(TINY, temperature=-1.0)),
        ("base --model.layers 1 2 3 --hyper.lr 3", replace(BASE, model=Model("gru", (1, 2, 3)), hyper=Hyper(3.0))),
        ("train tiny --data some/where --model.tied", replace(TINY, data=Path("some/where"), model=Model(tied=True))),
    ],
)
def test_train(toy, calls, line, expected):
    assert toy(line) == 0
    ((config, run),) = calls
    assert config == expected
    assert run.resume is False
    assert run.directory.parent == Path("runs/toy")
    assert read_config(run.directory, Config) == config
    assert os.listdir(run.directory) == ["config.json"]


def test_runs_of_the_same_second_get_directories_of_their_own(toy, calls):
    for _ in range(5):
        toy("")
    assert len({run.directory for _, run in calls}) == 5


def test_config_file_and_overrides(toy, calls):
    toy("base --run a --seed 1")
    assert toy("--config a/config.json --run b --steps 7") == 0
    assert toy("--config a --run c") == 0
    assert calls[1] == (replace(BASE, seed=1, steps=7), Run(Path("b"), False))
    assert calls[2][0] == replace(BASE, seed=1)


def test_config_file_is_the_start_even_where_the_preset_would_be_refused(toy, calls, monkeypatch):
    toy("--run a --temperature 5")
    monkeypatch.setitem(PRESETS, "tiny", ("", replace(TINY, temperature=0.0)))
    monkeypatch.setattr(Config, "__post_init__", lambda self: _refuse(self.seed == 1 and self.temperature == 0))
    assert toy("--seed 1") == 2
    assert toy("--seed 1 --config a") == 0
    assert calls[-1][0] == replace(TINY, temperature=5.0, seed=1)


def _refuse(condition):
    if condition:
        raise InputError("refused")


def test_resume(toy, calls):
    toy("base --run a --seed 1 --hyper.lr 3")
    before = Path("a/config.json").read_bytes()
    for line in (
        "--run a --resume",
        "train --resume --run a --seed 1",
        "base --run a --seed 1 --hyper.lr 3 --resume",
        "--config a --run a --resume",
    ):
        assert toy(line) == 0
        assert calls[-1] == (calls[0][0], Run(Path("a"), True))
    assert Path("a/config.json").read_bytes() == before


def test_resume_without_run_takes_the_newest(toy, calls):
    for i, directory in enumerate(("runs/toy/b", "runs/toy/c", "runs/toy/a")):
        toy(f"--run {directory} --seed {i}")
        os.utime(f"{directory}/config.json", ns=(i, i))
    assert toy("--resume") == 0
    assert calls[-1] == (replace(TINY, seed=2), Run(Path("runs/toy/a"), True))
    assert newest_run("toy") == Path("runs/toy/a")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--run a --resume --seed 4 --hyper.lr 2",
            "another configuration: hyper.lr is 0.001 there and 2.0 here; seed is 3",
        ),
        ("base --run a --resume --seed 3", "another configuration: model.cell is 'lstm' there and 'gru' here"),
        ("--run a", "a already holds a run: choose another --run, or continue it with --resume"),
        ("--run a/config.json", "cannot make the run directory"),
        ("--run b --resume", "b/config.json: No such file or directory; name a run directory"),
        ("--resume", "no run in runs/toy: train one with `python -m experiments.toy`"),
        ("--run other --resume", "other is a run of experiment 'another', not of 'toy'"),
        ("--config b", "b: No such file or directory"),
        ("tiny --config a", "both preset 'tiny' and --config a: give one of them"),
        ("--config damaged", "damaged: this is no config.json of a run"),
        ("--steps 0", "steps must be at least 1, not 0"),
        ("trian", "'trian' is no sub-command or preset: did you mean 'train'?"),
        ("bsae --seed 1", "'bsae' is no sub-command or preset: did you mean 'base'?"),
        ("smaple", "did you mean 'sample'? (presets: tiny, base; sub-commands: train, sample)"),
        ("train bsae", "'bsae' is no preset: did you mean 'base'?"),
    ],
)
def test_bad_input_is_one_line(toy, calls, capsys, line, message):
    toy("--run a --seed 3")
    write_config(Path("other"), "another", TINY, [])
    Path("damaged").write_text('{"experiment": "toy", "config": ')
    calls.clear()
    assert toy(line) == 2
    assert not calls
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--hyper.rl 3", "--hyper.lr"),
        ("sample --temprature 3", "--temperature"),
        ("--model.cell gruu", "'gru'"),
        ("--seed", "--seed"),
        ("--seed x", "x"),
        ("--run", "--run"),
        ("tiny base", "base"),
        ("--seed 1 tiny", "tiny"),
    ],
)
def test_what_tyro_refuses(toy, calls, capsys, line, message):
    assert toy(line) == 2
    assert not calls
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_sub_command(toy, calls):
    assert toy("sample --temperature -1 --run x") == 0
    assert calls == [SampleOptions(Path("x"), -1.0)]


def test_help(toy, calls, capsys):
    assert toy("--help") == 0
    told = capsys.readouterr().out
    for text in (
        "usage: python -m experiments.toy [train] [PRESET] [-h] [OPTIONS]",
        "A toy language model.",
        "tiny    A smoke test, 10 s. (default)",
        "base    The real thing.\n",
        "sample  Write text with a trained model.\n",
        "--run DIR",
        "--config FILE",
        "--resume ",
        "--seed INT",
        "Peak learning rate.",
    ):
        assert text in told
    assert toy("base -h") == 0
    assert "(default: 64 32)" in capsys.readouterr().out
    assert toy("sample --help") == 0
    assert "the newest by default" in capsys.readouterr().out
    assert not calls


# --- exit status


def test_bad_input_removes_no_checkpoint_of_a_part(toy, tmp_path):
    def train(config, run):
        (run.directory / "part" / "checkpoints").mkdir(parents=True)
        raise InputError("refused")

    assert toy(f"--run {tmp_path}/run", train) == 2
    assert (tmp_path / "run" / "part" / "checkpoints").exists()


def test_errors_of_seqjax_are_one_line(toy, capsys):
    def train(config, run):
        raise CheckpointError("no intact\ncheckpoint")

    assert toy("", train) == 1
    assert capsys.readouterr().err == "error: no intact checkpoint\n"


def test_bugs_keep_their_traceback(toy):
    def train(config, run):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        toy("", train)


def test_stopped_after_saving(toy):
    def train(config, run):
        raise SystemExit(143)

    with pytest.raises(SystemExit, match="143"):
        toy("", train)


def test_a_preset_cannot_be_named_like_a_sub_command():
    with pytest.raises(ValueError, match="train"):
        run_experiment("toy", {"train": ("", TINY)}, train=print, description="", argv=[])


# --- config.json

numbers = st.floats(allow_nan=False)
texts = st.text(max_size=6)
configs = st.builds(
    Config,
    model=st.builds(
        Model,
        cell=st.sampled_from(["lstm", "gru"]),
        layers=st.lists(st.integers(), max_size=3).map(tuple),
        kernel=st.none() | st.tuples(st.integers(), numbers),
        tied=st.booleans(),
    ),
    hyper=st.builds(Hyper, lr=numbers, clip=numbers),
    seed=st.integers(),
    steps=st.integers(1),
    name=texts,
    data=st.none() | texts.map(Path),
    temperature=numbers,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs)
def test_round_trip(tmp_path, config):
    write_config(tmp_path, "toy", config, [])
    assert read_config(tmp_path / "config.json", Config) == config


def test_nan_survives(tmp_path):
    write_config(tmp_path, "toy", replace(TINY, temperature=math.nan), [])
    assert math.isnan(read_config(tmp_path, Config).temperature)


def test_config_json(tmp_path):
    write_config(tmp_path / "new", "toy", TINY, ["--seed", "0"])
    record = json.loads((tmp_path / "new" / "config.json").read_text(), parse_constant=pytest.fail)
    assert list(record) == ["experiment", "config", "versions", "git", "command", "device"]
    assert record["experiment"] == "toy"
    assert record["config"]["model"] == {"cell": "lstm", "layers": [4, 4], "kernel": None, "tied": False}
    assert record["config"]["hyper"] == {"lr": 0.001, "clip": "inf"}
    assert record["command"] == ["--seed", "0"]
    assert record["device"] == "4 x cpu"
    packages = {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "seqjax"}
    assert set(record["versions"]) == packages


def test_git_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def revision():
        write_config(tmp_path / "run", "toy", TINY, [])
        return json.loads((tmp_path / "run" / "config.json").read_text())["git"]

    def git(*words):
        author = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *author, *words], check=True, capture_output=True)

    assert revision() is None
    git("init")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "x")
    clean = revision()
    assert len(clean) == 40
    (tmp_path / "file").write_text("b")
    assert revision() == clean + "-dirty"


def saved(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"experiment": "toy", "config": config}))
    return path


def test_fields_that_are_missing_take_their_defaults(tmp_path):
    assert read_config(saved(tmp_path, {"seed": 3, "hyper": {"lr": 1}}), Config) == replace(
        TINY, seed=3, hyper=Hyper(lr=1.0)
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sede": 1}, "config.json: there is no field config.sede: did you mean 'seed'?"),
        ({"hyper": {"rl": 1.0}}, "no field config.hyper.rl: its fields are lr, clip"),
        ({"seed": 1.0}, "config.seed must be int, not 1.0"),
        ({"seed": True}, "config.seed must be int, not True"),
        ({"temperature": "hot"}, "config.temperature must be float, not 'hot'"),
        ({"temperature": False}, "config.temperature must be float, not False"),
        ({"model": {"cell": "rnn"}}, "config.model.cell must be one of 'lstm', 'gru', not 'rnn'"),
        ({"model": {"layers": [1, "2"]}}, r"config.model.layers\[1\] must be int, not '2'"),
        ({"model": {"kernel": [1]}}, "config.model.kernel must have 2 values, not 1"),
        ({"model": 3}, "config.model must be Model, not 3"),
        ({"data": 3}, "config.data must be Path, not 3"),
        ([], "config must be Config"),
    ],
)
def test_ill_typed_configs(tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        read_config(saved(tmp_path, config), Config)


class Needy(NamedTuple):
    size: int


def test_a_missing_field_without_default(tmp_path):
    with pytest.raises(InputError, match=r"config.size is missing"):
        read_config(saved(tmp_path, {}), Needy)


class Odd(NamedTuple):
    cell: Model | Config = TINY
    names: tuple[object, ...] = ()


def test_what_cannot_be_saved_is_refused_at_once(tmp_path):
    with pytest.raises(TypeError, match=r"config.names\[0\]: a configuration cannot hold"):
        write_config(tmp_path, "toy", Odd(names=({},)), [])


@pytest.mark.parametrize("cell", [Model(layers=(3,)), TINY])
def test_members_of_a_union_are_told_apart_by_their_fields(tmp_path, cell):
    write_config(tmp_path, "toy", Odd(cell=cell), [])
    assert read_config(tmp_path, Odd).cell == cell


@pytest.mark.parametrize("text", ["{", "3", '{"a": 1}', "\xff"])
def test_files_that_are_no_config(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"config.json: this is no config.json of a run"):
        read_config(path, Config)


def test_seeds_have_32_bits_and_nan_is_no_number():
    check_seeds(SimpleNamespace(seed=2**32 - 1, data_seed=None))
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match=f"data_seed={seed}; it must be at least 0 and below 4294967296"):
            check_seeds(SimpleNamespace(seed=0, data_seed=seed))
    with pytest.raises(InputError, match="rate=nan; it must be at least 0"):
        check_least(SimpleNamespace(rate=float("nan")), rate=0)


def test_a_reader_that_has_seen_enough():
    program = "import sys; from experiments import char_lm; sys.exit(char_lm.main(['--help']))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # before anything is written
        assert process.stderr.read() == b""
    assert process.returncode == 141
