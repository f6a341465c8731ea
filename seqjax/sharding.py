"""One model on many devices: a mesh, rules by which its parameters are split, and batches whose rows are dealt out.

    mesh = make_mesh("data=4,model=2")
    state = initialise(init, key, mesh, axes)               # each device makes its own part
    batch = place(mesh)(batch)                              # from the rows of this process
    state, metrics = jax.jit(train_step)(state, batch, hyper)

Modules name the axes of their parameters by what they mean (`seqjax.nn.logical_axes`), and `RULES` say which axis of
the mesh splits what. XLA's partitioner does the rest, since all axes of the mesh are Auto: no code of a model knows of
devices.

    data     rows of a batch (data parallelism). Parameters and the optimizer's moments are replicated (no FSDP or
             ZeRO); gradients are summed
    model    heads, hidden units of MLPs and words (tensor parallelism, Shoeybi et al., 2019): a sum over devices a
             sublayer. Gates of recurrent layers are replicated, for else they would be exchanged at every step of time
    member   members of a study
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seqjax.errors import InputError
from seqjax.types import PRNGKey, PyTree

AXES = ("data", "model", "member")
"""The axes a mesh may have."""

RULES: dict[str, str | None] = {
    "batch": "data",
    "vocab": "model",
    "gates": None,
    "heads": "model",
    "kv_heads": "model",
    "mlp": "model",
    "head": None,
    "embed": None,
    "hidden": None,
    "position": None,
}
"""Logical axis -> the axis of the mesh that splits it; None is not split."""

WHOLE_IF_UNEVEN = ("vocab", "kv_heads")
"""What stays whole on every device where it does not divide: corpora have vocabularies of any size, and grouped queries
share a few heads of keys. All else is a choice, and then an error."""

REPLICATED = P()


def make_mesh(
    sizes: str | Mapping[str, int], *, names: Sequence[str] = AXES, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with Auto axes over all devices, such as ``"data=4,model=2"`` or ``{"data": -1}``; -1 is the rest.

    Args:
      sizes: axis -> number of devices; the order is that of the mesh, and the last axis has neighbouring devices.
      names: the axes there may be.
      devices: by default all of all processes.

    Raises:
      InputError: sizes cannot be read, an axis is unknown, or the mesh has more or fewer devices than there are.

    >>> dict(make_mesh("data=1,model=1", devices=jax.devices()[:1]).shape)
    {'data': 1, 'model': 1}
    """
    sizes = _parse(sizes) if isinstance(sizes, str) else dict(sizes)
    devices = jax.devices() if devices is None else devices
    text, n = ",".join(f"{name}={size}" for name, size in sizes.items()), len(devices)
    for name, size in sizes.items():
        if name not in names:
            raise InputError(f"mesh={text}: unknown axis {name!r}; choose from {', '.join(names)}")
        if size < 1 and size != -1:
            raise InputError(f"mesh={text}: {name}={size} must be at least 1, or -1 for the rest")
    known = math.prod(size for size in sizes.values() if size != -1)
    if list(sizes.values()).count(-1) > 1:
        raise InputError(f"mesh={text}: only one axis can have the rest of the devices (-1)")
    if -1 in sizes.values() and n % known == 0:
        sizes = {name: n // known if size == -1 else size for name, size in sizes.items()}
        known = n
    if known != n:
        many = known > n or -1 in sizes.values()
        more = f"for {known} fake ones on a CPU, set the environment variable JAX_NUM_CPU_DEVICES={known}"
        fewer = "use all of them, -1 being the rest, or hide some from JAX (CUDA_VISIBLE_DEVICES, JAX_NUM_CPU_DEVICES)"
        what = f"a multiple of {known} devices" if -1 in sizes.values() else f"{known} devices"
        raise InputError(f"mesh={text} needs {what}, and there are {n}: {f'change it, or {more}' if many else fewer}")
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=tuple(devices)
    )


def _parse(text: str) -> dict[str, int]:
    sizes = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(-?\d+)\s*", part)
        if not found or found[1] in sizes:
            raise InputError(f"mesh={text!r}: write it as data=4,model=2, each axis once")
        sizes[found[1]] = int(found[2])
    return sizes


# --- parameters and states


def shardings(mesh: Mesh, axes: PyTree, shapes: PyTree, *, rules: Mapping[str, str | None] = RULES) -> PyTree:
    """Where each array goes: `NamedSharding`s in the tree of ``shapes``.

    Args:
      mesh: from `make_mesh`. An axis it does not have splits nothing.
      axes: the logical axes of each array, a ``PartitionSpec`` with a name or None for each dimension.
      shapes: arrays, or what has their shapes.
      rules: logical axis -> axis of the mesh.

    Raises:
      InputError: there is no rule for an axis; or it does not divide, and is none of `WHOLE_IF_UNEVEN`.

    >>> mesh = make_mesh("model=1", devices=jax.devices()[:1])
    >>> list(shardings(mesh, {"w": P("vocab", "embed")}, {"w": np.zeros((6, 2))})["w"].spec)
    ['model', None]
    """

    def one(path, leaf, logical):
        where = jax.tree_util.keystr(path, simple=True, separator=".")
        if unknown := [name for name in logical if name not in (None, *rules)]:
            raise InputError(f"parameter {where}: unknown axis {unknown[0]!r}; choose from {', '.join(rules)}")
        split = [None if name is None else rules[name] for name in logical]
        split = [None if name not in mesh.shape else name for name in split]
        for i, name in enumerate(split):
            if name is not None and leaf.shape[i] % mesh.shape[name]:
                if logical[i] not in WHOLE_IF_UNEVEN:
                    raise InputError(_uneven(where, leaf, logical[i], i, mesh, name))
                split[i] = None
        return NamedSharding(mesh, P(*split))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def _uneven(where, leaf, logical, i, mesh, name) -> str:
    return (
        f"parameter {where} {tuple(leaf.shape)}: its axis {logical!r} of {leaf.shape[i]} does not divide over "
        f"{name}={mesh.shape[name]} of the mesh; change the size of the model to a multiple of {mesh.shape[name]}, or "
        "the mesh"
    )


def kept_whole(mesh: Mesh, axes: PyTree, shapes: PyTree, *, rules: Mapping[str, str | None] = RULES) -> list[str]:
    """What of `WHOLE_IF_UNEVEN` is not split since it does not divide, to be told: a line each."""
    found = {}
    for leaf, logical in zip(jax.tree.leaves(shapes), jax.tree.leaves(axes), strict=True):
        for size, name in zip(leaf.shape, logical, strict=True):
            split = rules[name] if name in WHOLE_IF_UNEVEN else None
            if split in mesh.shape and size % mesh.shape[split]:
                axis = f"{split}={mesh.shape[split]}"
                found[name, size] = f"{name} of {size} does not divide over {axis}: it is replicated"
    return list(found.values())


def state_shardings(
    mesh: Mesh, axes: PyTree, shapes: Any, *, extra: P = REPLICATED, rules: Mapping[str, str | None] = RULES
) -> Any:
    """Where a `seqjax.train.State` goes: its weights as `shardings` says, and with each what the optimizer keeps of it.

    Moments and averages of a weight, found by its path and shape, lie where the weight does. The rest is on every
    device, ``extra`` too unless it has logical axes: ``P("batch")`` for a state that is carried from window to window.
    """
    params = shardings(mesh, axes, shapes.params, rules=rules)
    where = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(shapes.params), jax.tree.leaves(params), strict=True
        )
    }
    everywhere = NamedSharding(mesh, REPLICATED)

    def like_its_weight(path, leaf):
        ends = (where.get(path[i:]) for i in range(len(path)))
        shape, sharding = next(filter(None, ends), (None, everywhere))
        return sharding if shape == leaf.shape else everywhere

    def carried(leaf):
        return P(*(*extra, *[None] * leaf.ndim)[: leaf.ndim])

    others = jax.tree.map(lambda _: everywhere, shapes)
    return others._replace(
        params=params,
        opt_state=jax.tree_util.tree_map_with_path(like_its_weight, shapes.opt_state),
        extra=shardings(mesh, jax.tree.map(carried, shapes.extra), shapes.extra, rules=rules),
    )


def initialise(init: Callable[[PRNGKey], Any], key: PRNGKey, mesh: Mesh, axes: PyTree, **options) -> Any:
    """The state ``init(key)``, made in parts: no device ever holds all of it. The values are those of one device.

    Options and errors are those of `state_shardings`.
    """
    where = state_shardings(mesh, axes, jax.eval_shape(init, key), **options)
    return jax.jit(init, out_shardings=where)(key)


# --- batches


def check_rows(mesh: Mesh, name: str, n: int) -> None:
    """Raise `InputError` if a batch of n rows, called ``name``, does not divide over the data axis."""
    size = mesh.shape.get("data", 1)
    if n % size:
        raise InputError(
            f"{name}={n} does not divide over data={size} of the mesh; make it a multiple of {size}, or change the mesh"
        )


def local_rows(mesh: Mesh, n: int) -> np.ndarray:
    """Which of the n rows of a batch the devices of this process hold: the ones it has to read.

    >>> local_rows(make_mesh("data=1", devices=jax.devices()[:1]), 3)
    array([0, 1, 2])
    """
    check_rows(mesh, "rows", n)
    indices = _rows(mesh).addressable_devices_indices_map((n,)).values()
    spans = sorted({index[0].indices(n)[:2] for index in indices if index is not None})
    return np.concatenate([np.arange(*span) for span in spans])


def shares(mesh: Mesh) -> float:
    """How many times the rows that this process reads are a whole batch."""
    parts = mesh.shape.get("data", 1)
    return parts / len(local_rows(mesh, parts))


def place(mesh: Mesh, *, axis: int = 0) -> Callable[[PyTree], PyTree]:
    """``batch -> batch``: from the rows that this process has read, `local_rows`, to arrays over all devices.

    Args:
      mesh: from `make_mesh`.
      axis: that of the rows; 1 where the batch has several parts whose gradients add up.
    """
    times, sharding = shares(mesh), _rows(mesh, axis)

    def one(rows):
        n = round(rows.shape[axis] * times)
        first = local_rows(mesh, n)

        def read(index):
            begin, end, _ = index[axis].indices(n)
            at = int(np.searchsorted(first, begin))
            return rows[(*index[:axis], slice(at, at + end - begin), *index[axis + 1 :])]

        return jax.make_array_from_callback((*rows.shape[:axis], n, *rows.shape[axis + 1 :]), sharding, read)

    return lambda batch: jax.tree.map(one, batch)


def place_whole(mesh: Mesh) -> Callable[[PyTree], PyTree]:
    """``batch -> batch``: as `place`, of a batch that every process has read whole, as for an evaluation.

    Rows that do not divide over the data axis are not split.
    """

    def one(rows):
        n = rows.shape[0]
        sharding = NamedSharding(mesh, REPLICATED) if n % mesh.shape.get("data", 1) else _rows(mesh)
        return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

    return lambda batch: jax.tree.map(one, batch)


def _rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    return NamedSharding(mesh, P(*[None] * axis, "data" if "data" in mesh.shape else None))


def fetch(tree: PyTree) -> PyTree:
    """NumPy arrays of results, wherever they lie; every process must ask."""

    def one(leaf):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            from jax.experimental.multihost_utils import process_allgather

            return process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(one, tree)
