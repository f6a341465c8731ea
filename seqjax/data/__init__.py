"""Corpora and batches.

A corpus is a mapping from split name to pieces of text, `{"train": pieces, "validation": pieces, …}`; pieces are an
iterable that can be read again, of `(text, last)` where `last` says that the document ends there.
`seqjax.data.shakespeare` is imported on its own, because it needs tensorflow_datasets.
"""

from seqjax.data.sources import TextRange as TextRange
from seqjax.data.sources import cache_dir as cache_dir
from seqjax.data.sources import text_file as text_file
from seqjax.data.sources import tokens as tokens
from seqjax.data.windows import Batch as Batch
from seqjax.data.windows import BPTTWindows as BPTTWindows
from seqjax.data.windows import batches as batches
from seqjax.data.windows import evaluation_windows as evaluation_windows
