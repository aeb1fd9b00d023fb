/* The page from top to bottom. */

const SHOWN_OF_PROMPT = 400;

function drawHeader() {
  const differs = data.over !== null;
  by("title").append("Contributions to the logit of ", word(data.target), ...(differs ? [" minus that of ", word(data.over)] : []));
  const spaced = data.target.startsWith("\u00b7");
  const start = [...data.before];
  const before = start.length > SHOWN_OF_PROMPT ? "\u2026" + start.slice(-SHOWN_OF_PROMPT).join("") : data.before;
  const rest = [...data.after];
  const after = rest.length > SHOWN_OF_PROMPT ? rest.slice(0, SHOWN_OF_PROMPT).join("") + "\u2026" : data.after;
  by("lead").append(before + (spaced ? " " : ""), el("span", { class: "target" }, data.target.slice(spaced ? 1 : 0)), el("span", { class: "quiet" }, after));
  const facts = [
    [[differs ? "difference of logits" : "logit"], number(data.logit)],
    [["probability of ", word(data.target)], percent(data.probability)],
    ...(differs ? [[["probability of ", word(data.over)], percent(data.probability_of_over)]] : []),
    [["residual of the map"], small(data.residual)],
    [["freeze rule, dtype"], data.rule + ", " + data.dtype],
  ];
  for (const [name, value] of facts) by("facts").append(el("div", {}, el("dt", {}, ...name), el("dd", {}, value)));
}

// In how many directions the residual was measured, and the interval that holds it.
function reliability(estimate) {
  if (!estimate) return "on every row of J";
  const { directions, lower, upper, confidence } = estimate;
  const count = directions === 1 ? "1 random direction" : directions + " random directions";
  return "in " + count + ": " + small(lower) + " to " + small(upper) + " with " + percent(confidence) + " confidence";
}

function drawProof() {
  const others = el("dd");
  data.next_tokens.forEach(([token, p], i) => others.append(i ? ",  " : "", word(token), " " + percent(p)));
  const ranks = ({ stable, effective }) => "stable " + number(stable, 2) + ", effective " + number(effective, 1);
  const proof = [
    ["residual of the map", small(data.residual) + " = |Jx + b \u2212 f(x)| / |f(x)|, measured " + reliability(data.residual_estimate)],
    ["error of the tokens' sum", small(data.defect) + " of the largest contribution"],
    ...(detail ? [["error of the layers' sums", small(detail.stream_defect) + " of the largest contribution, at worst"], ["error of the parts' sum", small(detail.component_defect) + " of the largest contribution"]] : []),
    ["likeliest next tokens", others],
    ...(data.ranks ? [["rank of J", ranks(data.ranks) + (data.ranks_without_first ? "; without the first token " + ranks(data.ranks_without_first) : "") + ". Stable: \u03a3\u03c3\u00b2 / \u03c3\u2081\u00b2; effective: exp entropy of \u03c3 / \u03a3\u03c3"]] : []),
    ["freeze rule", data.rule],
    ["dtype of the computation", data.dtype],
    ["model", [data.name, detail && detail.model].filter(Boolean).join("; ") || "not named"],
    ["explained position", data.position + " of 0\u2013" + (data.tokens.length - 1)],
    ["versions", Object.entries(data.versions).map((pair) => pair.join(" ")).join(", ")],
  ];
  for (const [name, value] of proof) by("proof").append(el("dt", {}, name), value instanceof Node ? value : el("dd", {}, value));
}

drawHeader();
const follow = drawTokens();
drawRules();
if (detail) {
  for (const id of ["map", "parts", "heads", "neurons"]) by(id + "-section").hidden = false;
  by("follow").hidden = false;
  drawMap(follow);
  drawLenses();
  drawParts();
  drawHeads();
  drawExperts();
  drawNeurons();
  drawCircuit();
}
drawSpectrum();
drawProof();
