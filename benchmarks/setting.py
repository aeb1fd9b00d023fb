"""What all benchmarks of a run share: the clock, the model, the prompt and the peer."""

import functools
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
from tqdm import tqdm

import jaxlin
from benchmarks import timing
from benchmarks.export import export
from benchmarks.floor import Floor, bandwidth, large, square_product
from benchmarks.results import Row

TEXT = Path(__file__).parents[1] / "LICENSE"
"""The prompt of every length: its first tokens."""


class Clock:
    """What times calls beside a large product, and shows what it does.

    Attributes:
        runs: how often each call is timed.
        side: of the product that the floor is measured by.
    """

    def __init__(self, runs: int = 3, side: int | None = None) -> None:
        self.runs, self.side = runs, side or large()[0]
        self._bar = tqdm(unit=" runs", file=sys.stderr, bar_format="{n} runs, {elapsed}  {desc}", leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    @functools.cached_property
    def bandwidth(self) -> float:
        """Bytes a second of a large copy."""
        return bandwidth()

    @functools.cached_property
    def _product(self) -> Callable[[], Any]:
        return square_product(self.side)

    def say(self, text: str) -> None:
        """Show what is being done."""
        self._bar.set_description_str(f"{text:40}"[:100])

    def timed(
        self, calls: Mapping[str, Callable[[], Any]], runs: int | None = None
    ) -> tuple[dict[str, timing.Timing], Callable[[float, float], Floor]]:
        """The interleaved runs of `calls`, and what makes a floor of products and bytes at the rate of these runs."""

        def said(name: str) -> None:
            self._bar.update()
            self.say(name)

        product = f"a {self.side} x {self.side} product"
        found = timing.interleaved(self.runs if runs is None else runs, {product: self._product, **calls}, said)
        rate = 2 * self.side**3 / found.pop(product).median
        return found, lambda products, moved: Floor(products, moved, rate, self.bandwidth)


class Setting(Clock):
    """A run of the suite on one checkpoint.

    Attributes:
        model: the decoder.
        tokenizer: its tokenizer.
        checkpoint: where it is from; None for the small model.
        quick: whether to leave out what takes long.
        dense: whether the weights are unpacked once, as the peer holds them, and not within each pass.
        tokens: the lengths that are measured, where they are given.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        *,
        quick: bool = True,
        runs: int = 3,
        side: int | None = None,
        dense: bool = False,
        tokens: Sequence[int] | None = None,
    ) -> None:
        self.model, self.tokenizer = jaxlin.load(checkpoint)
        super().__init__(runs, side)
        self.checkpoint, self.quick, self.dense, self.tokens = checkpoint, quick, dense, tokens
        self._ids = self.tokenizer.encode(TEXT.read_text())
        self._folder = Path(tempfile.mkdtemp(prefix="jaxlin-benchmarks-"))
        if dense and self.exported is not None:
            self.model, _ = jaxlin.load(self.exported)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        shutil.rmtree(self._folder, ignore_errors=True)

    def ids(self, tokens: int) -> list[int]:
        """The first `tokens` of the prompt."""
        return self._ids[:tokens]

    def x(self, tokens: int) -> jax.Array:
        """Their embeddings."""
        return self.model.embed(self.ids(tokens))

    def repeated(self, tokens: int) -> jax.Array:
        """The embeddings of as many tokens, the prompt's over and over."""
        return self.model.embed((self._ids * (1 + tokens // len(self._ids)))[:tokens])

    def sizes(self, quick: tuple[int, ...], more: tuple[int, ...] = ()) -> list[int]:
        """The lengths to measure: those that were asked for, or of these the ones that fit the model's context.

        Raises:
            JaxlinError: a length was asked for that does not fit.
        """
        limit = min(len(self._ids), self.model.config.max_position_embeddings or len(self._ids))
        if self.tokens is not None:
            if not all(1 <= tokens <= limit for tokens in self.tokens):
                raise jaxlin.JaxlinError(f"Tokens: expected lengths in 1..{limit}; found {list(self.tokens)}.")
            return list(self.tokens)
        return [tokens for tokens in (quick if self.quick else quick + more) if tokens <= limit]

    @functools.cached_property
    def exported(self) -> Path | None:
        """The folder of the same weights, dense, as transformers reads them; None for a family that is not exported."""
        self.say("writing the weights for the peer")
        return export(self.model, self.tokenizer, self.checkpoint, self._folder)

    @functools.cached_property
    def peer(self) -> Any:
        """The model under PyTorch with its nonlinear factors detached; None where its family has no such peer."""
        from benchmarks.peer import detached  # torch is no dependency of jaxlin

        return None if self.exported is None else detached(self.exported)


def ratio(a: timing.Timing | Row, b: timing.Timing | Row) -> float:
    """How many times the median of `b` goes into that of `a`."""
    return a.median / b.median
