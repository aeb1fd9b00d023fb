/* The contributions of the streams, layer by layer, and of what attention and MLPs write. */

function drawMap(follow) {
  const streams = detail.streams.map((row) => row.slice(0, tokens.length));
  const sums = streams.map((row, l) => sum(row) + detail.stream_biases[l]);
  const rows = streams.map((_, l) => layerName(l - 1));
  const withBias = detail.stream_biases.some((value) => value);
  const map = heatMap(by("map"), by("map-readout"), {
    rows, values: streams, columns: tokens,
    sums: { names: withBias ? ["b", "sum"] : ["sum"], values: sums.map((value, l) => (withBias ? [detail.stream_biases[l], value] : [value])) },
    describe(l, t) {
      const share = percent(streams[l][t] / total([...streams[l], detail.stream_biases[l]])) + " of the sum of sizes in its row";
      const change = l ? "changed by " + signed(streams[l][t] - streams[l - 1][t]) + " in layer " + (l - 1) : "";
      const strongest = largestOf(streams[l].map((value, s) => [word(tokens[s]), value]).filter(([, value]) => value), 6);
      return [headline([word(tokens[t]), l ? " after " + rows[l] : " as embedding"], streams[l][t], share, change), measures(strongest, "the largest contributions in this row")];
    },
    invitation: "Each cell is the contribution of one token's residual stream, after that layer, to the logit.",
  });
  follow({ rescale: (from) => map.rescale(size(streams.flatMap((row) => row.slice(from)))), highlight: map.highlight });
}

function drawParts() {
  const writes = [detail.embed, detail.final_bias, ...detail.attn, ...detail.mlp];
  const most = size(writes);
  const body = el("tbody");
  const rows = [];
  const part = (name, value, key) => el("td", { role: "gridcell", "data-cell": key, "aria-selected": "false", "aria-label": name + ": " + signed(value) }, el("span", { class: "pair" }, bar(value, most), el("span", { class: "number" }, signed(value, digits(most)))));
  function row(label, cells) {
    rows.push(cells);
    body.append(el("tr", { role: "row" }, el("th", { scope: "row" }, label), ...cells, ...(cells.length < 2 ? [el("td")] : [])));
  }
  row("embedding", [part("embedding", detail.embed, "embed,0")]);
  detail.attn.forEach((value, l) => row("layer " + l, [part("attention of layer " + l, value, "attn," + l), part("MLP of layer " + l, detail.mlp[l], "mlp," + l)]));
  if (detail.final_bias) row("final biases", [part("final biases", detail.final_bias, "final,0")]);
  by("parts").append(el("thead", {}, el("tr", { role: "row" }, el("td"), el("th", { scope: "col" }, "attention"), el("th", { scope: "col" }, "MLP"))), body);

  const share = (value) => percent(value / total(writes)) + " of the sum of all sizes";
  function describe(cell) {
    const [kind, index] = cell.dataset.cell.split(",");
    const l = Number(index);
    if (kind === "embed") return [headline(["embedding of ", word(tokens[data.position])], detail.embed, share(detail.embed))];
    if (kind === "final") return [headline(["biases of the final norm and the unembedding"], detail.final_bias, share(detail.final_bias))];
    const value = detail[kind][l];
    const biases = detail[kind + "_bias"][l] ? [["biases", detail[kind + "_bias"][l]]] : [];
    if (kind === "attn") {
      const heads = detail.heads[l].map((each, h) => ["head " + h, each]);
      return [headline(["attention of layer " + l], value, share(value)), measures([...summarised(heads, 7, "all other heads"), ...biases], "its heads")];
    }
    const named = largestOf(detail.neurons.filter((neuron) => neuron.layer === l).map((neuron) => ["neuron " + neuron.index, neuron.contribution]), 6);
    const rest = value - sum([...named, ...biases].map(([, each]) => each));
    return [headline(["MLP of layer " + l], value, share(value)), measures([...named, [named.length ? "all other neurons" : "all neurons", rest], ...biases], "its neurons")];
  }
  figure(by("parts"), by("parts-readout"), rows, describe, "Choose a part to see its heads or neurons.");
}
