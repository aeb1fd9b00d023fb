"""The page of an explanation: what is in the file, and what a person meets in a browser."""

import base64
import errno
import hashlib
import html
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from command import jaxlin_command
from playwright.sync_api import Browser, Page

import jaxlin
from jaxlin import lens as lenses
from jaxlin.common.token_names import token_names, visible
from jaxlin.report import page, write
from jaxlin.report.check.numbers import variant
from jaxlin.report.html import ReportError, as_json

PROMPT = "The bridge out of the town is the"
LONG = "The river runs from the hills through the old town, and boats wait for the tide near the sea. " * 30
HOSTILE = "</script><img src=x onerror=alert(1)><b>&amp;\u202e\u2028 \"'$style ${style} $$"


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> jaxlin.Explanation:
    """With a Jacobian lens of identities, which reads what the logit lens reads."""
    model, tokenizer = jaxlin.load()
    layers, d = model.config.num_hidden_layers - 1, model.config.hidden_size
    identities = np.tile(np.eye(d, dtype=np.float32), (layers, 1, 1))
    path = tmp_path_factory.mktemp("lens") / "lens.safetensors"
    lenses.save(lenses.JacobianLens(identities, tuple(range(layers)), 1), path)
    return jaxlin.explain(model, tokenizer, PROMPT, lens=path, with_detail=True)


@pytest.fixture(scope="module")
def hostile() -> jaxlin.Explanation:
    """Of a prompt that is markup, read before its end."""
    model, tokenizer = jaxlin.load()
    return jaxlin.explain(model, tokenizer, HOSTILE, position=-3, with_detail=True)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.browser() as running:
        yield running


class Parsed(HTMLParser):
    """The elements of a page, with the text in each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data

    def text(self, tag: str, **attributes: str) -> str:
        pairs = zip(self.tags, self.texts, strict=True)
        return next(text for (name, found), text in pairs if name == tag and attributes.items() <= found.items())


class TestFile:
    """The page as text."""

    def test_it_holds_what_was_found(self, explained: jaxlin.Explanation) -> None:
        data = json.loads(Parsed(page(explained, "a/model")).text("script", type="application/json"))
        detail = explained.detail
        assert detail is not None
        np.testing.assert_allclose(data["contributions"], explained.contributions, rtol=1e-6)
        np.testing.assert_allclose(data["detail"]["streams"], detail.streams, rtol=1e-6)
        np.testing.assert_allclose(np.sum(data["detail"]["streams"], axis=1), explained.logit, rtol=1e-5)
        np.testing.assert_allclose(detail.streams[0], explained.contributions, rtol=1e-4, atol=1e-5)
        parts = [data["detail"][name] for name in ("embed", "attn", "mlp", "final_bias")]
        np.testing.assert_allclose(sum(map(np.sum, parts)), explained.logit, rtol=1e-5)
        np.testing.assert_allclose(np.sum(data["detail"]["heads"], axis=1), detail.attn, atol=1e-5)
        np.testing.assert_allclose(detail.spectrum[:5], [triplet.value for triplet in explained.triplets])
        for triplet, readings in zip(explained.triplets, detail.readings, strict=True):
            for (token, share, near), reading in zip(triplet.reads, readings, strict=False):
                assert (explained.names[reading.index], reading.near) == (token, near)
                assert reading.share == pytest.approx(share)
        assert data["name"] == "a/model"
        assert set(data["versions"]) == {"jaxlin", "jax", "flax", "numpy"}

    def test_the_lenses(self, explained: jaxlin.Explanation) -> None:
        detail = explained.detail
        assert detail is not None
        logit, jacobian, exact = detail.lenses
        assert [each.lens for each in detail.lenses] == ["logit lens", "Jacobian lens", "exact lens"]
        words, chances = map(list, zip(*explained.next_tokens, strict=True))
        assert np.shape(logit.words) == (4, len(explained.tokens), 5)
        assert logit.words[-1][-1] == exact.words[-1][-1] == words  # the last part is the output itself
        assert logit.probabilities is not None
        np.testing.assert_allclose(logit.probabilities[-1][-1], chances, rtol=1e-5)
        assert (jacobian.words, jacobian.ranks) == (logit.words, logit.ranks)
        assert logit.ranks is not None
        assert (logit.ranks[-1], logit.layers, exact.layers) == (0, [0, 1, 2, 3], [-1, 0, 1, 2, 3])
        data = json.loads(Parsed(page(explained)).text("script", type="application/json"))
        for lens, written in zip(detail.lenses, data["detail"]["lenses"], strict=True):
            read = [[[data["words"][i] for i in cell] for cell in row] for row in written["words"]]
            assert read == [[[token_names([word])[0] for word in cell] for cell in row] for row in lens.words]
        model, tokenizer = jaxlin.load()
        with pytest.raises(jaxlin.JaxlinError, match="It belongs to another model"):
            jaxlin.explain(model, tokenizer, "The", lens=lenses.JacobianLens(np.zeros((1, 3, 3)), (0,), 1))

    def test_the_graph_of_the_circuit(self, explained: jaxlin.Explanation) -> None:
        """Its figures are those of the circuit, and what a component reads by token is what enters it."""
        model, tokenizer = jaxlin.load()
        x = model.embed(tokenizer.encode(PROMPT))
        circuit = jaxlin.circuit(model, x, tokenizer.to_single_token(explained.target))
        assert explained.detail is not None
        graph = explained.detail.circuit
        assert graph is not None
        pruned = circuit.prune(graph.fraction)
        assert graph.carried == pytest.approx(pruned.carried, rel=1e-5)
        for source, target, effect in graph.edges:
            if not source.startswith("t"):
                assert pruned.edge(source, target) == pytest.approx(effect, rel=1e-4, abs=1e-5)
        for node in graph.nodes:
            if node.layer >= 0:
                assert circuit.effect(node.name) == pytest.approx(node.effect, rel=1e-4, abs=1e-5)
        heads = [node for node in graph.nodes if node.attention is not None]
        assert [node.name for node in heads] == [node.name for node in graph.nodes if ".h" in node.name and node.reads]
        for node in heads[:2] + heads[-1:]:
            attention = node.attention
            assert attention is not None
            pairs = [(query, key) for query, _ in node.writes for key, _ in node.reads if key <= query]
            assert (attention.query, attention.key) == pairs[0]
            head = int(node.name.split(".h")[1])
            scores = jaxlin.attention_scores(model, x, node.layer, head, attention.query, attention.key, tokens=False)
            assert attention.score == pytest.approx(scores.score - scores.baseline, abs=1e-5)
            assert attention.probability == pytest.approx(scores.probability, abs=1e-6)
            assert [(pair.query, pair.key) for pair in scores.top(6)] == [pair[:2] for pair in attention.pairs]
            assert attention.others == pytest.approx(
                attention.score - sum(pair.effect for pair in scores.top(6)), abs=1e-5
            )
        drawn = {name for edge in graph.edges for name in edge[:2]}
        assert {node.name for node in graph.nodes} | {"logit"} == drawn
        sources = {edge[0] for edge in graph.edges}
        assert all(edge[1] in sources | {"logit"} for edge in graph.edges)  # each line leads on

    def test_it_asks_for_nothing(self, explained: jaxlin.Explanation) -> None:
        text = page(explained)
        found = Parsed(text)
        assert not [tag for tag, attributes in found.tags if {"src", "srcset", "action"} & attributes.keys()]
        links = [attributes["href"] for _, attributes in found.tags if "href" in attributes]
        assert links == ["https://arxiv.org/abs/2505.24293"]
        assert not {tag for tag, _ in found.tags} & {"link", "img", "iframe", "object", "base"}
        assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|innerHTML|eval\(", text)
        policy = next(a["content"] for tag, a in found.tags if tag == "meta" and "http-equiv" in a) or ""
        assert policy.startswith("default-src 'none'")
        script = found.texts[found.tags.index(("script", {}))]
        for body in (found.text("style"), script):
            # What follows the end tag is counted to the element here.
            digest = base64.b64encode(hashlib.sha256(f"{body.rstrip()}\n".encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy

    def test_text_is_no_markup(self, explained: jaxlin.Explanation, hostile: jaxlin.Explanation) -> None:
        plain, marked = Parsed(page(explained)), Parsed(page(hostile, "<i>"))
        outside = lambda found: [tag for tag, _ in found.tags if tag not in ("tr", "th", "td")]
        assert outside(marked) == outside(plain)
        data = json.loads(marked.text("script", type="application/json"))
        assert data["tokens"] == token_names(hostile.tokens)
        assert "<img src=x" in data["before"]
        assert data["name"] == "<i>"

    def test_numbers_that_are_not_finite(self) -> None:
        assert json.loads(as_json({"a": [float("nan"), float("inf"), 0.5]})) == {"a": [None, None, 0.5]}
        assert not set(as_json("</script>&\u2028\ud800")) & set("<>&\u2028\ud800")

    def test_detail_is_given_where_asked_for(self) -> None:
        model, tokenizer = jaxlin.load()
        short = jaxlin.explain(model, tokenizer, "Once", top=1)
        assert short.detail is None
        assert "detail" not in short.to_dict()
        assert "detail" not in json.loads(Parsed(page(short)).text("script", type="application/json"))


class TestWriting:
    """The file appears whole or not at all."""

    def test_places_that_are_none(self, explained: jaxlin.Explanation, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for path, message in ((tmp_path, "found a folder"), (tmp_path / "none" / "a.html", "Make it first")):
            with pytest.raises(ReportError, match=message):
                write(explained, path)
        with pytest.raises(ReportError, match="expected a folder"):
            write(explained, tmp_path / "file" / "a.html")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_full_disk(self, explained: jaxlin.Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.html"
        path.write_text("before")

        def full(self: Path, text: str, **options: Any) -> None:
            with self.open("w") as file:
                file.write(text[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(ReportError, match="No space left"):
            write(explained, path)
        assert path.read_text() == "before"
        assert list(tmp_path.iterdir()) == [path]


class TestCommand:
    """``jaxlin explain --html``."""

    def test_page(self, tmp_path: Path) -> None:
        path = tmp_path / "a.html"
        done = jaxlin_command("explain", "Once upon a", "--html", str(path))
        assert done.returncode == 0, done.stderr
        assert str(path) in done.stdout
        found = json.loads(Parsed(path.read_text("utf-8")).text("script", type="application/json"))
        assert f"{found['logit']:.4f}" in done.stdout
        assert "streams" in found["detail"]
        assert found["name"] == "the small model of jaxlin"
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.html"]

    def test_a_folder(self, tmp_path: Path) -> None:
        done = jaxlin_command("explain", "Once upon a", "--html", str(tmp_path))
        assert (done.returncode, done.stdout) == (2, "")
        assert "found a folder" in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr


@pytest.fixture
def shown(chromium: Browser, explained: jaxlin.Explanation, tmp_path: Path) -> Iterator[Page]:
    """The page, opened from its file; it must log nothing and ask for nothing."""
    write(explained, tmp_path / "page.html")
    yield from opened(chromium, tmp_path / "page.html")


def opened(chromium: Browser, path: Path, **options: Any) -> Iterator[Page]:
    context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    shown, said, asked = context.new_page(), [], []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("dialog", lambda dialog: said.append(dialog.message))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(path.as_uri())
    yield shown
    assert not said
    assert asked == [path.as_uri()]
    context.close()


AXE = (resources.files("axe_playwright_python") / "axe.min.js").read_text("utf-8")


def violations(shown: Page, contrast: bool = True) -> list[str]:
    """What axe-core finds wrong for people who use a keyboard, a screen reader or high contrast."""
    shown.evaluate(AXE)
    results = shown.evaluate("(enabled) => axe.run({ rules: { 'color-contrast': { enabled } } })", contrast)
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in results["violations"]]


def figures(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-"))


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? behind(node.parentElement) : colour;
  };
  const seen = [...document.querySelectorAll("main :not([hidden] *, noscript, noscript *, svg *)")];
  const texts = seen.filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  const contrasts = texts.map((node) => {
    const [a, b] = [luminance(getComputedStyle(node).color), luminance(behind(node))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML];
  });
  return contrasts.sort(([a], [b]) => a - b)[0];
}"""


class TestBrowser:
    """The page in a real Chromium."""

    def test_the_figures(self, shown: Page, explained: jaxlin.Explanation) -> None:
        detail = explained.detail
        assert detail is not None
        assert shown.locator("h1").inner_text() == f"Contributions to the logit of {visible(explained.target)}"
        tokens = shown.locator(".token .figure").all_inner_texts()
        np.testing.assert_allclose([*map(figures, tokens)], explained.contributions, atol=5.1e-3)
        cells = [figures(text) for text in shown.locator("#map td[role=gridcell]").all_inner_texts()]
        np.testing.assert_allclose(cells, np.ravel(detail.streams), atol=5.1e-3)
        sums = shown.locator("#map td.sum:last-child").all_inner_texts()
        np.testing.assert_allclose([*map(figures, sums)], explained.logit, atol=5.1e-3)
        heads = [figures(text) for text in shown.locator("#heads td[role=gridcell]").all_inner_texts()]
        np.testing.assert_allclose(heads, np.ravel(detail.heads), atol=5.1e-3)
        assert shown.locator("#neurons li").count() == len(detail.neurons)
        assert f"{explained.residual:.1e}".replace("e-0", "e\N{MINUS SIGN}") in shown.locator("#proof").inner_text()

    def test_click_to_drill_down(self, shown: Page, explained: jaxlin.Explanation) -> None:
        detail = explained.detail
        assert detail is not None
        shown.locator(".token").nth(2).click()
        readout = shown.locator("#tokens-readout")
        assert figures(readout.locator(".value").inner_text()) == pytest.approx(explained.contributions[2], abs=1e-4)
        path = [figures(text.split(": ")[1]) for text in readout.locator("svg title").all_text_contents()]
        np.testing.assert_allclose(path, [row[2] for row in detail.streams], atol=1e-4)
        assert shown.locator("#map td.chosen").count() == len(detail.streams)
        shown.locator(".token").nth(2).click()
        assert shown.locator("#map td.chosen").count() == readout.locator(".value").count() == 0

        shown.locator("#map tbody tr").nth(1).locator("td").nth(7).click()
        value = shown.locator("#map-readout .value").inner_text()
        assert figures(value) == pytest.approx(detail.streams[1][7], abs=1e-4)
        shown.locator("#heads tbody tr").nth(2).locator("td").nth(1).click()
        value = shown.locator("#heads-readout .value").inner_text()
        assert figures(value) == pytest.approx(detail.heads[2][1], abs=1e-4)
        items = shown.locator("#heads-readout .number").all_inner_texts()
        assert sum(map(figures, items)) == pytest.approx(detail.heads[2][1], abs=1e-3)
        assert [*map(figures, items)][:-1] == pytest.approx([s.contribution for s in detail.sources[2][1]], abs=1e-4)
        labels = shown.locator("#heads-readout li .word").all_inner_texts()
        assert labels == [explained.names[source.index] for source in detail.sources[2][1]]
        for row, column, sought in ((2, 0, detail.attn[1]), (4, 1, detail.mlp[3])):
            shown.locator("#parts tbody tr").nth(row).locator("td").nth(column).click()
            readout = shown.locator("#parts-readout")
            assert figures(readout.locator(".value").inner_text()) == pytest.approx(sought, abs=1e-4)
            items = [figures(text) for text in readout.locator(".number").all_inner_texts()]
            assert sum(items) == pytest.approx(sought, abs=1e-3)

    def test_hover(self, shown: Page, explained: jaxlin.Explanation) -> None:
        shown.locator(".token").nth(3).hover()
        tip = shown.locator(".tip")
        assert figures(tip.locator(".value").inner_text()) == pytest.approx(explained.contributions[3], abs=1e-4)
        shown.locator("h1").hover()
        assert tip.is_hidden()

    def test_the_circuit(self, shown: Page, explained: jaxlin.Explanation) -> None:
        detail = explained.detail
        assert detail is not None
        graph = detail.circuit
        assert graph is not None
        assert shown.locator(".graph .node").count() == len(graph.nodes) + 1
        assert shown.locator(".graph path").count() == len(graph.edges)
        name = next(edge[1] for edge in graph.edges if edge[1].startswith("a"))
        node = next(node for node in graph.nodes if node.name == name)
        into, out = ([edge for edge in graph.edges if edge[end] == name] for end in (1, 0))
        shown.locator(f'.graph [data-cell="{name}"]').click()
        readout = shown.locator("#circuit-readout")
        assert figures(readout.locator(".value").inner_text()) == pytest.approx(node.effect, abs=1e-4)
        assert shown.locator(".graph path.followed").count() == len(into) + len(out)
        sums = [sum(edge[2] for edge in edges) for edges in (into, out)]
        for edges, amount in zip((into, out), sums, strict=True):
            title = "in, from" if edges is into else "out, to"
            listed = readout.locator(f"h3:text-is('{title}') + ul .number").all_inner_texts()
            assert sum(map(figures, listed)) == pytest.approx(amount, abs=1e-3)
        read = readout.locator("h3:text-is('reads at') + ul .word").all_inner_texts()
        assert read == [explained.names[token] for token, _ in node.reads[:5]]
        raised = readout.locator("p:has-text('raises') .word").all_inner_texts()
        assert raised == [token_names([word])[0] for word in node.promotes]
        why = readout.locator("h3:text-is('why it looks there') ~ *")
        assert node.attention is not None
        assert why.locator(".word").all_inner_texts() == [
            explained.names[token] for token in (node.attention.query, node.attention.key)
        ]
        pairs = map(figures, why.locator(".number").all_inner_texts())
        assert sum(pairs) == pytest.approx(node.attention.score, abs=1e-3)
        shown.keyboard.press("End")
        shown.keyboard.press("ArrowUp")
        focused = shown.evaluate("document.activeElement.dataset.cell")
        assert focused.startswith("m")
        assert figures(readout.locator(".value").inner_text()) == pytest.approx(
            next(node.effect for node in graph.nodes if node.name == focused), abs=1e-4
        )

    def test_triplets(self, shown: Page, explained: jaxlin.Explanation) -> None:
        shown.locator("#triplets button").nth(2).click()
        triplet = explained.triplets[2]
        poles = [pole.locator(".word").all_inner_texts() for pole in shown.locator(".poles .words").all()]
        assert poles == [[*map(visible, triplet.promotes)], [*map(visible, triplet.demotes)]]
        assert visible(triplet.reads[0][0]) == shown.locator(".reads tbody td").first.inner_text()

    def test_by_keyboard(self, shown: Page, explained: jaxlin.Explanation) -> None:
        detail = explained.detail
        assert detail is not None
        press = shown.keyboard.press
        label = lambda: shown.evaluate("document.activeElement.getAttribute('aria-label')")
        press("Tab")  # the link to the paper
        press("Tab")
        assert label().startswith(visible(explained.tokens[0]))
        assert shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        press("ArrowRight")
        press("ArrowRight")
        assert figures(shown.locator("#tokens-readout .value").inner_text()) == pytest.approx(
            explained.contributions[2], abs=1e-4
        )
        press("Enter")
        assert shown.locator(".token[aria-pressed=true]").count() == 1
        press("Tab")  # the box of the scale
        press("Space")
        assert shown.locator("#without-first").is_checked()
        press("Tab")
        assert label().startswith("gate (here), ")
        press("Tab")
        assert label().startswith("embedding, ")
        for key in ("ArrowDown", "ArrowDown", "End", "Enter"):
            press(key)
        selected = shown.locator("#map td[aria-selected=true]")
        assert figures(selected.inner_text()) == pytest.approx(detail.streams[2][-1], abs=5.1e-3)
        press("Tab")
        for name in ("Jacobian lens", "exact lens"):
            press("ArrowRight")
            assert shown.locator("#lenses [aria-selected=true]").inner_text() == name
        press("Tab")
        word = shown.evaluate("document.activeElement.innerText")
        assert word == token_names([detail.lenses[2].words[0][0][0]])[0]
        for _ in range(4):
            press("Tab")
        assert shown.evaluate("document.activeElement.getAttribute('role')") == "tab"
        press("ArrowRight")
        assert (
            shown.locator("#triplets [aria-selected=true]").inner_text().endswith(f"{explained.triplets[1].value:.2f}")
        )

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [360, 1200])
    def test_everywhere(
        self, scheme: str, width: int, chromium: Browser, explained: jaxlin.Explanation, tmp_path: Path
    ) -> None:
        """Nothing sticks out on a phone, and every text can be read on what is behind it."""
        write(explained, tmp_path / "page.html")
        options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
        for shown in opened(chromium, tmp_path / "page.html", **options):
            assert shown.evaluate("document.documentElement.scrollWidth") == width
            paper = re.findall(r"\d+", shown.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert (int(paper[0]) > 128) == (scheme == "light")
            contrast, where = shown.evaluate(CONTRAST)
            assert contrast >= 4.5, where
            assert violations(shown) == []
            picture = shown.screenshot(path=tmp_path / "page.png", full_page=True)
            assert len(set(picture)) > 200

    def test_markup_stays_text(self, chromium: Browser, hostile: jaxlin.Explanation, tmp_path: Path) -> None:
        write(hostile, tmp_path / "page.html", name="<img src=x onerror=alert(2)>")
        for shown in opened(chromium, tmp_path / "page.html"):
            assert shown.locator("img, b").count() == 0
            words = shown.locator(".token .word").all_inner_texts()
            assert words == hostile.names
            assert shown.locator(".token.later").count() == 2
            assert "<img src=x onerror=alert(2)>" in shown.locator("#proof").inner_text()
            for token in shown.locator(".token").all():
                token.click()

    def test_one_triplet_and_no_detail(self, chromium: Browser, tmp_path: Path) -> None:
        model, tokenizer = jaxlin.load()
        found = jaxlin.explain(model, tokenizer, "Once", top=1)
        write(found, tmp_path / "page.html")
        for shown in opened(chromium, tmp_path / "page.html"):
            assert shown.locator("#map-section").is_hidden()
            assert shown.locator("#follow").is_hidden()  # "Choose a token to follow it through the layers."
            shown.locator(".token").first.click()
            assert shown.locator("#triplets button").count() == 1

    def test_without_a_spectrum(self, chromium: Browser, tmp_path: Path) -> None:
        model, tokenizer = jaxlin.load()
        for how, triplets in (("none", 0), ("krylov", 5)):
            found = jaxlin.explain(model, tokenizer, PROMPT, over=" a", spectrum=how, with_detail=True)
            write(found, tmp_path / "page.html")
            for shown in opened(chromium, tmp_path / "page.html"):
                assert shown.locator("#triplets").is_visible() == bool(triplets)
                title = f"Contributions to the logit of {visible(found.target)} minus that of \N{MIDDLE DOT}a"
                assert shown.locator("h1").inner_text() == title
                counts = [shown.locator(part).count() for part in ("#spectrum circle", "#triplets button")]
                assert counts == [triplets, triplets]
                chances = shown.locator("#facts dt").all_inner_texts()[1:3]
                assert chances == [f"probability of {visible(found.target)}", "probability of \N{MIDDLE DOT}a"]
                assert shown.locator("#lenses button").all_inner_texts() == ["logit lens"]
                proof = re.sub("e\N{MINUS SIGN}(\\d)\\b", "e-0\\1", shown.locator("#proof").inner_text())
                assert found.residual_estimate is not None
                assert found.residual_estimate.reliability in proof
                assert "rank of J" not in proof

    def test_a_long_prompt(self, chromium: Browser, tmp_path: Path) -> None:
        """Above 40 tokens a map is a picture of colours, and at 500 the page is no larger than 5 MB."""
        model, tokenizer = jaxlin.load()
        model = variant(model, config=replace(model.config, max_position_embeddings=512))
        explanation = jaxlin.explain(model, tokenizer, tokenizer.encode(LONG)[:500], spectrum="none", with_detail=True)
        detail = explanation.detail
        assert detail is not None
        assert len(explanation.tokens) == 500
        write(explanation, tmp_path / "page.html")
        assert (tmp_path / "page.html").stat().st_size < 5e6
        options = {"viewport": {"width": 390, "height": 844}}
        for shown in opened(chromium, tmp_path / "page.html", **options):
            assert shown.evaluate("document.documentElement.scrollWidth") == 390
            assert shown.locator("#map table").count() == shown.locator("#tokens .figure").count() == 0
            assert shown.locator("#largest-tokens li").count() == 10
            canvas, readout = shown.locator("#map canvas"), shown.locator("#map-readout .value")
            largest = int(np.argmax(np.abs(explanation.contributions)))
            frame, field = shown.locator("#map").bounding_box(), canvas.bounding_box()
            assert frame is not None
            assert field is not None
            left = field["x"] + (largest + 0.5) * field["width"] / 500
            assert frame["x"] < left < frame["x"] + frame["width"]  # where the scroll starts
            shown.locator("#map").scroll_into_view_if_needed()
            shown.mouse.click(left, (canvas.bounding_box() or field)["y"] + 1)
            assert figures(readout.inner_text()) == pytest.approx(explanation.contributions[largest], abs=1e-4)
            shown.keyboard.press("ArrowDown")
            shown.keyboard.press("ArrowLeft")
            assert figures(readout.inner_text()) == pytest.approx(detail.streams[1][largest - 1], abs=1e-4)
            rows = shown.locator("#lens tbody tr").all()
            table = [[word.inner_text() for word in row.locator("td").all()] for row in rows]
            assert table == [[token_names([word])[0] for word in row[-1]] for row in detail.lenses[0].words]
            assert violations(shown, contrast=False) == []  # of 500 tokens it takes half a minute

    def test_in_a_notebook(self, chromium: Browser, explained: jaxlin.Explanation) -> None:
        shown = chromium.new_page()
        shown.set_content(f"<!doctype html><body>{explained._repr_html_()}</body>")
        inside = shown.frame_locator("iframe")
        inside.locator(".token").nth(1).click()
        value = inside.locator("#tokens-readout .value").inner_text()
        assert figures(value) == pytest.approx(explained.contributions[1], abs=1e-4)
        shown.close()

    def test_without_detail_a_notebook_still_has_the_whole_page(self) -> None:
        model, tokenizer = jaxlin.load()
        brief = jaxlin.explain(model, tokenizer, PROMPT, top=3, target=" most", over=" a", spectrum="none")
        assert brief.detail is None
        frame = Parsed(html.unescape(brief._repr_html_()))
        data = json.loads(frame.text("script", type="application/json"))
        assert np.shape(data["detail"]["streams"]) == (5, len(brief.tokens))
        assert (data["target"], data["over"], data["logit"]) == ("·most", "·a", pytest.approx(brief.logit))


def test_an_attribution_in_a_notebook() -> None:
    model, _ = jaxlin.load()
    found = jaxlin.attribute(model, model.embed([3, 4, 5]), 9).exclude_first()
    tokens, layers = re.split("<table[^>]*>", found._repr_html_())[1:]
    numbers = lambda text: [float(cell) for cell in re.findall(r">([+-][\d.e-]+)<", html.unescape(text))]
    assert sum(numbers(tokens)) == pytest.approx(found.value, abs=1e-3)
    assert sum(numbers(layers)) == pytest.approx(found.value, abs=2e-3)
