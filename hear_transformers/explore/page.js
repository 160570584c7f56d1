"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const of = (id) => document.getElementById(id);
const n = data.file.length;
const dark = matchMedia("(prefers-color-scheme: dark)");
const canvas = of("canvas"), context = canvas.getContext("2d"), audio = of("audio");
let groups = [], shown = [], visible = new Uint8Array(n), chosen = -1, hovered = -1, stopAt = null, due = false;
let view = { scale: 1, x: 0, y: 0 };

const clock = (s) => `${Math.floor(s / 60)}:${(s % 60).toFixed(2).padStart(5, "0")}`;
const base = (i) => data.files[data.file[i]].split(/[\\/]/).pop();
const span = (i) => `${clock(data.start[i])} to ${data.end[i] === null ? "the end" : clock(data.end[i])}`;
const called = (i) => `${base(i)}  ${span(i)}`;
const labelOf = (i) => (data.label === null ? null : data.label[i] < 0 ? "no label" : data.labels[data.label[i]]);
const colour = (group) => (group < 0 ? "#8a8a92" : `hsl(${Math.round((group * 137.508) % 360)} 68% ${(dark.matches ? 64 : 44) + 8 * (Math.floor(group / 8) % 2)}%)`);

function element(tag, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text; // never HTML: names of files are anybody's
  return made;
}

function option(select, value, text) {
  const made = element("option", text);
  made.value = value;
  select.append(made);
}

// The map

let frame = {}; // size of the map: to ask the page for it at each point would be most of the work

function measure() {
  const width = canvas.clientWidth, height = canvas.clientHeight, half = Math.max(10, Math.min(width, height) / 2 - 16);
  const wide = half * Math.max(1, Math.min(width / height, 1.8)), tall = half * Math.max(1, Math.min(height / width, 1.8));
  frame = { width, height, wide, tall };
  redraw();
}

function place(i) {
  return [
    frame.width / 2 + (data.x[i] * frame.wide + view.x) * view.scale,
    frame.height / 2 + (-data.y[i] * frame.tall + view.y) * view.scale,
  ];
}

function draw() {
  due = false;
  const ratio = devicePixelRatio || 1, { width, height } = frame;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const radius = n > 3000 ? 2.2 : n > 500 ? 3.2 : 5;
  for (const members of groups) { // one path for each colour: 10,000 points stay fluid
    context.beginPath();
    for (const i of members.rows) {
      if (!visible[i]) continue;
      const [x, y] = place(i);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
      context.moveTo(x + radius, y);
      context.arc(x, y, radius, 0, 6.2832);
    }
    context.globalAlpha = 0.8;
    context.fillStyle = members.colour;
    context.fill();
  }
  context.globalAlpha = 1;
  context.strokeStyle = getComputedStyle(document.body).color;
  for (const [i, size] of [[hovered, radius + 3], [chosen, radius + 6]]) {
    if (i < 0) continue;
    context.beginPath();
    context.lineWidth = 2;
    context.arc(...place(i), size, 0, 6.2832);
    context.stroke();
  }
}

function redraw() {
  if (!due) requestAnimationFrame(draw);
  due = true;
}

function nearest(x, y, most) {
  let best = -1, least = most * most;
  for (const i of shown) {
    const [px, py] = place(i), distance = (px - x) ** 2 + (py - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  }
  return best;
}

function hover(i) {
  const note = of("hover");
  hovered = i;
  note.hidden = i < 0;
  if (i >= 0) {
    const [x, y] = place(i), left = x < canvas.clientWidth / 2;
    note.textContent = called(i) + (labelOf(i) === null ? "" : `  ${labelOf(i)}`);
    note.style.left = left ? `${x + 14}px` : "auto";
    note.style.right = left ? "auto" : `${canvas.clientWidth - x + 14}px`;
    note.style.top = `${Math.max(2, Math.min(y - 12, canvas.clientHeight - 40))}px`;
  }
  redraw();
}

// Sound

function play(i) {
  const source = data.audio[data.file[i]], problem = of("problem");
  problem.hidden = source !== null;
  if (source === null) {
    problem.textContent = "The audio of this file was not found when the page was made.";
    audio.pause();
    return;
  }
  const begin = () => {
    audio.currentTime = data.start[i];
    stopAt = data.end[i];
    audio.play().catch((error) => {
      if (error.name === "AbortError") return;
      problem.hidden = false;
      problem.textContent = error.name === "NotAllowedError" ? "Press play to hear it." : "This browser cannot play the file, or it is no longer there.";
    });
  };
  if (audio.dataset.file !== String(data.file[i])) {
    audio.dataset.file = data.file[i];
    audio.src = source;
    audio.addEventListener("loadedmetadata", begin, { once: true });
    audio.load();
  } else if (audio.readyState) begin();
  else audio.addEventListener("loadedmetadata", begin, { once: true });
}

audio.addEventListener("timeupdate", () => {
  if (stopAt !== null && audio.currentTime >= stopAt) {
    audio.pause();
    stopAt = null;
  }
});
audio.addEventListener("error", () => {
  of("problem").hidden = false;
  of("problem").textContent = "This browser cannot play the file, or it is no longer there.";
});

// Pictures

const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
const vectors = data.vectors === null ? null : new Int8Array(bytes(data.vectors).buffer);

function paintPixels(picture, columns, rows, grey) { // grey: (column, row from the top) -> 0 to 255
  picture.width = columns;
  picture.height = rows;
  const pixels = picture.getContext("2d"), image = pixels.createImageData(columns, rows);
  for (let y = 0; y < rows; y += 1) {
    for (let x = 0; x < columns; x += 1) {
      const value = grey(x, y), at = 4 * (y * columns + x);
      image.data.set([Math.min(255, 2.2 * value), Math.max(0, 1.6 * value - 140), 90 + 90 * Math.sin(value / 60), 255], at);
    }
  }
  pixels.putImageData(image, 0, 0);
}

function illustrate(i) {
  const picture = data.pictures[data.file[i]], members = [];
  data.file.forEach((file, row) => file === data.file[i] && members.push(row));
  const along = vectors !== null && members.length > 1;
  of("pictures").hidden = !picture && !along;
  of("spectrogram").hidden = !picture;
  of("similarity").hidden = of("similarity-about").hidden = !along;
  of("pictures-title").textContent = along ? "Self-similarity along time" : "Spectrogram";
  if (picture) {
    const pixels = bytes(picture.pixels);
    paintPixels(of("spectrogram"), picture.columns, picture.bands, (x, y) => pixels[x * picture.bands + picture.bands - 1 - y]);
    of("spectrogram").style.height = "96px";
  }
  if (!along) return;
  const size = data.components, step = Math.max(1, Math.ceil(members.length / 400));
  const some = members.filter((_, at) => at % step === 0);
  const cosine = (a, b) => {
    let product = 0, one = 0, two = 0;
    for (let c = 0; c < size; c += 1) {
      const left = vectors[a * size + c], right = vectors[b * size + c];
      product += left * right;
      one += left * left;
      two += right * right;
    }
    return product / Math.sqrt(one * two || 1);
  };
  paintPixels(of("similarity"), some.length, some.length, (x, y) => 127.5 * (1 + cosine(some[x], some[y])));
  of("similarity").onclick = (event) => choose(some[Math.min(some.length - 1, Math.floor((event.offsetX / of("similarity").clientWidth) * some.length))]);
  of("similarity-about").textContent = `${some.length} of ${members.length} times, both ways from the beginning of the file; the brighter, the more alike (by ${size} components). Click to hear a time.`;
}

// Lists

function item(i, score) {
  const button = element("button");
  if (score !== undefined) {
    const cell = element("span", score.toFixed(2));
    cell.className = "score";
    button.append(cell);
  }
  button.append(called(i) + (labelOf(i) === null ? "" : `  ${labelOf(i)}`));
  button.addEventListener("click", () => choose(i));
  const row = element("li");
  row.append(button);
  return row;
}

function choose(i, heard = true) {
  chosen = i;
  of("name").textContent = base(i);
  const label = labelOf(i) === null ? "" : `, ${labelOf(i)}`;
  of("about").textContent = `${data.files[data.file[i]]}, ${span(i)}${label}, cluster ${data.cluster[i] + 1}`;
  const rows = data.near[i].map((other, at) => [other, data.cosine[i][at]]).filter(([other]) => other !== i);
  of("neighbours").replaceChildren(...rows.map(([other, score]) => item(other, score)));
  illustrate(i);
  of("label").value = own.get(i) ?? "";
  if (heard) play(i);
  redraw();
}

function apply() {
  const text = of("search").value.toLowerCase(), wanted = of("filter").value;
  shown = [];
  for (let i = 0; i < n; i += 1) {
    const fits = wanted === "" || data.label[i] === Number(wanted);
    visible[i] = fits && data.files[data.file[i]].toLowerCase().includes(text) ? 1 : 0;
    if (visible[i]) shown.push(i);
  }
  const some = data.rows > n ? `, a random sample of ${data.rows.toLocaleString("en")} rows` : "";
  of("count").textContent = `${shown.length.toLocaleString("en")} of ${n.toLocaleString("en")} points${some}; ${data.method}`;
  hover(-1);
}

function paint() {
  const byLabel = of("colour").value === "label", codes = byLabel ? data.label : data.cluster;
  const found = new Map();
  codes.forEach((code, i) => (found.has(code) ? found.get(code).push(i) : found.set(code, [i])));
  groups = [...found].sort((a, b) => a[0] - b[0]).map(([code, rows]) => ({ code, rows, colour: colour(code) }));
  of("legend").replaceChildren(...groups.map((group) => {
    const row = element("li"), box = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [name, value] of [["width", 12], ["height", 12]]) box.setAttribute(name, value);
    for (const [name, value] of [["cx", 6], ["cy", 6], ["r", 5], ["fill", group.colour]]) dot.setAttribute(name, value);
    box.append(dot);
    const name = byLabel ? (group.code < 0 ? "no label" : data.labels[group.code]) : `cluster ${group.code + 1}`;
    row.append(box, element("span", `${name} (${group.rows.length})`));
    return row;
  }));
  redraw();
}

// Labels of one's own

const own = new Map(); // row -> text
const before = data.label === null ? null : [...data.label];
let unsaved = false;

function label(i, text) {
  if (data.label === null) {
    data.label = Array(n).fill(-1);
    of("filter").disabled = false;
    of("colour").prepend(new Option("label", "label"));
    of("colour").value = "label";
  }
  if (text && !data.labels.includes(text)) {
    data.labels.push(text);
    option(of("filter"), data.labels.length - 1, text);
    option(of("names"), text);
  }
  data.label[i] = text ? data.labels.indexOf(text) : before === null ? -1 : before[i];
  if (text) own.set(i, text);
  else own.delete(i);
  unsaved = own.size > 0;
  of("save").disabled = !own.size;
  of("labelled").textContent = own.size ? `${own.size} labelled here; save them before the page is closed` : "";
  paint();
  apply();
}

function table() { // of the labels, as hear-transformers probe and explore --labels-from read it
  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = [...own].sort((a, b) => a[0] - b[0]).map(([i, text]) => [cell(data.paths[data.file[i]]), data.start[i], data.end[i] ?? "", cell(text)]);
  return [["path", "start", "end", "labels"], ...rows].map((row) => `${row.join(",")}\n`).join("");
}

of("labelling").addEventListener("submit", (event) => {
  event.preventDefault();
  if (chosen < 0) {
    of("labelled").textContent = "Click a point first: the label is of the sound that is heard.";
    return;
  }
  label(chosen, of("label").value.trim());
  choose(chosen, false);
  canvas.focus();
});
of("save").addEventListener("click", () => {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.download = "labels.csv";
  link.click();
  URL.revokeObjectURL(link.href);
  unsaved = false;
  of("labelled").textContent = `${own.size} saved in labels.csv`;
});
addEventListener("beforeunload", (event) => unsaved && event.preventDefault());

// What the user does

let drag = null;
canvas.addEventListener("pointerdown", (event) => {
  drag = { x: event.clientX, y: event.clientY, moved: false };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (drag && (drag.moved || Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 4)) {
    view.x += (event.clientX - drag.x) / view.scale;
    view.y += (event.clientY - drag.y) / view.scale;
    drag = { x: event.clientX, y: event.clientY, moved: true };
    redraw();
  } else if (!drag) hover(nearest(event.offsetX, event.offsetY, 14));
});
canvas.addEventListener("pointerup", (event) => {
  const found = drag && !drag.moved ? nearest(event.offsetX, event.offsetY, 18) : -1;
  drag = null;
  if (found >= 0) {
    hover(found);
    choose(found);
  }
});
canvas.addEventListener("pointerleave", () => hover(-1));
const zoom = (factor) => {
  view.scale = Math.max(0.5, Math.min(200, view.scale * factor));
  redraw();
};
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 500));
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (way && shown.length) {
    const from = hovered >= 0 ? hovered : chosen;
    let best = from, least = Infinity;
    const [x, y] = from < 0 ? [canvas.clientWidth / 2, canvas.clientHeight / 2] : place(from);
    for (const i of shown) {
      const [px, py] = place(i), along = (px - x) * way[0] + (py - y) * way[1];
      const across = Math.abs((px - x) * way[1]) + Math.abs((py - y) * way[0]);
      if (i !== from && (from < 0 || along > 0.5) && Math.abs(along) + 2 * across < least) [best, least] = [i, Math.abs(along) + 2 * across];
    }
    hover(best);
  } else if ((event.key === "Enter" || event.key === " ") && hovered >= 0) choose(hovered);
  else if (event.key === "+") zoom(1.3);
  else if (event.key === "-") zoom(1 / 1.3);
  else if (event.key === "0") {
    view = { scale: 1, x: 0, y: 0 };
    redraw();
  } else return;
  event.preventDefault();
});

document.title = data.title;
of("title").textContent = data.title;
option(of("filter"), "", "all");
data.labels.forEach((name, i) => {
  option(of("filter"), i, name);
  option(of("names"), name);
});
if (data.label !== null) option(of("colour"), "label", "label");
option(of("colour"), "cluster", "cluster");
of("filter").disabled = data.label === null;
of("search").addEventListener("input", apply);
of("filter").addEventListener("change", apply);
of("colour").addEventListener("change", paint);
dark.addEventListener("change", paint);
of("pairs-about").textContent = data.n_pairs
  ? `${data.n_pairs} pairs with a cosine of ${data.threshold} or more${data.n_pairs > data.pairs.length ? `, the first ${data.pairs.length} listed` : ""}`
  : `No pair has a cosine of ${data.threshold} or more.`;
of("pairs").replaceChildren(...data.pairs.map(([one, two, score]) => {
  const row = element("li"), list = element("ul");
  list.append(item(one, score), item(two, score));
  row.append(list);
  return row;
}));
new ResizeObserver(measure).observe(canvas);
measure();
paint();
apply();
