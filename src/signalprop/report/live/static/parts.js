// The parts of the page that are words: verdicts, alerts, facts, lists to choose from.
// Everything that comes from a run enters the page as text, never as markup.

export const byId = (id) => document.getElementById(id);
export const SWATCHES = ["#8b5cf6", "#d9541e", "#0e9f76", "#2f7fd1", "#b98000", "#c05fa5", "#3c9ec0", "#808794"];
const SITES = ["#2f7fd1", "#d9541e", "#0e9f76", "#c05fa5", "#b98000", "#8b5cf6", "#3c9ec0", "#808794"];
const WORDS = { issue: "issues found", tip: "tips", healthy: "no alerts", seen: "nothing yet", waiting: "waiting", damaged: "cannot be read" };
const FIRST = 5;
let all = false;

export function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key in node && typeof value === "boolean") node[key] = value;
    else if (value !== undefined && value !== null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function swatch(colour) {
  const node = make("span", { class: "swatch", "aria-hidden": "true" });
  node.style.background = colour;
  return node;
}

export function options(select, items, chosen) {
  const wanted = JSON.stringify(items);
  if (select.dataset.items !== wanted) {
    select.dataset.items = wanted;
    select.replaceChildren(...items.map(([value, text]) => make("option", { value }, text)));
  }
  if (chosen !== undefined && chosen !== null) select.value = chosen;
}

// one verdict for each run, with a box to leave it out where there are several
export function runs(state, change) {
  const several = state.runs.length > 1;
  byId("runs").replaceChildren(...state.runs.map((run, k) => {
    const word = run.state === "open" ? run.verdict : run.state;
    const box = make("section", { class: `verdict ${word}`, "aria-label": `Verdict of ${run.name}` });
    box.append(make("span", { class: `word ${word}` }, WORDS[word] || word));
    if (several) {
      const check = make("input", { type: "checkbox", checked: state.shown.includes(k) });
      check.addEventListener("change", () => change(k, check.checked));
      box.append(make("label", { class: "name" }, check, swatch(SWATCHES[k % SWATCHES.length]), run.name));
    }
    box.append(make("p", {}, run.state === "open" ? run.headline : run.sentence));
    if (run.state === "open" && run.sentence) box.append(make("span", { class: "notice" }, run.sentence));
    return box;
  }));
}

export function alerts(state, choose, zoom) {
  const found = [];
  for (const k of state.shown) {
    (state.runs[k].alerts || []).forEach((alert, i) => found.push({ alert, k, i }));
  }
  found.sort((a, b) => (a.alert.severity === "tip") - (b.alert.severity === "tip") || a.alert.since - b.alert.since);
  const section = byId("alerts");
  section.hidden = found.length === 0;
  // what somebody reads or tabs through must not be made anew under their hands
  const key = JSON.stringify([found, state.alert, all, state.shown.length]);
  if (section.dataset.key === key) return;
  section.dataset.key = key;
  const focused = document.activeElement && document.activeElement.id;
  const isChosen = ({ k, i }) => state.alert !== null && state.alert[0] === k && state.alert[1] === i;
  const listed = all ? found : found.filter((one, n) => n < FIRST || isChosen(one));
  section.replaceChildren(...listed.map((one) => card(state, one, isChosen(one), choose, zoom)));
  if (listed.length < found.length) {
    const more = make("button", { type: "button" }, `Show all ${found.length} alerts`);
    more.addEventListener("click", () => { all = true; alerts(state, choose, zoom); });
    section.append(more);
  }
  const back = focused && focused.startsWith("alert-") && byId(focused);
  if (back) back.focus();
}

function card(state, { alert, k, i }, open, choose, zoom) {
  const box = make("article", { class: `alert ${alert.severity}${open ? " chosen" : ""}` });
  const where = alert.sites.length > 1 ? `${alert.sites[0]} and ${alert.sites.length - 1} more` : alert.sites[0] || "";
  const head = make("button", { type: "button", id: `alert-${k}-${i}`, "aria-expanded": String(open) },
    make("span", { class: `word ${alert.severity}` }, alert.severity),
    make("span", { class: "title" }, alert.title),
    make("span", {}, alert.when),
    make("span", { class: "where" }, where));
  if (state.shown.length > 1) head.prepend(swatch(SWATCHES[k % SWATCHES.length]));
  head.addEventListener("click", () => choose(open ? null : [k, i]));
  box.append(head);
  if (!open) return box;
  const more = make("div", { class: "more" }, make("p", {}, alert.explanation));
  const facts = make("dl", {});
  const add = (name, value) => { if (value) facts.append(make("dt", {}, name), make("dd", {}, value)); };
  add("rule", alert.code);
  add("where", alert.sites.slice(0, 8).join(", ") + (alert.sites.length > 8 ? ` and ${alert.sites.length - 8} more` : ""));
  add("measured", alert.measured);
  add("told at step", alert.step.toLocaleString("en"));
  add("cures", alert.cures.join(", "));
  const button = make("button", { type: "button" }, "Zoom to these steps");
  button.addEventListener("click", () => zoom(alert));
  more.append(facts, button);
  box.append(more);
  return box;
}

export function chosen(state, names, remove) {
  byId("chosen").replaceChildren(...state.sites.filter((k) => k < names.length).map((k, i) => {
    const chip = make("button", { type: "button", class: "chip", "aria-label": `Remove ${names[k]}` },
      swatch(SITES[i % SITES.length]), names[k], " ×");
    chip.addEventListener("click", () => remove(k));
    return chip;
  }));
  const list = byId("names"), wanted = `${names.length}:${names[names.length - 1]}`;
  if (list.dataset.key === wanted) return;
  list.dataset.key = wanted;
  list.replaceChildren(...names.map((name) => make("option", { value: name })));
}

export function facts(state) {
  const section = byId("facts");
  const open = state.shown.map((k) => state.runs[k]).filter((run) => run.state === "open");
  section.hidden = open.length === 0;
  section.replaceChildren(...open.flatMap((run) => [
    make("h2", {}, state.runs.length > 1 ? run.name : "Facts"),
    make("dl", { class: "facts" }, ...run.facts.map(([name, value]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
  ]));
}

export function age(seconds) {
  if (seconds < 2) return "just now";
  if (seconds < 100) return `${Math.round(seconds)} s ago`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}
