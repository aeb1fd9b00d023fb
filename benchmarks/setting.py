"""The parts that all benchmarks of a run share: the clock, the model, the prompt and the peer."""

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
"""The text whose first tokens are the prompt of every length."""


class Clock:
    """Times calls beside a large matrix product, and shows on a progress bar what is being timed.

    Attributes:
        runs: how often each call is timed.
        side: the side of the matrices whose product gives the rate of the floor.
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
        """The bytes a second, read and written, of a large copy."""
        return bandwidth()

    @functools.cached_property
    def _product(self) -> Callable[[], Any]:
        return square_product(self.side)

    def say(self, text: str) -> None:
        """Show `text` beside the progress bar."""
        self._bar.set_description_str(f"{text:40}"[:100])

    def timed(
        self, calls: Mapping[str, Callable[[], Any]], runs: int | None = None
    ) -> tuple[dict[str, timing.Timing], Callable[[float, float], Floor]]:
        """Time `calls`, interleaved.

        Returns:
            The runs of each, and a function from operations and bytes to their `Floor` at the rate of these runs.
        """

        def announce(name: str) -> None:
            self._bar.update()
            self.say(name)

        product = f"a {self.side} x {self.side} product"
        timings = timing.interleaved(self.runs if runs is None else runs, {product: self._product, **calls}, announce)
        rate = 2 * self.side**3 / timings.pop(product).median
        return timings, lambda products, moved: Floor(products, moved, rate, self.bandwidth)


class Setting(Clock):
    """A run of the suite on one checkpoint.

    Attributes:
        model: the decoder.
        tokenizer: its tokenizer.
        checkpoint: the name it was loaded by; None for the small model.
        quick: whether long runs are left out.
        dense: whether the weights are unpacked once, as the peer stores them, rather than within each pass.
        tokens: the lengths to measure; None for those that each benchmark has.
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
        """The embeddings of `ids(tokens)`."""
        return self.model.embed(self.ids(tokens))

    def repeated(self, tokens: int) -> jax.Array:
        """The embeddings of `tokens` tokens: those of the prompt, repeated as often as it takes."""
        return self.model.embed((self._ids * (1 + tokens // len(self._ids)))[:tokens])

    def sizes(self, quick: tuple[int, ...], more: tuple[int, ...] = ()) -> list[int]:
        """The lengths to measure: those of the command line, or those given here that fit the context of the model.

        Raises:
            JaxlinError: the command line has a length that does not fit.
        """
        limit = min(len(self._ids), self.model.config.max_position_embeddings or len(self._ids))
        if self.tokens is not None:
            if not all(1 <= tokens <= limit for tokens in self.tokens):
                raise jaxlin.JaxlinError(f"Tokens: expected lengths in 1..{limit}; found {list(self.tokens)}.")
            return list(self.tokens)
        return [tokens for tokens in (quick if self.quick else quick + more) if tokens <= limit]

    @functools.cached_property
    def exported(self) -> Path | None:
        """A folder with the same weights, dense, that transformers reads; None for a family that is not exported."""
        self.say("writing the weights for the peer")
        return export(self.model, self.tokenizer, self.checkpoint, self._folder)

    @functools.cached_property
    def peer(self) -> Any:
        """The model in PyTorch with its nonlinear factors detached; None for a family without such a peer."""
        from benchmarks.peer import detached  # torch is no dependency of jaxlin

        return None if self.exported is None else detached(self.exported)


def ratio(a: timing.Timing | Row, b: timing.Timing | Row) -> float:
    """The median of `a` over that of `b`."""
    return a.median / b.median
