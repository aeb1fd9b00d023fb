"""Every plot against a stored picture, by a measure that forgives other fonts and lines.

`python tests/plots/test_plots.py` draws the pictures anew. Look at each before you commit it.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.image import imread
from result_samples import samples

from jaxlin.common.errors import JaxlinError

PICTURES = Path(__file__).parent / "pictures"
SAMPLES = samples()

BLOCK = 8
"""Pixels of the squares whose mean brightness is compared."""


def picture(name: str) -> bytes:
    axes = SAMPLES[name].plot()
    content = BytesIO()
    axes.figure.savefig(content, format="png", dpi=40, metadata={"Software": None})
    pyplot.close(axes.figure)
    return content.getvalue()


def blocks(content: Any) -> np.ndarray:
    """The mean colour of each square."""
    pixels = imread(content)[..., :3]
    height, width = (size // BLOCK * BLOCK for size in pixels.shape[:2])
    return pixels[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3).mean((1, 3))


@pytest.mark.parametrize("name", SAMPLES)
def test_picture(name: str) -> None:
    expected, drawn = blocks(PICTURES / f"{name}.png"), blocks(BytesIO(picture(name)))
    assert drawn.shape == expected.shape
    difference = np.abs(drawn - expected)
    assert difference.mean() < 0.01, difference.mean()
    assert (difference.max(-1) > 0.25).mean() < 0.01


def test_in_axes_of_ones_own() -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(3, 2))
    assert SAMPLES["Patching"].plot(ax=left) is left
    assert SAMPLES["Attribution"].plot(right) is right
    assert figure.get_size_inches().tolist() == [3, 2]
    pyplot.close(figure)
    with pytest.raises(JaxlinError, match=r"expected axes of matplotlib, .*; found 3"):
        SAMPLES["Patching"].plot(3)


if __name__ == "__main__":
    for each in SAMPLES:
        (PICTURES / f"{each}.png").write_bytes(picture(each))
