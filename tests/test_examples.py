"""The examples run on the small model, and what they print is what they say."""

import re
import subprocess
import sys
from pathlib import Path

import jaxlin

EXAMPLES = Path(__file__).parents[1] / "examples"


def printed(name: str, *arguments: str) -> str:
    """What an example prints; warnings are errors there too."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_walkthrough() -> None:
    text = printed("walkthrough")
    residual, ordinary = re.search(r"f\(x\)\| = (\S+)", text), re.search(r"reconstructs nothing: (\S+)", text)
    assert residual
    assert ordinary
    assert float(residual[1]) <= 3e-6 < 0.1 < float(ordinary[1])
    assert len(re.findall(r"^   layer +\d", text, re.MULTILINE)) == 4
    assert "path (+1.00, +1.00)" in text


def test_attribution() -> None:
    text = printed("attribution", "The children went to the", "--target", "park", "--over", "house")
    value = re.search(r"\('park', 'house'\): (\S+)", text)
    assert value
    by_token = text.split("by token")[1].split("by part")[0]
    parts = [float(size) for size in re.findall(r" ([+-]\d+\.\d{3})  ", by_token + " ")]
    assert abs(sum(parts) - float(value[1])) < 2e-3 * len(parts)


def test_patching() -> None:
    """At first all of it is at the token that differs; by the last layer most has moved to where it is read."""
    text = printed("patching")
    measured, predicted = text.split("Predicted by the map")
    rows = [re.findall(r"·|-?\d\.\d\d", row) for row in re.findall(r"^│ [0-3] +│(.*)│$", measured, re.MULTILINE)]
    assert rows[0] == ["·", "·", "1.00", "·", "·", "·"]
    assert float(rows[3][-1]) > float(rows[3][2]) > 0
    correlation = re.search(r"rank correlation (\S+)", predicted)
    assert correlation
    assert float(correlation[1]) > 0.9


def test_circuit() -> None:
    """The more edges are left, the more of the difference."""
    text = printed("circuit")
    rows = re.findall(r"^ +(\d+)% +(\d+) +(\S+) +\S+ +(\S+)$", text, re.MULTILINE)
    shares = [float(alone) for _, _, alone, _ in rows]
    assert shares == sorted(shares)
    assert shares[-1] > 0.9
    assert "the largest edges\n     embed → m0" in text


def test_lens(tmp_path: Path) -> None:
    """The last row of each table is the model's own answer."""
    model, tokenizer = jaxlin.load()
    ids = tokenizer.encode("The man in the [big] house is the")
    jaxlin.lens.save(jaxlin.lens.fit(model, [ids], skip_first=1), tmp_path / "some.pt")
    text = printed("lens", tokenizer.decode(ids[1:]), "--lens", str(tmp_path / "some.pt"))
    answer = tokenizer.token(int(jaxlin.lens.read(model, model.embed(ids), k=1).ids[-1, -1, 0]))
    logit, exact = text.split("Exactly")
    lasts = [row.split("│")[-2] for row in logit.splitlines() if row.startswith("│ 3 ")]
    assert [last.strip() for last in lasts] == [answer.strip()] * 2
    assert exact.splitlines()[-2].split()[-2:] == ["100%", "│"]


def test_steering() -> None:
    text = printed("steering", "--layer", "2")
    rows = re.findall(r"^ +([\d.]+)  \S* +(\d+)%", text, re.MULTILINE)
    assert len(rows) == 20
    rates = [int(rate) for strength, rate in rows[:5]]
    assert rates[-1] > rates[0]
