"""Spectra of maps: of every layer, in words, their ranks, and the null baselines that they are to be read beside."""

from jaxlin.linearize.linalg.triplets import SVD, effective_rank, stable_rank
from jaxlin.spectrum.layer_spectra import LayerSpectra, cumulative_spectra, single_layer_spectra, spectra_to_output
from jaxlin.spectrum.null_baselines import (
    Baseline,
    Baselines,
    RuleAngles,
    compare_baselines,
    principal_angles,
    rule_angles,
    shuffled_weights,
)
from jaxlin.spectrum.prediction_ranks import MapRanks, Ranks, map_ranks, ranks_of_spectrum
from jaxlin.spectrum.words import (
    Nearest,
    TripletWords,
    largest_columns,
    largest_rows,
    left_words,
    nearest_embeddings,
    promoted_tokens,
    right_words,
    triplet_words,
)

__all__ = [
    "SVD",
    "Baseline",
    "Baselines",
    "LayerSpectra",
    "MapRanks",
    "Nearest",
    "Ranks",
    "RuleAngles",
    "TripletWords",
    "compare_baselines",
    "cumulative_spectra",
    "effective_rank",
    "largest_columns",
    "largest_rows",
    "left_words",
    "map_ranks",
    "nearest_embeddings",
    "principal_angles",
    "promoted_tokens",
    "ranks_of_spectrum",
    "right_words",
    "rule_angles",
    "shuffled_weights",
    "single_layer_spectra",
    "spectra_to_output",
    "stable_rank",
    "triplet_words",
]
