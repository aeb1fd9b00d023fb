"""Helpers that know nothing of models: errors, printable text, strict JSON, files, arrays and the device's memory."""
