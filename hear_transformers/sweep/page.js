"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const of = (id) => document.getElementById(id);
const columns = data.columns, n = columns.value.length, ANY = -1, MANY = 100;
const FEW = 0.05; // of the worst scores have one colour, so that an outlier does not take all colours
const SHOTS = "clips_per_class"; // of which there is a column only where it says something
const WORDS = ["model", "layer", "pool", "framing", "window_ms", "hop_ms", "probe", SHOTS].filter((name) => name !== SHOTS || columns[name].some((each) => each !== null));
const SHOWN = ["model", "score", ...WORDS.slice(1), "clips", "size", "seconds_per_hour"];
const CALLED = { window_ms: "window", hop_ms: "hop", clips_per_class: "clips per class", seconds_per_hour: "s per hour" };
const dark = matchMedia("(prefers-color-scheme: dark)");
const COLOURS = [["#0072b2", "#56b4e9"], ["#e69f00"], ["#009e73"], ["#cc79a7"], ["#d55e00"], ["#56b4e9", "#0072b2"], ["#8a8a8a"]]; // of Okabe and Ito
// Cividis in ten steps: the same order of lightness for all eyes.
const SCALE = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"].map(
  (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)),
);
let chosen = -1, plots = [], order = { column: "score", falling: true }, listed = [], n_listed = MANY;

// Rows

const code = (i, name) => (columns[name].codes ? columns[name].codes[i] : columns[name][i]);
const word = (i, name) => (columns[name].codes ? columns[name].names[columns[name].codes[i]] : columns[name][i]);
const tasks = [...new Set(data.findings.map((each) => each.task))], task = () => tasks[of("task").value];
const finding = () => data.findings.find((each) => each.task === task() && each.metric === columns.metric.names[of("metric").value]);
const isLower = (i) => data.lower.includes(word(i, "metric"));
const goodness = (i) => (isLower(i) ? -1 : 1) * columns.value[i];
const low = (i) => columns.low[i] ?? columns.value[i];
const high = (i) => columns.high[i] ?? columns.value[i];
const overlap = (i, j) => low(i) <= high(j) && low(j) <= high(i);
const short = (value) => (value === null ? "?" : Number(value.toPrecision(3)).toLocaleString("en"));
const score = (value) => value === null ? "none" : Math.abs(value) < 1000 ? value.toFixed(3) : short(value);
const span = (i) => (columns.low[i] === null || columns.high[i] === null ? "no interval" : `${score(columns.low[i])} to ${score(columns.high[i])}`);
const best = (rows) => rows.reduce((one, i) => (one < 0 || goodness(i) > goodness(one) ? i : one), -1);

function text(i, name) {
  if (name === "score") return columns.value[i] === null ? "none" : `${score(columns.value[i])} (${span(i)})`;
  const value = word(i, name);
  if (name === "window_ms" || name === "hop_ms") return value === null ? "own" : `${value} ms`;
  if (name === SHOTS) return value === null ? "all" : String(value);
  if (name === "seconds_per_hour") return short(value);
  if (name === "size" || name === "clips") return value.toLocaleString("en");
  return value === "" ? "none" : String(value);
}

const setting = (i) => WORDS.map((name) => `${name === "model" ? "" : `${CALLED[name] ?? name} `}${text(i, name)}`).join(", ");
const cost = (i) => `${short(columns.seconds_per_hour[i])} s of compute per hour, ${text(i, "size")} numbers`;

// Rows with a score, of the task, metric and probe that are chosen.
function shownRows() {
  const metric = Number(of("metric").value), probe = Number(of("probe").value), found = [];
  const own = columns.task.names.indexOf(task());
  for (let i = 0; i < n; i++) {
    if (columns.task.codes[i] === own && columns.metric.codes[i] === metric && columns.value[i] !== null && (probe === ANY || columns.probe.codes[i] === probe)) found.push(i);
  }
  return found;
}

// Values of an axis in order: numbers by size, then words as they come. A layer is a number if its name is one.
function values(rows, name) {
  const found = [...new Set(rows.map((i) => code(i, name)))];
  const place = (value) => {
    const label = columns[name].codes ? columns[name].names[value] : value;
    return label === null || !/^\d+(\.\d+)?$/.test(label) ? Infinity : Number(label);
  };
  return found.sort((a, b) => (place(a) === place(b) ? 0 : place(a) - place(b)));
}

// The page

function element(tag, content, kind) {
  const made = document.createElement(tag);
  if (content !== undefined) made.textContent = content; // never HTML: names are anybody's
  if (kind) made.className = kind;
  return made;
}

function drawn(tag, attributes, content) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (content !== undefined) made.textContent = content;
  return made;
}

function fill(select, options, value) {
  select.replaceChildren(...options.map(([key, label]) => {
    const made = element("option", label);
    made.value = key;
    return made;
  }));
  select.value = options.some(([key]) => String(key) === String(value)) ? value : options[0][0];
  select.disabled = options.length < 2;
}

function command(line) {
  const box = element("div", undefined, "command"), button = element("button", "Copy"), code = element("pre", line);
  button.type = "button";
  button.addEventListener("click", () => {
    const done = () => { button.textContent = "Copied"; };
    const mark = () => { getSelection().selectAllChildren(code); button.textContent = "Marked: copy with the keyboard"; };
    if (navigator.clipboard) navigator.clipboard.writeText(line).then(done, mark);
    else mark();
  });
  box.append(code, button);
  return box;
}

function table(place, names, rows) {
  const head = element("tr");
  head.append(...names.map((name) => element("th", CALLED[name] ?? name)));
  place.replaceChildren(head, ...rows.map((i) => line(i, names)));
}

function line(i, names) {
  const row = element("tr");
  row.dataset.row = i;
  row.tabIndex = 0;
  row.append(...names.map((name) => element("td", text(i, name), ["size", "clips", "seconds_per_hour"].includes(name) ? "number" : "")));
  return row;
}

function choose(i) {
  chosen = i;
  of("detail").hidden = i < 0;
  for (const place of document.querySelectorAll("[data-row]")) place.classList.toggle("chosen", Number(place.dataset.row) === i);
  plots.forEach((plot) => plot.redraw());
  if (i < 0) return;
  const first = best(ofSame(i));
  of("detail-score").textContent = `${word(i, "metric")} ${text(i, "score")}`;
  of("detail-verdict").textContent = i === first ? "The best of this task and metric." : `${overlap(i, first) ? "Not told apart from the best by the intervals" : "Worse than the best beyond the intervals"}: ${text(first, "score")}.`;
  const facts = [["task", word(i, "task")], ...WORDS.map((name) => [CALLED[name] ?? name, text(i, name)])];
  facts.push(["clips", text(i, "clips")], ["size", `${text(i, "size")} numbers`], ["compute", `${short(columns.seconds_per_hour[i])} s per hour of audio`]);
  of("detail-setting").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  of("detail-command").replaceChildren(command(word(i, "command")));
}

function ofSame(i) {
  const found = [];
  for (let j = 0; j < n; j++) {
    if (columns.task.codes[j] === columns.task.codes[i] && columns.metric.codes[j] === columns.metric.codes[i] && columns.value[j] !== null) found.push(j);
  }
  return found;
}

function hover(i, x, y) {
  const note = of("hover");
  note.hidden = i < 0;
  if (i < 0) return;
  note.textContent = `${word(i, "metric")} ${text(i, "score")}, ${text(i, "clips")} clips\n${setting(i)}\n${cost(i)}`;
  const box = note.getBoundingClientRect();
  note.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
  note.style.top = `${y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 12) : y + 18}px`;
}

// Maps

function colour(share) {
  const at = Math.max(0, Math.min(1, share)) * (SCALE.length - 1), k = Math.min(SCALE.length - 2, Math.floor(at));
  const rgb = SCALE[k].map((from, channel) => Math.round(from + (SCALE[k + 1][channel] - from) * (at - k)));
  const [r, g, b] = rgb.map((each) => (each / 255) ** 2.2), light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return { back: `rgb(${rgb})`, fore: light > 0.179 ? "#000" : "#fff" }; // where both contrast equally, by WCAG
}

function map(place, axis, rows, limits, first) {
  const cells = new Map();
  for (const i of rows) {
    const key = `${code(i, "layer")} ${code(i, axis)}`;
    if (!cells.has(key) || goodness(i) > goodness(cells.get(key))) cells.set(key, i);
  }
  const across = values(rows, axis), down = values(rows, "layer"), all = [...cells.values()];
  const head = element("tr"), foot = element("tr");
  head.append(element("th", "layer"));
  foot.append(element("th", "s/h"));
  for (const value of across) {
    head.append(element("th", columns[axis].codes ? columns[axis].names[value] : value === null ? "own" : String(value)));
    const costs = all.filter((i) => code(i, axis) === value).map((i) => columns.seconds_per_hour[i]).filter((each) => each !== null);
    const [least, most] = [Math.min(...costs), Math.max(...costs)].map(short);
    foot.append(element("th", costs.length === 0 ? "?" : least === most ? least : `${least} to ${most}`));
  }
  const lines = down.map((layer) => {
    const row = element("tr"), name = element("th", columns.layer.names[layer]);
    name.title = name.textContent;
    row.append(name);
    for (const value of across) {
      const cell = element("td"), i = cells.get(`${layer} ${value}`);
      if (i !== undefined) cell.append(button(i, limits, first));
      row.append(cell);
    }
    return row;
  });
  place.replaceChildren(head, ...lines, foot);
  place.style.maxWidth = `${70 + 130 * across.length}px`;
  return across.length;
}

function button(i, limits, first) {
  const made = element("button", (i === first ? "★" : "") + score(columns.value[i]));
  const share = (columns.value[i] - limits[0]) / (limits[1] - limits[0]), shade = colour(isLower(i) ? 1 - share : share);
  made.type = "button";
  made.dataset.row = i;
  made.style.background = shade.back;
  made.style.setProperty("--cell", shade.back);
  made.style.color = shade.fore;
  made.classList.toggle("alike", overlap(i, first));
  made.classList.toggle("chosen", i === chosen);
  if (of("intervals").checked && columns.low[i] !== null) made.append(element("small", [columns.low[i], columns.high[i]].map((end) => score(end).replace(/^0\./, ".")).join("–")));
  made.setAttribute("aria-label", `${setting(i)}: ${text(i, "score")}`);
  return made;
}

// A vector has no pooling, so it stands beside layers of each.
const agrees = (i, name) => Number(of(name).value) === ANY || code(i, name) === Number(of(name).value) || (name === "pool" && word(i, name) === data.no_pool);
const ofTime = (i, id) => of(id).value === "any" || String(columns[`${id}_ms`][i]) === of(id).value;

function drawMaps() {
  const rows = shownRows(), first = best(rows);
  const own = rows.filter((i) => agrees(i, "model") && agrees(i, "framing")), pooled = own.filter((i) => agrees(i, "pool"));
  const windows = pooled.filter((i) => ofTime(i, "hop")), hops = pooled.filter((i) => ofTime(i, "window"));
  const pools = own.filter((i) => ofTime(i, "hop") && ofTime(i, "window"));
  const seen = of("scale").value === "task" ? rows : [...new Set([...windows, ...hops, ...pools])];
  const sorted = seen.map((i) => columns.value[i]).sort((a, b) => a - b), few = Math.floor(FEW * sorted.length), lower = first >= 0 && isLower(first);
  let least = sorted[lower ? 0 : few], most = sorted[sorted.length - 1 - (lower ? few : 0)];
  // Colours span at least an interval, so that what is no difference looks like none.
  const lacks = (high(first) - low(first) - (most - least)) / 2;
  if (lacks > 0) [least, most] = [least - lacks, most + lacks];
  if (least === most) most = least + 1;
  const maps = [["windows", "window_ms", windows], ["hops", "hop_ms", hops], ["pools", "pool", pools]];
  const widths = maps.map(([id, axis, some]) => map(of(id), axis, some, [least, most], first));
  // A map of one column says nothing that the others do not.
  maps.forEach(([id], at) => { of(id).closest("figure").hidden = widths[at] < 2 && (at > 0 || Math.max(...widths) > 1); });
  const stops = SCALE.map((rgb) => `rgb(${rgb})`);
  of("legend").style.background = `linear-gradient(to right, ${(lower ? stops.reverse() : stops).join()})`;
  of("legend").setAttribute("aria-label", "colours");
  of("limits").textContent = `${score(least)}${sorted[0] < least ? " or less" : ""} to ${score(most)}${sorted[sorted.length - 1] > most ? " or more" : ""}${lower ? "; less is better" : ""}.`;
}

function fillAxes() {
  const rows = shownRows().filter((i) => agrees(i, "model")), first = best(rows);
  const own = rows.filter((i) => code(i, "framing") === code(first, "framing"));
  // Where the best framing has one window and one hop, as whole scenes have, the others are looked at too.
  const times = (some) => new Set(some.map((i) => `${code(i, "framing")} ${columns.window_ms[i]} ${columns.hop_ms[i]}`)).size;
  const isFree = times(own) === 1 && times(rows) > 1;
  const pools = rows.filter((i) => word(i, "pool") !== data.no_pool), named = (from, name) => values(from, name).map((value) => [value, columns[name].names[value]]);
  fill(of("pool"), [...named(pools, "pool"), [ANY, "the best of all"]], word(first, "pool") === data.no_pool ? ANY : code(first, "pool"));
  fill(of("framing"), [...named(rows, "framing"), [ANY, "the best of all"]], isFree ? ANY : code(first, "framing"));
  for (const id of ["window", "hop"]) {
    const times = values(rows, `${id}_ms`).map((value) => [String(value), value === null ? "own" : `${value} ms`]);
    fill(of(id), [...times, ["any", "the best of all"]], isFree ? "any" : String(columns[`${id}_ms`][first]));
  }
}

// Score beside cost

const hiddenModels = new Set();
let styles = []; // of each model: to look it up for each point would be most of the work

function setStyles() {
  styles = [];
  finding().models.forEach((i, k) => {
    styles[columns.model.codes[i]] = { k, colour: COLOURS[k % COLOURS.length].at(dark.matches ? -1 : 0) };
  });
}

const styleOf = (i) => styles[columns.model.codes[i]];

// The same as findings.front: what no other beats at its price or below, the cheapest first.
function front(rows, price) {
  const found = [];
  for (const i of rows.filter((i) => price(i) > 0).sort((a, b) => price(a) - price(b) || goodness(b) - goodness(a))) {
    if (found.length === 0 || goodness(i) > goodness(found[found.length - 1])) found.push(i);
  }
  return found;
}

function mark(context, k, x, y, r) {
  context.beginPath();
  if (k % 4 === 0) context.arc(x, y, r, 0, 7);
  else {
    const points = [[], [[-1, -1], [1, -1], [1, 1], [-1, 1]], [[0, -1.3], [1.2, 0.9], [-1.2, 0.9]], [[0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]]][k % 4];
    points.forEach(([dx, dy], at) => context[at ? "lineTo" : "moveTo"](x + dx * r, y + dy * r));
    context.closePath();
  }
}

// Round numbers between two: 1, 2 and 5 of each power of ten, as far apart as there is room.
function ticks(least, most, isLog) {
  const found = [];
  if (isLog) {
    for (let power = Math.floor(Math.log10(least)); power <= Math.log10(most); power++) found.push(...[1, 2, 5].map((digit) => digit * 10 ** power));
    const inside = found.filter((value) => value >= least * 0.999 && value <= most * 1.001);
    return inside.length > 7 ? inside.filter((value) => String(value.toPrecision(1))[0] === "1" || /^1/.test(String(value / 10 ** Math.round(Math.log10(value))))) : inside;
  }
  const rough = (most - least) / 5, power = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].find((digit) => digit * power >= rough) * power;
  for (let k = Math.ceil(least / step); k * step <= most + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

class Plot {
  constructor(id, price) {
    this.canvas = of(id);
    this.context = this.canvas.getContext("2d");
    this.price = price;
    this.rows = [];
    new ResizeObserver(() => this.redraw()).observe(this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => hover(-1));
    this.canvas.addEventListener("click", (event) => { const i = this.near(event); if (i >= 0) choose(i); });
  }

  set(rows) {
    this.all = rows;
    this.rows = rows.filter((i) => this.price(i) > 0);
    this.front = front(rows, this.price);
    this.redraw();
    return this.front;
  }

  redraw() {
    if (!this.due) requestAnimationFrame(() => this.draw());
    this.due = true;
  }

  measure() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const prices = this.rows.map(this.price), scores = [...this.rows.map((i) => columns.value[i]), ...this.front.flatMap((i) => [low(i), high(i)])];
    this.x = [Math.min(...prices) / 1.15, Math.max(...prices) * 1.15];
    const [least, most] = [Math.min(...scores), Math.max(...scores)], room = (most - least || 1) * 0.04;
    this.y = [least - room, most + room];
    this.box = { left: 46, right: width - 8, top: 8, bottom: height - 26, width, height };
  }

  place(i) {
    return [this.across(this.price(i)), this.up(columns.value[i])];
  }

  across(price) {
    return this.box.left + (Math.log(price / this.x[0]) / Math.log(this.x[1] / this.x[0])) * (this.box.right - this.box.left);
  }

  up(value) {
    const share = (value - this.y[0]) / (this.y[1] - this.y[0]), lower = this.rows.length > 0 && isLower(this.rows[0]);
    return this.box.bottom - (lower ? 1 - share : share) * (this.box.bottom - this.box.top);
  }

  draw() {
    this.due = false;
    const ratio = devicePixelRatio || 1, { canvas, context } = this, style = getComputedStyle(document.body);
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    if (this.rows.length === 0) return;
    this.measure();
    this.paint = Object.fromEntries(["fore", "back", "faint", "line", "mark", "best"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    this.axes();
    this.points();
    this.edge();
    this.marks();
  }

  axes() {
    const { context, box, paint } = this, first = best(this.all);
    context.fillStyle = `${paint.faint}26`;
    context.fillRect(box.left, Math.min(this.up(low(first)), this.up(high(first))), box.right - box.left, Math.abs(this.up(low(first)) - this.up(high(first))));
    context.strokeStyle = paint.line;
    context.fillStyle = paint.faint;
    context.font = "12px system-ui, sans-serif";
    context.lineWidth = 1;
    context.beginPath();
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const value of ticks(this.y[0], this.y[1], false)) {
      context.moveTo(box.left, this.up(value));
      context.lineTo(box.right, this.up(value));
      context.fillText(short(value), box.left - 5, this.up(value));
    }
    context.textAlign = "center";
    for (const value of ticks(this.x[0], this.x[1], true)) {
      context.moveTo(this.across(value), box.top);
      context.lineTo(this.across(value), box.bottom);
      context.fillText(short(value), this.across(value), box.bottom + 13);
    }
    context.stroke();
  }

  points() {
    const { context } = this;
    context.globalAlpha = this.rows.length > 600 ? 0.45 : 0.7;
    for (const i of this.rows) {
      const { k, colour } = styleOf(i);
      context.fillStyle = colour;
      mark(context, k, ...this.place(i), this.rows.length > 1500 ? 2.4 : 3.4);
      context.fill();
    }
    context.globalAlpha = 1;
  }

  edge() {
    const { context, paint } = this;
    context.strokeStyle = context.fillStyle = paint.fore;
    context.lineWidth = 1.5;
    context.beginPath();
    this.front.forEach((i, at) => {
      const [x, y] = this.place(i);
      if (at) context.lineTo(x, this.place(this.front[at - 1])[1]);
      context[at ? "lineTo" : "moveTo"](x, y);
    });
    context.stroke();
    context.lineWidth = 1;
    for (const i of this.front) {
      const [x, y] = this.place(i);
      context.beginPath();
      for (const end of [low(i), high(i)]) {
        context.moveTo(x - 3, this.up(end));
        context.lineTo(x + 3, this.up(end));
      }
      context.moveTo(x, this.up(low(i)));
      context.lineTo(x, this.up(high(i)));
      context.stroke();
      mark(context, styleOf(i).k, x, y, 4);
      context.fill();
    }
  }

  marks() {
    const { context, paint } = this, { top, cheapest } = extremes(this.all);
    context.lineWidth = 2.5;
    for (const [i, colour, label] of [[cheapest, paint.best, "cheapest"], [top, paint.best, "best"], [chosen, paint.mark, ""]]) {
      if (i < 0 || !(this.price(i) > 0) || !this.rows.includes(i)) continue;
      const [x, y] = this.place(i), hasRoom = x + 44 < this.box.right;
      context.strokeStyle = context.fillStyle = colour;
      context.beginPath();
      context.arc(x, y, 8, 0, 7);
      context.stroke();
      if (label === "" || (label === "cheapest" && cheapest === top)) continue;
      const at = label === "cheapest" ? ["center", x, y + 17] : [hasRoom ? "left" : "right", x + (hasRoom ? 12 : -12), y];
      context.font = "600 12px system-ui, sans-serif";
      context.textAlign = at[0];
      context.strokeStyle = paint.back;
      context.lineWidth = 4;
      context.strokeText(label, at[1], at[2]); // legible over points
      context.lineWidth = 2.5;
      context.fillText(label, at[1], at[2]);
    }
  }

  near(event) {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.x, y = event.clientY - box.y;
    let found = -1, least = 16 ** 2;
    for (const i of [...this.front, ...this.rows]) { // the front first: of equals it is meant
      const [px, py] = this.place(i), distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [found, least] = [i, distance];
    }
    return found;
  }

  point(event) {
    if (event.pointerType !== "touch") hover(this.near(event), event.clientX, event.clientY);
  }
}

// The best setting, and the cheapest whose interval overlaps with its own, as in findings.cost.
function extremes(rows) {
  const top = best(rows);
  const cheaper = (i, j) => (columns.seconds_per_hour[i] ?? Infinity) - (columns.seconds_per_hour[j] ?? Infinity) || columns.size[i] - columns.size[j] || goodness(j) - goodness(i);
  const cheapest = rows.filter((i) => overlap(i, top)).reduce((one, i) => (one < 0 || cheaper(i, one) < 0 ? i : one), -1);
  return { top, cheapest };
}

function drawCosts() {
  const rows = shownRows().filter((i) => !hiddenModels.has(columns.model.codes[i])), lists = plots.map((plot) => plot.set(rows));
  const unpriced = rows.length - plots[0].rows.length;
  of("cost-about").textContent = "Each point is a setting; point at it or click it; a click on a model hides its own. Line: Pareto front, what nothing at its price or below beats. Circles: the best, and the cheapest that is not told apart from it. Band: interval of the best; whatever reaches into it with its own interval is not told apart from the best." + (unpriced ? ` The compute of ${unpriced} settings is not known.` : "");
  const models = finding().models.map((i) => {
    const item = element("li"), press = element("button"), icon = drawn("svg", { width: 12, height: 12, viewBox: "-6 -6 12 12" }), { k, colour } = styleOf(i);
    icon.append(k % 4 === 0 ? drawn("circle", { r: 4, fill: colour }) : drawn("path", { d: ["", "M-4-4H4V4H-4Z", "M0-5 5 4H-5Z", "M0-5.5 5.5 0 0 5.5-5.5 0Z"][k % 4], fill: colour }));
    press.type = "button";
    press.setAttribute("aria-pressed", !hiddenModels.has(columns.model.codes[i]));
    press.append(icon, element("span", word(i, "model")));
    press.addEventListener("click", () => {
      if (!hiddenModels.delete(columns.model.codes[i])) hiddenModels.add(columns.model.codes[i]);
      drawCosts();
    });
    item.append(press);
    return item;
  });
  of("models-legend").replaceChildren(...models);
  of("front-about").textContent = `The ${new Set(lists.flat()).size} settings of the fronts`;
  table(of("front"), SHOWN, [...new Set(lists.flat())]);
}

// Curves

function drawCurves() {
  const found = Object.entries(finding().curves);
  of("curves-section").hidden = found.length === 0;
  of("curves").replaceChildren(...found.map(([metric, lines]) => {
    const figure = element("figure"), caption = element("figcaption", metric + (data.lower.includes(metric) ? " (less is better)" : ""));
    if (data.about[metric]) caption.append(element("span", data.about[metric], "note"));
    figure.append(caption, curve(lines));
    return figure;
  }));
}

function curve(lines) {
  const all = lines.flat(), layers = values(all, "layer"), ends = all.flatMap((i) => [low(i), high(i)]);
  const [least, most] = [Math.min(...ends), Math.max(...ends)], room = most - least || 1, width = 420, height = 230;
  const x = (i) => 48 + (layers.indexOf(code(i, "layer")) / Math.max(1, layers.length - 1)) * (width - 60);
  const y = (value) => height - 34 - ((value - least) / room) * (height - 46);
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Score by layer; the same numbers are in the table of all scores" });
  for (const value of ticks(least, least + room, false)) {
    picture.append(drawn("line", { x1: 48, x2: width - 12, y1: y(value), y2: y(value), class: "grid" }));
    picture.append(drawn("text", { x: 43, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  const every = Math.ceil(layers.length / 18);
  layers.forEach((layer, at) => {
    const name = columns.layer.names[layer], left = 48 + (at / Math.max(1, layers.length - 1)) * (width - 60);
    if (at % every === 0 || !/^\d+$/.test(name)) picture.append(drawn("text", { transform: `translate(${left + 3} ${height - 24}) rotate(${name.length > 2 ? -35 : 0})`, "text-anchor": name.length > 2 ? "end" : "middle" }, name.length > 9 ? `${name.slice(0, 8)}…` : name));
  });
  for (const line of lines) {
    // Along numbered layers, which follow each other; what has another name stands alone.
    const { colour, k } = styleOf(line[0]), numbered = line.filter((i) => /^\d+$/.test(word(i, "layer")));
    const run = numbered.length > 1 ? numbered : line, alone = line.filter((i) => !run.includes(i));
    const band = [...run.map((i) => `${x(i)} ${y(high(i))}`), ...[...run].reverse().map((i) => `${x(i)} ${y(low(i))}`)];
    for (const i of alone) picture.append(drawn("line", { x1: x(i), x2: x(i), y1: y(low(i)), y2: y(high(i)), stroke: colour, "stroke-width": 2 }));
    picture.append(drawn("polygon", { points: band.join(" "), fill: colour, "fill-opacity": 0.18 }));
    picture.append(drawn("polyline", { points: run.map((i) => `${x(i)} ${y(columns.value[i])}`).join(" "), fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": ["", "7 3", "2 3", "9 3 2 3"][k % 4] }));
    for (const i of line) {
      picture.append(drawn("circle", { cx: x(i), cy: y(columns.value[i]), r: 4, fill: colour, "data-row": i }));
    }
  }
  return picture;
}

// All scores

const COLUMNS = ["task", "metric", ...SHOWN];
const KEYS = Object.fromEntries(COLUMNS.map((name) => [(CALLED[name] ?? name).replace(/ .*/, name === "seconds_per_hour" ? "econds" : ""), name]));
const texts = [];
const textOf = (i) => (texts[i] ??= [...WORDS, "task", "metric"].map((name) => text(i, name)).join(" ").toLowerCase());

// A test of rows: every word is part of a name, or "layer=9", "size<500".
function parse(query) {
  return query.toLowerCase().split(/\s+/).filter(Boolean).map((each) => {
    const [, key, sign, value] = /^([a-z]+)(<=|>=|<|>|=)(.+)$/.exec(each) ?? [], name = KEYS[key], number = parseFloat(value);
    if (name === undefined) return (i) => textOf(i).includes(each);
    const of = (i) => (name === "score" ? columns.value[i] : word(i, name));
    if (sign === "=") return (i) => String(of(i) === null ? "own" : of(i) === "" ? "none" : of(i)).toLowerCase() === value || (typeof of(i) === "number" && of(i) === number);
    const holds = { "<": (a) => a < number, ">": (a) => a > number, "<=": (a) => a <= number, ">=": (a) => a >= number }[sign];
    return (i) => of(i) !== null && of(i) !== "" && holds(Number(of(i)));
  });
}

function compare(i, j) {
  const name = order.column, value = (k) => (name === "score" ? columns.value[k] : word(k, name)), [a, b] = [value(i), value(j)];
  if (a === null || b === null) return (a === null) - (b === null);
  const found = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  return order.falling ? -found : found;
}

function drawRows() {
  const tests = parse(of("filter").value), from = of("here").checked ? shownRows() : Array.from({ length: n }, (_, i) => i);
  listed = from.filter((i) => tests.every((test) => test(i))).sort(compare);
  n_listed = MANY;
  const head = element("tr");
  for (const name of shownColumns()) {
    const cell = element("th"), press = element("button", (CALLED[name] ?? name) + (name === order.column ? (order.falling ? " ▼" : " ▲") : ""));
    press.type = "button";
    press.addEventListener("click", () => {
      order = { column: name, falling: name === order.column ? !order.falling : name === "score" };
      drawRows();
    });
    if (name === order.column) cell.setAttribute("aria-sort", order.falling ? "descending" : "ascending");
    cell.append(press);
    head.append(cell);
  }
  of("rows").replaceChildren(head);
  addRows(0);
}

const shownColumns = () => (of("here").checked ? SHOWN : COLUMNS);

function addRows(from) {
  of("rows").append(...listed.slice(from, n_listed).map((i) => line(i, shownColumns())));
  of("more").hidden = listed.length <= n_listed;
  of("count").textContent = `${listed.length.toLocaleString("en")} of ${n.toLocaleString("en")} scores`;
}

// What is chosen

function changeTask() {
  const found = data.findings.filter((each) => each.task === task());
  fill(of("metric"), found.map((each) => [columns.metric.names.indexOf(each.metric), each.metric]), columns.metric.names.indexOf(found[0].metric));
  changeMetric();
}

function changeMetric() {
  const found = finding(), head = element("tr");
  setStyles();
  of("words").replaceChildren(...found.words.flatMap(([paragraph, line]) => [element("p", paragraph), ...(line ? [command(line)] : [])]));
  table(of("models"), SHOWN, found.models);
  head.append(...["model", "axis", found.metric].map((name) => element("th", name)));
  of("changes").replaceChildren(head, ...found.changes.map(([model, axis, said]) => {
    const row = element("tr");
    row.append(element("td", model), element("td", CALLED[axis] ?? axis), element("td", said));
    return row;
  }));
  fill(of("probe"), [[ANY, "all"]], ANY);
  const probes = values(shownRows(), "probe").map((each) => [each, columns.probe.names[each] || "none"]);
  fill(of("probe"), probes.length > 1 ? [...probes, [ANY, "the best of all"]] : probes, ANY);
  choose(-1);
  changeProbe();
  drawCurves();
}

function changeProbe() {
  const rows = shownRows(), first = best(rows), kept = of("model").value;
  const models = finding().models.map((i) => columns.model.codes[i]).filter((each) => rows.some((i) => columns.model.codes[i] === each));
  fill(of("model"), models.map((each) => [each, columns.model.names[each]]), models.includes(Number(kept)) && kept !== "" ? kept : code(first, "model"));
  changeModel();
  drawCosts();
  drawRows();
}

function changeModel() {
  fillAxes();
  drawMaps();
}

const rowOf = (event) => Number(event.target.closest?.("[data-row]")?.dataset.row ?? -1);
document.addEventListener("click", (event) => { const i = rowOf(event); if (i >= 0) choose(i); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.tagName === "TR") choose(rowOf(event));
  if (event.key === "Escape") choose(-1);
});
document.addEventListener("pointermove", (event) => {
  if (event.pointerType === "touch") hover(-1); // what is touched is chosen, and its setting shown
  else if (event.target.tagName !== "CANVAS") hover(event.target.closest?.(".map, #curves") ? rowOf(event) : -1, event.clientX, event.clientY);
});
of("close").addEventListener("click", () => choose(-1));
of("task").addEventListener("change", changeTask);
of("metric").addEventListener("change", changeMetric);
of("probe").addEventListener("change", changeProbe);
of("model").addEventListener("change", changeModel);
for (const id of ["pool", "framing", "window", "hop", "scale", "intervals"]) of(id).addEventListener("change", drawMaps);
for (const [id, kind] of [["filter", "input"], ["here", "change"]]) of(id).addEventListener(kind, drawRows);
of("more").addEventListener("click", () => {
  const from = n_listed;
  n_listed += 5 * MANY;
  addRows(from);
});
dark.addEventListener("change", () => { setStyles(); drawCosts(); drawCurves(); });

document.title = of("title").textContent = data.title;
of("caveat").textContent = data.caveats[0];
of("caveats").replaceChildren(...data.caveats.slice(1).map((each) => element("li", each)));
plots = [new Plot("seconds", (i) => columns.seconds_per_hour[i]), new Plot("sizes", (i) => columns.size[i])];
fill(of("task"), tasks.map((each, i) => [i, each]), 0);
changeTask();
