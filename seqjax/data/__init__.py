"""Corpora and batches.

A corpus is a mapping from split name to pieces of text, `{"train": pieces, "validation": pieces, …}`; pieces are an
iterable that can be read again, of `(text, last)` where `last` says that the document ends there.
`seqjax.data.shakespeare` is imported on its own, because it needs tensorflow_datasets.

For models from sequence to sequence there are pairs of ids. Their texts come from `parallel_folder`,
`seqjax.data.cmudict` (words and their pronunciations) or `seqjax.data.scitldr` (abstracts and their summaries).
"""

from seqjax.data.buckets import Buckets as Buckets
from seqjax.data.buckets import Shape as Shape
from seqjax.data.buckets import each_once as each_once
from seqjax.data.buckets import padded as padded
from seqjax.data.buckets import plan_shapes as plan_shapes
from seqjax.data.pairs import Pair as Pair
from seqjax.data.pairs import PairBatch as PairBatch
from seqjax.data.pairs import PairBuckets as PairBuckets
from seqjax.data.pairs import bucket_shapes as bucket_shapes
from seqjax.data.pairs import count_cut as count_cut
from seqjax.data.pairs import evaluation_batches as evaluation_batches
from seqjax.data.parallel import parallel_folder as parallel_folder
from seqjax.data.parallel import parallel_texts as parallel_texts
from seqjax.data.parallel import text_lines as text_lines
from seqjax.data.parallel import without_empty as without_empty
from seqjax.data.sources import TextRange as TextRange
from seqjax.data.sources import cache_dir as cache_dir
from seqjax.data.sources import text_file as text_file
from seqjax.data.sources import tokens as tokens
from seqjax.data.windows import Batch as Batch
from seqjax.data.windows import BPTTWindows as BPTTWindows
from seqjax.data.windows import batches as batches
from seqjax.data.windows import evaluation_windows as evaluation_windows
