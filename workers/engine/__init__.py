"""Continuous batching: requests become sequences, sequences become steps, steps become tokens and text.

Imports no library that runs models: those are behind the seams in `runner`, `sampler` and `tokenizer`.
"""
