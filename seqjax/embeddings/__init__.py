"""Word embeddings: from counts, Word2Vec, FastText, GloVe; questions to them, and their evaluation.

Importing it imports jax and numpy only.
"""

from seqjax.embeddings.counts import Cooccurrence as Cooccurrence
from seqjax.embeddings.counts import bag_of_words as bag_of_words
from seqjax.embeddings.counts import cooccurrence as cooccurrence
from seqjax.embeddings.counts import idf as idf
from seqjax.embeddings.counts import one_hot as one_hot
from seqjax.embeddings.counts import ppmi as ppmi
from seqjax.embeddings.counts import tf_idf as tf_idf
from seqjax.embeddings.factorize import pca as pca
from seqjax.embeddings.factorize import svd_embeddings as svd_embeddings
from seqjax.embeddings.factorize import truncated_svd as truncated_svd
from seqjax.embeddings.fasttext import FastTextConfig as FastTextConfig
from seqjax.embeddings.fasttext import train_fasttext as train_fasttext
from seqjax.embeddings.formats import load_fasttext as load_fasttext
from seqjax.embeddings.formats import load_glove as load_glove
from seqjax.embeddings.formats import load_vectors as load_vectors
from seqjax.embeddings.formats import load_word2vec as load_word2vec
from seqjax.embeddings.formats import save_fasttext as save_fasttext
from seqjax.embeddings.formats import save_glove as save_glove
from seqjax.embeddings.formats import save_word2vec as save_word2vec
from seqjax.embeddings.glove import GloVeConfig as GloVeConfig
from seqjax.embeddings.glove import fit_glove as fit_glove
from seqjax.embeddings.glove import glove_loss as glove_loss
from seqjax.embeddings.glove import glove_step as glove_step
from seqjax.embeddings.glove import train_glove as train_glove
from seqjax.embeddings.phrases import PhraseCorpus as PhraseCorpus
from seqjax.embeddings.phrases import Phrases as Phrases
from seqjax.embeddings.phrases import find_phrases as find_phrases
from seqjax.embeddings.phrases import join_phrases as join_phrases
from seqjax.embeddings.plots import export_projector as export_projector
from seqjax.embeddings.plots import plot_words as plot_words
from seqjax.embeddings.skipgram import pair_weights as pair_weights
from seqjax.embeddings.skipgram import skipgram_loss as skipgram_loss
from seqjax.embeddings.skipgram import skipgram_update as skipgram_update
from seqjax.embeddings.skipgram import window_weights as window_weights
from seqjax.embeddings.subwords import Subwords as Subwords
from seqjax.embeddings.subwords import compose as compose
from seqjax.embeddings.subwords import ngram_table as ngram_table
from seqjax.embeddings.vectors import WordVectors as WordVectors
from seqjax.embeddings.vocabulary import Vocabulary as Vocabulary
from seqjax.embeddings.vocabulary import count_words as count_words
from seqjax.embeddings.vocabulary import encode as encode
from seqjax.embeddings.vocabulary import make_vocabulary as make_vocabulary
from seqjax.embeddings.vocabulary import sentences as sentences
from seqjax.embeddings.word2vec import Word2VecConfig as Word2VecConfig
from seqjax.embeddings.word2vec import train_word2vec as train_word2vec
from seqjax.embeddings.word2vec import train_word2vec_study as train_word2vec_study
