/* Heat maps: a table with a figure in each cell, or above LONG columns a picture of colours alone. */

/* What a heat map shows:
   rows, columns  names
   values         [rows][columns], which the colours show
   inside         (i, j) => what stands in a cell of a table; the value by default
   sums           { names, values } of columns after the others, which have no colour
   linear         whether the colours of a picture grow in proportion; else with the square root
   describe       (i, j) => nodes for the readout, the first of which is the hint
   invitation     what the readout says before anything is chosen
   choose         (i, j), or () for none
   It returns { rescale(largest), highlight(column) }. */
function heatMap(frame, readout, map) {
  const isPicture = map.columns.length > LONG;
  frame.classList.toggle("picture", isPicture);
  const drawn = isPicture ? heatPicture(frame, readout, map) : heatTable(frame, readout, map);
  drawn.rescale(size(map.values.flat()));
  return drawn;
}

function largestColumn(values) {
  const first = values.find((row) => size(row)) || values[0];
  return first.reduce((best, value, j) => (Math.abs(value) > Math.abs(first[best]) ? j : best), 0);
}

/* Pixels that a table may be wide on paper. */
const PRINTED = 680;

function heatTable(frame, readout, { rows, columns, values, inside, sums = { names: [], values: [] }, describe, invitation, choose = () => {} }) {
  const shown = digits(size(values.flat()));
  const top = columns.map((name) => el("th", { scope: "col" }, word(name)));
  const ends = sums.names.map((name) => el("th", { scope: "col" }, name));
  const body = el("tbody");
  const table = el("table", { class: "heat", role: "grid", "aria-labelledby": frame.dataset.title }, el("thead", {}, el("tr", { role: "row" }, el("td"), ...top, ...ends)), body);
  const cells = values.map((row, i) => {
    const line = row.map((value, j) => {
      const text = inside ? inside(i, j) : signed(value, shown);
      const said = rows[i] + ", " + columns[j] + ": " + (typeof text === "string" ? text : text.textContent);
      const cell = el("td", { role: "gridcell", "data-cell": i + "," + j, "aria-selected": "false", "aria-label": said }, text);
      if (value === 0 && !inside) cell.classList.add("nothing");
      return cell;
    });
    const after = (sums.values[i] || []).map((value) => el("td", { class: "sum" }, signed(value, shown)));
    body.append(el("tr", { role: "row" }, el("th", { scope: "row" }, rows[i]), ...line, ...after));
    return line;
  });
  frame.replaceChildren(table);
  const at = (cell) => cell.dataset.cell.split(",").map(Number);
  figure(table, readout, cells, (cell) => describe(...at(cell)), invitation, (cell) => (cell ? choose(...at(cell)) : choose()));
  const print = matchMedia("print");
  print.addEventListener("change", () => table.style.setProperty("zoom", print.matches ? Math.min(1, PRINTED / table.offsetWidth) : 1));
  const seen = top[largestColumn(values)];
  frame.scrollLeft = seen.offsetLeft + seen.offsetWidth - frame.clientWidth + 8; // nothing, where all columns fit
  return {
    rescale: (largest) => cells.forEach((row, i) => row.forEach((cell, j) => colour(cell, values[i][j], largest))),
    highlight(column) {
      top.forEach((head, j) => head.classList.toggle("chosen", j === column));
      cells.forEach((row) => row.forEach((cell, j) => cell.classList.toggle("chosen", j === column)));
    },
  };
}

const ROW = 14;
function heatPicture(frame, readout, { rows, columns, values, linear = false, describe, invitation, choose = () => {} }) {
  const count = columns.length;
  const canvas = el("canvas", { role: "img", tabindex: "0" });
  const cursor = el("i", { class: "cursor", hidden: true });
  const column = el("i", { class: "column", hidden: true });
  const axis = el("div", { class: "axis", "aria-hidden": "true" });
  const names = el("div", { class: "row-names", "aria-hidden": "true" }, ...rows.map((name) => el("span", {}, name)));
  frame.replaceChildren(el("div", { class: "canvas" }, names, el("div", { class: "field" }, canvas, cursor, column, axis)));
  canvas.setAttribute("aria-label", rows.length + " rows by " + count + " columns in colour. The arrow keys move over the cells, which are then read out below.");
  const room = Math.min(document.documentElement.clientWidth - 40, 1320) - names.offsetWidth;
  const width = Math.max(2, Math.min(20, Math.floor(room / count)));
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((each) => each * width >= 40) || 1000;
  for (let j = 0; j < count; j += step) {
    const mark = el("span", {}, String(j));
    mark.style.setProperty("--left", (100 * j) / count + "%");
    axis.append(mark);
  }
  canvas.style.setProperty("width", count * width + "px");
  canvas.style.setProperty("height", rows.length * ROW + "px");
  let largest = 0;
  function draw() {
    const scale = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [count * width * scale, rows.length * ROW * scale];
    const style = getComputedStyle(document.documentElement);
    const [paper, plus, less] = ["--paper", "--plus", "--minus"].map((name) => style.getPropertyValue(name).trim());
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.fillStyle = paper;
    pen.fillRect(0, 0, count * width, rows.length * ROW);
    values.forEach((row, i) => row.forEach((value, j) => {
      if (!value) return;
      pen.globalAlpha = shade(value, largest, !linear);
      pen.fillStyle = value > 0 ? plus : less;
      pen.fillRect(j * width, i * ROW, width > 4 ? width - 1 : width, ROW - 1);
    }));
  }
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);

  const show = reader(readout, (cell) => describe(...cell), invitation);
  let kept = null;
  let place = [0, largestColumn(values)];
  function point(cell) {
    cursor.hidden = cell === null;
    if (cell === null) return;
    for (const [name, value] of [["--left", (100 * cell[1]) / count + "%"], ["--top", cell[0] * ROW + "px"], ["--wide", Math.max(4, width) + "px"], ["--high", ROW + "px"]]) cursor.style.setProperty(name, value);
  }
  const under = (event) => [within(Math.floor(event.offsetY / ROW), rows.length), within(Math.floor(event.offsetX / width), count)];
  function keep(cell) {
    kept = kept && cell && kept[0] === cell[0] && kept[1] === cell[1] ? null : cell;
    if (kept) place = kept;
    show(kept);
    point(kept);
    if (kept) choose(...kept);
    else choose();
  }
  canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && hint(event, describe(...under(event))));
  canvas.addEventListener("pointerleave", (event) => hint(event, null));
  canvas.addEventListener("click", (event) => keep(under(event)));
  canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && (show(place), point(place)));
  canvas.addEventListener("blur", () => (show(kept), point(kept)));
  canvas.addEventListener("keydown", (event) => {
    const next = moved(event.key, place);
    if (!next && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    if (!next) return keep(place);
    place = [within(next[0], rows.length), within(next[1], count)];
    show(place);
    point(place);
    const left = place[1] * width;
    if (left < frame.scrollLeft || left > frame.scrollLeft + frame.clientWidth - names.offsetWidth - 20) frame.scrollLeft = left - frame.clientWidth / 2;
  });
  show(null);
  frame.scrollLeft = (largestColumn(values) + 1) * width - frame.clientWidth + names.offsetWidth + 8;
  return {
    rescale(most) {
      largest = most;
      draw();
    },
    highlight(chosen) {
      column.hidden = chosen === null;
      if (chosen !== null) for (const [name, value] of [["--left", (100 * chosen) / count + "%"], ["--wide", Math.max(3, width) + "px"]]) column.style.setProperty(name, value);
    },
  };
}
