"""Hostile files: everything that jaxlin reads from strangers or takes up again, valid but for a few changes.

``python -m benchmarks.fuzz --minutes 5`` runs all readers in turn. Each input is a function of the seed, its reader and
a number, so that ``--repro READER NUMBER`` makes it again; see `benchmarks.fuzz.__main__`.

A reader that is new gets a function of its own in the module of its format, marked ``@reader(weight)``: it writes an
input into a folder and returns what reads it (`benchmarks.fuzz.readers`).
"""
