"""Which keys of a config.json change what a model computes: measured with transformers, not read from its code."""
