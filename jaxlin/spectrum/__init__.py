"""Spectra of maps: of every layer, in words, their ranks, and the null baselines that they are to be read beside."""

from jaxlin.linearize.linalg.triplets import SVD, effective_rank, stable_rank
from jaxlin.spectrum.layer_spectra import LayerSpectra, cumulative, single, to_output
from jaxlin.spectrum.null_baselines import Baselines, baselines, principal_angles, rule_turns, shuffled_weights
from jaxlin.spectrum.prediction_ranks import MapRanks, ranks, ranks_of
from jaxlin.spectrum.words import (
    Nearest,
    TripletWords,
    largest_columns,
    largest_rows,
    left_words,
    nearest_embeddings,
    promoted,
    right_words,
    triplet_words,
)

__all__ = [
    "SVD",
    "Baselines",
    "LayerSpectra",
    "MapRanks",
    "Nearest",
    "TripletWords",
    "baselines",
    "cumulative",
    "effective_rank",
    "largest_columns",
    "largest_rows",
    "left_words",
    "nearest_embeddings",
    "principal_angles",
    "promoted",
    "ranks",
    "ranks_of",
    "right_words",
    "rule_turns",
    "shuffled_weights",
    "single",
    "stable_rank",
    "to_output",
    "triplet_words",
]
