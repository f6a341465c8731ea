"""Several processes: one run over the devices of several hosts. Each is started with the same command.

    python -m experiments.<name> --run DIR --coordinator HOST:PORT --processes 2 --process 0    # and 1, on the other

Instead of the options there are the environment variables ``SEQJAX_COORDINATOR``, ``SEQJAX_NUM_PROCESSES`` and
``SEQJAX_PROCESS_ID``. The coordinator ``auto`` asks JAX to find all three, in a TPU pod or under Slurm, Open MPI or
Kubernetes. Without any of these a program is a single process, wherever it runs.

All processes run the same program; process 0 alone writes files and has the screen, but checkpoints are written by all.
They end together. If one fails, it tells the others, which end with its status; if one dies, JAX aborts the others. An
abort leaves Python no time to explain itself, so a small shell beside each process has its last words.
"""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax._src.distributed import global_state  # has the client of the key-value store, as for Orbax; public is none

from seqjax.errors import InputError

JOIN = 300
"""Seconds that a process waits for the others when it starts."""
HEARTBEAT = 15
"""Seconds without a sign of life after which a process is dead for the others."""
GRACE = 3
"""Seconds in which a process may find by itself the error that it has heard of from another one."""
FOREVER = 7 * 24 * 3600 * 1000
"""Milliseconds. Who waits for a process that has died is aborted, so no other limit is needed."""

_FAILURE = "seqjax/failure"
_numbers = itertools.count()  # of what is said and awaited; the same in all processes, since all do the same


class Place(NamedTuple):
    """Where the processes of a run meet; the last two are None where JAX finds them."""

    coordinator: str
    processes: int | None
    process: int | None


class _Member(NamedTuple):
    """This process as one of several."""

    name: str  # "process 1 of 2"
    left: threading.Event  # it is about to end by itself
    words: subprocess.Popen  # prints the last line it was given when this process has died


_member: _Member | None = None


def asked(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """What options and environment say; an option wins over its variable. None if they say nothing.

    Raises:
      InputError: one of the three is missing or out of range, or stands beside ``auto``.

    >>> asked(environment={})
    >>> asked(process=0, environment={"SEQJAX_COORDINATOR": "10.0.0.1:4000", "SEQJAX_NUM_PROCESSES": "2"})
    Place(coordinator='10.0.0.1:4000', processes=2, process=0)
    """
    options = {"coordinator": coordinator, "processes": processes, "process": process}
    variables = dict(zip(options, ("SEQJAX_COORDINATOR", "SEQJAX_NUM_PROCESSES", "SEQJAX_PROCESS_ID"), strict=True))
    given: dict[str, Any] = {}
    for option, variable in variables.items():
        value = options[option] if options[option] is not None else environment.get(variable) or None
        if option != "coordinator" and isinstance(value, str):
            if not value.isdecimal():
                raise InputError(f"{variable}={value!r} is not a number")
            value = int(value)
        if value is not None:
            given[option] = value
    if not given:
        return None
    if given.get("coordinator") == "auto":
        if extra := [f"--{option} ({variables[option]})" for option in given if option != "coordinator"]:
            raise InputError(f"coordinator=auto finds everything else itself: leave out {' and '.join(extra)}")
        return Place("auto", None, None)
    if missing := [f"--{option} ({variable})" for option, variable in variables.items() if option not in given]:
        raise InputError(
            f"{' and '.join(missing)} missing: a run in several processes needs --coordinator HOST:PORT --processes N "
            "--process I, or the environment variables, or --coordinator auto"
        )
    host, _, port = given["coordinator"].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"coordinator={given['coordinator']!r}: write HOST:PORT, a free port of process 0's host")
    if given["processes"] < 1:
        raise InputError(f"processes={given['processes']}; it must be at least 1")
    if not 0 <= given["process"] < given["processes"]:
        raise InputError(
            f"process={given['process']}, but there are processes={given['processes']}: they count from 0 to "
            f"{given['processes'] - 1}"
        )
    return Place(**given)


def initialize(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> bool:
    """Join the other processes of the run, if `asked` says that there are any; whether this is one of several.

    It comes before all else that JAX does. `leave` ends what it has begun.

    Raises:
      InputError: as `asked`; ``auto`` finds nothing; the coordinator's port is taken.
    """
    global _member
    place = asked(coordinator, processes, process)
    if place is None or jax.distributed.is_initialized():
        return jax.distributed.is_initialized()
    if place.process == 0:
        _check_port(place.coordinator)
    name = "this process" if place.process is None else f"process {place.process} of {place.processes}"
    words = _last_words()
    _say(
        words,
        f"error: {name} could not join the others at {place.coordinator} within {JOIN} s: start all of them, with the "
        "same coordinator and number of processes, and see that its port can be reached",
    )
    auto = place.coordinator == "auto"
    try:
        jax.distributed.initialize(
            None if auto else place.coordinator,
            place.processes,
            place.process,
            # Whatever cluster this is: where it is not asked, a process has all devices that it can see.
            cluster_detection_method=None if auto else "deactivate",
            initialization_timeout=JOIN,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except Exception as error:
        _say(words, "")
        if not isinstance(error, ValueError):
            raise
        raise InputError(
            f"coordinator=auto: JAX finds no TPU pod, Slurm, Open MPI or Kubernetes here ({error}); give --coordinator "
            "HOST:PORT --processes N --process I"
        ) from error
    name = f"process {global_state.process_id} of {global_state.num_processes}"
    _say(
        words,
        f"error: {name} could not go on: another process has died, or this one was killed, or failed as told above; "
        "start all of them again with the same command and --resume, and they go on from the last checkpoint",
    )
    _member = _Member(name, threading.Event(), words)
    threading.Thread(target=_watch, args=(_member,), daemon=True).start()
    return True


def leave(status: int, message: str = "") -> None:
    """The end of a process that has joined; for any other, nothing.

    With status 0 or 143, which all processes reach, it waits for them. With another it tells them the message, so that
    they end with the same status, and does not return.
    """
    global _member
    if _member is None:
        return
    member = _member
    if status not in (0, 143):
        _tell(status, message)
        _exit(status)
    _store().wait_at_barrier("seqjax/end", FOREVER)
    member.left.set()
    jax.distributed.shutdown()
    _say(member.words, "")
    _member = None


def fail(error: BaseException) -> None:
    """`leave` after an error that nobody foresaw, with its traceback."""
    if _member is not None:
        traceback.print_exception(error)
        _tell(1, f"{type(error).__name__}: {error}".splitlines()[0])
        _exit(1, quiet=False)  # where another process has died, the error is but a consequence


# --- what processes say to one another


def _store() -> Any:
    """The key-value store of the processes."""
    return global_state.client


def _client() -> Any:
    """The same; None in a single process."""
    return _store() if jax.process_count() > 1 else None


def barrier() -> None:
    """Wait until all processes are here."""
    if client := _client():
        client.wait_at_barrier(f"seqjax/{next(_numbers)}", FOREVER)


def from_first(value: Any) -> Any:
    """The value of process 0, which JSON can hold, on all processes."""
    client = _client()
    if client is None:
        return value
    key = f"seqjax/{next(_numbers)}"
    if jax.process_index() == 0:
        client.key_value_set(key, json.dumps(value))
    return json.loads(client.blocking_key_value_get(key, FOREVER))


def anywhere(flag: bool) -> bool:
    """Whether a flag is set on any process; they wait for one another."""
    client = _client()
    if client is None:
        return flag
    key = f"seqjax/{next(_numbers)}"
    client.key_value_set(f"{key}/{jax.process_index()}", str(int(flag)))
    client.wait_at_barrier(key, FOREVER)
    return any(value == "1" for _, value in client.key_value_dir_get(key))


def on_first(function: Callable[[], None]) -> None:
    """Call a function on process 0, which writes what all will read, while the others wait."""
    if jax.process_index() == 0:
        function()
    barrier()


def stopping(step: int) -> bool:
    """Whether all processes are to save after this step and to end, since one of them was sent SIGTERM.

    It has to be called after every step, and is True on all processes at the same one. Nothing is transferred, unless
    there was a signal. A single process that has not joined anything has its own handler, `seqjax.train.sigterm`.
    """
    manager = global_state.preemption_sync_manager
    return manager is not None and manager.reached_sync_point(step)


# --- how a process ends


def _check_port(coordinator: str) -> None:
    """JAX's service crashes on a port that is taken."""
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise InputError(f"coordinator={coordinator}: port {port} cannot be had ({error}); take another") from error


def _last_words() -> subprocess.Popen:
    """A shell that prints the last line it was given when its input ends: when this process has died."""
    script = 'trap "" HUP INT TERM; while IFS= read -r line; do w=$line; done; [ -z "$w" ] || printf "%s\\n" "$w" >&2'
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def _say(words: subprocess.Popen, line: str) -> None:
    """Change what will be said. An empty line is the end of it."""
    with contextlib.suppress(OSError):
        assert words.stdin is not None
        words.stdin.write(f"{line}\n".encode())
        words.stdin.flush()
    if not line:
        words.communicate()


def _watch(member: _Member) -> None:
    """In a thread: end this process when another one has failed."""
    while True:
        try:
            failure = json.loads(_store().blocking_key_value_get(_FAILURE, FOREVER))
            break
        except Exception:  # the end of the run, or of the waiting
            if member.left.wait(1):
                return
    # Most errors are found by all processes at once, and then each of them cleans up.
    if not member.left.wait(GRACE):
        print(f"error: {failure['name']} failed, so {member.name} ends too: {failure['message']}", file=sys.stderr)
        _exit(failure["status"])


def _tell(status: int, message: str) -> None:
    """Tell the others that this process fails."""
    assert _member is not None
    _member.left.set()
    failure = json.dumps({"name": _member.name, "status": status, "message": message})
    with contextlib.suppress(Exception):  # another one was first
        _store().key_value_set(_FAILURE, failure)


def _exit(status: int, *, quiet: bool = True) -> None:
    """End at once, after all others have heard of it."""
    assert _member is not None
    with contextlib.suppress(Exception):  # who does not come in time has died
        _store().wait_at_barrier("seqjax/failed", 1000 * 3 * GRACE)
    if global_state.process_id == 0:
        time.sleep(1)  # the service goes with this process, which aborts those that are still here
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    if quiet:
        _say(_member.words, "")
    os._exit(status)
