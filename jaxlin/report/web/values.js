/* The explanation, and how its words and numbers are written. */

const data = JSON.parse(document.getElementById("data").textContent);
const detail = data.detail;
const tokens = data.tokens.slice(0, data.position + 1);
const contributions = data.contributions.slice(0, data.position + 1);
const hasBias = data.bias !== 0;
const by = (id) => document.getElementById(id);

/* Above this many columns a heat map has colours and no figures. */
const LONG = 40;
const isLong = tokens.length > LONG;

/* Text always goes in as text: nothing of the data is ever taken for markup. */
function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}
const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const word = (text) => el("span", { class: "word", dir: "auto", title: text.length > 16 ? text : undefined }, text);
const words = (list) => list.map((index) => data.words[index]);

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
const size = (values) => values.reduce((largest, value) => Math.max(largest, Math.abs(value || 0)), 0);
const total = (values) => values.reduce((sum, value) => sum + Math.abs(value || 0), 0) || 1;
const sum = (values) => values.reduce((result, value) => result + value, 0);
const digits = (largest) => (largest >= 100 ? 1 : largest >= 1 || !largest ? 2 : 2 - Math.floor(Math.log10(largest)));

/* The `count` items with the largest second entries, of either sign, the largest first. */
const largestOf = (items, count) => [...items].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, count);
/* Those, and under one name what all others sum to: a readout stays short. */
function summarised(items, count, others) {
  const shown = largestOf(items.filter(([, value]) => value), count);
  const rest = sum(items.map(([, value]) => value)) - sum(shown.map(([, value]) => value));
  return items.length > shown.length && Math.abs(rest) > 1e-9 ? [...shown, [others, rest]] : shown;
}
const layerName = (layer) => (layer < 0 ? "embedding" : "layer " + layer);
