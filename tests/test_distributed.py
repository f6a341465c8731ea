"""Several processes on this host: real ones, started by the command line of an experiment."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import char_lm, lm_runs
from seqjax import distributed, train
from seqjax.checkpoint import Checkpoints
from seqjax.config import read_config
from seqjax.errors import InputError
from seqjax.reporting import read_metrics
from seqjax.text import load_tokenizer

STEPS = 120
OPTIONS = ("smoke", "--loop.steps", str(STEPS), "--loop.log_every", "1", "--loop.eval_every", "60")


# --- what options and environment say


@pytest.mark.fast
def test_options_win_over_the_environment_and_auto_stands_alone():
    variables = {"SEQJAX_COORDINATOR": "a:1", "SEQJAX_NUM_PROCESSES": "3", "SEQJAX_PROCESS_ID": "2"}
    assert distributed.asked(environment=variables) == ("a:1", 3, 2)
    assert distributed.asked("[::1]:4000", 2, 0, environment=variables) == ("[::1]:4000", 2, 0)
    assert distributed.asked("auto", environment={}) == ("auto", None, None)
    assert distributed.asked(environment={"SEQJAX_COORDINATOR": "auto", "SEQJAX_PROCESS_ID": ""}) is not None
    assert distributed.asked(environment={"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a:1", 2, None), r"--process \(SEQJAX_PROCESS_ID\) missing"),
        ((None, 2, 0), r"--coordinator \(SEQJAX_COORDINATOR\) missing"),
        ((None, None, 0), r"--coordinator .* and --processes \(SEQJAX_NUM_PROCESSES\) missing"),
        (("a", 2, 0), "coordinator='a': write HOST:PORT"),
        (("a:0", 2, 0), "coordinator='a:0': write HOST:PORT"),
        ((":80", 2, 0), "coordinator=':80': write HOST:PORT"),
        (("a:1", 2, 2), "process=2, but there are processes=2: they count from 0 to 1"),
        (("a:1", 2, -1), "process=-1"),
        (("a:1", 0, 0), "processes=0; it must be at least 1"),
        (("auto", 2, None), r"leave out --processes \(SEQJAX_NUM_PROCESSES\)"),
    ],
)
def test_what_is_wrong_is_named(given, message):
    with pytest.raises(InputError, match=message):
        distributed.asked(*given, environment={})
    variables = zip(("SEQJAX_COORDINATOR", "SEQJAX_NUM_PROCESSES", "SEQJAX_PROCESS_ID"), given, strict=True)
    with pytest.raises(InputError, match=message if "-1" not in message else "is not a number"):
        distributed.asked(environment={name: str(value) for name, value in variables if value is not None})


def test_a_port_that_is_taken_is_bad_input():
    """Without this, JAX crashes."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"port \d+ cannot be had"):
            distributed.initialize(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0)


@pytest.mark.fast
def test_a_single_process_joins_nothing_and_waits_for_nobody():
    assert not distributed.initialize()
    distributed.barrier()
    assert distributed.from_first([1, "a"]) == [1, "a"]
    assert distributed.anywhere(True)
    assert not distributed.anywhere(False)
    assert not distributed.stopping(3)
    distributed.leave(1, "not told to anybody")


def test_an_experiment_of_one_process_refuses_several(monkeypatch, capsys):
    from experiments import counts_svd

    monkeypatch.setenv("SEQJAX_COORDINATOR", "127.0.0.1:1234")
    monkeypatch.setenv("SEQJAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("SEQJAX_PROCESS_ID", "0")
    assert counts_svd.main([]) == 2
    assert "runs in one process only" in capsys.readouterr().err


# --- real processes


class Processes:
    """The two processes of a run, with two devices each."""

    def __init__(self, *arguments, cache: Path, own=((), ()), warnings: str = "error"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-W", warnings, "-m", "experiments.char_lm", *arguments]
        meeting = "--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process"
        self.processes = [
            subprocess.Popen(
                [*command, *own[i], *meeting, str(i)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for i in range(2)
        ]

    def wait(self, timeout=240):
        """Exit statuses, outputs and errors of both."""
        try:
            texts = [process.communicate(timeout=timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in self.processes], *zip(*texts, strict=True)

    def reaches(self, directory, step):
        """Wait until the run has got so far."""
        until = time.monotonic() + 240
        while not any(row["step"] >= step for row in rows(directory)):
            assert time.monotonic() < until, [process.kill() or process.communicate() for process in self.processes]
            assert all(process.poll() is None for process in self.processes), self.wait()
            time.sleep(0.05)


def rows(directory):
    path = directory / "metrics.jsonl"
    return read_metrics(path) if path.exists() else []


def losses(directory):
    return [(row["step"], row["split"], row["loss"]) for row in rows(directory)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A small corpus."""
    words = np.random.default_rng(0).choice(["the", "cat", "sat", "on", "a", "mat", "far", "from", "sea"], (300, 8))
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(" ".join(line) + ".\n" for line in words))
    return "--data.path", str(path)


def test_two_processes_give_the_losses_of_one_and_survive_signals(text, tmp_path, capsys):
    # One process, one device.
    alone = tmp_path / "alone"
    assert char_lm.main([*OPTIONS, *text, "--run", str(alone)]) == 0
    capsys.readouterr()

    def start(directory, *arguments):
        return Processes(*OPTIONS, *text, "--run", str(directory), *arguments, cache=tmp_path / "cache")

    # Two processes of two devices.
    whole = tmp_path / "whole"
    codes, outputs, errors = start(whole, "--mesh", "data=4").wait()
    assert codes == [0, 0], errors
    assert "a sample at temperature" in outputs[0]
    assert "sample" not in outputs[1] and "step" not in outputs[1]  # noqa: PT018
    for ours, theirs in zip(losses(whole), losses(alone), strict=True):
        assert ours[:2] == theirs[:2]
        np.testing.assert_allclose(ours[2], theirs[2], rtol=0, atol=1e-5)
    record = json.loads((whole / "config.json").read_text())
    assert record["device"].startswith("4 x")

    # SIGTERM to one of them: both save the same step.
    broken = tmp_path / "broken"
    run = start(broken)  # all devices are the default
    run.reaches(broken, 5)
    run.processes[1].send_signal(signal.SIGTERM)
    # JAX looks for signals once a second: until then, hold the other, so that no fast machine comes to the end.
    run.processes[0].send_signal(signal.SIGSTOP)
    time.sleep(2)
    run.processes[0].send_signal(signal.SIGCONT)
    codes, outputs, errors = run.wait()
    assert codes == [143, 143], errors
    stopped = Checkpoints(broken / "checkpoints").steps()[-1]
    assert 5 <= stopped < STEPS
    assert f"stopped by SIGTERM; saved at step {stopped}" in outputs[0]

    # And on to the end, with the bits of the run that nobody disturbed.
    codes, _, errors = start(broken, "--resume").wait()
    assert codes == [0, 0], errors
    assert losses(broken) == losses(whole)
    assert (broken / "summary.json").read_text() == (whole / "summary.json").read_text()

    # What two processes have saved, one restores.
    config = read_config(whole, char_lm.Config)
    model = lm_runs.build(config.model, load_tokenizer(whole / "tokenizer.json").vocab_size)
    template = jax.eval_shape(lambda: lm_runs.initial(config, model, jax.random.key(0)))
    ours, theirs = (train.best_params(directory, template) for directory in (whole, broken))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert char_lm.main(["evaluate", "--run", str(whole)]) == 0


@pytest.mark.full
def test_sharded_checkpoints_damage_and_errors_in_two_processes(text, tmp_path, capsys):
    """Weights that are split between the processes; what one of them finds ends both."""
    directory, cache = tmp_path / "run", tmp_path / "cache"
    options = "smoke", *text, "--run", str(directory), "--loop.steps", "30", "--loop.checkpoint_every", "10"
    options = *options, "--loop.log_every", "1"

    def damage():
        step = Checkpoints(directory / "checkpoints").steps()[-1]
        data = max((directory / "checkpoints" / str(step) / "state").rglob("*"), key=lambda path: path.stat().st_size)
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
        return step

    alone = tmp_path / "alone"
    assert char_lm.main([*options, "--run", str(alone)]) == 0

    codes, _, errors = Processes(*options, "--mesh", "model=4", cache=cache).wait()
    assert codes == [0, 0], errors
    assert damage() == 30

    # Back to step 20, with another mesh.
    again = Processes(*options, "--resume", "--mesh", "data=2,model=2", cache=cache, warnings="default").wait()
    assert again[0] == [0, 0], again
    assert "trying step 20" in again[2][0] and "trying step 20" in again[2][1]  # noqa: PT018
    assert damage() == 30

    # And in one process.
    with pytest.warns(RuntimeWarning, match="trying step 20"):
        assert char_lm.main([*options, "--resume"]) == 0
    for ours, theirs in zip(losses(directory), losses(alone), strict=True):
        assert ours[:2] == theirs[:2]
        np.testing.assert_allclose(ours[2], theirs[2], rtol=0, atol=1e-5)

    # One is killed: the other misses its heartbeats.
    for killed, left in ((1, 0), (0, 1)):
        options = *OPTIONS, *text, "--run", str(tmp_path / f"killed-{killed}")
        run = Processes(*options, cache=cache)
        run.reaches(tmp_path / f"killed-{killed}", 5)
        run.processes[killed].kill()
        codes, _, errors = run.wait(timeout=30)
        assert codes[killed] == -signal.SIGKILL
        assert codes[left] not in (0, -signal.SIGKILL)
        assert f"process {left} of 2 could not go on: another process has died" in errors[left]
        assert "--resume" in errors[left]

    # Bad input in one is the end of both, and nothing is left.
    options = *OPTIONS, *text, "--run", str(tmp_path / "wrong")
    codes, _, errors = Processes(*options, own=((), ("--seed", "1", "--mesh", "model=4")), cache=cache).wait()
    assert codes == [2, 2], errors
    assert "mesh is 'data=4' in process 0 and 'model=4' here; seed is 0 in process 0 and 1 here" in errors[1]
    assert not (tmp_path / "wrong").exists()
    own = ("--run", str(tmp_path / "wrong")), ("--run", str(tmp_path / "elsewhere"))
    codes, _, errors = Processes(*OPTIONS, *text, own=own, cache=cache).wait()
    assert codes == [2, 2], errors
    assert "give a --run on storage that they share" in errors[0]
    assert not (tmp_path / "wrong").exists()
    own = (), ("--data.path", str(tmp_path / "nothing"))
    codes, _, errors = Processes(*options, own=own, cache=cache).wait()
    assert codes == [2, 2], errors
