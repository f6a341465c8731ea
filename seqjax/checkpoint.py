"""Checkpoints that are either restored bit for bit or refused: Orbax writes them, a checksum of every leaf guards them.

Orbax commits a checkpoint atomically but does not checksum its data, casts silently when the dtype of the template
differs, and cannot store arrays without elements. So a tree is stored as a flat ``{key path: array}`` beside a record
of the shape, dtype and SHA-256 of each leaf, and what comes back must match that record.

It is Orbax's ``AsyncCheckpointer`` rather than its ``CheckpointManager``: the manager keeps a list of steps that still
names a step whose write failed, and skips, without a word, a save below the newest step. Here the directory is listed
afresh each time.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import distributed
from seqjax.errors import InputError
from seqjax.types import PyTree


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none of those on disk is intact."""


class Restored(NamedTuple):
    """What `Checkpoints.restore` found."""

    step: int
    tree: PyTree
    metadata: dict[str, Any]


class _DamageError(Exception):
    """This step does not hold what was saved; an older one may."""


class Checkpoints:
    """The checkpoints of one run: ``directory/<step>``, the newest `keep` of them and one more that `save` may name.

    A run has one line of history: saving step n removes the steps from n on, which a run that went back has left
    behind. Every process of a distributed run calls every method. Nothing is created before the first `save`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory, Checkpoints(directory) as checkpoints:
    ...     checkpoints.save(10, {"w": jnp.arange(3.0)}, {"name": "tiny"})
    ...     checkpoints.restore({"w": jnp.zeros(3)})
    Restored(step=10, tree={'w': Array([0., 1., 2.], dtype=float32)}, metadata={'name': 'tiny'})
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 3):
        if keep < 2:
            raise InputError(f"keep={keep}: keep at least 2 checkpoints, so that one is left if the newest is damaged")
        from etils import epath  # a dependency of Orbax: paths that may also be gs://…

        path = epath.Path(directory)
        self._directory = path if path.is_absolute() else path.absolute()  # gs:// has no working `absolute`
        self._keep = keep
        self._writer = None
        self._pending: dict[str, Any] | None = None  # the record of what the writer is writing
        self._written: dict[str, Any] | None = None  # the record of what it wrote last
        self._damaged: set[int] = set()
        self._also: int | None = None  # the step that is kept beside the newest

    def steps(self) -> list[int]:
        """The committed steps, oldest first, by a fresh look at the directory. Their contents are not verified.

        Of several processes all must ask, as for everything else here.
        """
        # Those that process 0 sees: a shared file system may show the others an older state.
        return distributed.from_first(self._listed())

    def begin(self) -> None:
        """Raise `InputError` if there are checkpoints of another run: a later resume would take them for its own."""
        if steps := self.steps():
            raise InputError(
                f"{self._directory} holds the checkpoints of another run, the last of step {steps[-1]}: pass "
                "resume=True to go on with that, or choose another directory"
            )

    def _listed(self) -> list[int]:
        if not self._directory.exists():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal() and path.is_dir())

    def save(self, step: int, tree: PyTree, metadata: Mapping[str, Any], *, also_keep: int | None = None) -> None:
        """Copy `tree` and start to write it; the caller may donate its arrays at once.

        Leaves are arrays, typed keys or Python numbers; `metadata` is what JSON can hold. Once it is written, older
        checkpoints are removed but for the newest, and that of the step `also_keep`: the best one, for instance. Say so
        at every save. Raises `InputError` for what is neither array nor JSON, and `CheckpointError` if this write fails
        at once or the one before it has failed.
        """
        import orbax.checkpoint as ocp

        self.wait()
        self._also = also_keep
        leaves = _flatten(tree)
        data = {name: _data(name, leaf) for name, leaf in leaves.items()}
        record = _record(step, leaves, data, metadata)
        if distributed.from_first(record == self._written and step in self._good()):
            return  # a stop signal often follows a regular save: to write the same again would risk the only copy
        items = ocp.args.Composite(
            state=ocp.args.StandardSave({name: array for name, array in data.items() if array.size}),
            # An item of the checkpoint, not a file added later: so no crash can leave data without its record.
            integrity=ocp.args.JsonSave(record),
        )
        self._sweep()
        self._remove(old for old in self._listed() if old >= step)
        self._damaged = {old for old in self._damaged if old < step}
        self._writer = self._writer or _make_writer()
        with self._reporting(step):
            self._writer.save(self._directory / str(step), args=items, force=True)
        self._pending = record

    def restore(self, template: PyTree | Callable[[dict], PyTree], *, step: int | None = None) -> Restored | None:
        """The newest intact checkpoint, or that of `step`; None if the directory holds none at all.

        `template` has the tree's structure, its leaves arrays or `jax.ShapeDtypeStruct`s. A leaf is put where the
        template's is, on any number of devices, or left uncommitted on the default device where the template does not
        say. NumPy arrays and Python numbers come back as such. Where the tree depends on the metadata, give a function
        of them.

        A damaged checkpoint is passed over with a `RuntimeWarning`, unless it was asked for by `step`. Raises
        `InputError` if the template does not fit the checkpoint, `CheckpointError` if none is intact.
        """
        if step is None:
            return next(self.restore_each(template), None)
        self.wait()
        if step not in (steps := self.steps()):
            raise InputError(f"step={step}: {self._directory} holds no such checkpoint; it holds {steps}")
        return self._restore(step, template)

    def restore_each(self, template: PyTree) -> Iterator[Restored]:
        """All intact checkpoints, newest first, each read when its turn comes; otherwise as `restore`."""
        self.wait()
        steps, found = self.steps()[::-1], False
        for step, older in zip(steps, [*steps[1:], None], strict=False):
            try:
                restored = self._restore(step, template)
            except CheckpointError as damage:
                if older is None and not found:
                    raise CheckpointError(f"{damage}; no older one is left") from damage
                rest = "no older one is left" if older is None else f"trying step {older}"
                warnings.warn(f"{damage}; {rest}", RuntimeWarning, stacklevel=3)
            else:
                found = True
                yield restored

    def _restore(self, step, template) -> Restored:
        try:
            return _load(self._directory / str(step), step, template)
        except _DamageError as damage:
            self._damaged.add(step)
            raise CheckpointError(f"checkpoint of step {step} in {self._directory} is damaged: {damage}") from damage

    def wait(self) -> None:
        """Wait until the last save is on disk. Raises `CheckpointError` if it failed."""
        if self._writer is None or self._pending is None:
            return
        record, self._pending, self._written = self._pending, None, None
        with self._reporting(record["step"]):
            self._writer.wait_until_finished()
        self._written = record
        self._remove(self._damaged | (set(self._good()[: -self._keep]) - {self._also}))
        self._damaged.clear()
        distributed.barrier()  # so that no process reads what is being removed

    def close(self) -> None:
        """`wait`, then release the writer's threads."""
        try:
            self.wait()
        finally:
            self._release()

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.close()  # waits for it, too
            self._writer = None

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        # An error may be that of one process alone, so there it must not wait for the others.
        if error is not None and jax.process_count() > 1:
            self._release()
        else:
            self.close()

    @contextmanager
    def _reporting(self, step: int) -> Iterator[None]:
        """Turn whatever Orbax raises into one error."""
        try:
            yield
        except Exception as error:
            self._sweep()
            good = self._good()
            last = f"the last good checkpoint is step {good[-1]}" if good else "there is no earlier one"
            raise CheckpointError(f"could not write checkpoint of step {step}: {_brief(error)}; {last}") from error

    def _good(self) -> list[int]:
        return [step for step in self._listed() if step not in self._damaged]

    def _remove(self, steps: Iterable[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                (self._directory / str(step)).rmtree(missing_ok=True)

    def _sweep(self) -> None:
        """Free the space of writes that failed or were killed."""
        if jax.process_index() == 0:
            for path in self._directory.glob("*.orbax-checkpoint-tmp*"):
                path.rmtree(missing_ok=True)


def _flatten(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _is_key(leaf) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _type(leaf):
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return {"dtype": str(dtype), "shape": list(np.shape(leaf))}


def _data(name, leaf):
    """The leaf as an array that Orbax stores and hashlib takes."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    data = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if data.dtype.kind in "OSUMm":
        raise InputError(f"tree: {name} is {leaf!r}, not an array of numbers; put it into the metadata")
    return data


def _digest(array) -> str:
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        from jax.experimental.multihost_utils import process_allgather

        array = process_allgather(array, tiled=True)
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()


def _checksum(record) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _record(step, leaves, data, metadata):
    types = {
        name: {
            **_type(leaf),
            "key": str(jax.random.key_impl(leaf)) if _is_key(leaf) else None,
            "sha256": _digest(data[name]),
        }
        for name, leaf in leaves.items()
    }
    try:
        record = json.loads(json.dumps({"step": step, "leaves": types, "metadata": dict(metadata)}))
    except (TypeError, ValueError) as error:
        raise InputError(f"metadata: {error}; give only what JSON can hold") from error
    return {**record, "sha256": _checksum(record)}


def _load(path, step, template) -> Restored:
    with _damage("its integrity record cannot be read"):
        record = _read_record(path)
        intact = record.pop("sha256") == _checksum(record) and record["step"] == step
    if not intact:
        raise _DamageError("its integrity record does not match its own checksum")
    template = template(record["metadata"]) if callable(template) else template
    saved, wanted = record["leaves"], _flatten(template)
    _check_template(step, saved, wanted)
    with _damage("its arrays cannot be read"):
        data = _read_state(path, saved, wanted)
    changed = [name for name in saved if _digest(data[name]) != saved[name]["sha256"]]
    if distributed.anywhere(bool(changed)):
        raise _DamageError(f"the values of {changed[0] if changed else 'an array'} do not match their checksum")
    values = [_like(leaf, data[name], saved[name]["key"]) for name, leaf in wanted.items()]
    return Restored(step, jax.tree.unflatten(jax.tree.structure(template), values), record["metadata"])


@contextmanager
def _damage(what) -> Iterator[None]:
    """Turn an error into damage, on all processes if there is one on any: they go on together, or not at all."""
    damage = None
    try:
        yield
    except Exception as error:  # on a damaged file Orbax raises nearly anything
        damage = error
    if distributed.anywhere(damage is not None):
        raise _DamageError(f"{what} ({_brief(damage) if damage else 'by another process'})") from damage


def _check_template(step, saved, wanted):
    """Raise `InputError` for a template of another model: an older checkpoint would not fit it either."""
    remedy = "restore it with the configuration it was saved with"
    absent, extra = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    if absent or extra:
        difference = "; ".join(
            f"{what}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
            for what, names in (("only in the template", absent), ("only in the checkpoint", extra))
            if names
        )
        raise InputError(f"template: another tree than in the checkpoint of step {step} ({difference}); {remedy}")
    for name, leaf in wanted.items():
        then, now = ("{dtype}{shape}".format(**leaf_type) for leaf_type in (saved[name], _type(leaf)))
        if then != now:
            raise InputError(f"template: {name} is {then} in the checkpoint of step {step}, not {now}; {remedy}")
        if sharding := _sharding(leaf):
            try:
                sharding.shard_shape(leaf.shape)
            except ValueError as error:
                raise InputError(f"template: {name} cannot be sharded as asked: {error}") from error


def _sharding(leaf):
    """Where the template wants the leaf; None if it does not say: a fresh array may follow its neighbours anywhere."""
    return None if isinstance(leaf, jax.Array) and not leaf.committed else getattr(leaf, "sharding", None)


def _make_writer():
    import orbax.checkpoint as ocp

    # A directory that cannot be made in the background shows after a timeout of 20 minutes only.
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)


def _alone():
    """Options of Orbax to read without waiting for other processes, which may have failed at a damaged file."""
    import orbax.checkpoint as ocp

    this = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})


def _read_record(path):
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.JsonCheckpointHandler(), multiprocessing_options=_alone()) as reader:
        return reader.restore(path / "integrity")


def _read_state(path, saved, wanted):
    """The stored arrays: sharded as `wanted` says, NumPy arrays where it does not."""
    import orbax.checkpoint as ocp

    def how(leaf):
        sharding = _sharding(leaf)
        return ocp.ArrayRestoreArgs(sharding=sharding) if sharding else ocp.RestoreArgs(restore_type=np.ndarray)

    empty = {name for name in saved if 0 in saved[name]["shape"]}  # `save` left these out
    args = {name: how(leaf) for name, leaf in wanted.items() if name not in empty}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=_alone()) as reader:
        data = reader.restore(path / "state", args=ocp.args.PyTreeRestore(restore_args=args))
    for name, leaf in ((name, wanted[name]) for name in empty):
        empty_leaf = leaf if isinstance(leaf, np.ndarray) else jnp.zeros(leaf.shape, leaf.dtype, device=_sharding(leaf))
        data[name] = _data(name, empty_leaf)
    return data


def _like(leaf, data, key):
    """`data` as what the leaf of the template is: an array of jax, a typed key, a NumPy array or a number."""
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        data = data if isinstance(data, jax.Array) else jnp.array(data)
        return jax.random.wrap_key_data(data, impl=key) if key else data
    return data.item() if isinstance(leaf, bool | int | float | complex) else np.asarray(data)


def _brief(error) -> str:
    """The first line of the message, without the pages of context that TensorStore appends."""
    return re.sub(r" \[[a-z_ ]+='.*", "", (str(error).splitlines() or [type(error).__name__])[0])
