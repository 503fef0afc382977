// The live page: what is shown, what is asked for, and what happens when the runs go on.
import { get, queue } from "./ask.js";
import { draw, stretch, theme } from "./plots.js";
import * as parts from "./parts.js";

const { byId } = parts;
const state = {
  runs: [], shown: [], off: new Set(), statistic: null, picked: false, of: "mean", scale: "value",
  span: null, follow: false, sites: [], alert: null, window: "0:0", windowStatistic: null,
  revision: 0, drawn: [], places: [], news: [], lost: false, closed: false,
};
const WIDEST = 8, NARROW = 900;

// ---- what is asked for ---------------------------------------------------------------------

const columns = (plot) => Math.max(60, Math.min(500, Math.round(plot.clientWidth / 2.5)));
const label = () => (window.innerWidth < 500 ? 14 : window.innerWidth < 900 || across() > 1 ? 20 : 28);
const stop = () => state.span && Math.ceil(state.span[1]) + 1;
const start = () => state.span && Math.floor(state.span[0]);
const ready = () => state.shown.filter((k) => state.runs[k].state === "open" && state.runs[k].sampled > 0);
const first = () => state.runs[ready()[0]];

function across() {
  const many = ready().length;
  if (many < 2 || window.innerWidth < NARROW || byId("layout").value === "below") return 1;
  return Math.min(many, many === 4 ? 2 : 3);
}

const asked = (plot) => ({
  runs: ready().join(","), start: start(), stop: stop(), columns: columns(plot),
});

const figures = {
  timeline: queue(async (signal) => {
    const plot = byId("timeline");
    if (!ready().length) return;
    await shown(plot, "timeline-caption", async () => {
      const answer = await get("/api/timeline", {
        ...asked(plot), statistic: state.statistic, of: state.of, scale: state.scale,
        across: across(), label: label(), sites: state.sites.join(","),
      }, signal);
      state.drawn = answer.runs;
      state.places = answer.sites;
      await draw(plot, answer.figure, `${state.revision}`);
      byId("timeline-caption").textContent = answer.figure.layout.meta.caption;
      listen(plot);
    });
  }, true),
  scalars: queue(async (signal) => {
    const plot = byId("scalars-plot");
    if (!ready().length) return;
    const answer = await get("/api/scalars", { ...asked(plot), columns: null }, signal).catch(quiet);
    byId("scalars").hidden = !answer || !answer.figure;
    if (answer && answer.figure) { await draw(plot, answer.figure, "scalars"); listen(plot); }
  }, true),
  sites: queue(async (signal) => {
    const plot = byId("lines");
    byId("sites").hidden = !ready().length;
    if (!ready().length || !state.sites.length) { byId("lines-figure").hidden = true; return; }
    byId("lines-figure").hidden = false;
    const question = { ...asked(plot), statistic: state.statistic, sites: state.sites.join(",") };
    const answer = await get("/api/sites", question, signal).catch(quiet);
    byId("lines-figure").hidden = !answer || !answer.figure;
    if (answer && answer.figure) { await draw(plot, answer.figure, "lines"); listen(plot); }
  }, true),
  window: queue(async (signal) => {
    const plot = byId("window-plot");
    if (byId("windows").hidden) return;
    const [run, number] = state.window.split(":");
    await shown(plot, "window-caption", async () => {
      const question = { runs: run, number, statistic: state.windowStatistic, label: label() };
      const answer = await get("/api/window", question, signal);
      await draw(plot, answer.figure, `${state.window}`);
      byId("window-caption").textContent = answer.figure.layout.meta.caption;
    });
  }, false),
};

function quiet(error) {
  if (error.name === "AbortError") throw error;
  return null;
}

// a figure that cannot be made says why, and leaves the last one standing
async function shown(plot, caption, task) {
  const box = plot.closest("figure");
  box.classList.add("busy");
  try {
    await task();
    byId(caption).classList.remove("problem");
  } catch (error) {
    if (error.name === "AbortError") throw error;
    byId(caption).textContent = error instanceof TypeError ? "signalprop view does not answer." : error.message;
    byId(caption).classList.add("problem");
  } finally {
    box.classList.remove("busy");
  }
}

function redraw(urgent) {
  return Promise.all(["timeline", "sites", "scalars"].map((name) => figures[name](urgent)));
}

// ---- zoom ------------------------------------------------------------------------------------

function whole() {
  const open = ready().map((k) => state.runs[k]);
  if (!open.length) return [0, 1];
  return [Math.min(...open.map((r) => r.first)), Math.max(...open.map((r) => r.last))];
}

function zoom(span) {
  const [low, high] = whole();
  if (span === "all" || span === null) state.span = null;
  else {
    const width = Math.max(4, Math.min(span[1] - span[0], high - low));
    const begin = Math.max(low - 0.02 * width, Math.min(span[0], high + 0.02 * width - width));
    state.span = width >= high - low ? null : [begin, begin + width];
  }
  return redraw(true);
}

function scaled(factor, at) {
  const [low, high] = state.span || whole();
  const centre = at === undefined ? (low + high) / 2 : at;
  return zoom([centre - (centre - low) * factor, centre + (high - centre) * factor]);
}

function moved(share) {
  const [low, high] = state.span || whole();
  const by = share * (high - low);
  return zoom([low + by, high + by]);
}

function toStart() { state.revision += 1; return zoom("all"); }

function listen(plot) {
  if (plot.dataset.listens) return;
  plot.dataset.listens = "yes";
  plot.on("plotly_relayout", (change) => {
    const span = stretch(change);
    if (span && !span.some?.(Number.isNaN)) zoom(span);
  });
  plot.on("plotly_doubleclick", () => { toStart(); return false; });
  if (plot.id === "timeline") plot.on("plotly_click", clicked);
  plot.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const axis = plot._fullLayout.xaxis, box = plot.getBoundingClientRect();
    const at = axis.p2c(event.clientX - box.left - axis._offset);
    wheel(event.deltaY > 0 ? 1.25 : 0.8, at);
  }, { passive: false });
}

let turned = 1, timer = 0;
function wheel(factor, at) {
  turned *= factor;
  clearTimeout(timer);
  timer = setTimeout(() => { const by = turned; turned = 1; scaled(by, at); }, 60);
}

// ---- what is chosen --------------------------------------------------------------------------

function clicked(event) {
  const point = event.points.find((p) => ["alerts", "places"].includes(p.data.name)) || event.points[0];
  if (!point) return;
  if (point.data.name === "heat") {
    const row = Array.isArray(point.pointIndex) ? point.pointIndex[0] : point.pointNumber[0];
    const part = Number(point.data.xaxis?.slice(1) || 1) - 1, run = state.runs[state.drawn[part]];
    const site = run ? first().sites.indexOf(run.sites[state.places[part][row]]) : -1;
    if (site >= 0) toggle(site);
  } else if (point.customdata && point.data.name !== "loss") {
    const [part, number] = point.customdata;
    choose([state.drawn[part], number]);
  }
}

function toggle(site) {
  state.sites = state.sites.includes(site) ? state.sites.filter((k) => k !== site) : [...state.sites, site].slice(-WIDEST);
  words();
  figures.timeline(true);
  figures.sites(true);
}

function choose(alert) {
  state.alert = alert;
  if (alert) {
    const names = first().sites;
    const told = state.runs[alert[0]].alerts[alert[1]];
    state.sites = told.sites.map((s) => names.indexOf(s)).filter((k) => k >= 0).slice(0, WIDEST);
    words();
    const card = byId(`alert-${alert[0]}-${alert[1]}`);
    if (card) card.scrollIntoView({ block: "nearest" });
  } else words();
  figures.timeline(true);
  figures.sites(true);
}

function zoomTo(alert) {
  const [low, high] = whole();
  const room = Math.max(3 * (alert.step - alert.since), 0.05 * (high - low));
  zoom([alert.since - room, alert.step + room]);
  byId("show").scrollIntoView({ block: "start" });
}

// ---- words -----------------------------------------------------------------------------------

function words() {
  state.shown = state.runs.map((_, k) => k).filter((k) => !state.off.has(k));
  parts.runs(state, (k, on) => {
    if (on) state.off.delete(k); else state.off.add(k);
    state.revision += 1;
    words();
    redraw(true);
  });
  parts.alerts(state, choose, zoomTo);
  parts.facts(state);
  const some = ready().length > 0;
  byId("show").hidden = !some;
  byId("sites").hidden = !some;
  if (!some) { byId("scalars").hidden = byId("windows").hidden = true; return; }
  const known = new Map(ready().flatMap((k) => state.runs[k].statistics.map((s) => [s.name, s])));
  if (!known.has(state.statistic) || !state.picked) state.statistic = first().shown;
  parts.options(byId("statistic"), [...known.values()].map((s) => [s.name, s.label]), state.statistic);
  byId("meaning").textContent = known.get(state.statistic)?.meaning || "";
  byId("layout-label").hidden = ready().length < 2 || window.innerWidth < NARROW;
  parts.chosen(state, first().sites, toggle);
  const found = ready().flatMap((k) => state.runs[k].windows.map((w, i) => [`${k}:${i}`, w, k]));
  byId("windows").hidden = found.length === 0;
  if (!found.length) return;
  if (!found.some(([key]) => key === state.window)) state.window = found[0][0];
  parts.options(byId("window"), found.map(([key, w, k]) => [key,
    `${state.runs.length > 1 ? `${state.runs[k].name}: ` : ""}step ${w.step.toLocaleString("en")}, ${w.reason}`]), state.window);
  const kinds = found.find(([key]) => key === state.window)[1].statistics;
  if (!kinds.some((s) => s.name === state.windowStatistic)) state.windowStatistic = kinds[0]?.name ?? null;
  parts.options(byId("window-statistic"), kinds.map((s) => [s.name, s.label]), state.windowStatistic);
}

function pulse() {
  const node = byId("pulse"), now = Date.now() / 1000;
  const told = state.news.filter((n) => n.state === "open");
  const last = Math.max(0, ...told.map((n) => n.written));
  const live = told.some((n) => now - n.written < 20);
  node.className = `pulse ${state.lost ? "lost" : live ? "live" : ""}`;
  const text = state.lost ? "no connection to signalprop view, trying again"
    : !state.news.length ? "connecting"
    : !told.length ? "waiting"
    : `${live ? "recording" : "not being written"}, last written ${parts.age(now - last)}`;
  if (node.textContent !== text) node.textContent = text;
}

// ---- news ------------------------------------------------------------------------------------

const catchUp = queue(async (signal) => {
  const answer = await get("/api/overview", {}, signal).catch(quiet);
  if (!answer) return;
  const before = state.runs.map((run) => run.generation).join(" ");
  const after = answer.runs.map((run) => run.generation).join(" ");
  const had = ready().length > 0;
  state.runs = answer.runs;
  if (state.runs.length && before !== after && had) {
    // another run under the same name: what was chosen in the old one means nothing here
    state.span = state.alert = null;
    state.sites = [];
    state.revision += 1;
  }
  words();
  if (state.follow && state.span && first()) {
    const width = state.span[1] - state.span[0], end = whole()[1];
    state.span = [end + 0.02 * width - width, end + 0.02 * width];
  }
  const windows = state.runs.map((run) => `${run.generation}:${run.windows?.length ?? 0}`).join(" ");
  if (windows !== state.windows) { state.windows = windows; figures.window(false); }
  await redraw(false);
  document.documentElement.dataset.drawn = String(Number(document.documentElement.dataset.drawn || 0) + 1);
}, true);

function follow() {
  const source = new EventSource("/events");
  source.onmessage = (event) => {
    state.news = JSON.parse(event.data).runs;
    state.lost = false;
    pulse();
    // signs of life alone are no reason to draw anew
    if (state.news.some((n, k) => n.state !== state.runs[k]?.state || n.cursor !== (state.runs[k].cursor ?? "")
      || n.generation !== (state.runs[k].generation ?? n.generation))) catchUp();
  };
  source.onopen = () => { state.lost = false; pulse(); };
  source.onerror = () => {
    state.lost = true;
    pulse();
    // a browser gives up where the server answers with a refusal; this page does not
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 2000);
  };
}

// ---- hands -----------------------------------------------------------------------------------

const on = (id, what, act) => byId(id).addEventListener(what, act);
on("statistic", "change", (e) => { state.statistic = e.target.value; state.picked = true; words(); figures.timeline(true); figures.sites(true); });
on("scale", "change", (e) => { state.scale = e.target.value; figures.timeline(true); });
on("of", "change", (e) => { state.of = e.target.value; figures.timeline(true); });
on("layout", "change", () => { state.revision += 1; figures.timeline(true); });
on("follow", "change", (e) => { state.follow = e.target.checked; if (state.follow) catchUp(); });
on("window", "change", (e) => { state.window = e.target.value; words(); figures.window(true); });
on("window-statistic", "change", (e) => { state.windowStatistic = e.target.value; figures.window(true); });
on("earlier", "click", () => moved(-0.5));
on("later", "click", () => moved(0.5));
on("closer", "click", () => scaled(0.5));
on("farther", "click", () => scaled(2));
on("all", "click", toStart);
on("add", "change", (e) => {
  const site = first() ? first().sites.indexOf(e.target.value) : -1;
  if (site < 0) return;
  e.target.value = "";
  if (!state.sites.includes(site)) toggle(site);
});
on("timeline", "keydown", (e) => {
  const act = { "+": () => scaled(0.5), "=": () => scaled(0.5), "-": () => scaled(2), 0: toStart, Home: toStart, ArrowLeft: () => moved(-0.5), ArrowRight: () => moved(0.5) }[e.key];
  if (!act || e.ctrlKey || e.metaKey || e.altKey) return;
  e.preventDefault();
  act();
});
const dark = window.matchMedia("(prefers-color-scheme: dark)");
on("theme", "click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
let sized = 0;
window.addEventListener("resize", () => {
  clearTimeout(sized);
  sized = setTimeout(() => { words(); redraw(false); figures.window(false); }, 300);
});
theme(dark.matches ? "dark" : "light");
setInterval(pulse, 1000);
catchUp();
follow();
