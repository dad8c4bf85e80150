// Draws the frontier from the page's own numbers. Nothing is fetched, and no text is ever parsed as HTML.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("sweep-data").textContent);
  const { axis, series, panels, metrics, kinds, groups, cells } = data;
  groups.forEach((group, index) => { group.index = index; });
  const figures = [...document.querySelectorAll("figure[data-panel]")];
  const SVG = document.querySelector("svg").namespaceURI;
  const COLOURS = 6, MARGIN = { left: 46, right: 16, top: 30, bottom: 48 }, SLOT = 74, HEIGHT = 330, BAR = -1;
  const state = { metric: metrics[0].key, off: new Set(), hidden: new Set() };

  // -- text and numbers ------------------------------------------------------------------------------------

  const score = (value) => (value == null ? "–" : value.toFixed(3));
  // Rounded up, as everywhere: a budget must not look smaller than it is.
  const epsilon = (value) =>
    value == null ? "∞" : (Math.ceil(Math.round(value * 1e8) / 1e6) / 100).toFixed(2);
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  const report = (cell) => `cells/${cells.id[cell]}/report.html`;
  const metricName = () => metrics.find((metric) => metric.key === state.metric).label;

  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function draw(parent, name, attributes = {}, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  // -- what is on the picture --------------------------------------------------------------------------------

  const visible = (group) =>
    !(group.series !== null && state.off.has(group.series)) && !state.hidden.has(group.kind);
  const inPanel = (group, panel) => group.panels.includes(panel) && group.stats[state.metric] != null;
  const look = (group) =>
    group.series !== null ? `c${group.series % COLOURS}` : group.kind === "grid" ? "c0" : "neutral";
  const title = (group) => {
    const kind = group.kind === "grid" ? [] : [kinds.find((known) => known.key === group.kind).label];
    const line = group.series === null ? [] : [series[group.series]];
    const place = `${axis.short} ${axis.numeric ? "= " : ""}${axis.values[group.x]}`;
    const at = group.x === null || !axis.short ? [] : [place];
    return [...kind, ...line, ...at].join(", ");
  };

  // One y scale for all panels and whatever is filtered: what is hidden must not move what is left.
  function scoreRange() {
    const shown = groups.filter((group) => group.stats[state.metric] != null);
    const values = shown.flatMap((group) => group.cells.map((cell) => cells.metrics[state.metric][cell]))
      .filter((value) => value != null);
    if (!values.length) return [0, 1];
    const low = Math.min(...values), high = Math.max(...values), spread = high - low || 0.02;
    // An interval over two seeds may be wider than all scores together: bands are then cut at the frame.
    const ends = shown.flatMap((group) => group.stats[state.metric].slice(1, 3)).filter((value) => value != null);
    const bottom = Math.max(Math.min(low, ...ends), low - 0.35 * spread) - 0.06 * spread;
    const top = Math.min(Math.max(high, ...ends), high + 0.35 * spread) + 0.06 * spread;
    return [bottom, top];
  }

  function ticks(low, high, most) {
    const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw * (1 - 1e-9));
    const found = [];
    const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
    for (let index = first; index <= last; index++) found.push(index * step);
    return { values: found, digits: (String(Number(step.toPrecision(3))).split(".")[1] || "").length };
  }

  // References that do not vary along x stand in columns of their own, right of the axis.
  const columns = kinds.filter((kind) => kind.column);

  function horizontal(width) {
    const left = MARGIN.left, slots = columns.length * SLOT, right = width - MARGIN.right - slots;
    const inner = axis.numeric ? 22 : 0, start = left + inner, stop = right - inner;
    const place = (value) => (axis.log ? Math.log(value) : value);
    const low = place(axis.values[0]), high = place(axis.values[axis.values.length - 1]);
    const at = (index) => {
      if (!axis.numeric) return left + ((index + 0.5) / axis.values.length) * (right - left);
      if (high === low) return (start + stop) / 2;
      return start + ((place(axis.values[index]) - low) / (high - low)) * (stop - start);
    };
    const column = (kind) => right + (columns.findIndex((known) => known.key === kind) + 0.5) * SLOT;
    return { left, right, at: (group) => (group.x === null ? column(group.kind) : at(group.x)), tick: at, column };
  }

  // -- one panel ---------------------------------------------------------------------------------------------

  function drawPanel(figure) {
    const panel = Number(figure.dataset.panel), svg = figure.querySelector("svg");
    const width = Math.max(280, Math.floor(figure.clientWidth)), bottom = HEIGHT - MARGIN.bottom;
    const [low, high] = scoreRange();
    const x = horizontal(width), y = (value) => bottom - ((value - low) / (high - low)) * (bottom - MARGIN.top);
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.setAttribute("aria-label", `${metricName()} against ${axis.label}, ${panels[panel] || "all cells"}`);
    const clip = draw(svg, "clipPath", { id: `frame${panel}` });
    draw(clip, "rect", { x: x.left, y: MARGIN.top - 4, width: width - x.left, height: bottom - MARGIN.top + 4 });
    drawAxes(svg, x, y, low, high, width, bottom);
    const plot = draw(svg, "g", { "clip-path": `url(#frame${panel})` });
    const here = groups.filter((group) => inPanel(group, panel) && visible(group));
    const lines = lineUp(here);
    for (const line of lines) drawBand(plot, line, x, y);
    for (const line of lines) drawLine(plot, line, x, y);
    for (const group of here) drawCells(plot, group, x, y);
    for (const group of here) drawMean(plot, group, x, y);
    const first = plot.querySelector(".mean");
    if (first) first.setAttribute("tabindex", "0");
    figure.querySelector(".empty").hidden = here.length > 0;
  }

  function lineUp(here) {
    const lines = new Map();
    for (const group of here) {
      const key = `${group.kind} ${group.series}`;
      lines.set(key, [...(lines.get(key) || []), group]);
    }
    return [...lines.values()];
  }

  function drawAxes(svg, x, y, low, high, width, bottom) {
    const { values, digits } = ticks(low, high, 6);
    draw(svg, "text", { class: "label", x: 4, y: 14 }, metricName());
    for (const value of values) {
      draw(svg, "line", { class: "grid", x1: x.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) });
      const place = { x: x.left - 7, y: y(value) + 3.5 };
      draw(svg, "text", { class: "tick", ...place, "text-anchor": "end" }, value.toFixed(digits));
    }
    if (low < 0.5 && high > 0.5) {
      draw(svg, "line", { class: "chance", x1: x.left, x2: width - MARGIN.right, y1: y(0.5), y2: y(0.5) });
      draw(svg, "text", { class: "chance-text", x: width - MARGIN.right - 6, y: y(0.5) - 5, "text-anchor": "end" }, "chance");
    }
    draw(svg, "line", { class: "axis", x1: x.left, x2: x.right, y1: bottom, y2: bottom });
    let free = -Infinity;
    const room = axis.numeric ? Infinity : Math.floor((x.right - x.left) / axis.values.length / 6.4);
    for (const [index, value] of axis.values.entries()) {
      const whole = String(value), cut = `${whole.slice(0, Math.max(1, room - 1))}…`;
      const text = whole.length > room ? cut : whole;
      const half = text.length * 3.4, at = x.tick(index);
      draw(svg, "line", { class: "axis", x1: at, x2: at, y1: bottom, y2: bottom + 4 });
      if (at - half < free) continue;
      free = at + half + 6;
      const label = draw(svg, "text", { class: "tick", x: at, y: bottom + 17, "text-anchor": "middle" }, text);
      if (text !== whole) draw(label, "title", {}, whole);
    }
    draw(svg, "text", { class: "label", x: (x.left + x.right) / 2, y: bottom + 37, "text-anchor": "middle" },
      width < 520 ? axis.brief : axis.label);
    for (const kind of columns) {
      const at = x.column(kind.key);
      const box = { x: at - SLOT / 2 + 3, y: MARGIN.top - 4, width: SLOT - 6, height: bottom - MARGIN.top + 4, rx: 4 };
      draw(svg, "rect", { class: "column", ...box });
      draw(svg, "text", { class: "tick", x: at, y: bottom + 17, "text-anchor": "middle" }, kind.sign);
      draw(svg, "text", { class: "tick", x: at, y: bottom + 37, "text-anchor": "middle" }, kind.brief);
    }
  }

  const interval = (group) => group.stats[state.metric].slice(1, 3);
  const hasBand = (group) => interval(group)[0] != null;

  function drawBand(plot, line, x, y) {
    const along = line.filter((group) => group.x !== null && hasBand(group));
    if (!axis.joined || along.length < 2) return;
    const edge = (group, which) => `${x.at(group).toFixed(1)},${y(interval(group)[which]).toFixed(1)}`;
    const upper = along.map((group) => edge(group, 1)), lower = along.map((group) => edge(group, 0)).reverse();
    draw(plot, "polygon", { class: `band ${look(line[0])}`, points: [...upper, ...lower].join(" ") });
  }

  function drawLine(plot, line, x, y) {
    const along = line.filter((group) => group.x !== null);
    const kind = line[0].kind === "grid" ? "" : " reference";
    if (axis.joined && along.length > 1) {
      const points = along.map((group) => `${x.at(group).toFixed(1)},${y(group.stats[state.metric][0]).toFixed(1)}`);
      draw(plot, "polyline", { class: `line ${look(line[0])}${kind}`, points: points.join(" ") });
    }
    for (const group of line.filter((member) => member.x === null)) {
      const at = y(group.stats[state.metric][0]);
      draw(plot, "line", { class: `line level ${look(group)}`, x1: x.left, x2: x.at(group), y1: at, y2: at });
    }
  }

  // Marks of one place that would cover one another stand side by side, hidden ones included: none of them moves.
  function beside(group, most) {
    const together = (other) => (group.x === null ? other.kind === group.kind : other.x === group.x);
    const near = (other) => other.panels.some((panel) => group.panels.includes(panel));
    const pile = groups.filter((other) => near(other) && together(other));
    const order = (other) => `${String(other.series ?? 99).padStart(4)} ${other.kind}`;
    const tracks = [...new Set(pile.map(order))].sort();
    return (tracks.indexOf(order(group)) - (tracks.length - 1) / 2) * Math.min(most, (4 * most) / tracks.length);
  }

  const onLine = (group) => axis.numeric && axis.joined && group.x !== null;

  function drawCells(plot, group, x, y) {
    const at = x.at(group) + beside(group, onLine(group) ? 7 : 14);
    for (const cell of group.cells) {
      const value = cells.metrics[state.metric][cell];
      if (value == null) continue;
      const names = { "data-cell": cell, "data-group": group.index };
      const link = draw(plot, "a", { class: `cell-dot ${look(group)}`, href: report(cell), tabindex: -1, ...names });
      const what = `${title(group)}, seed ${cells.seed[cell]}: ${score(value)}`;
      link.setAttribute("aria-label", `${what}; opens the run's report`);
      draw(link, "circle", { cx: at, cy: y(value), r: 3.2 });
    }
  }

  // Colour is never the only sign: each line has a shape too.
  function shape(index, x, y) {
    const r = 5.4, corner = (dx, dy) => `${(x + dx * r).toFixed(1)} ${(y + dy * r).toFixed(1)}`;
    const polygons = [
      null, // a circle
      [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]],
      [[0, -1.15], [1.05, 0.8], [-1.05, 0.8]],
      [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]],
      [[0, 1.15], [1.05, -0.8], [-1.05, -0.8]],
    ];
    const bar = [[-1.4, -0.4], [1.4, -0.4], [1.4, 0.4], [-1.4, 0.4]];
    const polygon = index === BAR ? bar : polygons[index % polygons.length];
    if (polygon) return `M${polygon.map(([dx, dy]) => corner(dx, dy)).join("L")}Z`;
    return `M${corner(-1, 0)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
  }

  // Where no dashes tell a reference from the grid's lines, its shape does: a bar.
  function sign(group) {
    if (group.kind !== "grid" && group.x !== null && !axis.joined) return BAR;
    return group.series ?? (group.kind === "grid" ? 0 : 3);
  }

  function drawMean(plot, group, x, y) {
    const [mean, , , count] = group.stats[state.metric], at = x.at(group) + (onLine(group) ? 0 : beside(group, 14));
    const names = { tabindex: -1, role: "button", "data-group": group.index };
    const mark = draw(plot, "g", { class: `mean ${look(group)}`, ...names });
    mark.setAttribute("aria-label", `${title(group)}: ${summary(group).join(", ")}`);
    if (hasBand(group) && (!axis.joined || group.x === null)) {
      const [low, high] = interval(group).map(y);
      draw(mark, "path", { class: "whisker", d: `M${at} ${low}V${high}M${at - 4} ${low}h8M${at - 4} ${high}h8` });
    }
    draw(mark, "path", { class: count === 1 ? "mark single" : "mark", d: shape(sign(group), at, y(mean)) });
  }

  // -- tooltip -----------------------------------------------------------------------------------------------

  function summary(group) {
    const [mean, low, high, count, deviation] = group.stats[state.metric];
    const seeds = plural(count, data.replicate);
    const range = `${data.confidence} % interval ${score(low)} to ${score(high)} over ${seeds}`;
    const found = [`mean ${score(mean)}`, low == null ? `${seeds}: no interval` : range];
    if (deviation != null) found.push(`standard deviation ${deviation.toFixed(4)}`);
    return [...found, spent(group.cells)];
  }

  function spent(members) {
    const values = members.map((cell) => cells.spent[cell]), target = cells.target[members[0]];
    if (values.some((value) => value == null)) return "no guarantee (ε = ∞)";
    const low = epsilon(Math.min(...values)), high = epsilon(Math.max(...values));
    return `ε spent ${low === high ? low : `${low} to ${high}`}${target == null ? "" : ` of ${target}`}`;
  }

  let pinned = null;

  function showTip(mark, withLinks = false) {
    const figure = mark.closest("figure"), tip = figure.querySelector(".tip");
    const group = groups[mark.dataset.group], cell = mark.dataset.cell;
    hideTips();
    const run = () => `seed ${cells.seed[cell]}: ${score(cells.metrics[state.metric][cell])}`;
    const lines = cell === undefined ? summary(group) : [run(), spent([cell]), "click: this run's report"];
    tip.replaceChildren(make("b", {}, title(group)));
    const where = panels[Number(figure.dataset.panel)];
    if (where) tip.append(make("span", { class: "where" }, where));
    tip.append(...lines.map((line) => make("span", {}, line)));
    if (withLinks) {
      const links = group.cells.map((member) => make("a", { href: report(member) }, `seed ${cells.seed[member]}`));
      const listed = links.flatMap((link, index) => (index ? [", ", link] : [link]));
      tip.append(make("span", { class: "links" }, "reports: ", ...listed));
    } else if (cell === undefined) tip.append(make("span", { class: "hint" }, "click or Enter: links to its runs"));
    tip.hidden = false;
    const box = figure.getBoundingClientRect(), spot = mark.querySelector("circle, .mark").getBoundingClientRect();
    const middle = spot.left + spot.width / 2 - box.left, above = spot.top - box.top - tip.offsetHeight - 10;
    tip.style.left = `${Math.max(0, Math.min(box.width - tip.offsetWidth, middle - tip.offsetWidth / 2))}px`;
    tip.style.top = `${above < 0 ? spot.bottom - box.top + 10 : above}px`;
    pinned = withLinks ? mark : null;
  }

  function hideTips() {
    for (const figure of figures) figure.querySelector(".tip").hidden = true;
    pinned = null;
  }

  const marked = (event) => event.target.closest && event.target.closest("[data-group]");

  function listen(figure) {
    figure.addEventListener("pointerover", (event) => { if (marked(event) && !pinned) showTip(marked(event)); });
    figure.addEventListener("pointerout", (event) => { if (marked(event) && !pinned) hideTips(); });
    figure.addEventListener("focusin", (event) => { if (marked(event) && !pinned) showTip(marked(event)); });
    figure.addEventListener("click", (event) => {
      const mark = event.target.closest(".mean");
      if (mark) showTip(mark, true);
    });
    figure.addEventListener("keydown", (event) => {
      const mark = event.target.closest(".mean");
      if (!mark) return;
      if (event.key === "Enter" || event.key === " ") showTip(mark, true);
      else if (!walk(figure, mark, event.key)) return;
      event.preventDefault();
    });
  }

  // One stop of the Tab key a panel; arrows go along a line, and from line to line.
  function walk(figure, mark, key) {
    const marks = [...figure.querySelectorAll(".mean")], here = groups[mark.dataset.group];
    const same = (a, b) => a.kind === b.kind && a.series === b.series;
    const line = marks.filter((other) => same(groups[other.dataset.group], here));
    const pile = marks.filter((other) => groups[other.dataset.group].x === here.x);
    const ways = { ArrowRight: [line, 1], ArrowLeft: [line, -1], ArrowUp: [pile, -1], ArrowDown: [pile, 1] };
    const [list, step] = ways[key] || [];
    if (!list) return false;
    const next = list[list.indexOf(mark) + step];
    if (!next) return true;
    mark.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    hideTips();
    next.focus();
    return true;
  }

  // -- controls, and the address that remembers them ----------------------------------------------------------

  const buttons = [...document.querySelectorAll("button[data-metric], button[data-series], button[data-kind]")];
  const others = document.querySelector("select[data-metrics]");

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const wanted = given.get("metric");
    state.metric = metrics.some((metric) => metric.key === wanted) ? wanted : metrics[0].key;
    state.off = new Set(given.getAll("off").map((name) => series.indexOf(name)).filter((index) => index >= 0));
    state.hidden = new Set(given.getAll("without").filter((key) => kinds.some((kind) => kind.key === key)));
  }

  function writeAddress() {
    const given = new URLSearchParams();
    if (state.metric !== metrics[0].key) given.set("metric", state.metric);
    for (const index of [...state.off].sort()) given.append("off", series[index]);
    for (const key of state.hidden) given.append("without", key);
    // Replaced, not pushed: the Back key leaves the page, it does not undo filters one by one.
    history.replaceState(null, "", `#${given}`);
  }

  const toggle = (set, key) => (set.has(key) ? set.delete(key) : set.add(key));

  function press(button) {
    if (button.dataset.metric !== undefined) state.metric = button.dataset.metric;
    if (button.dataset.series !== undefined) toggle(state.off, Number(button.dataset.series));
    if (button.dataset.kind !== undefined) toggle(state.hidden, button.dataset.kind);
    writeAddress();
    drawAll();
  }

  function drawAll() {
    hideTips();
    for (const button of buttons) {
      const { metric, series: line, kind } = button.dataset;
      let on = !state.hidden.has(kind);
      if (metric !== undefined) on = metric === state.metric;
      if (line !== undefined) on = !state.off.has(Number(line));
      button.setAttribute("aria-pressed", String(on));
    }
    const listed = others && [...others.options].some((option) => option.value === state.metric);
    if (others) others.value = listed ? state.metric : "";
    for (const name of document.querySelectorAll("[data-metric-name]")) name.textContent = metricName();
    figures.forEach(drawPanel);
  }

  // -- the table of all cells ---------------------------------------------------------------------------------

  function fillTable(table) {
    const keys = [...table.tHead.rows[0].cells].map((cell) => cell.dataset.key);
    const column = (key) => cells[key] || cells.factors[key] || cells.metrics[key];
    const text = { spent: epsilon, wall: (value) => value.toFixed(1), bytes: (value) => (value / 1e6).toFixed(2) };
    const plain = (value) => (value == null ? "–" : String(value));
    const shown = (key, value) => (key in cells.metrics ? score : text[key] || plain)(value);
    const rows = cells.id.map((id, cell) => {
      const row = make("tr");
      for (const key of keys) {
        const value = column(key)[cell];
        row.append(make("td", typeof value === "number" || key === "spent" ? { class: "n" } : {},
          key === "id" ? make("a", { href: report(cell) }, make("code", {}, id)) : shown(key, value)));
      }
      return row;
    });
    table.tBodies[0].replaceChildren(...rows);
    table.addEventListener("click", (event) => {
      const head = event.target.closest("th[data-key]");
      if (!head) return;
      const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1, values = column(head.dataset.key);
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      table.tBodies[0].replaceChildren(...order(values, way).map((cell) => rows[cell]));
    });
  }

  // What has no value stands last, whichever way.
  function order(values, way) {
    const numbers = (a, b) => typeof a === "number" && typeof b === "number";
    const compare = (a, b) => (numbers(a, b) ? a - b : String(a).localeCompare(String(b)));
    return values.map((_, index) => index).sort((one, two) => {
      const [a, b] = [values[one], values[two]];
      if (a == null || b == null) return (a == null) - (b == null) || one - two;
      return way * compare(a, b) || one - two;
    });
  }

  // -- begin -------------------------------------------------------------------------------------------------

  for (const chip of document.querySelectorAll("svg[data-sign]"))
    draw(chip, "path", { class: `sign c${chip.dataset.sign % COLOURS}`, d: shape(Number(chip.dataset.sign), 8, 6) });
  for (const button of buttons) button.addEventListener("click", () => press(button));
  if (others) others.addEventListener("change", () => {
    state.metric = others.value || metrics[0].key;
    writeAddress();
    drawAll();
  });
  figures.forEach(listen);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTips(); });
  document.addEventListener("click", (event) => { if (!event.target.closest(".mean, .tip")) hideTips(); });
  window.addEventListener("hashchange", () => { readAddress(); drawAll(); });
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    drawAll();
  });
  const all = document.getElementById("all-cells");
  all.addEventListener("toggle", () => fillTable(all.querySelector("table")), { once: true });
  readAddress();
  drawAll();
})();
