"""How texts are measured, by counting on the host: diversity, BLEU, chrF, TER, ROUGE, edit distances.

BLEU, chrF and TER equal sacrebleu's, ROUGE equals that of rouge-score. Numbers go wrong, or cannot be compared with
published ones, for these reasons:

- ``references[i]`` belongs to ``hypotheses[i]`` and is one string or several. sacrebleu wants them the other way
  round: a list of all the first references, a list of all the second.
- `bleu` expects text as people write it and tokenizes it as WMT does ("13a", see `bleu.tokenize_13a`): join subwords
  and tokens to plain text first. BLEU of texts in tokens, such as the lower-cased numbers that are published for
  Multi30k, is ``bleu(…, tokenize="none", lowercase=True)`` of hypotheses and references in the same tokens, with
  spaces between them. It depends on the tokenizer, can be points away from the former, and cannot be compared with it.
  The references are part of the measure: other quotation marks, letters or unknown words in them give other numbers.
  Publish the signature with the score.
- BLEU, chrF and TER of a corpus are not the means of its sentences: counts are added up first.
- BLEU, chrF and ROUGE's score go from 0 to 100; TER may exceed 100. `exact_match` and `error_rate` are shares, and the
  latter may exceed 1. TER and error rates are the better the lower.
- "13a" and "none" split at spaces: for Chinese or Japanese take ``tokenize="char"``, or chrF.
- ROUGE knows the letters a to z and digits only: "naïve" is "na" and "ve", and other scripts have no words at all.
"""

from seqjax.metrics.bleu import Bleu as Bleu
from seqjax.metrics.bleu import bleu as bleu
from seqjax.metrics.bleu import sentence_bleu as sentence_bleu
from seqjax.metrics.chrf import Chrf as Chrf
from seqjax.metrics.chrf import chrf as chrf
from seqjax.metrics.diversity import distinct as distinct
from seqjax.metrics.diversity import entropy as entropy
from seqjax.metrics.edit import edit_distance as edit_distance
from seqjax.metrics.edit import error_rate as error_rate
from seqjax.metrics.edit import exact_match as exact_match
from seqjax.metrics.rouge import Rouge as Rouge
from seqjax.metrics.rouge import rouge as rouge
from seqjax.metrics.ter import Ter as Ter
from seqjax.metrics.ter import ter as ter
