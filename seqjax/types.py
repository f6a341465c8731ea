"""One letter per dimension, used in every signature and docstring of seqjax.

    B batch          T time (targets, queries)     S source time (keys, values)
    D input size     H hidden size                 G gates of a cell (lstm 4, gru 3, elman 1); GH is G times H
    N heads          K key/value heads             V vocabulary
    L layers                       Y tags

Annotations are checked in the tests only (jaxtyping with beartype); without jaxtyping they are plain ``jax.Array``.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

try:
    from jaxtyping import Bool, Float, Int, Key
except ImportError:  # a GPU machine may carry jax and nothing else
    if not TYPE_CHECKING:

        class _AnyShape:
            def __class_getitem__(cls, item):
                return Any

        Bool = Float = Int = Key = _AnyShape

PRNGKey = Key[Array, ""]
Scalar = float | Float[Array, ""]
PyTree = Any
Params = Mapping[str, Any]  # what `purify` returns: a plain dict whose leaves are arrays or NamedTuples of arrays
if TYPE_CHECKING:
    Size = int
else:
    Size = Any  # of an axis: an int, or a letter where jax.export leaves it open


def wide(dtype: Any) -> np.dtype:
    """The dtype of sums over many numbers: at least float32.

    It is NumPy's answer: under strict promotion JAX's function refuses to mix dtypes.
    """
    return np.promote_types(dtype, np.float32)


__all__ = ["Array", "Bool", "Float", "Int", "Key", "PRNGKey", "Params", "PyTree", "Scalar", "Size", "wide"]
