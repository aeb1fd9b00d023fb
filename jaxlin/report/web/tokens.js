/* The tokens of the prompt with their contributions, and how these change under other freeze rules. */

const BIASES = "b, the biases";

/* It returns `follow(rescale, highlight)`, by which another figure follows the scale and the token that is chosen. */
function drawTokens() {
  const place = digits(size([...contributions, data.bias]));
  const buttons = data.tokens.map((token, t) => {
    const later = t > data.position;
    const said = later ? ", after the last token that counts" : ", contributes " + signed(contributions[t], place);
    const figures = isLong ? [] : [el("span", { class: "figure" }, later ? "later" : signed(contributions[t], place))];
    return el("button", { type: "button", class: "token" + (later ? " later" : ""), "data-cell": t, "aria-pressed": "false", "aria-label": token + said }, word(token), ...figures);
  });
  const ofBias = el("button", { type: "button", class: "token bias", "data-cell": "b", "aria-pressed": "false", "aria-label": BIASES + ", contribute " + signed(data.bias, place) }, word("b"), el("span", { class: "figure" }, signed(data.bias, place)));
  const all = hasBias ? [...buttons, ofBias] : buttons;
  by("tokens").append(...all);
  by("tokens").classList.toggle("dense", isLong);
  for (const node of document.querySelectorAll(".with-bias")) node.hidden = !hasBias;
  if (isLong) {
    by("largest-tokens").hidden = false;
    const items = tokens.map((token, t) => [word(token), contributions[t]]);
    by("largest-tokens").append(measures(summarised(hasBias ? [...items, [BIASES, data.bias]] : items, 9, "all others"), "the largest contributions"));
  }

  const without = el("input", { type: "checkbox", id: "without-first" });
  const [low, high] = [el("span"), el("span")];
  const followers = [];
  let keptToken = null;
  function rescale() {
    const from = without.checked && tokens.length > 1 ? 1 : 0;
    const largest = size([...contributions.slice(from), data.bias]);
    buttons.forEach((button, t) => colour(button.firstChild, t > data.position ? 0 : contributions[t], largest, isLong));
    colour(ofBias.firstChild, data.bias, largest, isLong);
    low.textContent = number(-largest, place);
    high.textContent = signed(largest, place);
    followers.forEach((follower) => follower.rescale(from));
  }
  by("legend").append(el("span", { class: "ramp" }, low, el("i", { "aria-hidden": "true" }), high));
  if (tokens.length > 1) by("legend").append(el("label", { for: "without-first" }, without, "scale the colours without the first token"));
  if (isLong) by("legend").append(el("span", {}, "colours grow with the square root, so that small shares can be seen"));
  without.addEventListener("change", rescale);

  function describe(button) {
    if (button.dataset.cell === "b") return [headline([BIASES], data.bias)];
    const t = Number(button.dataset.cell);
    if (t > data.position) return [el("p", {}, word(data.tokens[t]), "  comes after the explained position and cannot influence it.")];
    const share = percent(contributions[t] / total([...contributions, data.bias]));
    const nodes = [headline([word(tokens[t])], contributions[t], share + " of the sum of all sizes", "token " + t)];
    if (detail) nodes.push(trend(detail.streams.map((row) => row[t]), detail.streams.map((_, l) => layerName(l - 1)), { label: "contribution of its residual stream by layer" }));
    return nodes;
  }
  const invitation = detail ? "Hover, tap or use the arrow keys to see a token's contribution by layer." : "Hover, tap or use the arrow keys to see a token's contribution.";
  figure(by("tokens"), by("tokens-readout"), [all], describe, invitation, (button) => {
    keptToken = button && button.dataset.cell !== "b" ? Number(button.dataset.cell) : null;
    if (keptToken > data.position) keptToken = null;
    followers.forEach((follower) => follower.highlight(keptToken));
  });
  rescale();
  return (follower) => followers.push(follower) && rescale();
}

function drawRules() {
  if (!detail || !detail.rules.length) return;
  by("rules-section").hidden = false;
  const rules = detail.rules;
  const columns = hasBias ? [...tokens, "b"] : tokens;
  const values = rules.map((rule) => [...rule.contributions.slice(0, tokens.length), ...(hasBias ? [rule.bias] : [])]);
  const rows = rules.map((rule) => rule.rule + (rule.rule === data.rule ? " (here)" : ""));
  heatMap(by("rules"), by("rules-readout"), {
    rows, columns, values,
    sums: { names: ["sum"], values: values.map((row) => [sum(row)]) },
    describe: (i, j) => [
      headline([word(columns[j]), " under the rule " + rules[i].rule], values[i][j], percent(values[i][j] / total(values[i])) + " of the sum of sizes under it"),
      measures(rules.map((rule, k) => [rule.rule, values[k][j]]), "its contribution under each rule"),
    ],
    invitation: "Choose a token to compare its contribution under the rules.",
  });
}
