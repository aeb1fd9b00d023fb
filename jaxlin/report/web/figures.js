/* What all figures have in common: bars, lines, hints beside the pointer, readouts, and the keyboard. */

/* How strong a colour is, from 0 to 1. Above LONG tokens it grows with the square root: most shares are small there. */
const shade = (value, largest, root = false) => (largest ? Math.min(1, Math.abs(value) / largest) : 0) ** (root ? 0.5 : 1);
function colour(node, value, largest, root) {
  const at = shade(value, largest, root);
  node.classList.toggle("plus", value > 0);
  node.classList.toggle("minus", value < 0);
  node.style.setProperty("--at", (100 * at).toFixed(1) + "%");
}
function bar(value, largest) {
  const fill = el("i", { class: value < 0 ? "minus" : "plus" });
  fill.style.setProperty("--long", (largest ? (50 * Math.abs(value)) / largest : 0).toFixed(2) + "%");
  return el("span", { class: "bar", "aria-hidden": "true" }, fill);
}
function measure(label, value, largest, write = signed) {
  return el("li", { class: "measure" }, el("span", {}, ...[label].flat()), bar(value, largest), el("span", { class: "number" }, write(value)));
}
function measures(items, name, write = signed) {
  const largest = size(items.map(([, value]) => value));
  return el("ul", { "aria-label": name }, ...items.map(([label, value]) => measure(label, value, largest, write)));
}
const headline = (label, value, ...more) =>
  el("p", {}, ...label, "  ", el("span", { class: "value" }, typeof value === "string" ? value : signed(value)), el("span", { class: "quiet" }, "   " + more.filter(Boolean).join(", ")));

/* A line over layers, from left to right. With `logarithmic`, of ranks from 1 on, with 1 on top. */
function trend(values, names, { label, write = signed, logarithmic = false }) {
  const [width, height, left, right, top, bottom] = [Math.min(640, innerWidth - 40), 128, 64, 16, 12, 24];
  const heights = logarithmic ? values.map((value) => -Math.log10(value)) : values;
  const low = Math.min(...heights, logarithmic ? -1 : 0);
  const high = Math.max(...heights, 0);
  const x = (i) => left + ((width - left - right) * i) / Math.max(1, values.length - 1);
  const y = (value) => top + ((height - top - bottom) * (high - value)) / (high - low || 1);
  const summary = label + ": " + write(values[0]) + " at " + names[0] + ", " + write(values[values.length - 1]) + " at " + names[names.length - 1];
  const chart = svg("svg", { class: "trend", viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": summary });
  for (const line of new Set([low, 0, high])) {
    if (line < low || line > high) continue;
    const text = logarithmic ? write(Math.round(10 ** -line)) : write(line, digits(Math.max(Math.abs(low), high)));
    chart.append(svg("line", { x1: left, x2: width - right, y1: y(line), y2: y(line) }), svg("text", { x: left - 8, y: y(line) + 4, "text-anchor": "end" }, text));
  }
  chart.append(svg("path", { d: heights.map((value, i) => (i ? "L" : "M") + x(i).toFixed(1) + " " + y(value).toFixed(1)).join("") }));
  heights.forEach((value, i) => chart.append(svg("circle", { cx: x(i).toFixed(1), cy: y(value).toFixed(1), r: values.length > 40 ? 2 : 3.5 }, svg("title", {}, names[i] + ": " + write(values[i])))));
  chart.append(svg("text", { x: left, y: height - 6 }, names[0]), svg("text", { x: width - right, y: height - 6, "text-anchor": "end" }, names[names.length - 1]));
  return chart;
}

/* One stop of the tab key a figure; arrows, Home and End move inside it. */
function moved(key, [i, j]) {
  if (key === "ArrowRight") return [i, j + 1];
  if (key === "ArrowLeft") return [i, j - 1];
  if (key === "ArrowDown") return [i + 1, j];
  if (key === "ArrowUp") return [i - 1, j];
  if (key === "Home") return [i, 0];
  return key === "End" ? [i, Infinity] : null;
}
const within = (value, count) => Math.max(0, Math.min(count - 1, value));
function rove(root, rows) {
  const place = new Map();
  rows.forEach((row, i) => row.forEach((cell, j) => place.set(cell, [i, j])));
  const first = rows[0][0];
  for (const cell of place.keys()) cell.setAttribute("tabindex", cell === first ? "0" : "-1");
  let current = first;
  root.addEventListener("focusin", (event) => {
    const cell = event.target;
    if (!place.has(cell)) return;
    current.setAttribute("tabindex", "-1");
    cell.setAttribute("tabindex", "0");
    current = cell;
  });
  root.addEventListener("keydown", (event) => {
    if (!place.has(event.target)) return;
    if ((event.key === "Enter" || event.key === " ") && event.target.tagName !== "BUTTON") {
      event.preventDefault();
      event.target.dispatchEvent(new MouseEvent("click", { bubbles: true }));
      return;
    }
    const next = moved(event.key, place.get(event.target));
    if (!next) return;
    event.preventDefault();
    let [i, j] = next;
    if (rows.length === 1 && i !== 0) [i, j] = [0, j + i];
    i = within(i, rows.length);
    rows[i][within(j, rows[i].length)].focus();
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
const reader = (readout, describe, invitation) => (cell) => {
  readout.classList.toggle("filled", cell !== null);
  readout.replaceChildren(...(cell === null ? [el("p", { class: "quiet" }, invitation)] : describe(cell)));
};
function figure(root, readout, rows, describe, invitation, choose = () => {}) {
  const cells = new Set(rows.flat());
  const show = reader(readout, describe, invitation);
  let kept = null;
  const over = (event) => {
    const cell = event.target.closest("[data-cell]");
    return cell && cells.has(cell) ? cell : null;
  };
  function keep(cell) {
    const name = root.getAttribute("role") === "grid" ? "aria-selected" : "aria-pressed";
    if (kept) kept.setAttribute(name, "false");
    kept = cell;
    if (kept) kept.setAttribute(name, "true");
    show(kept);
    if (kept) kept.scrollIntoView({ block: "nearest", inline: "nearest" });
    choose(kept);
  }
  root.addEventListener("pointermove", (event) => event.pointerType === "mouse" && hint(event, over(event) && describe(over(event))));
  root.addEventListener("pointerleave", (event) => hint(event, null));
  root.addEventListener("focusin", (event) => over(event) && over(event).matches(":focus-visible") && show(over(event)));
  root.addEventListener("focusout", () => show(kept));
  root.addEventListener("click", (event) => over(event) && keep(over(event) === kept ? null : over(event)));
  rove(root, rows);
  show(null);
}

/* Buttons of which one is on, and a panel that shows what it stands for. */
function tabs(list, panel, names, open) {
  const buttons = names.map((name, i) => el("button", { type: "button", role: "tab", id: list.id + "-" + i, "aria-controls": panel.id, "aria-selected": "false" }, name));
  list.append(...buttons);
  let opened = null;
  function select(i) {
    if (i === opened) return;
    opened = i;
    buttons.forEach((button, j) => button.setAttribute("aria-selected", String(i === j)));
    panel.setAttribute("aria-labelledby", buttons[i].id);
    open(i);
  }
  buttons.forEach((button, i) => button.addEventListener("click", () => select(i)));
  list.addEventListener("focusin", (event) => buttons.includes(event.target) && select(buttons.indexOf(event.target)));
  rove(list, [buttons]);
  select(0);
}
