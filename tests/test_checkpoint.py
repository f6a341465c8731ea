import os
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from seqjax.checkpoint import CheckpointError, Checkpoints, Restored
from seqjax.errors import InputError

# Orbax leaves its other reads running when one fails: they find their event loop closed.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    key: Any
    extra: Any = None


def make_state(seed: int) -> State:
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "w/x.y": jax.random.normal(keys[0], (5, 3)),
        "half": jax.random.normal(keys[1], (7,), jnp.bfloat16),
        "none of them": jnp.zeros((0, 4)),
        "tuple": (jnp.array(True), jnp.arange(seed, seed + 3, dtype=jnp.uint8), jnp.float32(seed)),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = optimizer.init({"w": params["w/x.y"] + 1.0})
    return State(jnp.int32(seed), params, opt_state, keys[2], {"keys": keys, "empty": (), "count": seed, "rate": 0.5})


def as_bytes(tree):
    def leaf(x):
        data = np.asarray(jax.random.key_data(x) if is_key(x) else x)
        return str(getattr(x, "dtype", type(x))), data.shape, data.tobytes()

    return jax.tree.structure(tree), [leaf(x) for x in jax.tree.leaves(tree)]


def is_key(x):
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def save_all(directory, *steps, **kw):
    with Checkpoints(directory, **kw) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"step": step})


def files(directory: Path):
    return sorted(path for path in directory.rglob("*") if path.is_file())


# What is restored is what was saved.


def test_restores_every_kind_of_leaf(tmp_path):
    state = make_state(7)
    metadata = {"config": {"lr": 1e-3, "sizes": [1, 2]}, "ü": None, "best": float("inf")}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state, metadata)
        restored = checkpoints.restore(make_state(1))
        abstract = checkpoints.restore(state._replace(params=jax.eval_shape(lambda: state.params)))
    assert isinstance(restored, Restored)
    assert (restored.step, restored.metadata) == (7, metadata)
    assert as_bytes(restored.tree) == as_bytes(state) == as_bytes(abstract.tree)
    assert type(restored.tree.extra["count"]) is int
    assert type(restored.tree.extra["rate"]) is float
    jax.random.normal(restored.tree.key)  # a typed key that works


def test_numpy_leaves_stay_numpy_and_keep_64_bits(tmp_path):
    tree = {"a": np.arange(3), "b": np.float64(2.0) * np.ones((2, 2)), "none": np.zeros((3, 0))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        restored = checkpoints.restore(tree).tree
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(restored))
    assert as_bytes(restored) == as_bytes(tree)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int4", "complex64", "float16", "bool"])
def test_unusual_dtypes(tmp_path, dtype):
    tree = [jnp.arange(6).reshape(2, 3).astype(dtype)]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        assert as_bytes(checkpoints.restore(tree).tree) == as_bytes(tree)


def test_float64(tmp_path, x64):
    tree = [jnp.linspace(0.0, 1.0, 5)]
    assert tree[0].dtype == jnp.float64
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        assert as_bytes(checkpoints.restore(tree).tree) == as_bytes(tree)


def test_other_key_implementations(tmp_path):
    tree = [jax.random.key(3, impl="rbg")]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        assert as_bytes(checkpoints.restore(tree).tree) == as_bytes(tree)
        with pytest.raises(InputError, match=r"key<rbg>.*not key<fry>"):
            checkpoints.restore([jax.random.key(3)])


def sharded(count, spec):
    return NamedSharding(Mesh(np.array(jax.devices()[:count]), ("data",)), spec)


@pytest.mark.parametrize("target", [1, 2, 4])
def test_restores_onto_another_number_of_devices(tmp_path, target):
    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    values = {
        "w": jnp.arange(32.0).reshape(8, 4),
        "b": jnp.arange(4.0),
        "keys": jax.random.split(jax.random.key(0), 4),
        "none": jnp.zeros((4, 0)),
    }
    specs = {"w": rows, "b": everywhere, "keys": rows, "none": rows}
    saved = jax.tree.map(lambda x, spec: jax.device_put(x, sharded(4, spec)), values, specs)
    template = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=SingleDeviceSharding(jax.devices()[1]) if target == 1 else sharded(target, spec)
        ),
        values,
        specs,
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved, {})
        restored = checkpoints.restore(template).tree
    assert as_bytes(restored) == as_bytes(values)
    for name, leaf in restored.items():
        assert leaf.sharding.is_equivalent_to(template[name].sharding, leaf.ndim)


def test_a_leaf_without_sharding_follows_its_neighbours(tmp_path):
    mesh_wide = jax.device_put(jnp.arange(8.0), sharded(4, PartitionSpec("data")))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, mesh_wide, {})
        for template in (jnp.zeros(8), jax.ShapeDtypeStruct((8,), jnp.float32)):
            restored = checkpoints.restore(template).tree
            assert restored.devices() == {jax.devices()[0]}
            assert jax.jit(jnp.add)(restored, mesh_wide).sharding.num_devices == 4  # raises if it were committed


def test_the_saved_arrays_may_be_donated_at_once(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 3.0 + 1.0, tree), donate_argnums=0)
    tree = {str(i): jnp.full((256, 512), float(i)) for i in range(8)}
    with Checkpoints(tmp_path) as checkpoints:
        for number in (1, 2):
            expected = as_bytes(tree)
            checkpoints.save(number, tree, {})
            for _ in range(3):
                tree = step(tree)
            restored = checkpoints.restore(tree)
            assert restored.step == number
            assert as_bytes(restored.tree) == expected


def test_the_saved_numpy_arrays_may_be_changed_at_once(tmp_path):
    array = np.random.default_rng(0).normal(size=(1000, 1000))
    expected = array.copy()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, [array], {})
        array[:] = 0.0
        np.testing.assert_array_equal(checkpoints.restore([array]).tree[0], expected)


def test_restored_arrays_may_be_donated(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, [jnp.arange(1000.0)], {})
        [restored] = checkpoints.restore([jnp.zeros(1000)]).tree
    donated = jax.jit(lambda x: x + 1.0, donate_argnums=0)(restored)
    np.testing.assert_array_equal(donated, np.arange(1000.0) + 1)


# Which steps there are.


def test_nothing_there(tmp_path):
    checkpoints = Checkpoints(tmp_path / "absent")
    assert checkpoints.steps() == []
    assert checkpoints.restore(make_state(0)) is None
    checkpoints.wait()
    checkpoints.close()
    assert not (tmp_path / "absent").exists()


def test_keeps_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (9, 10, 100, 101):
            checkpoints.save(step, make_state(step), {})
    assert checkpoints.steps() == [100, 101]
    assert sorted(os.listdir(tmp_path)) == ["100", "101"]


def test_keeps_one_more(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, best, left in ((1, None, [1]), (2, 2, [1, 2]), (3, 2, [2, 3]), (4, 2, [2, 3, 4]), (5, 2, [2, 4, 5])):
            checkpoints.save(step, make_state(step), {}, also_keep=best)
            checkpoints.wait()
            assert checkpoints.steps() == left
    with Checkpoints(tmp_path, keep=2) as checkpoints:  # it is not written down
        checkpoints.save(6, make_state(6), {}, also_keep=2)
        checkpoints.save(7, make_state(7), {}, also_keep=2)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 6, 7]
        checkpoints.save(8, make_state(8), {}, also_keep=8)
        checkpoints.wait()
        assert checkpoints.steps() == [7, 8]
        checkpoints.save(1, make_state(1), {}, also_keep=8)  # what comes after goes, whatever it is
    assert checkpoints.steps() == [1]


def test_keep_must_leave_a_spare(tmp_path):
    with pytest.raises(InputError, match="keep=1: keep at least 2"):
        Checkpoints(tmp_path, keep=1)


def test_relative_directory_and_use_after_close(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints("run/checkpoints")
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {})
        checkpoints.close()
        checkpoints.close()
    assert [path.name for path in sorted(Path("run/checkpoints").iterdir())] == ["1", "2"]


def test_an_older_step(tmp_path):
    save_all(tmp_path, 1, 2, 3)
    checkpoints = Checkpoints(tmp_path)
    assert as_bytes(checkpoints.restore(make_state(0), step=2).tree) == as_bytes(make_state(2))
    with pytest.raises(InputError, match=r"step=4: .* holds no such checkpoint; it holds \[1, 2, 3\]"):
        checkpoints.restore(make_state(0), step=4)


def test_going_back_drops_what_came_after(tmp_path):
    save_all(tmp_path, 10, 20, 30)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(make_state(0), step=10)
        checkpoints.save(20, make_state(99), {})
    assert checkpoints.steps() == [10, 20]
    assert as_bytes(checkpoints.restore(make_state(0)).tree) == as_bytes(make_state(99))


def test_the_same_again_is_not_rewritten(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for metadata, rewritten in (({}, True), ({}, False), ({"new": 1}, True)):
            before = files(tmp_path)
            checkpoints.save(1, make_state(1), metadata)
            checkpoints.wait()
            assert (files(tmp_path) != before) == rewritten  # the names of the data files are drawn anew each time
        shutil.rmtree(tmp_path / "1")
        checkpoints.save(1, make_state(1), metadata)
    assert checkpoints.steps() == [1]


def test_remains_of_a_killed_write_are_swept(tmp_path):
    (tmp_path / "7.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    save_all(tmp_path, 8)
    assert os.listdir(tmp_path) == ["8"]


# Damage.


def damage(path: Path, how: str):
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 0x10
    path.write_bytes(content if how == "flip" else content[: len(content) // 2])
    if how == "delete":
        path.unlink()


def newest_or_older(directory, state, older) -> bool:
    """Restore; fail unless the result is `state`, or `older` with a warning. True if it was `older`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restored = Checkpoints(directory).restore(make_state(0))
    walked_back = restored.step == 1
    assert as_bytes(restored.tree) == as_bytes(older if walked_back else state)
    messages = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    assert len(messages) == walked_back, messages
    assert all("step 2" in message and "damaged" in message and "trying step 1" in message for message in messages)
    return walked_back


@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
def test_never_a_wrong_value_whichever_file_is_damaged(tmp_path, how):
    run, spoiled = tmp_path / "run", tmp_path / "spoiled"
    save_all(run, 1, 2)
    walked_back = {}
    for path in files(run / "2"):
        shutil.copytree(run, spoiled)
        name = path.relative_to(run)
        damage(spoiled / name, how)
        walked_back[str(name)] = newest_or_older(spoiled, make_state(2), make_state(1))
        shutil.rmtree(spoiled)
    assert len(walked_back) >= 8
    assert walked_back["2/integrity/metadata"]
    assert any(walked for name, walked in walked_back.items() if name.startswith("2/state/d"))


def test_every_byte_of_the_arrays_is_guarded(tmp_path):
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32)  # does not compress
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, [np.zeros_like(values)], {})
        checkpoints.save(2, [values], {})
    store = max(files(tmp_path / "2"), key=lambda path: path.stat().st_size)
    content = store.read_bytes()
    for place in range(500, len(content), len(content) // 10):
        store.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.warns(RuntimeWarning, match="step 2"):
            assert Checkpoints(tmp_path).restore([values]).step == 1


@pytest.mark.parametrize("item", ["state", "integrity", "."])
def test_a_missing_item_is_damage(tmp_path, item):
    save_all(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "2" / item)
    (tmp_path / "2").mkdir(exist_ok=True)
    assert newest_or_older(tmp_path, make_state(2), make_state(1))


def test_another_step_under_this_name_is_damage(tmp_path):
    save_all(tmp_path, 1, 2)
    (tmp_path / "2").rename(tmp_path / "3")
    with pytest.warns(RuntimeWarning, match="step 3"):
        assert Checkpoints(tmp_path).restore(make_state(0)).step == 1


def spoil(directory: Path, *steps):
    for step in steps:
        damage(directory / str(step) / "integrity" / "metadata", "flip")


def test_walks_back_until_one_is_intact(tmp_path):
    save_all(tmp_path, 1, 2, 3)
    spoil(tmp_path, 2, 3)
    with pytest.warns(RuntimeWarning) as caught:
        assert Checkpoints(tmp_path).restore(make_state(0)).step == 1
    assert [str(w.message).rsplit("; ", 1)[1] for w in caught] == ["trying step 2", "trying step 1"]


def test_restores_each_that_is_intact(tmp_path):
    save_all(tmp_path, 1, 2, 3)
    assert [restored.step for restored in Checkpoints(tmp_path).restore_each(make_state(0))] == [3, 2, 1]
    spoil(tmp_path, 1, 2)
    with pytest.warns(RuntimeWarning) as caught:
        [restored] = Checkpoints(tmp_path).restore_each(make_state(0))
    assert as_bytes(restored.tree) == as_bytes(make_state(3))
    endings = [str(w.message).rsplit("; ", 1)[1] for w in caught]
    assert endings == ["trying step 1", "no older one is left"]
    assert list(Checkpoints(tmp_path / "absent").restore_each(make_state(0))) == []


def test_none_is_intact(tmp_path):
    save_all(tmp_path, 1, 2)
    spoil(tmp_path, 1, 2)
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match=r"step 1 .*damaged.*no older one is left"):
        Checkpoints(tmp_path).restore(make_state(0))


def test_a_damaged_step_that_was_asked_for_is_an_error(tmp_path):
    save_all(tmp_path, 1, 2)
    spoil(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"step 2 .*damaged"):
        Checkpoints(tmp_path).restore(make_state(0), step=2)


def test_training_comes_by_the_damaged_step_again(tmp_path):
    save_all(tmp_path, 1, 2)
    spoil(tmp_path, 2)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.warns(RuntimeWarning):
            checkpoints.restore(make_state(0))
        checkpoints.save(2, make_state(5), {})
        assert as_bytes(checkpoints.restore(make_state(0)).tree) == as_bytes(make_state(5))
    assert checkpoints.steps() == [1, 2]


def test_a_damaged_step_does_not_count_as_kept(tmp_path):
    save_all(tmp_path, 1, 2)
    spoil(tmp_path, 2)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.warns(RuntimeWarning):
            checkpoints.restore(make_state(0))
        checkpoints.save(3, make_state(3), {})
    assert checkpoints.steps() == [1, 3]


# Another template is not damage.


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"w": jnp.ones(3, jnp.bfloat16), "b": {"c": jnp.ones(())}}, r"\['w'\] is float32\[3\].* not bfloat16\[3\]"),
        ({"w": jnp.ones(4), "b": {"c": jnp.ones(())}}, r"\['w'\] is float32\[3\] .*, not float32\[4\]"),
        ({"w": 1.0, "b": {"c": jnp.ones(())}}, r"\['w'\] is float32\[3\] .*, not float64\[\]"),
        ({"w": jax.random.key(0), "b": {"c": jnp.ones(())}}, r"\['w'\] is float32\[3\] .*, not key<fry>\[\]"),
        ({"w": jnp.ones(3)}, r"only in the checkpoint: \['b'\]\['c'\]\)"),
        ({"w": jnp.ones(3), "b": {"c": jnp.ones(()), "d": 1}}, r"only in the template: \['b'\]\['d'\]\)"),
        ([jnp.ones(3)], r"only in the template: \[0\]; only in the checkpoint: \['b'\]\['c'\], \['w'\]"),
        (
            {
                "w": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=sharded(2, PartitionSpec("data"))),
                "b": {"c": jnp.ones(())},
            },
            r"\['w'\] cannot be sharded as asked",
        ),
    ],
)
def test_refuses_another_template_without_walking_back(tmp_path, template, message):
    tree = {"w": jnp.ones(3), "b": {"c": jnp.ones(())}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        checkpoints.save(2, tree, {})
        with pytest.raises(InputError, match=message):
            checkpoints.restore(template)
        assert checkpoints.restore(tree).step == 2


def test_metadata_must_be_json(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(InputError, match=r"metadata: .*JSON"):
            checkpoints.save(1, [jnp.ones(2)], {"key": jax.random.key(0)})
        assert checkpoints.steps() == []


@pytest.mark.parametrize("leaf", ["text", object(), np.array("2020-01-01", "datetime64")])
def test_leaves_must_be_numbers(tmp_path, leaf):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match=r"tree: \['a'\]\[0\] is"):
        checkpoints.save(1, {"a": [leaf]}, {})


# Writes that fail.


def python(code: str, *args, **kw):
    """A fresh process, with warnings as errors where Orbax has been imported."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kw,
    )


FULL_DISK = """
    import pathlib, resource, signal, sys, warnings
    import jax.numpy as jnp, numpy as np
    from seqjax.checkpoint import CheckpointError, Checkpoints

    noise = np.random.default_rng(0).normal(size=100_000)          # does not compress
    small, large = {"w": noise[:100]}, {"w": noise}
    checkpoints = Checkpoints(sys.argv[1], keep=2)
    checkpoints.save(10, small, {})
    checkpoints.save(20, small, {})
    checkpoints.wait()

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)                  # a write past the limit fails instead of killing
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    for surface in (checkpoints.wait, lambda: checkpoints.save(40, small, {}), lambda: checkpoints.restore(small),
                    checkpoints.close):
        try:
            checkpoints.save(30, large, {})
            surface()
        except CheckpointError as error:
            print(error)
        assert checkpoints.steps() == [10, 20], checkpoints.steps()
        checkpoints.close()                                        # neither hangs nor raises again
        checkpoints.wait()
        restored = checkpoints.restore(small)
        assert restored.step == 20 and np.array_equal(restored.tree["w"], small["w"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    with checkpoints:
        checkpoints.save(30, large, {})
        assert np.array_equal(checkpoints.restore(large).tree["w"], noise)
    assert checkpoints.steps() == [20, 30]

    warnings.simplefilter("ignore")
    record = pathlib.Path(sys.argv[1], "30", "integrity", "metadata")
    record.write_text(record.read_text().replace("7", "8"))        # the newest is damaged: it is no "last good" one
    assert checkpoints.restore(small).step == 20
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        checkpoints.save(40, large, {})
        checkpoints.wait()
    except CheckpointError as error:
        print(str(error).replace("40", "30"))
    assert checkpoints.steps() == [20, 30]
"""


def test_a_full_disk_surfaces_and_leaves_the_last_checkpoint_intact(tmp_path):
    process = python(FULL_DISK, tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    errors = out.splitlines()
    assert len(errors) == 5
    for error in errors:
        assert error.startswith("could not write checkpoint of step 30: ")
        assert error.endswith("; the last good checkpoint is step 20")
    assert sorted(os.listdir(tmp_path)) == ["20", "30"]  # no remains of the failed ones


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointError, match=r"step 1: .*; there is no earlier one"):
        checkpoints.save(1, make_state(1), {})
    checkpoints.close()


KILLED = """
    import sys
    import numpy as np
    from seqjax.checkpoint import Checkpoints

    checkpoints = Checkpoints(sys.argv[1])
    for step in range(1, 1000):
        checkpoints.save(step, {"w": np.full((1000, 1000), step)}, {"step": step})
        print(step, flush=True)
"""


def test_kill_in_the_middle_of_a_save(tmp_path):
    process = python(KILLED, tmp_path)
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)  # while step 3, or the next, is being written
    process.communicate()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore({"w": np.zeros((1000, 1000), int)})
        assert restored.step == restored.metadata["step"] >= 2
        assert (restored.tree["w"] == restored.step).all()
        for step in (restored.step + 1, restored.step + 2):
            checkpoints.save(step, restored.tree, {})
    assert checkpoints.steps()[-2:] == [restored.step + 1, restored.step + 2]
    assert not list(tmp_path.glob("*tmp*"))


def test_a_normal_run_is_silent(tmp_path):
    code = """
        import sys
        import jax, jax.numpy as jnp
        from seqjax.checkpoint import Checkpoints

        tree = {"w": jnp.ones((3, 4)), "key": jax.random.key(0)}
        with Checkpoints(sys.argv[1]) as checkpoints:
            for step in range(5):
                checkpoints.save(step, tree, {})
            checkpoints.restore(jax.eval_shape(lambda: tree))
        Checkpoints(sys.argv[1]).restore(tree)
    """
    process = python(code, tmp_path)
    assert process.communicate() == ("", "")


def test_orbax_is_imported_on_first_use():
    code = "import sys, seqjax.checkpoint; assert not any('orbax' in m for m in sys.modules)"
    process = python(code)
    assert process.communicate() == ("", "")
