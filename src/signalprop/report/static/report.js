// Draws the figures, keeps them in the page's theme, links findings to them, sorts the tables.
"use strict";
(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    displaylogo: false, showSendToCloud: false, showEditInChartStudio: false, showLink: false,
    plotlyServerURL: "", responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"],
    toImageButtonOptions: { scale: 2 },
  };
  const plots = [...document.querySelectorAll(".plot")];
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // every axis of a figure is called xaxis, xaxis2, yaxis, ...
  const axes = (layout, letter) =>
    Object.keys(layout).filter((key) => new RegExp("^" + letter + "axis\\d*$").test(key));

  function themed(layout) {
    const change = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: colour("--card"),
      "font.color": colour("--ink"), "font.family": getComputedStyle(document.body).fontFamily,
      "hoverlabel.bgcolor": colour("--card"), "hoverlabel.bordercolor": colour("--soft"),
      "hoverlabel.font.color": colour("--ink"),
      "modebar.color": colour("--soft"), "modebar.activecolor": colour("--accent"),
      "modebar.bgcolor": "rgba(0,0,0,0)",
    };
    for (const axis of [...axes(layout, "x"), ...axes(layout, "y")]) {
      change[axis + ".gridcolor"] = colour("--line");
      change[axis + ".zerolinecolor"] = colour("--soft");
      change[axis + ".linecolor"] = colour("--line");
      change[axis + ".spikecolor"] = colour("--soft");
    }
    return change;
  }

  // names along the depth axis: about a dozen of those in view, whatever the zoom
  function ticks(plot) {
    const names = plot.layout.meta && plot.layout.meta.names;
    if (!names) return null;
    const seen = plot.layout.xaxis.range;
    const low = Math.max(0, Math.ceil(Math.min(...seen)));
    const high = Math.min(names.length - 1, Math.floor(Math.max(...seen)));
    const longest = Math.max(...names.slice(low, high + 1).map((name) => name.length));
    // as many as stand side by side; where there is room, all of a few at a slant
    const level = Math.max(3, Math.min(14, Math.floor(plot.clientWidth / (8 * longest + 24))));
    const wanted = high - low < 20 && plot.clientWidth > 700 ? high - low + 1 : level;
    const count = Math.max(1, Math.min(wanted, high - low + 1));
    const at = [];
    for (let i = 0; i < count; i++) {
      at.push(count > 1 ? Math.round(low + (i * (high - low)) / (count - 1)) : low);
    }
    const change = {};
    for (const axis of axes(plot.layout, "x")) {
      change[axis + ".tickvals"] = at;
      change[axis + ".ticktext"] = at.map((i) => names[i]);
    }
    return change;
  }

  // where titles and legends do not fit side by side, legends go above and below the panels
  function narrow(plot) {
    if (plot.clientWidth > 700 || !plot.layout.legend2) return {};
    return {
      "legend.x": 0, "legend.xanchor": "left", "legend.y": 1.05,
      "legend2.x": 0, "legend2.xanchor": "left", "legend2.y": -0.2, "legend2.yanchor": "top",
      "margin.t": 90, "margin.b": 130,
    };
  }

  function theme(name) {
    root.dataset.theme = name;
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = name === "dark" ? "Light theme" : "Dark theme";
      button.setAttribute("aria-pressed", String(name === "dark"));
    }
    for (const plot of plots) if (plot.layout) Plotly.relayout(plot, themed(plot.layout));
  }

  async function draw(plot) {
    const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    await Plotly.newPlot(plot, figure.data, figure.layout, config);
    await Plotly.relayout(plot, { ...themed(plot.layout), ...(ticks(plot) || {}), ...narrow(plot) });
    plot.on("plotly_relayout", (change) => {
      if (Object.keys(change).some((key) => /^xaxis\d*\.(range|autorange)/.test(key))) {
        const next = ticks(plot);
        if (next) Plotly.relayout(plot, next);
      }
    });
  }

  function show(card) {
    document.querySelectorAll(".finding.chosen").forEach((c) => c.classList.remove("chosen"));
    document.querySelectorAll("tr.marked").forEach((row) => row.classList.remove("marked"));
    card.classList.add("chosen");
    for (const id of JSON.parse(card.dataset.rows || "[]")) {
      const row = document.getElementById(id);
      if (row) row.classList.add("marked");
    }
    const places = JSON.parse(card.dataset.places || "{}");
    let first = null;
    for (const plot of plots) {
      const meta = plot.layout && plot.layout.meta;
      const at = meta && places[meta.id];
      if (!at || !at.length) continue;
      const low = Math.min(...at), high = Math.max(...at);
      const room = Math.max(2, 0.1 * (high - low));
      const shapes = (plot.layout.shapes || []).filter((s) => s.name !== "finding");
      // neighbours become one band, so that a thousand sites stay a few shapes
      let from = null, last = null;
      for (const x of [...at].sort((a, b) => a - b).concat(Infinity)) {
        if (last !== null && x - last > 1) {
          shapes.push({
            name: "finding", type: "rect", xref: "x", yref: "paper", layer: "below",
            x0: from - 0.5, x1: last + 0.5, y0: 0, y1: 1, line: { width: 0 },
            fillcolor: colour("--accent"), opacity: 0.16,
          });
          from = x;
        }
        if (from === null) from = x;
        last = x;
      }
      const change = { shapes };
      for (const axis of axes(plot.layout, "x")) {
        change[axis + ".range"] = [
          Math.max(-0.6, low - room), Math.min(meta.names.length - 0.4, high + room)];
      }
      Plotly.relayout(plot, change).then(() => Plotly.relayout(plot, ticks(plot)));
      first = first || plot;
    }
    if (first) first.scrollIntoView({ behavior: "smooth", block: "center" });
  }

  function sort(button) {
    const head = button.closest("th"), table = button.closest("table"), body = table.tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    const column = head.cellIndex, numeric = head.classList.contains("n");
    table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.cells[column];
      const value = cell.dataset.v ?? cell.textContent;
      return numeric ? (value === "" ? NaN : Number(value)) : value;
    };
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (!numeric) return (up ? 1 : -1) * a.localeCompare(b, undefined, { numeric: true });
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return up ? (a > b) - (a < b) : (b > a) - (b < a);
    });
    const far = Number(table.dataset.shown);
    rows.forEach(([, row], i) => { row.classList.toggle("far", i >= far); body.append(row); });
  }

  function filter(input) {
    const table = document.getElementById(input.dataset.table);
    const wanted = input.value.toLowerCase();
    table.classList.toggle("found", wanted !== "");
    for (const row of table.tBodies[0].rows) {
      row.classList.toggle("miss", !row.textContent.toLowerCase().includes(wanted));
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button"), link = event.target.closest("a[href^='#']");
    if (button && button.id === "theme") theme(root.dataset.theme === "dark" ? "light" : "dark");
    else if (button && button.classList.contains("zoom")) show(button.closest(".finding"));
    else if (button && button.closest("thead")) sort(button);
    else if (button && button.classList.contains("more")) {
      document.getElementById(button.dataset.table).classList.add("all");
      button.remove();
    } else if (link) {
      const row = document.getElementById(link.hash.slice(1));
      if (row && row.closest("details")) row.closest("details").open = true;
      if (row && row.closest("table")) row.closest("table").classList.add("all");
    }
  });
  document.addEventListener("input", (event) => {
    if (event.target.matches("input[type=search]")) filter(event.target);
  });
  document.addEventListener("change", (event) => {
    if (!event.target.matches("select[data-figure]")) return;
    const chosen = Number(event.target.value);
    const plot = plots.find((p) => p.dataset.figure === event.target.dataset.figure);
    const visible = plot.data.map((t) => !t.meta || t.meta.choice === undefined || t.meta.choice === chosen);
    Plotly.restyle(plot, { visible });
  });
  dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));

  theme(dark.matches ? "dark" : "light");
  window.signalpropReady = Promise.all(plots.map(draw));
})();
