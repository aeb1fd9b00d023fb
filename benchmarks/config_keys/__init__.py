"""Measures with transformers which keys of a config.json change the logits of a model."""
