"""The model zoo: one file a model, each a short Flax module over seqjax's pure functions."""
