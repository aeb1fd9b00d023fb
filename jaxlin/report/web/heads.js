/* Attention heads, experts and neurons. */

const HEADS_LISTED = 12;

function drawHeads() {
  const columns = Array.from({ length: Math.max(...detail.heads.map((row) => row.length)) }, (_, h) => "head " + h);
  const every = detail.heads.flatMap((row, l) => row.map((value, h) => [{ l, h }, value]));
  const order = every.map(([, value]) => Math.abs(value)).sort((a, b) => b - a);
  heatMap(by("heads"), by("heads-readout"), {
    rows: detail.heads.map((_, l) => "layer " + l), columns, values: detail.heads,
    describe(l, h) {
      const value = detail.heads[l][h];
      if (value === undefined) return [el("p", {}, "layer " + l + " has no head " + h)];
      const from = detail.sources[l][h].map((source) => [word(tokens[source.index]), source.contribution]);
      const rest = value - sum(from.map(([, each]) => each));
      const items = from.length < tokens.length ? [...from, ["all others", rest]] : from;
      const rank = "rank " + (order.indexOf(Math.abs(value)) + 1) + " of " + order.length + " by size";
      return [headline(["layer " + l + ", head " + h], value, "of " + signed(detail.attn[l]) + " from the attention of its layer", rank), measures(items, "its contribution from each token")];
    },
    invitation: "Choose a head to see the tokens it reads from.",
  });
  const strongest = largestOf(every, HEADS_LISTED).filter(([, value]) => value);
  by("largest-heads").append(...strongest.map(([{ l, h }, value]) => {
    const [source] = detail.sources[l][h];
    return measure(["layer " + l + ", head " + h, ...(source ? [" reads ", word(tokens[source.index])] : [])], value, order[0]);
  }));
}

function drawExperts() {
  if (!data.experts.length) return;
  by("experts-section").hidden = false;
  const values = data.experts.map((row) => row.chosen.map((expert) => expert.contribution));
  const sums = data.experts.map((row, i) => [row.others, sum(values[i]) + row.others]);
  heatMap(by("experts"), by("experts-readout"), {
    rows: data.experts.map((row) => "layer " + row.layer), columns: data.experts[0].chosen.map((_, i) => "choice " + (i + 1)), values,
    inside: (i, j) => el("span", {}, el("span", { class: "index" }, String(data.experts[i].chosen[j].index)), " ", signed(values[i][j], digits(size(values.flat())))),
    sums: { names: ["others", "sum"], values: sums },
    describe(i, j) {
      const { layer, chosen } = data.experts[i];
      const weight = (expert) => ", weight " + number(expert.weight, 3);
      return [
        headline(["layer " + layer + ", expert " + chosen[j].index + weight(chosen[j])], chosen[j].contribution, "of " + signed(sums[i][1]) + " from the MLP of its layer"),
        measures(chosen.map((expert) => [expert.index + weight(expert), expert.contribution]), "the experts of this layer"),
      ];
    },
    invitation: "The small number is that of the expert. Choose one to see its weight.",
  });
}

function drawNeurons() {
  const strongest = size(detail.neurons.map((neuron) => neuron.contribution));
  by("neurons").append(...detail.neurons.map((neuron) => measure("layer " + neuron.layer + ", neuron " + neuron.index, neuron.contribution, strongest)));
}
