/* The lenses: what the stream of each token says after each layer, in words. */

const LENSES = {
  "logit lens": "The residual stream of each token after each layer, read by the model's own final norm and unembedding: the likeliest next token there. The colour is its probability.",
  "Jacobian lens": "As the logit lens, after the matrices of the lens have carried each stream to the last layer. The colour is the probability.",
  "exact lens": "What the stream of each token adds to this one output through the frozen model: the token whose logit it raises most. The colour is its contribution to the explained logit. The parts in a row sum to the output.",
};

function drawLenses() {
  by("lens-section").hidden = false;
  tabs(by("lenses"), by("lens"), detail.lenses.map(({ lens }) => lens), (i) => drawLens(detail.lenses[i]));
}

function drawLens(lens) {
  const rows = lens.layers.map(layerName);
  const isPrediction = lens.probabilities !== null;
  const values = isPrediction ? lens.probabilities.map((row) => row.map((cell) => cell[0])) : detail.streams.map((row) => row.slice(0, tokens.length));
  const after = (i) => (lens.layers[i] < 0 ? " as embedding" : " after " + rows[i]);
  const frame = el("div", { class: "scroll words-in-cells", "data-title": "lens-title" });
  const readout = el("div", { class: "readout", "aria-live": "polite" });
  const below = el("div");
  by("lens").replaceChildren(el("p", { class: "note" }, LENSES[lens.lens]), frame, readout, below);
  const isNothing = (i, t) => !isPrediction && values[i][t] === 0;
  const list = (i, t) => words(lens.words[i][t]);

  function describe(i, t) {
    if (isPrediction) {
      const items = list(i, t).map((each, k) => [word(each), lens.probabilities[i][t][k]]);
      return [headline([word(tokens[t]), after(i) + ": ", items[0][0].cloneNode(true)], percent(items[0][1])), measures(items, "the likeliest next tokens", percent)];
    }
    if (isNothing(i, t)) return [el("p", {}, word(tokens[t]), after(i) + " adds nothing")];
    return [headline([word(tokens[t]), after(i)], values[i][t], "to the explained logit"), el("p", {}, "raises  ", ...list(i, t).flatMap((each) => [word(each), "  "]))];
  }
  /* Above LONG tokens no word fits in a cell: those of one token stand in a table of their own. */
  function spelled(t) {
    if (!isLong) return;
    const own = el("div", { class: "scroll words-in-cells", "data-title": "lens-title" });
    const places = list(0, t).map((_, k) => String(k + 1));
    const said = el("div", { class: "readout", "aria-live": "polite" });
    below.replaceChildren(el("h3", {}, "Words of ", word(tokens[t]), " by layer, the first " + places.length), own, said);
    heatMap(own, said, {
      rows, columns: places, values: rows.map((_, i) => places.map((_, k) => (isPrediction ? lens.probabilities[i][t][k] : k ? 0 : values[i][t]))),
      inside: (i, k) => (isNothing(i, t) ? "" : word(list(i, t)[k])),
      describe: (i) => describe(i, t),
      invitation: t === data.position ? "These are the words of the last token; choose a cell of the map above for those of another." : "These are the words of the token chosen above.",
    });
  }
  heatMap(frame, readout, {
    rows, columns: tokens, values,
    inside: (i, t) => (isNothing(i, t) ? "" : word(list(i, t)[0])),
    linear: isPrediction,
    describe,
    invitation: isPrediction ? "Choose a cell to see the likeliest tokens there." : "Choose a cell to see the words that it raises.",
    choose: (i, t) => spelled(t === undefined ? data.position : t),
  });
  spelled(data.position);
  if (lens.ranks) {
    const label = "Rank of the target after each layer, read from the last token";
    by("lens").append(el("h3", {}, "Rank of ", word(data.target), " by layer"), trend(lens.ranks.map((rank) => rank + 1), rows, { label, write: (rank) => "rank " + rank, logarithmic: true }));
  }
}
