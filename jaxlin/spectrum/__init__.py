"""Spectra of local linear maps: their ranks, the tokens of their singular vectors, and their null baselines.

`map_ranks` counts the ranks of one map, `triplet_words` gives the tokens of its singular vectors, and
`cumulative_spectra`, `single_layer_spectra` and `spectra_to_output` give the spectra of every layer. Read all of them
beside the null baselines of `compare_baselines`.
"""

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
    Features,
    Poles,
    TopTokens,
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
    "Features",
    "LayerSpectra",
    "MapRanks",
    "Poles",
    "Ranks",
    "RuleAngles",
    "TopTokens",
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
