"""The subject of all figures: a model at a text, with the values that several figures share, each computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxlin.linearize.local_maps import local_map
from jaxlin.linearize.operator import LocalMap
from jaxlin.nn.decoder import Decoder
from jaxlin.nn.prompt import Embeddings
from jaxlin.report.paper.run_folder import RunFolder
from jaxlin.spectrum.layer_spectra import LayerSpectra, cumulative_spectra
from jaxlin.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Subject:
    """A model at a text.

    Attributes:
        model: any decoder.
        tokenizer: its tokenizer.
        text: the prompt.
        phrases: the short texts of figure 3.
        steer: the phrase whose map steers in table 2.
        seed: of all random numbers.
        folder: where a part that takes long writes its progress.
        progress: whether to show progress bars.
    """

    model: Decoder
    tokenizer: Tokenizer
    text: str
    phrases: Sequence[str]
    steer: str
    seed: int
    folder: RunFolder
    progress: bool

    @cached_property
    def ids(self) -> list[int]:
        """The prompt's token ids."""
        return self.tokenizer.encode(self.text)

    @cached_property
    def tokens(self) -> list[str]:
        """The prompt's tokens."""
        return self.tokenizer.to_str_tokens(self.ids)

    @cached_property
    def x(self) -> Float[Embeddings, "t d"]:
        """The input embeddings."""
        return self.model.embed(self.ids)

    @cached_property
    def lmap(self) -> LocalMap:
        """The map to the last position."""
        return local_map(self.model, self.x)

    @cached_property
    def output(self) -> Float[np.ndarray, " d"]:
        """The model's output at the last position, after the final norm."""
        return np.asarray(self.lmap.output)

    @cached_property
    def jacobian(self) -> Float[np.ndarray, "d t e"]:
        """The dense map."""
        return np.asarray(self.lmap.jacobian(progress=self.progress))

    @cached_property
    def cumulative(self) -> dict[str, LayerSpectra]:
        """The spectra of the maps from the embeddings to each layer."""
        return cumulative_spectra(self.model, self.x)

    def words(self, ids: Any) -> Any:
        """The tokens of token ids, which may be nested in lists."""
        if isinstance(ids, list):
            return [self.words(each) for each in ids]
        return self.tokenizer.token(int(ids))


def shipped_phrases() -> list[str]:
    """The 100 short phrases that ship with the package."""
    return resources.files("jaxlin.report.paper").joinpath("phrases.txt").read_text("utf-8").splitlines()
