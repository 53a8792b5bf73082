// The live page: one WebSocket brings the status once a second and the pictures of what is on the screen.

const RETRY_MS = [500, 1000, 2000, 5000];
const FORGET_CLASS_MS = 60_000; // a class that was not seen for so long loses its chip
const STAGES = ["wait", "pre", "infer", "post", "track", "sinks"];
const SVG_WIDTH = 119, SVG_HEIGHT = 24;

const byId = (id) => document.getElementById(id);
const cards = new Map(); // by name of camera
let socket = null, attempts = 0, version = null, offlineSince = null, run = null;

class Card {
  constructor(name) {
    this.name = name;
    this.root = byId("card").content.firstElementChild.cloneNode(true);
    this.canvas = this.find("canvas");
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.painting = Promise.resolve();
    this.ratio = 3 / 4; // height by width
    this.visible = false;
    this.shown = false; // a picture was painted
    this.chips = new Map();
    this.find(".name").textContent = name;
    this.canvas.setAttribute("aria-label", `Picture of camera ${name}`);
    this.find(".back").addEventListener("click", () => choose(null));
    this.find(".screen").addEventListener("click", () => choose(chosen() === name ? null : name));
    onScreen.observe(this.root);
  }

  find(selector) { return this.root.querySelector(selector); }

  paint(jpeg) { // one after the other: they must not overtake
    this.painting = this.painting.then(() => createImageBitmap(jpeg)).then((bitmap) => {
      if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
        this.canvas.width = bitmap.width;
        this.canvas.height = bitmap.height;
      }
      this.context.drawImage(bitmap, 0, 0);
      bitmap.close();
      this.shown = true;
      this.root.classList.add("painted");
    }).catch(() => {}).finally(() => send({ painted: this.name }));
  }

  update(camera, colors) {
    this.root.dataset.state = camera.state;
    if (camera.image_hw) {
      const aspect = `${camera.image_hw[1]} / ${camera.image_hw[0]}`;
      if (this.aspect !== aspect) {
        this.aspect = aspect;
        this.ratio = camera.image_hw[0] / camera.image_hw[1];
        this.root.style.setProperty("--aspect", aspect);
        arrange();
      }
    }
    const since = duration(camera.since_s);
    const states = { live: "live", lost: `lost for ${since}`, connecting: `connecting for ${since}`, ended: "ended" };
    put(this.find(".state"), states[camera.state] ?? camera.state);
    const why = camera.error.split("; ")[0]; // what to do about it stands below the picture
    const veils = { lost: ["Lost", `${since} ago${why ? `: ${why}` : ""}`], connecting: ["Connecting", since] };
    const [head, text] = veils[camera.state] ?? (this.shown ? ["", ""] : ["", "waiting for a picture"]);
    put(this.find(".veil strong"), head);
    put(this.find(".veil em"), text);
    const still = camera.state !== "live";
    putFigure(this.find(".fps"), still ? "–" : fixed(camera.fps));
    putLatency(this.find(".latency"), still ? null : camera.latency_ms);
    const [fps, latency] = this.root.querySelectorAll(".spark");
    drawSpark(fps, camera.history.fps);
    drawSpark(latency, camera.history.latency_ms);
    this.updateCounts(camera, colors);
    const rows = [
      camera.image_hw ? `${camera.image_hw[1]} × ${camera.image_hw[0]}` : "",
      `${count(camera.frames_out)} frames`,
      camera.dropped ? `${count(camera.dropped)} dropped` : "",
      camera.damaged ? `${count(camera.damaged)} damaged` : "",
      camera.reconnects ? `${count(camera.reconnects)} reconnect${camera.reconnects === 1 ? "" : "s"}` : "",
      camera.uri,
    ];
    put(this.find(".small"), rows.filter(Boolean).join(" · "));
    put(this.find(".error"), camera.error ? `Last trouble: ${camera.error}` : "");
    this.find(".facts").title = camera.error ? `${camera.uri}\nLast trouble: ${camera.error}` : camera.uri;
  }

  updateCounts(camera, colors) { // chips stay where they are when a count is 0 for a moment
    const now = performance.now(), list = this.find(".counts");
    for (const [name, number] of Object.entries(camera.counts)) {
      if (!this.chips.has(name)) this.chips.set(name, this.makeChip(name, colors[name]));
      if (number) this.chips.get(name).seen = now;
    }
    for (const [name, chip] of this.chips) {
      const number = camera.counts[name] ?? 0;
      if (!number && now - chip.seen > FORGET_CLASS_MS) { chip.root.remove(); this.chips.delete(name); continue; }
      if (chip.number !== number) {
        chip.number = number;
        chip.root.dataset.count = number;
        put(chip.root.querySelector("b"), String(number));
      }
    }
    const order = Object.keys(colors), place = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
    const wanted = [...this.chips].sort((a, b) => place(a[0]) - place(b[0]));
    if (wanted.some(([, chip], i) => list.children[i] !== chip.root) || list.querySelector(".none")) {
      list.replaceChildren(...wanted.map(([, chip]) => chip.root));
    }
    if (!wanted.length && !list.firstElementChild) list.append(element("li", "none", "nothing found yet"));
  }

  makeChip(name, color) {
    const root = document.createElement("li");
    root.append(element("i"), element("span", "", name), element("b"));
    if (color) root.style.setProperty("--color", color);
    return { root, number: null, seen: performance.now() };
  }
}

const onScreen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    for (const card of cards.values()) if (card.root === entry.target) card.visible = entry.isIntersecting;
  }
  watch();
});

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

function put(node, text) { if (node.textContent !== text) node.textContent = text; }
function putFigure(node, text, tail = "") {
  if (node.dataset.text === text + tail) return;
  node.dataset.text = text + tail;
  node.replaceChildren(text, ...(tail ? [element("small", "", tail)] : []));
}
function putLatency(node, found) {
  if (!found || !found.count) putFigure(node, "–");
  else putFigure(node, milliseconds(found.p50), ` / ${milliseconds(found.p95)}`);
}

const grouped = new Intl.NumberFormat("en");
const count = (number) => grouped.format(number);
const fixed = (number) => number.toFixed(1);
const milliseconds = (number) => (number < 10 ? number.toFixed(1) : count(Math.round(number)));
function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

function drawSpark(svg, values) {
  const [area, line] = svg.querySelectorAll("path");
  if (values.length < 2) return;
  const top = Math.max(...values, 1e-6) * 1.15, step = SVG_WIDTH / Math.max(values.length - 1, 29);
  const first = SVG_WIDTH - step * (values.length - 1);
  const points = values.map((value, i) => `${(first + step * i).toFixed(1)},${(SVG_HEIGHT * (1 - value / top)).toFixed(1)}`).join(" L");
  line.setAttribute("d", `M${points}`);
  area.setAttribute("d", `M${first},${SVG_HEIGHT} L${points} L${SVG_WIDTH},${SVG_HEIGHT} Z`);
}

// Status

function show(status) {
  run = status;
  if (version !== null && version !== status.version) { location.reload(); return; }
  version = status.version;
  put(byId("model"), status.model || "edge-mrcnn");
  put(byId("backend"), status.backend);
  putFigure(byId("fps"), fixed(status.fps));
  putLatency(byId("latency"), status.stages_ms.total ?? (status.cameras.length === 1 ? status.cameras[0].latency_ms : null));
  put(byId("uptime"), duration(status.uptime_s));
  showHealth(status);
  showCameras(status);
  showStages(status.stages_ms);
  showSinks(status.sinks);
  byId("run").hidden = byId("stages-panel").hidden && byId("sinks-panel").hidden;
}

function showHealth(status) {
  const cameras = status.cameras.length, bad = status.cameras.filter((camera) => camera.state === "lost");
  const sinks = status.sinks.filter((sink) => sink.error);
  let text = ["", "Camera live", "Both cameras live"][cameras] ?? `All ${cameras} cameras live`;
  if (!cameras) text = "Waiting for a camera";
  else if (status.cameras.every((camera) => camera.state === "ended")) text = "Ended";
  else if (status.cameras.some((camera) => camera.state === "ended")) text = "Well";
  if (!status.healthy) text = "Not well";
  const connecting = status.cameras.filter((camera) => camera.state === "connecting");
  if (connecting.length) text = `${connecting.length} of ${cameras} connecting`;
  if (bad.length) text = cameras === 1 ? "Camera lost" : `${bad.length} of ${cameras} cameras lost`;
  if (sinks.length) text = `${bad.length ? `${text}, ` : ""}${sinks.length} ${sinks.length === 1 ? "sink" : "sinks"} failed`;
  const node = byId("health");
  put(node, text);
  node.title = status.problems.join("\n");
  const starting = connecting.length && !bad.length && !sinks.length;
  node.dataset.health = !cameras ? "unknown" : status.healthy ? "good" : starting ? "warn" : "bad";
  document.title = status.healthy ? status.model || "edge-mrcnn" : `⚠ ${text}`;
}

function showCameras(status) {
  const main = byId("cameras");
  let changed = false;
  for (const camera of status.cameras) {
    if (!cards.has(camera.name)) {
      cards.set(camera.name, new Card(camera.name));
      main.append(cards.get(camera.name).root);
      changed = true;
    }
    cards.get(camera.name).update(camera, status.colors);
  }
  const names = status.cameras.map((camera) => camera.name);
  for (const [name, card] of cards) {
    if (!names.includes(name)) { onScreen.unobserve(card.root); card.root.remove(); cards.delete(name); changed = true; }
  }
  byId("empty").hidden = names.length > 0;
  if (changed) choose(chosen(), false);
}

function showStages(stages) {
  const known = STAGES.filter((stage) => stages[stage]?.count);
  byId("stages-panel").hidden = !known.length;
  const bar = byId("bar"), list = byId("stages");
  if (bar.dataset.stages !== known.join()) {
    bar.dataset.stages = known.join();
    bar.replaceChildren(...known.map(() => element("span")));
    list.replaceChildren(...known.map((stage) => {
      const row = element("div");
      row.append(element("i"), element("dt", "", stage), element("dd"));
      return row;
    }));
    known.forEach((stage, i) => {
      const color = `var(--stage-${STAGES.indexOf(stage)})`;
      bar.children[i].style.setProperty("--color", color);
      bar.children[i].title = stage;
      list.children[i].style.setProperty("--color", color);
    });
  }
  known.forEach((stage, i) => {
    bar.children[i].style.setProperty("--share", Math.max(stages[stage].p50, 0.01));
    putLatency(list.children[i].querySelector("dd"), stages[stage]);
  });
}

function showSinks(sinks) {
  byId("sinks-panel").hidden = !sinks.length;
  byId("sinks").replaceChildren(...sinks.map((sink) => {
    const row = element("li");
    row.append(element("code", "", sink.uri), element("span", "", `${count(sink.written)} frames`));
    if (sink.dropped) row.append(element("span", "muted", `${count(sink.dropped)} dropped`));
    if (sink.error) row.append(element("span", "error", sink.error));
    return row;
  }));
}

// What is on the screen

function chosen() { return decodeURIComponent(location.hash.slice(1)) || null; }

function choose(name, remember = true) {
  const card = cards.get(name);
  if (remember) { // so that a phone's back button leads to all cameras
    const call = card && !document.body.classList.contains("enlarged") ? "pushState" : "replaceState";
    history[call](null, "", card ? `#${encodeURIComponent(name)}` : location.pathname + location.search);
  }
  document.body.classList.toggle("enlarged", Boolean(card));
  for (const [other, each] of cards) each.root.classList.toggle("chosen", other === name);
  byId("cameras").style.gridTemplateColumns = "";
  arrange();
  watch();
}

function step(by) {
  const names = [...cards.keys()];
  if (names.length) choose(names[(names.indexOf(chosen()) + by + names.length) % names.length]);
}

addEventListener("hashchange", () => choose(chosen(), false));
addEventListener("resize", () => arrange());
document.addEventListener("visibilitychange", () => watch());
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape") choose(null);
  else if (event.key === "ArrowRight" && chosen()) step(1);
  else if (event.key === "ArrowLeft" && chosen()) step(-1);
  else if (/^[1-9]$/.test(event.key)) {
    const name = [...cards.keys()][Number(event.key) - 1];
    if (name) choose(chosen() === name ? null : name);
  } else return;
  event.preventDefault();
});

// The number of rows that gives the largest pictures with all cameras seen at once; where these would be small, the page
// scrolls with columns of about 380 pixels.
function arrange() {
  const main = byId("cameras"), gap = 16, least = 280;
  const all = [...cards.values()], number = all.length;
  const width = main.clientWidth, height = innerHeight - main.getBoundingClientRect().top - scrollY - gap;
  if (!width || !number || document.body.classList.contains("enlarged")) return;
  main.classList.toggle("dense", number > 2 && width > 640);
  const ratio = Math.max(...all.map((card) => card.ratio));
  const facts = Math.max(...all.map((card) => card.root.offsetHeight - card.find(".screen").offsetHeight));
  let best = { columns: 1, card: 0 };
  for (let rows = 1; rows <= number; rows += 1) {
    const columns = Math.ceil(number / rows);
    const widest = (width - gap * (columns - 1)) / columns, highest = (height - gap * (rows - 1)) / rows - facts;
    const card = Math.floor(Math.min(widest, highest / ratio));
    if (card > best.card) best = { columns, card };
  }
  if (best.card < least) {
    const columns = Math.max(1, Math.min(number, Math.round((width + gap) / (380 + gap))));
    best = { columns, card: Math.min((width - gap * (columns - 1)) / columns, Math.max(420, (height - facts) / ratio)) };
  }
  main.style.gridTemplateColumns = `repeat(${best.columns}, minmax(0, ${best.card}px))`;
}

function watch() {
  const shown = document.hidden ? [] : [...cards.values()].filter((card) => (chosen() && cards.has(chosen()) ? card.name === chosen() : card.visible));
  send({ watch: shown.map((card) => card.name) });
}

// Connection

function send(message) { if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message)); }

function connect() {
  socket = new WebSocket(new URL("live", location.href).href.replace(/^http/, "ws"));
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    attempts = 0;
    offlineSince = null;
    document.body.dataset.connection = "online";
    byId("offline").hidden = true;
    watch();
  };
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") { show(JSON.parse(data)); return; }
    const length = new DataView(data).getUint16(0);
    const name = new TextDecoder().decode(new Uint8Array(data, 2, length));
    cards.get(name)?.paint(new Blob([new Uint8Array(data, 2 + length)], { type: "image/jpeg" }));
  };
  socket.onclose = () => {
    offlineSince ??= new Date();
    document.body.dataset.connection = "offline";
    put(byId("offline"), `No connection since ${offlineSince.toLocaleTimeString()}: the run has ended or the network is down. Trying again.`);
    byId("offline").hidden = false;
    byId("health").dataset.health = "unknown";
    put(byId("health"), "No connection");
    document.title = `⚠ No connection`;
    setTimeout(retry, RETRY_MS[Math.min(attempts++, RETRY_MS.length - 1)]);
  };
}

async function retry() { // a WebSocket does not say that the token is missing
  try {
    if ((await fetch("healthz", { cache: "no-store" })).status === 401) { location.reload(); return; }
  } catch { /* the server is away */ }
  connect();
}

connect();
