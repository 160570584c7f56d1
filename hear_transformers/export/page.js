"use strict";

// Everything is in this page: nothing is fetched, no sound leaves it.
const settings = JSON.parse(document.getElementById("settings").textContent);
const sounds = [];
let session;

function bytesOf(id) {
  const text = atob(document.getElementById(id).textContent);
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

function address(id, type = "text/javascript") {
  return URL.createObjectURL(new Blob([bytesOf(id)], { type }));
}

function show(id, text) {
  document.getElementById(id).textContent = text;
}

async function start() {
  show("title", `Embeddings of ${settings.name}`);
  show("about", `${settings.output.shape[1]} numbers for each window of up to ${settings.max_samples / settings.sample_rate} s. ` +
    "Computed here; no sound leaves this page.");
  show("status", "Loading the model");
  const ort = await import(address("runtime"));
  ort.env.wasm.numThreads = 1; // more need headers of a server
  ort.env.wasm.wasmPaths = { mjs: address("glue"), wasm: address("wasm", "application/wasm") };
  const created = await ort.InferenceSession.create(bytesOf("model"), { executionProviders: ["wasm"] });
  session = { ort, run: (feeds) => created.run(feeds) };
  show("status", "Ready");
}

const ready = start().catch((error) => {
  show("status", "");
  show("problem", `The model does not run here: ${error.message}`);
  throw error;
});
ready.catch(() => {}); // it is shown

// A file as one channel at the model's rate; the browser decodes and resamples.
async function decode(file) {
  const context = new OfflineAudioContext(1, 1, settings.sample_rate);
  const audio = await context.decodeAudioData(await file.arrayBuffer());
  const mono = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel++) {
    audio.getChannelData(channel).forEach((sample, i) => { mono[i] += sample / audio.numberOfChannels; });
  }
  return mono;
}

// Shorter than the shortest: mirrored at its end until it is long enough.
function lengthened(waveform) {
  if (waveform.length >= settings.min_samples) return waveform;
  const longer = new Float32Array(settings.min_samples);
  const period = Math.max(1, 2 * waveform.length - 2);
  for (let i = 0; i < longer.length; i++) {
    const place = i % period;
    longer[i] = waveform[place < waveform.length ? place : period - place];
  }
  return longer;
}

function starts(length) {
  const hop = Math.max(1, Math.round(settings.hop_ms * settings.sample_rate / 1000));
  const found = [0];
  while (found.at(-1) + settings.max_samples < length) {
    found.push(Math.min(found.at(-1) + hop, length - settings.max_samples));
  }
  return found;
}

async function embed(window) {
  const { ort } = session;
  const input = new ort.Tensor("float32", window, [1, window.length]);
  const result = await session.run({ [settings.input.name]: input });
  return Float32Array.from(result[settings.output.name].data);
}

function mean(vectors) {
  const sum = new Float32Array(vectors[0].length);
  for (const vector of vectors) vector.forEach((value, i) => { sum[i] += value / vectors.length; });
  return sum;
}

function cosine(a, b) {
  let product = 0, first = 0, second = 0;
  a.forEach((value, i) => { product += value * b[i]; first += value * value; second += b[i] * b[i]; });
  return product / Math.sqrt(first * second || 1);
}

// Self-similarity along time: how much each window resembles each other one.
function draw(canvas, vectors) {
  const centre = mean(vectors);
  const moved = vectors.map((vector) => vector.map((value, i) => value - centre[i]));
  canvas.width = canvas.height = vectors.length;
  const context = canvas.getContext("2d");
  moved.forEach((a, row) => moved.forEach((b, column) => {
    const likeness = vectors.length > 1 ? (cosine(a, b) + 1) / 2 : 1;
    context.fillStyle = `hsl(${240 - 190 * likeness} 75% ${20 + 55 * likeness}%)`;
    context.fillRect(column, row, 1, 1);
  }));
}

function list() {
  for (const sound of sounds) {
    const others = sounds.filter((other) => other !== sound);
    const scored = others.map((other) => [cosine(sound.embedding, other.embedding), other.name]);
    scored.sort((a, b) => b[0] - a[0]);
    sound.neighbours.replaceChildren(...scored.slice(0, 5).map(([score, name]) => {
      const item = document.createElement("li");
      const number = document.createElement("span");
      number.className = "score";
      number.textContent = `${score.toFixed(3)} `;
      item.append(number, name);
      return item;
    }));
  }
}

async function add(file) {
  await ready;
  show("problem", "");
  let waveform;
  try {
    waveform = lengthened(await decode(file));
  } catch (error) {
    show("problem", `${file.name}: the browser cannot decode it`);
    return;
  }
  const places = starts(waveform.length);
  const vectors = [];
  for (const place of places) {
    show("status", `${file.name}: window ${vectors.length + 1} of ${places.length}`);
    vectors.push(await embed(waveform.slice(place, place + settings.max_samples)));
    await new Promise((done) => setTimeout(done));
  }
  const article = document.createElement("article");
  const name = document.createElement("strong");
  const canvas = document.createElement("canvas");
  const about = document.createElement("p");
  const neighbours = document.createElement("ol");
  name.textContent = file.name;
  about.className = "score";
  about.textContent = `${(waveform.length / settings.sample_rate).toFixed(2)} s, ` +
    `${places.length} windows: how much they resemble each other; below, the nearest of the other sounds`;
  article.append(name, about, canvas, neighbours);
  document.getElementById("sounds").append(article);
  draw(canvas, vectors);
  sounds.push({ name: file.name, embedding: mean(vectors), vectors, neighbours });
  list();
  show("status", "Ready");
}

async function addAll(files) {
  for (const file of files) await add(file);
}

const drop = document.getElementById("drop");
document.getElementById("files").addEventListener("change", (event) => addAll([...event.target.files]));
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") addAll([...event.dataTransfer.files]);
  });
}
