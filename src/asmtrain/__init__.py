"""Trains, exports and judges assembly models on the corpora that corpus_builder makes."""
