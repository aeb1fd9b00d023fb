"""Helpers that know nothing of models: errors, values as they are printed, strict JSON, files that appear whole."""
