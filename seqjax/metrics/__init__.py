"""How results are measured, by counting on the host: texts (diversity, BLEU, chrF, TER, ROUGE, edit distances), classes
(precision, recall, F1), spans of tags, and answers to questions.

BLEU, chrF and TER equal sacrebleu's, ROUGE equals that of rouge-score, spans equal seqeval's and conlleval's, classes
scikit-learn's, answers those of SQuAD's script. Numbers go wrong, or cannot be compared with published ones, for these
reasons:

- ``references[i]`` belongs to ``hypotheses[i]`` and is one string or several. sacrebleu wants them the other way
  round: a list of all the first references, a list of all the second.
- `bleu` expects text as people write it and tokenizes it as WMT does ("13a", see `bleu.tokenize_13a`): join subwords
  and tokens to plain text first. BLEU of texts in tokens, such as the lower-cased numbers that are published for
  Multi30k, is ``bleu(…, tokenize="none", lowercase=True)`` of hypotheses and references in the same tokens, with
  spaces between them. It depends on the tokenizer, can be points away from the former, and cannot be compared with it.
  The references are part of the measure: other quotation marks, letters or unknown words in them give other numbers.
  Publish the signature with the score.
- BLEU, chrF and TER of a corpus are not the means of its sentences: counts are added up first.
- BLEU, chrF and ROUGE's score go from 0 to 100; TER may exceed 100. `exact_match`, `error_rate` and the scores of
  classes, spans and answers are shares, where conlleval and SQuAD's script print percentages; `error_rate` may exceed
  1. TER and error rates are the better the lower.
- Spans that begin with I, without B, count by default, and do not with ``strict``: see `spans`.
- "13a" and "none" split at spaces: for Chinese or Japanese take ``tokenize="char"``, or chrF.
- ROUGE knows the letters a to z and digits only: "naïve" is "na" and "ve", and other scripts have no words at all.
"""

from seqjax.metrics.answers import SquadScores as SquadScores
from seqjax.metrics.answers import squad_scores as squad_scores
from seqjax.metrics.bleu import Bleu as Bleu
from seqjax.metrics.bleu import bleu as bleu
from seqjax.metrics.bleu import sentence_bleu as sentence_bleu
from seqjax.metrics.chrf import Chrf as Chrf
from seqjax.metrics.chrf import chrf as chrf
from seqjax.metrics.classification import ClassificationReport as ClassificationReport
from seqjax.metrics.classification import Scores as Scores
from seqjax.metrics.classification import classification_report as classification_report
from seqjax.metrics.classification import confusion_matrix as confusion_matrix
from seqjax.metrics.classification import score_table as score_table
from seqjax.metrics.diversity import distinct as distinct
from seqjax.metrics.diversity import entropy as entropy
from seqjax.metrics.edit import edit_distance as edit_distance
from seqjax.metrics.edit import error_rate as error_rate
from seqjax.metrics.edit import exact_match as exact_match
from seqjax.metrics.rouge import Rouge as Rouge
from seqjax.metrics.rouge import rouge as rouge
from seqjax.metrics.spans import Span as Span
from seqjax.metrics.spans import SpanF1 as SpanF1
from seqjax.metrics.spans import SpanReport as SpanReport
from seqjax.metrics.spans import span_f1 as span_f1
from seqjax.metrics.spans import span_report as span_report
from seqjax.metrics.spans import spans as spans
from seqjax.metrics.ter import Ter as Ter
from seqjax.metrics.ter import ter as ter
