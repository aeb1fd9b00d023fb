/* The circuit: layers upward, tokens across; what flows along each line. */

const NODE = { width: 62, height: 24, gap: 8, level: 64 };

function drawCircuit() {
  const graph = detail.circuit;
  if (!graph || !graph.edges.length) return;
  by("circuit-section").hidden = false;
  by("circuit-carried").textContent = "They have " + percent(graph.fraction) + " of the influence on the logit, and along them alone flow " + signed(graph.carried) + " of " + signed(graph.value) + ". What a part reads of the embeddings is drawn from the largest tokens.";

  /* Each node has a level, from the tokens at the bottom to the logit on top, and the column of its token. */
  const target = { name: "logit", layer: Infinity, token: data.position, effect: graph.value, reads: [], writes: [], promotes: [] };
  const nodes = new Map([...graph.nodes, target].map((node) => [node.name, node]));
  const rank = (node) => (node.layer === Infinity ? Infinity : node.layer < 0 ? -1 : 3 * node.layer + "amp".indexOf(node.name[0]));
  const levels = [...new Set([...nodes.values()].map(rank))].sort((a, b) => b - a);
  const columns = [...new Set([...nodes.values()].map((node) => node.token))].sort((a, b) => a - b);
  const cell = (node) => [...nodes.values()].filter((other) => rank(other) === rank(node) && other.token === node.token);
  const left = 74;
  let right = left;
  const starts = new Map(columns.map((token) => {
    const most = Math.max(...[...nodes.values()].filter((node) => node.token === token).map((node) => cell(node).length));
    const start = right;
    right += most * (NODE.width + NODE.gap) + 14;
    return [token, [start, right - 14 - start]];
  }));
  const at = (node) => {
    const own = cell(node);
    const [start, room] = starts.get(node.token);
    const offset = (room - own.length * (NODE.width + NODE.gap)) / 2;
    return [start + offset + own.indexOf(node) * (NODE.width + NODE.gap) + NODE.width / 2, 20 + levels.indexOf(rank(node)) * NODE.level];
  };

  const height = 40 + (levels.length - 1) * NODE.level;
  const chart = svg("svg", { class: "graph", width: right, height, viewBox: "0 0 " + right + " " + height, role: "group", "aria-label": "The circuit: " + nodes.size + " parts and " + graph.edges.length + " lines between them" });
  levels.forEach((level, i) => {
    const name = level === Infinity ? "" : level < 0 ? "tokens" : ["attn ", "MLP ", "rows "][level % 3] + Math.floor(level / 3);
    chart.append(svg("text", { class: "level", x: left - 14, y: 24 + i * NODE.level }, name));
  });
  const largest = size(graph.edges.map(([, , effect]) => effect));
  const lines = graph.edges.map(([source, to, effect]) => {
    const [[x, y], [ex, ey]] = [at(nodes.get(source)), at(nodes.get(to))];
    const bend = (y - ey) / 2;
    const [from, end] = [y - NODE.height / 2, ey + NODE.height / 2];
    return svg("path", { class: effect < 0 ? "minus" : "plus", d: "M" + [x, from] + "C" + [x, from - bend] + " " + [ex, end + bend] + " " + [ex, end], "stroke-width": (0.8 + (7.2 * Math.abs(effect)) / largest).toFixed(1) }, svg("title", {}, titleOf(source) + " to " + titleOf(to) + ": " + signed(effect)));
  });
  chart.append(...[...lines].reverse());

  function titleOf(name) {
    if (name === "logit") return "logit";
    if (name[0] === "t") return tokens[nodes.get(name).token];
    const head = name.match(/^a(\d+)\.h(\d+)$/);
    return head ? "layer " + head[1] + ", head " + head[2] : name.replace(/^m(\d+)/, "MLP of layer $1").replace(/^p(\d+)/, "per-layer embeddings of layer $1").replace(/^a(\d+)/, "attention of layer $1").replace(".e", ", expert ").replace(".bias", ", biases");
  }
  const drawn = new Map();
  for (const node of nodes.values()) {
    const [x, y] = at(node);
    const label = node.layer < 0 ? tokens[node.token] : node.name;
    const text = label.length > 8 ? label.slice(0, 7) + "\u2026" : label;
    drawn.set(node.name, svg("g", { class: "node", role: "button", "data-cell": node.name, "aria-pressed": "false", "aria-label": titleOf(node.name) + ", " + signed(node.effect) },
      svg("rect", { x: x - NODE.width / 2, y: y - NODE.height / 2, width: NODE.width, height: NODE.height, rx: 4 }), svg("text", { x, y: y + 4 }, text)));
  }
  const rows = levels.map((level) => [...nodes.values()].filter((node) => rank(node) === level).sort((a, b) => at(a)[0] - at(b)[0]).map((node) => drawn.get(node.name)));
  chart.append(...rows.flat());
  by("circuit").append(chart);

  const listed = (title, items, name) => (items.length ? [el("h3", {}, title), measures(items, name)] : []);
  function why(attention) {
    if (!attention) return [];
    const short = (name) => ({ embed: "embeddings", bias: "biases" })[name] || name;
    const pairs = attention.pairs.map(([query, key, effect]) => [short(query) + " \u00d7 " + short(key), effect]);
    return [
      el("h3", {}, "why it looks there"),
      el("p", { class: "quiet" }, "From ", word(tokens[attention.query]), " it looks at ", word(tokens[attention.key]), " with " + percent(attention.probability) + " of its attention. The score there is " + signed(attention.score) + " against the mean of all tokens that it sees; by the part that wrote to its query \u00d7 the part that wrote to its key:"),
      measures([...pairs, ["all other pairs", attention.others]], "why it looks there"),
    ];
  }
  function describe(element) {
    const node = nodes.get(element.dataset.cell);
    const into = graph.edges.filter(([, to]) => to === node.name).map(([source, , effect]) => [titleOf(source), effect]);
    const out = graph.edges.filter(([source]) => source === node.name).map(([, to, effect]) => [titleOf(to), effect]);
    const flows = (items) => signed(sum(items.map(([, effect]) => effect)));
    const isToken = node.layer < 0;
    const more = [into.length ? "in " + flows(into) : "", out.length ? "out " + flows(out) + " along the lines" : ""];
    const ofTokens = (items) => items.map(([token, effect]) => [word(tokens[token]), effect]);
    return [
      headline(isToken ? [word(tokens[node.token])] : [titleOf(node.name)], node.effect, ...more),
      ...(node.promotes.length ? [el("p", {}, "raises  ", ...node.promotes.flatMap((each) => [word(each), "  "]))] : []),
      el("div", { class: "flows" }, ...[
        listed("in, from", summarised(into, 5, "others"), "what flows in"),
        listed("out, to", summarised(out, 5, "others"), "what flows out"),
        listed("reads at", ofTokens(node.reads.slice(0, 5)), "the tokens that it reads"),
        why(node.attention),
      ].filter((each) => each.length).map((each) => el("div", {}, ...each))),
    ];
  }
  figure(by("circuit"), by("circuit-readout"), rows, describe, "Choose a part to see what flows in and out, the tokens that it reads and why, and the words that it raises.", (chosen) => {
    chart.classList.toggle("following", chosen !== null);
    lines.forEach((line, i) => line.classList.toggle("followed", chosen !== null && graph.edges[i].slice(0, 2).includes(chosen.dataset.cell)));
  });
  const [x] = at(target);
  by("circuit").scrollLeft = x - by("circuit").clientWidth / 2;
}
