"""What importing seqjax costs, and what of Flax it uses. Imports are watched in processes of their own."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import seqjax

PACKAGE = Path(seqjax.__file__).parent
FLAX_NAMES = {"Module", "Param", "List", "Rngs", "graphdef", "state", "merge", "eval_shape", "to_pure_dict"}
HEAVY = ("flax", "optax", "orbax", "tensorflow_datasets", "grain", "tyro", "rich", "matplotlib", "tensorboardX")


def python(code, *blocked):
    """Run code in a fresh process in which the blocked packages cannot be imported; returns what it prints."""
    block = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    # sys.path as here, since the package need not be installed.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.fast
def test_import_seqjax_imports_jax_and_numpy_only():
    loaded = python("import seqjax; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert "jax" in loaded
    assert set(HEAVY).isdisjoint(loaded)


def test_the_core_works_with_jax_and_numpy_alone():
    python(
        """
        import jax, jax.numpy as jnp
        import seqjax
        from seqjax import cells, decoding, layers, losses, recurrence

        for cell in cells.CELLS.values():
            jax.eval_shape(lambda: cell.init(jax.random.key(0), 3, 4))
        params = cell.init(jax.random.key(0), 3, 4)
        carry, ys = recurrence.unroll(cell, params, jnp.ones((5, 2, 3)), lengths=jnp.array([5, 2]))
        recurrence.step(cell, params, carry, jnp.ones((2, 3)))
        total, weight = losses.cross_entropy(ys, jnp.zeros((5, 2), jnp.int32))
        table = layers.dropout(jax.random.key(1), jnp.zeros((4, 4)), 0.5)
        step = lambda params, state, tokens: (state, params[tokens])
        decoding.greedy(step, table, (), table[:2], max_length=3)
        """,
        *HEAVY,
        "jaxtyping",
    )


def test_names_that_need_flax_say_so_when_used_and_not_before():
    python(
        """
        import seqjax
        try:
            seqjax.purify
        except ModuleNotFoundError as error:
            assert error.name == "flax"
        else:
            raise AssertionError("purify was imported without flax")
        """,
        "flax",
    )


def test_lazy_names():
    assert python("import seqjax; print(seqjax.purify.__module__, seqjax.train.fit.__module__)").split() == [
        "seqjax.nn",
        "seqjax.train",
    ]
    with pytest.raises(AttributeError, match="no attribute 'puriffy'"):
        _ = seqjax.puriffy


def trees():
    return {path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def test_only_the_shell_and_the_models_import_flax():
    for path, tree in trees().items():
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = [node.module or "" for node in imports if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names]
        if any(module.partition(".")[0] == "flax" for module in modules):
            assert path == Path("nn.py") or path.parts[0] == "models", path


def test_nine_names_of_flax_are_used():
    """These mean the same in graph mode and in tree mode, and in both Flax lines."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nnx":
                assert node.attr in FLAX_NAMES, f"{path}:{node.lineno}"
            # Another form of import would escape the line above.
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "flax":
                assert [(node.module, alias.name, alias.asname) for alias in node.names] == [("flax", "nnx", None)]
            if isinstance(node, ast.Import):
                assert not any(alias.name.partition(".")[0] == "flax" for alias in node.names), f"{path}:{node.lineno}"


def public_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = [alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    return sorted([name for name in imported if name] + list(seqjax._LAZY) + ["purify"])


def test_public_names_have_docstrings():
    names = public_names()
    assert {"unroll", "CELLS", "losses", "nn", "purify"} <= set(names)
    assert set(names) <= set(dir(seqjax))
    for name in names:
        if name != "CELLS":
            assert inspect.getdoc(getattr(seqjax, name)), name


def test_public_functions_of_every_module_have_docstrings():
    for path in trees():
        module = importlib.import_module(".".join(["seqjax", *path.with_suffix("").parts]).removesuffix(".__init__"))
        assert module.__doc__ or path.name == "__init__.py", path
        for name, value in vars(module).items():
            if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == module.__name__:
                assert value.__doc__, f"{path}: {name}"
