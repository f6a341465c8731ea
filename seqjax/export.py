"""A trained model as files that run without its code: programs of ``jax.export``, weights, tokenizers.

A bundle is a directory, or one ``.zip`` of it:

    bundle.json             what the functions take and return, versions, the SHA-256 of every other file
    <function>.stablehlo    a program for any batch and length, on CPUs, GPUs and TPUs, for `jax.export.deserialize`
    params.safetensors      the weights by dotted names: a dict, the first argument of every function
    README.txt              how to load all this with jax alone
    config.json, *tokenizer.json   of the run, as they are

Every function is ``(params, *arguments) -> results`` over plain dicts, lists and arrays. `load_bundle` needs neither
Flax nor the models, and `seqjax.decoding` takes a bundle's ``step``.

A program with open sizes makes its choices by size when it is compiled (`seqjax.kernels.rules`). So it computes what
the model does, and on the machine that wrote it gives the same bits, but for rounding in two places: XLA may fuse the
``prefill`` of a Transformer otherwise; and attention of more than 256 queries to fewer keys, or of fewer to more, pads
both sides to whole blocks. A recurrence is not cut into chunks. Choices by backend are those of the machine that writes
the bundle.
"""

import hashlib
import importlib
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct

from seqjax.errors import InputError
from seqjax.types import Array, Params, PyTree

if TYPE_CHECKING:
    from seqjax.text import Tokenizer

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FORMAT = 1
_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "C64": "complex64"},
    **{f"{sign}{bits}": f"{name}{bits}" for sign, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
}


class Function(NamedTuple):
    """A pure function to export, ``call(params, *arguments) -> results``."""

    call: Callable[..., Any]
    arguments: dict[str, PyTree]
    """After params: the name of each, and its `jax.ShapeDtypeStruct`s, with sizes of `jax.export.symbolic_shape`."""
    results: tuple[str, ...]
    """Names of the results; of one, the function returns itself, of several a tuple."""
    differentiable: bool = False
    """Whether to export its derivative (reverse mode, first order), too."""
    limits: tuple[str, ...] = ()
    """What the sizes are bound by, such as ``t <= 64``: for bundle.json."""


class Bundle(NamedTuple):
    """What `load_bundle` found."""

    functions: dict[str, Callable[..., Any]]  # compiled for each shape; (params, *arguments) -> results
    params: dict[str, Array]  # by dotted names
    tokenizers: dict[str, "Tokenizer"]  # by the names of their files: tokenizer, or source_tokenizer, target_tokenizer
    about: dict[str, Any]  # bundle.json


# --- names


def flatten(tree: PyTree) -> dict[str, Any]:
    """The leaves by dotted names: the keys, indices and fields that lead to each.

    Raises:
      InputError: a key is empty or has a dot in it, or two leaves have one name.

    >>> flatten({"rnn": [{"w": 1, "b": 2}], "out": None})
    {'rnn.0.b': 2, 'rnn.0.w': 1}
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = [_key(entry) for entry in path]
        if any(not key or "." in key for key in keys):
            raise InputError(f"tree: no dotted name can be made of the keys {keys}; give keys without dots")
        if (name := ".".join(keys)) in named:
            raise InputError(f"tree: two leaves have the name {name}; make their keys different")
        named[name] = leaf
    return named


def nest(named: Mapping[str, Any]) -> PyTree:
    """The tree of dotted names, in dicts, and in lists where the keys are 0, 1, …; None and empty trees are not in it.

    Raises:
      InputError: a name is both a leaf and the beginning of another.

    >>> nest({"rnn.0.b": 2, "rnn.0.w": 1})
    {'rnn': [{'b': 2, 'w': 1}]}
    """
    if set(named) == {""}:
        return named[""]
    groups: dict[str, dict[str, Any]] = {}
    for name, leaf in named.items():
        key, _, rest = name.partition(".")
        groups.setdefault(key, {})[rest] = leaf
    if clash := [key for key, group in groups.items() if "" in group and len(group) > 1]:
        raise InputError(f"named: {clash[0]} is a leaf and holds others; give each leaf a name of its own")
    tree = {key: nest(group) for key, group in groups.items()}
    places = [str(i) for i in range(len(tree))]
    return [tree[place] for place in places] if tree and set(places) == set(tree) else tree


def restore(template: PyTree, named: Mapping[str, Any]) -> PyTree:
    """The leaves in the form of ``template``, NamedTuples and all: the inverse of `flatten`.

    Raises:
      InputError: names are missing, or there are others.
    """
    names = list(flatten(template))
    if differing := sorted(set(names) ^ set(named)):
        where = "missing" if differing[0] in names else "not in the template"
        raise InputError(f"named: {differing[0]} is {where}; give what a model of the same configuration has")
    return jax.tree.unflatten(jax.tree.structure(template), [named[name] for name in names])


def _key(entry) -> str:
    return str(next(getattr(entry, field) for field in ("key", "idx", "name") if hasattr(entry, field)))


def _plain(tree: PyTree) -> PyTree:
    """In dicts and lists, which every program can read."""
    return nest(flatten(tree))


# --- what models have


def language_model(apply: Callable, params: Params, *, longest: int | None = None) -> dict[str, Function]:
    """The functions of a language model ``(init, apply)`` as `seqjax.purify` makes it.

        apply(params, tokens [B, T])                      -> logits [B, T, V], differentiable
        init_state(params, lengths [B])                   -> state, of which lengths says only the batch
        prefill(params, state, tokens [B, T], lengths)    -> state, logits [B, V]
        step(params, state, tokens [B])                   -> state, logits [B, V]

    Args:
      apply: of the model.
      params: its weights, or their shapes.
      longest: the most tokens it can read, if there is a limit.
    """
    weights, limits = jax.eval_shape(lambda: params), _limits(t=longest)
    form = jax.eval_shape(lambda p: apply(p, 1, method="init_state"), weights)

    def logits(params, tokens):
        return apply(params, tokens)[1]

    def init_state(params, lengths):
        return _plain(apply(params, lengths.shape[0], method="init_state"))

    def prefill(params, state, tokens, lengths):
        state, logits = apply(params, restore(form, flatten(state)), tokens, lengths, method="prefill")
        return _plain(state), logits

    def step(params, state, tokens):
        state, logits = apply(params, restore(form, flatten(state)), tokens, method="step")
        return _plain(state), logits

    def state(b):
        return jax.eval_shape(init_state, weights, _ints(b))

    (b,) = jax.export.symbolic_shape("b")
    batch, time = jax.export.symbolic_shape("b, t", constraints=limits)
    tokens, lengths = _ints(batch, time), _ints(batch)
    begun = {"state": state(batch), "tokens": tokens, "lengths": lengths}
    return {
        "apply": Function(logits, {"tokens": tokens}, ("logits",), True, limits),
        "init_state": Function(init_state, {"lengths": _ints(b)}, ("state",)),
        "prefill": Function(prefill, begun, ("state", "logits"), limits=limits),
        "step": Function(step, {"state": state(b), "tokens": _ints(b)}, ("state", "logits")),
    }


def encoder_decoder(
    apply: Callable,
    params: Params,
    *,
    max_length: int,
    max_source: int | None = None,
    max_target: int | None = None,
) -> dict[str, Function]:
    """The functions of an encoder-decoder ``(init, apply)`` as `seqjax.purify` makes it.

        apply(params, source [B, S], lengths, inputs [B, T])  -> attention [B, T, S], logits [B, T, V], differentiable
        read(params, source [B, S], lengths [B])              -> state, logits [B, V] of the first token
        step(params, state, tokens [B])                       -> state, logits [B, V]

    Beam search gets rows of the state for each of its beginnings, those of the source among them.

    Args:
      apply: of the model.
      params: its weights, or their shapes.
      max_length: the tokens that decoding has room for.
      max_source: the most tokens of a source that it can read, if there is a limit.
      max_target: the most tokens of inputs.
    """
    weights = jax.eval_shape(lambda: params)

    def read_state(params, source, lengths):
        state = apply(params, source.shape[0], max_length, method="init_state")
        return apply(params, state, source, lengths, method="prefill")

    form = jax.eval_shape(read_state, weights, _ints(1, 1), _ints(1))[0]

    def read(params, source, lengths):
        state, logits = read_state(params, source, lengths)
        return _plain(state), logits

    def step(params, state, tokens):
        state, logits = apply(params, restore(form, flatten(state)), tokens, method="step")
        return _plain(state), logits

    limits = _limits(s=max_source), _limits(t=max_target)
    b, s, t = jax.export.symbolic_shape("b, s, t", constraints=limits[0] + limits[1])
    given = {"source": _ints(b, s), "lengths": _ints(b), "inputs": _ints(b, t)}
    b, s = jax.export.symbolic_shape("b, s", constraints=limits[0])
    source = {"source": _ints(b, s), "lengths": _ints(b)}
    state = jax.eval_shape(read, weights, *source.values())[0]
    return {
        "apply": Function(apply, given, ("attention", "logits"), True, limits[0] + limits[1]),
        "read": Function(read, source, ("state", "logits"), limits=limits[0]),
        "step": Function(step, {"state": state, "tokens": _ints(b)}, ("state", "logits"), limits=limits[0]),
    }


def _ints(*shape) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(shape, jnp.int32)


def _limits(**most: int | None) -> tuple[str, ...]:
    return tuple(f"{letter} <= {limit}" for letter, limit in most.items() if limit is not None)


# --- writing


def save_bundle(
    to: str | os.PathLike,
    functions: Mapping[str, Function],
    params: PyTree,
    *,
    files: Iterable[Path] = (),
    about: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Write a bundle, a directory or a ``.zip``, and return the size of each file in it.

    A bundle that is there already is replaced; a reader never sees half of one.

    Args:
      to: where.
      functions: what `language_model` or `encoder_decoder` made, or your own.
      params: the weights, any tree.
      files: tokenizers, config.json and others, which are copied.
      about: what else bundle.json shall say.

    Raises:
      InputError: ``to`` is something else, or cannot be written; a package of ``seqjax[export]`` is missing.
    """
    to = Path(to)
    zipped = to.suffix == ".zip"
    if to.exists() and (to.is_dir() == zipped or not (zipped or (to / "bundle.json").exists())):
        raise InputError(f"to={to} exists and is no bundle; choose another place")
    _require("flatbuffers", "safetensors.numpy")
    form = jax.eval_shape(lambda: params)
    content, conventions = {}, {}
    for name, function in functions.items():
        exported = _exported(function, form)
        content[f"{name}.stablehlo"] = bytes(exported.serialize(vjp_order=int(function.differentiable)))
        conventions[name] = _convention(function, exported)
    content["params.safetensors"] = _save_params(params)
    content |= {file.name: file.read_bytes() for file in files}
    content["README.txt"] = _readme(conventions).encode()
    record = {
        "format": FORMAT,
        **(about or {}),
        "versions": {"seqjax": _own_version(), "jax": jax.__version__},
        "platforms": PLATFORMS,
        "traced_on": jax.default_backend(),
        "functions": conventions,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
    }
    content["bundle.json"] = (json.dumps(record, indent=2) + "\n").encode()
    try:
        _write(to, content, zipped)
    except OSError as error:
        raise InputError(f"to={to} cannot be written ({error.strerror}); choose another place") from error
    return {name: len(data) for name, data in content.items()}


def _exported(function: Function, form: PyTree):
    """The program: its params are a dict by dotted names, as they are in the file."""
    named = flatten(form)

    def call(params, *arguments):
        return function.call(restore(form, params), *arguments)

    return jax.export.export(jax.jit(call), platforms=PLATFORMS)(named, *function.arguments.values())


def _convention(function: Function, exported) -> dict[str, Any]:
    results = jax.tree.unflatten(exported.out_tree, [_described(aval) for aval in exported.out_avals])
    results = (results,) if len(function.results) == 1 else results
    return {
        "arguments": {
            "params": "params.safetensors",
            **{name: jax.tree.map(_described, spec) for name, spec in function.arguments.items()},
        },
        "results": dict(zip(function.results, results, strict=True)),
        "limits": function.limits,
        "derivatives": int(function.differentiable),
    }


def _described(aval) -> str:
    return f"{aval.dtype.name}[{', '.join(map(str, aval.shape))}]"


def _save_params(params: PyTree) -> bytes:
    from safetensors.numpy import save

    # Not ascontiguousarray, which gives scalars an axis.
    return save({name: np.asarray(leaf, order="C") for name, leaf in flatten(params).items()})


def _readme(conventions: Mapping[str, Any]) -> str:
    """How to run a bundle without seqjax; the test runs it."""

    def listed(convention, part):
        return ", ".join(convention[part])

    def one(spec):
        if isinstance(spec, dict):
            return "{" + ", ".join(f'"{name}": {one(of)}' for name, of in spec.items()) + "}"
        dtype, _, sizes = spec.rstrip("]").partition("[")
        return f"np.ones({tuple(int(size) if size.isdecimal() else 1 for size in _letters(sizes))}, np.{dtype})"

    name, convention = next(iter(conventions.items()))
    arguments = ", ".join(one(spec) for argument, spec in convention["arguments"].items() if argument != "params")
    lines = [
        "A trained model that runs with jax alone: pip install jax flatbuffers safetensors",
        "",
        "    import numpy as np",
        "    from jax import export",
        "    from safetensors.numpy import load_file",
        "",
        '    params = load_file("params.safetensors")',
        f'    {name} = export.deserialize(bytearray(open("{name}.stablehlo", "rb").read())).call',
        f"    {listed(convention, 'results')} = {name}(params, {arguments})",
        "",
        "Functions; shapes and types are in bundle.json. Wrap them in jax.jit.",
        *(f"    {n}({listed(c, 'arguments')}) -> {listed(c, 'results')}" for n, c in conventions.items()),
        "",
        "With seqjax: bundle = seqjax.export.load_bundle(this directory); bundle.functions, .params, .tokenizers",
    ]
    return "\n".join(lines) + "\n"


def _write(to: Path, content: Mapping[str, bytes], zipped: bool) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    unfinished, old = (to.with_name(f".{to.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        if zipped:
            with zipfile.ZipFile(unfinished, "w") as archive:
                for name, data in content.items():
                    archive.writestr(name, data)
        else:
            unfinished.mkdir()
            for name, data in content.items():
                (unfinished / name).write_bytes(data)
            if to.exists():
                os.rename(to, old)  # no directory takes the place of another that holds something
        os.replace(unfinished, to)
    finally:
        if old.exists() and not to.exists():
            os.rename(old, to)
        for left in (unfinished, old):
            if left.is_dir():
                shutil.rmtree(left)
        unfinished.unlink(missing_ok=True)


# --- reading


def load_bundle(path: str | os.PathLike) -> Bundle:
    """Read a bundle, a directory or a ``.zip``, and check every file against its SHA-256.

    Raises:
      InputError: there is none; a file is missing or damaged; it was written by a newer jax, whose programs this one
        cannot read; a package of ``seqjax[export]`` is missing.
    """
    path = Path(path)
    read = _reader(path)
    try:
        about = json.loads(read("bundle.json"))
        digests, functions = about["sha256"], about["functions"]
        writer, form = about["versions"]["jax"], about["format"]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} is no bundle: bundle.json is missing or damaged; copy the bundle again") from error
    if form != FORMAT:
        raise InputError(f"{path} is a bundle of format {form}, and this seqjax reads {FORMAT}; use the seqjax of it")
    _require("flatbuffers", "safetensors")
    content = {name: _intact(path, read, name, digest) for name, digest in digests.items()}
    return Bundle(
        {name: _program(path, name, how, content[f"{name}.stablehlo"], writer) for name, how in functions.items()},
        {name: jnp.asarray(array) for name, array in _load_params(path, content["params.safetensors"]).items()},
        {name.removesuffix(".json"): _tokenizer(content[name]) for name in content if name.endswith("tokenizer.json")},
        about,
    )


def load_params(path: str | os.PathLike, like: PyTree | None = None) -> PyTree:
    """The weights in a safetensors file, NumPy arrays in dicts and lists, or in the form of the tree ``like``.

        params = load_params("bundle/params.safetensors", like=jax.eval_shape(init, jax.random.key(0)))

    Raises:
      InputError: the file cannot be read, or holds other names than ``like``.
    """
    _require("safetensors")
    try:
        named = _load_params(path, Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot read the weights ({error.strerror}); give a safetensors file") from error
    return nest(named) if like is None else restore(like, named)


def _load_params(path, data: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    try:
        return {
            name: np.frombuffer(leaf["data"], jnp.dtype(_DTYPES[leaf["dtype"]])).reshape(leaf["shape"])
            for name, leaf in deserialize(data)
        }
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: no safetensors file of known types ({error}); copy it again") from error


def _reader(path: Path) -> Callable[[str], bytes]:
    """File name -> its bytes; KeyError or OSError for what is not there."""
    if path.is_dir() or not path.exists():
        return lambda name: (path / name).read_bytes()
    try:
        archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: neither a directory nor a .zip ({error}); give what export has written") from error
    return archive.read


def _intact(path: Path, read: Callable[[str], bytes], name: str, digest: str) -> bytes:
    try:
        data = read(name)
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: {name} is missing or damaged; copy the bundle again") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise InputError(f"{path}: {name} is damaged, its SHA-256 is not that in bundle.json; copy the bundle again")
    return data


def _program(path: Path, name: str, convention: Mapping[str, Any], data: bytes, writer: str) -> Callable:
    newer = _numbers(writer) > _numbers(jax.__version__)
    try:
        exported = jax.export.deserialize(bytearray(data))
        if newer:
            exported.mlir_module()  # reads it, which is otherwise left to the first call
    except Exception as error:  # whatever jax and MLIR raise for what they do not know
        if not newer:
            raise
        raise InputError(
            f"{path}: {name} was written by jax {writer}, and jax {jax.__version__} cannot read it; install jax "
            f"{writer} or a newer one: programs are for the version that wrote them and later ones"
        ) from error

    def call(params, *arguments):
        _check(name, convention, arguments)
        return exported.call(params, *arguments)

    return jax.jit(call)


def _check(name: str, convention: Mapping[str, Any], arguments: tuple) -> None:
    """Refuse sizes above the limits, of which jax says no more than that shapes cannot be refined."""
    most = {letter: int(limit) for letter, limit in (text.split(" <= ") for text in convention["limits"])}
    described = [(argument, spec) for argument, spec in convention["arguments"].items() if argument != "params"]
    for (argument, spec), array in zip(described, arguments, strict=True):
        letters = _letters(spec.rstrip("]").partition("[")[2]) if isinstance(spec, str) else []
        for letter, size in zip(letters, jnp.shape(array) if letters else (), strict=True):
            if letter in most and size > most[letter]:
                raise InputError(
                    f"{argument} is {spec} with {letter} = {size}; {name} of this bundle takes at most {most[letter]}"
                )


def _letters(sizes: str) -> list[str]:
    """The axes of a shape as bundle.json has them, ``b, t, 3``; a number has none."""
    return sizes.split(", ") if sizes else []


def _tokenizer(data: bytes) -> "Tokenizer":
    from seqjax.text import load_tokenizer

    with tempfile.TemporaryDirectory() as directory:  # a bundle may be a .zip
        file = Path(directory) / "tokenizer.json"
        file.write_bytes(data)
        return load_tokenizer(file)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _require(*modules: str) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            package = module.partition(".")[0]
            raise InputError(f'a bundle needs the package {package}; run: pip install "seqjax[export]"') from None


def _own_version() -> str:
    import seqjax

    return seqjax.__version__
