"""Strict settings for every test: no silent promotion, no silent broadcasting, four fake devices, checked shapes."""

import gc
import importlib.metadata
import os

# Before jax starts: one thread an operation, since the tests run in several processes; and machine code that is not
# optimised, in one piece, and from XLA's plain emitters, since compiling takes most of their time and takes the
# emitters of fusions several times as long. Graphs are optimised as ever. jax 0.11 has no plain emitters any more, so
# the tests marked `fast` run with those of fusions too. Flags that are set already come last and win.
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    + "--xla_cpu_use_fusion_emitters=false " * (importlib.metadata.version("jax") < "0.11")
    + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)  # no operation of a program says where it was written: 2 %

install_import_hook("seqjax", "beartype.beartype")

# Traced programs are many small objects, hardly any of them garbage: looking for it as often as Python does costs 7 %.
gc.set_threshold(50_000, 20, 50)

# No deadline: how long an example takes says nothing here.
hypothesis.settings.register_profile("seqjax", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("seqjax")


@pytest.fixture
def x64():
    """Run a test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    return jax.random.key(20)
