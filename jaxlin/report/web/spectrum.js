/* The singular values of the map, and its singular vectors in words. */

function drawSpectrum() {
  if (!data.triplets.length) {
    by("spectrum-section").hidden = true;
    return;
  }
  let opened = 0;
  let dots = [];
  function plot() {
    const s = detail.spectrum.filter((value) => value > detail.spectrum[0] * 1e-6);
    const [width, height, left, bottom] = [Math.max(280, by("spectrum").clientWidth || 900), 190, 40, 24];
    const low = Math.floor(Math.log10(s[s.length - 1]));
    const high = Math.ceil(Math.log10(s[0]) + 1e-9);
    const x = (i) => left + ((width - left - 8) * i) / Math.max(1, s.length - 1);
    const y = (value) => 10 + ((height - bottom - 10) * (high - Math.log10(value))) / (high - low);
    const label = (data.ranks ? "All " : "The largest ") + s.length + " singular values, on a logarithmic scale, from " + number(s[0], 2) + " down to " + s[s.length - 1].toPrecision(2);
    const chart = svg("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": label });
    for (let power = low; power <= high; power++) {
      const text = power < -2 ? "1e" + power : String(Number((10 ** power).toPrecision(1)));
      chart.append(svg("line", { x1: left, x2: width - 8, y1: y(10 ** power), y2: y(10 ** power) }), svg("text", { x: left - 8, y: y(10 ** power) + 4, "text-anchor": "end" }, text));
    }
    chart.append(svg("path", { d: s.map((value, i) => (i ? "L" : "M") + x(i).toFixed(1) + " " + y(value).toFixed(1)).join("") }));
    chart.append(svg("text", { x: left, y: height - 4 }, "\u03c3 1"), svg("text", { x: width - 8, y: height - 4, "text-anchor": "end" }, "\u03c3 " + s.length));
    dots = data.triplets.map((triplet, i) => svg("circle", { cx: x(i).toFixed(1), cy: y(triplet.value).toFixed(1), r: 4, class: i === opened ? "chosen" : "" }));
    chart.append(...dots);
    by("spectrum").replaceChildren(chart);
  }
  if (detail) {
    plot();
    window.addEventListener("resize", plot);
  }
  const listed = (list) => el("p", { class: "words" }, ...list.map(word));
  tabs(by("triplets"), by("triplet"), data.triplets.map((triplet) => "\u03c3 " + number(triplet.value, 2)), (i) => {
    const triplet = data.triplets[i];
    opened = i;
    dots.forEach((dot, j) => dot.classList.toggle("chosen", i === j));
    const readings = detail ? detail.readings[i] : triplet.reads.map(([token, share, near]) => ({ token, share, near }));
    const names = ["right vector reads", "share of |v|\u00b2", "nearest words", ...(detail ? ["opposite words"] : [])];
    const body = el("tbody");
    for (const reading of readings) {
      const cell = (label, list) => el("td", { "data-label": label }, ...list.flatMap((each) => [word(each), " "]));
      body.append(el("tr", {}, el("td", {}, word(detail ? data.tokens[reading.index] : reading.token)), el("td", { class: "share" }, percent(reading.share)), cell("nearest words", reading.near), ...(detail ? [cell("opposite words", reading.opposite)] : [])));
    }
    const table = el("table", { class: "reads" }, el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name)))), body);
    by("triplet").replaceChildren(el("div", { class: "poles" }, el("div", {}, el("h3", {}, "left vector promotes"), listed(triplet.promotes)), el("div", {}, el("h3", {}, "and demotes"), listed(triplet.demotes))), table);
  });
}
