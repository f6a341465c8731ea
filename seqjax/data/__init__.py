"""Corpora and batches.

A corpus is a mapping from split name to pieces of text, `{"train": pieces, "validation": pieces, …}`; pieces are an
iterable that can be read again, of `(text, last)` where `last` says that the document ends there.
`seqjax.data.shakespeare` is imported on its own, because it needs tensorflow_datasets.

For models from sequence to sequence there are pairs of ids. Their texts come from `parallel_folder`,
`seqjax.data.cmudict` (words and their pronunciations) or `seqjax.data.scitldr` (abstracts and their summaries).

Tagged words, texts with labels and questions with answers come as lists of records from the readers `conll_file`,
`conllu_file`, `labelled_lines`, `labelled_tsv`, `labelled_folder`, `labelled_files`, `squad_file` and `babi_file`. On
bad input they name file and line.
"""

from seqjax.data.babi import Story as Story
from seqjax.data.babi import babi_file as babi_file
from seqjax.data.buckets import Buckets as Buckets
from seqjax.data.buckets import Shape as Shape
from seqjax.data.buckets import each_once as each_once
from seqjax.data.buckets import padded as padded
from seqjax.data.buckets import plan_shapes as plan_shapes
from seqjax.data.conll import Sentence as Sentence
from seqjax.data.conll import conll_file as conll_file
from seqjax.data.conll import conllu_file as conllu_file
from seqjax.data.files import read_lines as read_lines
from seqjax.data.files import read_text as read_text
from seqjax.data.files import standard_input as standard_input
from seqjax.data.labelled import Labelled as Labelled
from seqjax.data.labelled import labelled_files as labelled_files
from seqjax.data.labelled import labelled_folder as labelled_folder
from seqjax.data.labelled import labelled_lines as labelled_lines
from seqjax.data.labelled import labelled_tsv as labelled_tsv
from seqjax.data.pairs import Pair as Pair
from seqjax.data.pairs import PairBatch as PairBatch
from seqjax.data.pairs import PairBuckets as PairBuckets
from seqjax.data.pairs import bucket_shapes as bucket_shapes
from seqjax.data.pairs import count_cut as count_cut
from seqjax.data.pairs import evaluation_batches as evaluation_batches
from seqjax.data.parallel import parallel_folder as parallel_folder
from seqjax.data.parallel import parallel_texts as parallel_texts
from seqjax.data.parallel import without_empty as without_empty
from seqjax.data.sources import TextRange as TextRange
from seqjax.data.sources import cache_dir as cache_dir
from seqjax.data.sources import text_file as text_file
from seqjax.data.sources import tokens as tokens
from seqjax.data.squad import SquadAnswer as SquadAnswer
from seqjax.data.squad import SquadQuestion as SquadQuestion
from seqjax.data.squad import squad_file as squad_file
from seqjax.data.windows import Batch as Batch
from seqjax.data.windows import BPTTWindows as BPTTWindows
from seqjax.data.windows import batches as batches
from seqjax.data.windows import evaluation_windows as evaluation_windows
