"""The command line of an experiment, and the config.json of its run directory.

    python -m experiments.<name> [train] [PRESET] [--run DIR] [--config FILE] [--seed N] [--resume] [--field value ...]

and, of a run on several devices, ``--mesh``, and of one in several processes, ``--coordinator --processes --process``.

A configuration is a frozen dataclass with a field ``seed: int``. Its fields are numbers, strings, paths, Literals,
tuples, unions of these and None, and nested NamedTuples and frozen dataclasses. It may check itself in
``__post_init__``, with `InputError`.
"""

import contextlib
import difflib
import importlib.metadata
import inspect
import io
import itertools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass, make_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union

import jax
from jax.sharding import Mesh

from seqjax import distributed
from seqjax.errors import InputError
from seqjax.memory import keep_freed_memory
from seqjax.sharding import make_mesh

RUNS = Path("runs")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "seqjax")

C = TypeVar("C")


class Run(NamedTuple):
    """Where a run keeps its files, whether it continues what is there, and on which devices."""

    directory: Path
    resume: bool
    mesh: Mesh | None = None  # of several devices; no part of the configuration, for another one may continue the run


def run_experiment(
    name: str,
    presets: Mapping[str, tuple[str, C]],
    *,
    train: Callable[[C, Run], None],
    commands: Mapping[str, tuple[type, Callable[[Any], None]]] | None = None,
    description: str,
    mesh_axes: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line of ``experiments/<name>.py``, run what it asks for, and return the exit status.

        if __name__ == "__main__":
            raise SystemExit(run_experiment("lm", PRESETS, train=train, commands={"sample": (Options, sample)}, ...))

    Without ``--resume``, ``train`` gets a directory that holds nothing but config.json; if it finds bad input before
    the first checkpoint, what it wrote is removed, so that the corrected command can be given the same ``--run``. With
    ``--resume``, the configuration is the saved one, and whatever the command line says must agree with it.

    Args:
      name: the name of the experiment's module, and what of the command line comes after it.
      presets: name -> (one line on it, configuration), all of one type; the first is the default.
      train: called as ``train(config, run)``.
      commands: sub-command -> (dataclass of its options, function of them); the first line of the function's docstring
        describes it.
      description: one line on the experiment, for ``--help``.
      mesh_axes: those that ``run.mesh`` may have, as ``--mesh`` says; without any there is no such option.
      argv: the arguments, by default those of the process.

    Returns:
      0 done; 2 bad input, told in one line on stderr (as is status 1, for the other errors that seqjax itself
      raises). Further exceptions pass, and so does ``SystemExit(143)``, by which ``train`` says that it stopped at
      SIGTERM after saving. Ctrl-C gives 130, output that nobody reads any more 141.

    With ``mesh_axes``, a run may have several processes, see `seqjax.distributed`. All of them get the same ``--run``,
    on storage that they share, and call ``train``; process 0 alone writes and has the screen. They end together: a
    process that fails does not return from here, and ends the others with its status.
    """
    keep_freed_memory()
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = commands or {}
    if clash := {"train", *commands} & set(presets):
        raise ValueError(f"{clash} are both presets and sub-commands")
    try:
        try:
            job = _parse(name, presets, train, commands, description, mesh_axes, argv)
        except SystemExit:  # tyro has printed help
            sys.stdout.flush()
            return 0
        job()
        sys.stdout.flush()
        status, message = 0, ""
    except BrokenPipeError:  # whoever reads the output has seen enough: head, or less
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        status, message = 141, "the output was closed"
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
        print(message, file=sys.stderr)
    except SystemExit as stop:
        distributed.leave(stop.code if isinstance(stop.code, int) else 1)
        raise
    except Exception as error:
        if not type(error).__module__.startswith("seqjax."):
            distributed.fail(error)
            raise
        status, message = 2 if isinstance(error, InputError) else 1, " ".join(str(error).split())
        print("error:", message, file=sys.stderr)
    distributed.leave(status, message)
    return status


def write_config(directory: Path, name: str, config: Any, command_line: Sequence[str]) -> None:
    """Write config.json: the configuration, and what else is needed to repeat the run."""
    saved = _to_json(config, "config")
    _from_json(saved, type(config), "config")  # better now than at --resume
    record = {
        "experiment": name,
        "config": saved,
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}},
        "git": _git_revision(),
        "command": list(command_line),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / "config.json.partial"
    partial.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, directory / "config.json")


def read_config(path: Path, config_type: type[C]) -> C:
    """The configuration in a config.json, or in that of a run directory.

    Raises:
      InputError: the file cannot be read, or a field is unknown, missing without a default, or of another type.
    """
    path = path / "config.json" if path.is_dir() else path
    record: dict[str, Any] = {}
    try:
        record = _read(path)
        return _from_json(record["config"], config_type, "config")
    except InputError as error:
        whose = f" (it is that of a run of {record['experiment']})" if "experiment" in record else ""
        raise InputError(f"{path}: {error}{whose}") from None


def _folder(name: str) -> Path:
    return RUNS.joinpath(*name.split())


def newest_run(name: str) -> Path:
    """The run directory of experiment ``name`` that was begun last.

    Raises:
      InputError: there is none.
    """
    begun = [(file.stat().st_mtime_ns, file.parent) for file in (_folder(name)).glob("*/config.json")]
    if not begun:
        raise InputError(f"no run in {_folder(name)}: train one with `python -m experiments.{name}`, or give --run DIR")
    return max(begun)[1]


def changed(config: C, values: Mapping[str, Any]) -> C:
    """The configuration with other values of fields, which are named with dots: ``{"model.cell": "gru"}``.

    Raises:
      InputError: there is no such field, or it is of another type; or the configuration refuses it.
    """
    tree = _to_json(config, "config")
    for name, value in values.items():
        *path, last = name.split(".")
        node = tree
        for field in path:
            node = node.get(field) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            names = [*_flat(tree)]
            close = [known for known in names if known.endswith(f".{name}")]
            hint = f": did you mean {close[0]!r}?" if close else _nearest(name, names)
            raise InputError(f"there is no field {name}{hint}")
        node[last] = value
    return _from_json(tree, type(config), "config")


def differing(config: Any, other: Any) -> dict[str, Any]:
    """The fields of two configurations of one type that differ, with the values in ``other``, as JSON has them."""
    first, second = _flat(_to_json(config, "config")), _flat(_to_json(other, "config"))
    return {name: value for name, value in second.items() if first.get(name) != value}


# --- the command line


def _parse(name, presets, train, commands, description, mesh_axes, argv) -> Callable[[], None]:
    """What the command line asks for, as a function of nothing."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv[:2]))
    if words and words[0] in commands:
        options_type, function = commands[words[0]]
        prog = f"python -m experiments.{name} {words[0]}"
        # A run directory that comes first needs no --run before it.
        rest = ["--run", *argv[1:]] if words[1:] and "run" in _fields(options_type) else argv[1:]
        options = _tyro(options_type, prog, inspect.getdoc(function) or "", rest, _names(options_type))
        return lambda: function(options)

    named = words[:1] == ["train"]
    preset = next(iter(words[named:]), None)
    if preset is not None and preset not in presets:
        raise InputError(
            f"{preset!r} is no {'preset' if named else 'sub-command or preset'}"
            + _nearest(preset, [*presets] if named else ["train", *commands, *presets])
            + f" (presets: {', '.join(presets)}; sub-commands: {', '.join(['train', *commands])})"
        )
    text = _overview(description, presets, commands)
    options = argv[named + (preset is not None) :]
    config, directory, resume, mesh = _parse_train(name, presets, preset, text, mesh_axes, options)

    def job():
        _check_alike(config, resume, mesh)
        try:
            run = Run(directory or _new_directory(name), resume, mesh)
            run.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the run directory ({error}): choose another --run") from error
        with contextlib.ExitStack() as stack:
            if jax.process_index() > 0:  # neither writes files nor has the screen
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            elif not resume:
                stack.enter_context(_nothing_left_of_a_false_start(run.directory))
                write_config(run.directory, name, config, argv)
            _check_shared(run.directory)
            train(config, run)

    return job


def _check_alike(config, resume, mesh):
    """Raise `InputError` if the processes were started with different commands."""
    axes = mesh and ",".join(f"{name}={size}" for name, size in mesh.shape.items())
    here = {"resume": resume, "mesh": axes} | _flat(_to_json(config, "config"))
    differences = _differences(distributed.from_first(here), here, "in process 0")
    if distributed.anywhere(bool(differences)):
        raise InputError(f"give all processes the same command: {differences or 'another one got other options'}")


def _check_shared(directory):
    """Raise `InputError` if a process does not see what process 0 has written."""
    distributed.barrier()
    if distributed.anywhere(not (directory / "config.json").exists()):
        raise InputError(
            f"not all processes see the config.json in {directory} that process 0 wrote: give a --run on storage that "
            "they share"
        )


@contextlib.contextmanager
def _nothing_left_of_a_false_start(directory):
    """On bad input before the first checkpoint, remove what was written: the corrected command may reuse ``--run``."""
    before = set(directory.iterdir())
    try:
        yield
    except InputError:
        if not any(directory.rglob("checkpoints")):  # a run may have parts with their own
            for path in set(directory.iterdir()) - before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not before:
                directory.rmdir()
        raise


def _parse_train(name, presets, preset, text, mesh_axes, args):
    """The configuration, the run directory (None if a new one is to be made), whether to resume it, and the mesh."""
    import tyro

    def option(kind, help, metavar=None):
        return Annotated[kind, tyro.conf.arg(help=help, metavar=metavar, help_behavior_hint="")]

    places = [
        ("run", option(Path | None, f"Run directory; by default {_folder(name)}/<time>.", "DIR"), None),
        ("config", option(Path | None, "Start from a saved config.json instead of a preset.", "FILE"), None),
        ("resume", tyro.conf.FlagCreatePairsOff[option(bool, "Continue in --run, or in the newest run.")], False),
    ]
    if mesh_axes:
        words = f"Devices, as {mesh_axes[0]}=4; -1: the rest. Axes: {', '.join(mesh_axes)}. --resume may take another."
        meeting = "Where several processes meet: at process 0, or auto."
        places += [
            ("mesh", option(str | None, words, "AXIS=N,…"), None),
            ("coordinator", option(str | None, meeting, "HOST:PORT"), None),
            ("processes", option(int | None, "How many processes the run has.", "N"), None),
            ("process", option(int | None, "Which of them this one is, from 0.", "I"), None),
        ]
    prog = f"python -m experiments.{name}"
    # These are read first, since they decide what the others are compared with and default to.
    Places = make_dataclass("Places", places)
    with _one_line_errors():
        given, _ = tyro.cli(
            Places, prog=prog, args=args, add_help=False, return_unknown_args=True, use_underscores=True
        )
    if not mesh_axes and distributed.asked() is not None:
        raise InputError(f"experiment {name!r} runs in one process only: unset SEQJAX_COORDINATOR and its like")
    if mesh_axes and not {"-h", "--help"} & set(args):
        # Before jax starts, and before what may fail in one process alone.
        distributed.initialize(given.coordinator, given.processes, given.process)
    if given.config is not None and preset is not None:
        raise InputError(f"both preset {preset!r} and --config {given.config}: give one of them")

    start = presets[preset or next(iter(presets))][1]
    directory, saved = given.run, None
    if given.resume:
        directory = directory or newest_run(name)
        try:
            experiment = _read(directory / "config.json").get("experiment")
        except InputError as error:
            raise InputError(f"{directory / 'config.json'}: {error}") from None
        if experiment != name:
            raise InputError(f"{directory} is a run of experiment {experiment!r}, not of {name!r}")
        saved = read_config(directory / "config.json", type(start))
    if given.config is not None:
        start = read_config(given.config, type(start))
    elif saved is not None and preset is None:
        start = saved

    if {"-h", "--help"} & set(args):
        prog += " [train] [PRESET]"
    Options = make_dataclass("Options", [*places, ("settings", Annotated[type(start), tyro.conf.arg(name="")], start)])
    config = _tyro(Options, prog, text, args, [*(place for place, *_ in places), *_names(type(start), start)]).settings

    if given.run is None and jax.process_count() > 1:
        raise InputError("several processes write to one run directory: give all of them the same --run DIR")
    if saved is not None:
        _check_equal(directory, saved, config)
    elif directory is not None and jax.process_index() == 0 and (directory / "config.json").exists():
        raise InputError(f"{directory} already holds a run: choose another --run, or continue it with --resume")
    axes = getattr(given, "mesh", None) or (f"{mesh_axes[0]}=-1" if jax.process_count() > 1 else None)
    mesh = None if axes is None else make_mesh(axes, names=mesh_axes)
    return config, directory, given.resume, mesh


def _tyro(kind, prog, description, args, names):
    """What ``args`` say, as an object of type ``kind``; ``names`` are the options, to suggest from."""
    import tyro

    config = (tyro.conf.AvoidSubcommands,)
    with _one_line_errors():
        value, unknown = tyro.cli(
            kind,
            prog=prog,
            description=description,
            args=args,
            config=config,
            use_underscores=True,
            return_unknown_args=True,
        )
    if not unknown:
        return value
    if not unknown[0].startswith("-"):
        raise InputError(f"unexpected argument {unknown[0]!r}; see {prog} --help")
    option = unknown[0].partition("=")[0]
    word = option.lstrip("-").replace("-", "_")
    # --lr for --hyper.lr is a likelier slip than any misspelling.
    close = [name for name in names if name.endswith(f".{word}")] or difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean --{close[0]}?" if close else f"see {prog} --help"
    raise InputError(f"unrecognised option {option}; {hint}")


@contextlib.contextmanager
def _one_line_errors():
    """Raise as `InputError` what tyro would print in a box: its first paragraph."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        paragraph = re.split("─{3,}", box.getvalue().partition("╮")[2])[0]
        raise InputError(" ".join(paragraph.replace("│", " ").split()) or box.getvalue()) from None


def _names(kind, start=None):
    """The names of the options that set a configuration of type ``kind``; ``start`` decides unions."""
    kinds = typing.get_type_hints(kind)
    paths = []
    for name in _fields(kind):
        value = getattr(start, name, None)
        inner = type(value) if _is_struct(value) else kinds[name]
        paths += [f"{name}.{x}" for x in _names(inner, value)] if _is_struct(inner) else [name]
    return paths


def _overview(description, presets, commands):
    default, *_ = presets
    lines = {"presets": {name: text + " (default)" * (name == default) for name, (text, _) in presets.items()}}
    described = {name: (inspect.getdoc(function) or "").partition("\n")[0] for name, (_, function) in commands.items()}
    lines["sub-commands (each has its own --help)"] = {"train": "Train (default).", **described}
    width = max(len(name) for table in lines.values() for name in table)
    tables = [[f"{title}:", *(f"  {k:{width}}  {v}" for k, v in table.items())] for title, table in lines.items()]
    return "\n\n".join([description, *("\n".join(table) for table in tables)])


def _new_directory(name):
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    suffixes = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
    while True:
        directory = _folder(name) / (time + next(suffixes))
        try:
            directory.mkdir(parents=True)
            return directory
        except FileExistsError:  # begun in the same second
            continue


def _check_equal(directory, saved, given):
    saved, given = _flat(_to_json(saved, "config")), _flat(_to_json(given, "config"))
    if differences := _differences(saved, given, "there"):
        raise InputError(
            f"{directory} is a run directory of another configuration: {differences}. "
            "Leave these options out to continue it, or begin a new run without --resume"
        )


def _differences(there, here, where):
    return "; ".join(
        f"{name} is {there.get(name)!r} {where} and {here.get(name)!r} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    )


# --- config.json


def _read(path):
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{error.strerror}; name a run directory, or the config.json of one") from error
    except ValueError as error:
        raise InputError(f"this is no config.json of a run: {error}") from error
    if not isinstance(record, dict) or "config" not in record:
        raise InputError("this is no config.json of a run: it has no entry 'config'")
    return record


def _is_struct(kind):
    return is_dataclass(kind) or hasattr(kind, "_fields")


def _fields(kind):
    """Field name -> `inspect.Parameter`."""
    return inspect.signature(kind).parameters


def _to_json(value, name):
    if _is_struct(value):
        return {field: _to_json(getattr(value, field), f"{name}.{field}") for field in _fields(type(value))}
    if isinstance(value, tuple):
        return [_to_json(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: a configuration cannot hold {value!r} of {type(value)}")


def _from_json(value, kind, name) -> Any:
    """The value of type `kind` that `_to_json` wrote as `value`; `name` is where it stands in the file."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _from_union(value, args, name)
    if origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in args):
            return value
        raise InputError(f"{name} must be one of {', '.join(map(repr, args))}, not {value!r}")
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[1:] == (...,) else args
        if len(kinds) != len(value):
            raise InputError(f"{name} must have {len(kinds)} values, not {len(value)}: {value!r}")
        return tuple(_from_json(v, k, f"{name}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True)))
    if _is_struct(kind) and isinstance(value, dict):
        return _from_dict(value, kind, name)
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind is float and value in ("inf", "-inf", "nan"):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in (bool, int, str, types.NoneType) and type(value) is kind:
        return value
    raise InputError(f"{name} must be {getattr(kind, '__name__', kind)}, not {value!r}")


def _from_union(value, kinds, name):
    structs = [kind for kind in kinds if _is_struct(kind)]
    if len(structs) > 1 and isinstance(value, dict):
        # What was saved has all fields of its type.
        kinds = [max(structs, key=lambda kind: len(value.keys() & _fields(kind)))]
    errors = []
    # None first: a message then tells what the other member expects.
    for kind in sorted(kinds, key=lambda kind: kind is not types.NoneType):
        try:
            return _from_json(value, kind, name)
        except InputError as error:
            errors.append(error)
    raise errors[-1]


def _from_dict(values, kind, name):
    kinds, parameters = typing.get_type_hints(kind), _fields(kind)
    for field in values:
        if field not in parameters:
            hint = _nearest(field, [*parameters]) or f": its fields are {', '.join(parameters)}"
            raise InputError(f"there is no field {name}.{field}{hint}")
    for field, parameter in parameters.items():
        if field not in values and parameter.default is parameter.empty:
            raise InputError(f"{name}.{field} is missing")
    return kind(**{field: _from_json(value, kinds[field], f"{name}.{field}") for field, value in values.items()})


def _flat(tree, name=""):
    if not isinstance(tree, dict):
        return {name: tree}
    return {
        k: v for field, value in tree.items() for k, v in _flat(value, f"{name}.{field}" if name else field).items()
    }


def _nearest(word, known):
    close = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision():
    """The commit of the working directory, "-dirty" if tracked files differ from it; None outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
