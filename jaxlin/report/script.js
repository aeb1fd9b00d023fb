
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const detail = data.detail;
  const tokens = data.tokens.slice(0, data.position + 1);
  const contributions = data.contributions.slice(0, data.position + 1);
  const by = (id) => document.getElementById(id);

  /* Text always goes in as text: nothing of the data is ever taken for markup. */
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  }
  const word = (text) => el("span", { class: "word", dir: "auto" }, text);

  const minus = (text) => text.replace("-", "\u2212");
  function number(value, digits = 4) {
    return value === null ? "not finite" : minus(value.toFixed(digits));
  }
  function signed(value, digits = 4) {
    if (value === null) return "not finite";
    if (value === 0) return "0";
    const text = number(value, digits);
    return text.startsWith("\u2212") ? text : "+" + text;
  }
  const small = (value) => (value === null ? "not finite" : value === 0 ? "0" : minus(value.toExponential(1)));
  const percent = (value) => minus((100 * value).toFixed(Math.abs(value) < 0.1 ? 1 : 0)) + " %";
  const size = (values) => Math.max(0, ...values.map((value) => Math.abs(value || 0)));
  const total = (values) => values.reduce((sum, value) => sum + Math.abs(value || 0), 0) || 1;
  const digits = (largest) => (largest >= 100 ? 1 : largest >= 1 || !largest ? 2 : 2 - Math.floor(Math.log10(largest)));

  function colour(node, value, largest) {
    const at = largest ? Math.min(1, Math.abs(value) / largest) : 0;
    node.classList.toggle("plus", value > 0);
    node.classList.toggle("minus", value < 0);
    node.style.setProperty("--at", (100 * at).toFixed(1) + "%");
  }
  function bar(value, largest) {
    const fill = el("i", { class: value < 0 ? "minus" : "plus" });
    fill.style.setProperty("--long", (largest ? (50 * Math.abs(value)) / largest : 0).toFixed(2) + "%");
    return el("span", { class: "bar", "aria-hidden": "true" }, fill);
  }
  function measure(tag, label, value, largest) {
    return el(tag, { class: "measure" }, el("span", {}, label), bar(value, largest), el("span", { class: "number" }, signed(value)));
  }

  /* One stop of the tab key a figure; arrows, Home and End move inside it. */
  function rove(root, rows) {
    const place = new Map();
    rows.forEach((row, i) => row.forEach((cell, j) => place.set(cell, [i, j])));
    const first = rows[0][0];
    for (const cell of place.keys()) cell.tabIndex = cell === first ? 0 : -1;
    let current = first;
    root.addEventListener("focusin", (event) => {
      const cell = event.target;
      if (!place.has(cell)) return;
      current.tabIndex = -1;
      cell.tabIndex = 0;
      current = cell;
    });
    root.addEventListener("keydown", (event) => {
      if (!place.has(event.target)) return;
      let [i, j] = place.get(event.target);
      if (event.key === "ArrowRight") j += 1;
      else if (event.key === "ArrowLeft") j -= 1;
      else if (event.key === "ArrowDown") i += 1;
      else if (event.key === "ArrowUp") i -= 1;
      else if (event.key === "Home") j = 0;
      else if (event.key === "End") j = Infinity;
      else if ((event.key === "Enter" || event.key === " ") && event.target.tagName !== "BUTTON") {
        event.preventDefault();
        event.target.click();
        return;
      } else return;
      event.preventDefault();
      if (rows.length === 1 && i !== 0) [i, j] = [0, j + i];
      i = Math.max(0, Math.min(rows.length - 1, i));
      j = Math.max(0, Math.min(rows[i].length - 1, j));
      rows[i][j].focus();
    });
  }

  /* Hover names a cell beside the pointer, focus shows it below the figure, a click keeps it there until the next. */
  const tip = el("div", { class: "tip", "aria-hidden": "true", hidden: true });
  document.body.append(tip);
  function hint(event, nodes) {
    tip.hidden = !nodes;
    if (!nodes) return;
    tip.replaceChildren(nodes[0]);
    tip.style.setProperty("--x", Math.max(8, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px");
    tip.style.setProperty("--y", Math.max(8, event.clientY - tip.offsetHeight - 12) + "px");
  }
  function figure(root, readout, rows, describe, invitation, chosen = () => {}) {
    const cells = new Set(rows.flat());
    let kept = null;
    const show = (cell) => {
      readout.classList.toggle("filled", cell !== null);
      readout.replaceChildren(...(cell ? describe(cell) : [el("p", { class: "quiet" }, invitation)]));
    };
    const over = (event) => {
      const cell = event.target.closest("[data-cell]");
      return cell && cells.has(cell) ? cell : null;
    };
    root.addEventListener("pointermove", (event) => event.pointerType === "mouse" && hint(event, over(event) && describe(over(event))));
    root.addEventListener("pointerleave", (event) => hint(event, null));
    root.addEventListener("focusin", (event) => over(event) && over(event).matches(":focus-visible") && show(over(event)));
    root.addEventListener("focusout", () => show(kept));
    root.addEventListener("click", (event) => over(event) && keep(over(event) === kept ? null : over(event)));
    function keep(cell) {
      const name = root.getAttribute("role") === "grid" ? "aria-selected" : "aria-pressed";
      if (kept) kept.setAttribute(name, "false");
      kept = cell;
      if (kept) kept.setAttribute(name, "true");
      show(kept);
      if (kept) kept.scrollIntoView({ block: "nearest", inline: "nearest" });
      chosen(kept);
    }
    rove(root, rows);
    show(null);
  }
  const headline = (label, value, ...more) =>
    el("p", {}, ...label, "  ", el("span", { class: "value" }, signed(value)), el("span", { class: "quiet" }, "   " + more.filter(Boolean).join(" \u00b7 ")));

  /* Who says what: the header. */
  const likely = data.next_tokens.find(([token]) => token === data.target);
  const differs = data.over !== null;
  by("title").append("Contributions to the logit of ", word(data.target), ...(differs ? [" minus that of ", word(data.over)] : []));
  const spaced = data.target.startsWith("\u00b7");
  by("lead").append(data.before + (spaced ? " " : ""), el("span", { class: "target" }, data.target.slice(spaced ? 1 : 0)), el("span", { class: "quiet" }, data.after));
  const facts = [
    [differs ? "difference of logits" : "logit", number(data.logit)],
    ["probability", likely ? percent(likely[1]) : "not among the " + data.next_tokens.length + " likeliest"],
    ["residual of the map", small(data.residual)],
    ["freeze rule, dtype", data.rule + ", " + data.dtype],
  ];
  for (const [name, value] of facts) by("facts").append(el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  const others = el("dd");
  data.next_tokens.forEach(([token, p], i) => others.append(i ? "   " : "", word(token), " " + percent(p)));

  /* Tokens. */
  const place = digits(size([...contributions, data.bias]));
  const buttons = data.tokens.map((token, t) => {
    const later = t > data.position;
    const label = later ? token + ", after the last token that counts" : token + ", contributes " + signed(contributions[t], place);
    const button = el("button", { type: "button", class: "token" + (later ? " later" : ""), "data-cell": t, "aria-pressed": "false", "aria-label": label }, word(token), el("span", { class: "figure" }, later ? "\u2013" : signed(contributions[t], place)));
    return button;
  });
  const biasButton = el("button", { type: "button", class: "token bias", "data-cell": "b", "aria-pressed": "false", "aria-label": "b, the biases, contribute " + signed(data.bias, place) }, word("b"), el("span", { class: "figure" }, signed(data.bias, place)));
  by("tokens").append(...buttons, biasButton);

  const columns = tokens.map(() => []);
  const heads = tokens.map(() => null);
  const without = el("input", { type: "checkbox", id: "without-first" });
  const scaleText = el("span", { id: "scale" });
  const scaleLow = el("span");
  function rescale() {
    const from = without.checked && tokens.length > 1 ? 1 : 0;
    const largest = size([...contributions.slice(from), data.bias]);
    buttons.forEach((button, t) => colour(button.firstChild, t > data.position ? 0 : contributions[t], largest));
    colour(biasButton.firstChild, data.bias, largest);
    scaleLow.textContent = number(-largest, place);
    scaleText.textContent = signed(largest, place);
    if (detail) {
      const most = size(detail.streams.flatMap((row) => row.slice(from)));
      columns.forEach((cells, t) => cells.forEach((cell, l) => colour(cell, detail.streams[l][t], most)));
    }
  }
  by("legend").append(el("span", { class: "ramp" }, scaleLow, el("i", { "aria-hidden": "true" }), scaleText));
  if (tokens.length > 1) by("legend").append(el("label", { for: "without-first" }, without, "scale the colours without the first token"));
  without.addEventListener("change", rescale);

  const layerName = (row) => (row === 0 ? "embedding" : "after layer " + (row - 1));
  function describeToken(button) {
    if (button.dataset.cell === "b") return [headline(["b, the biases"], data.bias)];
    const t = Number(button.dataset.cell);
    if (t > data.position) return [el("p", {}, word(data.tokens[t]), "  comes after the explained position and cannot influence it.")];
    const share = percent(contributions[t] / total([...contributions, data.bias]));
    const nodes = [headline([word(tokens[t])], contributions[t], share + " of the sum of all sizes", "token " + t)];
    if (detail) {
      const path = detail.streams.map((row) => row[t]);
      nodes.push(el("ul", { "aria-label": "contribution of its residual stream, by layer" }, ...path.map((value, row) => measure("li", layerName(row), value, size(path)))));
    }
    return nodes;
  }
  let keepColumn = () => {};
  figure(by("tokens"), by("tokens-readout"), [[...buttons, biasButton]], describeToken, "Hover, tap or use the arrow keys to see a token's contribution by layer.", (button) => keepColumn(button && button.dataset.cell !== "b" ? Number(button.dataset.cell) : null));

  /* Grids of coloured figures. */
  function grid(table, names, rowNames, values, corner, after) {
    const largest = size(values.flat());
    const shown = digits(largest);
    const top = names.map((name) => el("th", { scope: "col", title: name }, after ? word(name) : name));
    table.append(el("thead", {}, el("tr", { role: "row" }, el("td", {}, corner), ...top, ...(after ? after.names.map((name) => el("th", { scope: "col" }, name)) : []))));
    const body = el("tbody");
    const rows = values.map((row, i) => {
      const cells = row.map((value, j) => {
        const cell = el("td", { role: "gridcell", "data-cell": i + "," + j, "aria-selected": "false", "aria-label": rowNames[i] + ", " + names[j] + ": " + signed(value, shown) }, signed(value, shown));
        colour(cell, value, largest);
        if (value === 0) cell.classList.add("nothing");
        return cell;
      });
      body.append(el("tr", { role: "row" }, el("th", { scope: "row" }, rowNames[i]), ...cells, ...(after ? after.values[i].map((value) => el("td", { class: "sum" }, signed(value, shown))) : [])));
      return cells;
    });
    table.append(body);
    return { rows, top };
  }
  const at = (cell) => cell.dataset.cell.split(",").map(Number);

  if (detail) {
    by("follow").hidden = false;
    for (const id of ["map", "parts", "heads", "neurons"]) by(id + "-section").hidden = false;
    const layers = detail.attn.length;

    /* The map of layers and tokens; in each row the position read stands last. */
    const streams = detail.streams.map((row) => row.slice(0, tokens.length));
    const sums = streams.map((row, l) => row.reduce((sum, value) => sum + value, detail.stream_biases[l]));
    const map = grid(by("map"), tokens, streams.map((_, row) => layerName(row)), streams, "", { names: ["b", "sum"], values: sums.map((sum, l) => [detail.stream_biases[l], sum]) });
    map.rows.forEach((row) => row.forEach((cell, t) => columns[t].push(cell)));
    map.top.forEach((head, t) => (heads[t] = head));
    figure(by("map"), by("map-readout"), map.rows, (cell) => {
      const [l, t] = at(cell);
      const value = streams[l][t];
      const change = l ? value - streams[l - 1][t] : null;
      const nodes = [headline([word(tokens[t]), " " + layerName(l)], value, percent(value / total([...streams[l], detail.stream_biases[l]])) + " of the sum of sizes in its row", change === null ? "" : "changed by " + signed(change) + " in layer " + (l - 1))];
      const strongest = streams[l].map((each, s) => [each, s]).filter(([each]) => each).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 6);
      nodes.push(el("ul", { "aria-label": "the largest contributions in this row" }, ...strongest.map(([each, s]) => measure("li", word(tokens[s]), each, Math.abs(strongest[0][0])))));
      return nodes;
    }, "Each number is the contribution of one token's residual stream, at that layer, to the logit.");
    const frame = by("map").parentElement;
    frame.scrollLeft = frame.scrollWidth; // where the position read stands
    keepColumn = (chosen) => {
      columns.forEach((cells, t) => cells.forEach((cell) => cell.classList.toggle("chosen", t === chosen)));
      heads.forEach((head, t) => head.classList.toggle("chosen", t === chosen));
    };

    /* Attention and MLP. */
    const writes = [detail.embed, detail.final_bias, ...detail.attn, ...detail.mlp];
    const most = size(writes);
    const part = (name, value, key) => el("td", { role: "gridcell", "data-cell": key, "aria-selected": "false", "aria-label": name + ": " + signed(value) }, el("span", { class: "pair" }, bar(value, most), el("span", { class: "number" }, signed(value, digits(most)))));
    const body = el("tbody");
    const rows = [];
    function partRow(label, cells) {
      rows.push(cells);
      body.append(el("tr", { role: "row" }, el("th", { scope: "row" }, label), ...cells, ...(cells.length < 2 ? [el("td")] : [])));
    }
    partRow("embedding", [part("embedding", detail.embed, "embed,0")]);
    for (let l = 0; l < layers; l++) partRow("layer " + l, [part("attention of layer " + l, detail.attn[l], "attn," + l), part("MLP of layer " + l, detail.mlp[l], "mlp," + l)]);
    partRow("final biases", [part("final biases", detail.final_bias, "final,0")]);
    by("parts").append(el("thead", {}, el("tr", { role: "row" }, el("td"), el("th", { scope: "col" }, "attention"), el("th", { scope: "col" }, "MLP"))), body);
    figure(by("parts"), by("parts-readout"), rows, (cell) => {
      const [kind, index] = cell.dataset.cell.split(",");
      const l = Number(index);
      const share = (value) => percent(value / total(writes)) + " of the sum of all sizes";
      if (kind === "embed") return [headline(["embedding of ", word(tokens[data.position])], detail.embed, share(detail.embed))];
      if (kind === "final") return [headline(["biases of the final norm and the unembedding"], detail.final_bias, share(detail.final_bias))];
      const value = detail[kind][l];
      let items;
      if (kind === "attn") items = [...detail.heads[l].map((each, h) => ["head " + h, each]), ["biases", detail.attn_bias[l]]];
      else {
        const named = detail.neurons.filter((neuron) => neuron.layer === l).map((neuron) => ["neuron " + neuron.index, neuron.contribution]);
        const known = named.reduce((sum, [, each]) => sum + each, detail.mlp_bias[l]);
        items = [...named, [named.length ? "all other neurons" : "all neurons", value - known], ["biases", detail.mlp_bias[l]]];
      }
      const largest = size(items.map(([, each]) => each));
      return [headline([(kind === "attn" ? "attention of layer " : "MLP of layer ") + l], value, share(value)), el("ul", {}, ...items.map(([name, each]) => measure("li", name, each, largest)))];
    }, "Choose a part to see its heads or neurons.");

    /* Heads. */
    const widest = Math.max(...detail.heads.map((row) => row.length));
    const names = Array.from({ length: widest }, (_, h) => "head " + h);
    const headGrid = grid(by("heads"), names, detail.heads.map((_, l) => "layer " + l), detail.heads, "");
    figure(by("heads"), by("heads-readout"), headGrid.rows, (cell) => {
      const [l, h] = at(cell);
      const order = detail.heads.flat().map(Math.abs).sort((a, b) => b - a);
      const value = detail.heads[l][h];
      const rank = order.indexOf(Math.abs(value)) + 1;
      const from = detail.sources[l][h];
      const rest = value - from.reduce((sum, source) => sum + source.contribution, 0);
      const items = from.map((source) => [word(tokens[source.index]), source.contribution]);
      if (from.length < tokens.length) items.push(["all others", rest]);
      const largest = size(items.map(([, each]) => each));
      return [
        headline(["layer " + l + ", head " + h], value, "of " + signed(detail.attn[l]) + " from the attention of its layer", "rank " + rank + " of " + order.length + " by size"),
        el("ul", { "aria-label": "its contribution from each token" }, ...items.map(([label, each]) => measure("li", label, each, largest))),
      ];
    }, "Choose a head to see the tokens it reads from.");

    /* Experts. */
    if (data.experts.length) {
      by("experts-section").hidden = false;
      const choices = data.experts[0].chosen.map((_, i) => "choice " + (i + 1));
      const written = data.experts.map((row) => row.chosen.map((expert) => expert.contribution));
      const sums = data.experts.map((row, i) => [row.others, written[i].reduce((sum, value) => sum + value, row.others)]);
      const routed = grid(by("experts"), choices, data.experts.map((row) => "layer " + row.layer), written, "", { names: ["others", "sum"], values: sums });
      routed.rows.forEach((row, i) => row.forEach((cell, j) => cell.prepend(el("span", { class: "index" }, String(data.experts[i].chosen[j].index)))));
      figure(by("experts"), by("experts-readout"), routed.rows, (cell) => {
        const [i, j] = at(cell);
        const { layer, chosen } = data.experts[i];
        const largest = size(written[i]);
        const name = (expert) => "expert " + expert.index + ", weight " + number(expert.weight, 3);
        const label = (expert) => expert.index + " \u00d7 " + number(expert.weight, 3);
        return [
          headline(["layer " + layer + ", " + name(chosen[j])], chosen[j].contribution, "of " + signed(sums[i][1]) + " from the MLP of its layer"),
          el("ul", { "aria-label": "the experts of this layer" }, ...chosen.map((expert) => measure("li", label(expert), expert.contribution, largest))),
        ];
      }, "The small number is that of the expert. Choose one to see its weight.");
    }

    /* Neurons. */
    const strongest = size(detail.neurons.map((neuron) => neuron.contribution));
    by("neurons").append(...detail.neurons.map((neuron) => measure("li", "layer " + neuron.layer + " \u00b7 " + neuron.index, neuron.contribution, strongest)));
  }
  rescale();

  /* Singular triplets. */
  const svg = (tag, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  let dots = [];
  function draw() {
    const s = detail.spectrum.filter((value) => value > detail.spectrum[0] * 1e-6);
    const [width, height, left, bottom] = [Math.max(280, by("spectrum").clientWidth || 900), 190, 40, 24];
    const low = Math.floor(Math.log10(s[s.length - 1]));
    const high = Math.ceil(Math.log10(s[0]) + 1e-9);
    const x = (i) => left + ((width - left - 8) * i) / Math.max(1, s.length - 1);
    const y = (value) => 10 + ((height - bottom - 10) * (high - Math.log10(value))) / (high - low);
    const chart = svg("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": (data.ranks ? "All " : "The largest ") + s.length + " singular values, on a logarithmic scale, from " + number(s[0], 2) + " down to " + s[s.length - 1].toPrecision(2) });
    for (let power = low; power <= high; power++) {
      chart.append(svg("line", { x1: left, x2: width - 8, y1: y(10 ** power), y2: y(10 ** power) }), svg("text", { x: left - 8, y: y(10 ** power) + 4, "text-anchor": "end" }, power < -2 ? "1e" + power : String(Number((10 ** power).toPrecision(1)))));
    }
    chart.append(svg("path", { d: s.map((value, i) => (i ? "L" : "M") + x(i).toFixed(1) + " " + y(value).toFixed(1)).join("") }));
    chart.append(svg("text", { x: left, y: height - 4 }, "\u03c3 1"), svg("text", { x: width - 8, y: height - 4, "text-anchor": "end" }, "\u03c3 " + s.length));
    dots = data.triplets.map((triplet, i) => svg("circle", { cx: x(i).toFixed(1), cy: y(triplet.value).toFixed(1), r: 4, class: i === opened ? "chosen" : "" }));
    chart.append(...dots);
    by("spectrum").replaceChildren(chart);
  }
  let opened = 0;
  if (!data.triplets.length) by("triplets").closest("section").hidden = true;
  else if (detail) {
    draw();
    window.addEventListener("resize", draw);
  }
  const words = (list) => el("p", { class: "words" }, ...list.map(word));
  const tabs = data.triplets.map((triplet, i) => el("button", { type: "button", role: "tab", id: "tab-" + i, "aria-controls": "triplet", "aria-selected": "false" }, "\u03c3 " + number(triplet.value, 2)));
  by("triplets").append(...tabs);
  function open(i) {
    const triplet = data.triplets[i];
    opened = i;
    tabs.forEach((tab, j) => tab.setAttribute("aria-selected", String(i === j)));
    dots.forEach((dot, j) => dot.classList.toggle("chosen", i === j));
    by("triplet").setAttribute("aria-labelledby", "tab-" + i);
    const readings = detail ? detail.readings[i] : triplet.reads.map(([token, share, near]) => ({ token, share, near }));
    const table = el("table", { class: "reads" }, el("thead", {}, el("tr", {}, ...["right vector reads", "share of |v|\u00b2", "nearest words", ...(detail ? ["opposite words"] : [])].map((name) => el("th", { scope: "col" }, name)))));
    const body = el("tbody");
    for (const reading of readings) {
      const cell = (label, list) => el("td", { "data-label": label }, ...list.flatMap((each) => [word(each), " "]));
      body.append(el("tr", {}, el("td", {}, word(detail ? data.tokens[reading.index] : reading.token)), el("td", { class: "share" }, percent(reading.share)), cell("nearest words", reading.near), ...(detail ? [cell("opposite words", reading.opposite)] : [])));
    }
    table.append(body);
    by("triplet").replaceChildren(el("div", { class: "poles" }, el("div", {}, el("h3", {}, "left vector promotes"), words(triplet.promotes)), el("div", {}, el("h3", {}, "and demotes"), words(triplet.demotes))), table);
  }
  tabs.forEach((tab, i) => tab.addEventListener("click", () => open(i)));
  by("triplets").addEventListener("focusin", (event) => tabs.includes(event.target) && open(tabs.indexOf(event.target)));
  if (tabs.length) {
    rove(by("triplets"), [tabs]);
    open(0);
  }

  /* Where it comes from. */
  const ranks = (found) => "stable " + number(found.stable, 2) + ", effective " + number(found.effective, 1);
  const proof = [
    ["residual of the map", small(data.residual) + " = |Jx + b \u2212 f(x)| / |f(x)|, measured " + (data.spectrum === "dense" ? "on every row of J" : "in random directions")],
    ["error of the tokens' sum", small(data.defect) + " of the largest contribution"],
    ...(detail ? [["error of the layers' sums", small(detail.stream_defect) + " of the largest contribution, at worst"], ["error of the parts' sum", small(detail.component_defect) + " of the largest contribution"]] : []),
    ["likeliest next tokens", others],
    ...(data.ranks ? [["rank of J", ranks(data.ranks) + (data.ranks_without_first ? "; without the first token " + ranks(data.ranks_without_first) : "") + ". Stable: \u03a3\u03c3\u00b2 / \u03c3\u2081\u00b2; effective: exp entropy of \u03c3 / \u03a3\u03c3"]] : []),
    ["freeze rule", data.rule],
    ["computed in", data.dtype],
    ["model", [data.name, detail && detail.model].filter(Boolean).join("; ") || "not named"],
    ["explained position", data.position + " of 0\u2013" + (data.tokens.length - 1)],
    ["versions", Object.entries(data.versions).map((pair) => pair.join(" ")).join(", ")],
  ];
  for (const [name, value] of proof) by("proof").append(el("dt", {}, name), value instanceof Node ? value : el("dd", {}, value));
})();
