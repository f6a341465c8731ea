"""seqjax: a functional model zoo for sequences in JAX. Importing it imports jax and numpy, nothing else.

``seqjax.purify``, ``seqjax.nn``, ``seqjax.models``, ``seqjax.train`` and the other modules that need Flax, Optax or
Orbax are imported when they are first used.
"""

from importlib import import_module as _import_module

from seqjax import attention as attention
from seqjax import cells as cells
from seqjax import convert as convert
from seqjax import crf as crf
from seqjax import decoding as decoding
from seqjax import layers as layers
from seqjax import losses as losses
from seqjax import metrics as metrics
from seqjax import normalization as normalization
from seqjax import positions as positions
from seqjax.cells import CELLS as CELLS
from seqjax.cells import Cell as Cell
from seqjax.recurrence import bidirectional as bidirectional
from seqjax.recurrence import initial_carry as initial_carry
from seqjax.recurrence import stack as stack
from seqjax.recurrence import step as step
from seqjax.recurrence import unroll as unroll

__version__ = "0.1.0"

_LAZY = (
    *("checkpoint", "config", "data", "embeddings", "export", "models"),
    *("nn", "reporting", "sharding", "text", "train"),
)


def __getattr__(name: str):
    if name == "purify":
        return _import_module("seqjax.nn").purify
    if name in _LAZY:
        return _import_module(f"seqjax.{name}")
    raise AttributeError(f"module 'seqjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, "purify"])
