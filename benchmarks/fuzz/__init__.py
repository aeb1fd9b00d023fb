"""Hostile files of every kind that jaxlin reads from strangers or resumes from: valid files with a few changes.

``python -m benchmarks.fuzz --minutes 5`` runs all readers in turn. Each input is a function of the seed, its reader and
a number, so that ``--repro READER NUMBER`` makes it again; see `benchmarks.fuzz.__main__`.

A new reader gets a function in the module of its format, marked ``@reader(weight)``: the function writes an input into
a folder and returns a call that reads it (`benchmarks.fuzz.readers`).
"""
