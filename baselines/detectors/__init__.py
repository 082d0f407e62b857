"""Detectors of text that a language model wrote: zero-shot statistics of a language model, and trained classifiers.

Every detector gives a score that is higher for text more likely generated.
"""
