"""Text to token ids and back: character, byte, word and subword tokenizers with one interface."""

from seqjax.text.tokenizers import EOS as EOS
from seqjax.text.tokenizers import PAD as PAD
from seqjax.text.tokenizers import SOS as SOS
from seqjax.text.tokenizers import SPECIALS as SPECIALS
from seqjax.text.tokenizers import UNK as UNK
from seqjax.text.tokenizers import BPETokenizer as BPETokenizer
from seqjax.text.tokenizers import ByteTokenizer as ByteTokenizer
from seqjax.text.tokenizers import CharTokenizer as CharTokenizer
from seqjax.text.tokenizers import SpaceTokenizer as SpaceTokenizer
from seqjax.text.tokenizers import Tokenizer as Tokenizer
from seqjax.text.tokenizers import WordTokenizer as WordTokenizer
from seqjax.text.tokenizers import load_tokenizer as load_tokenizer
from seqjax.text.tokenizers import save_tokenizer as save_tokenizer
from seqjax.text.tokenizers import split_words as split_words
from seqjax.text.tokenizers import train_tokenizer as train_tokenizer
