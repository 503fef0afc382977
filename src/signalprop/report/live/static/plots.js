// Figures in the theme of the page, drawn from what the server sends.

const root = document.documentElement;
const config = {
  displaylogo: false, showSendToCloud: false, showEditInChartStudio: false, showLink: false,
  plotlyServerURL: "", responsive: true, doubleClick: false,
  modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "resetScale2d", "zoomIn2d", "zoomOut2d", "pan2d", "zoom2d"],
  toImageButtonOptions: { scale: 2 },
};
// this page asks for its data while the browser still reads Plotly's script
const plotly = new Promise((done) => {
  if (window.Plotly) done();
  else document.getElementById("plotly").addEventListener("load", done);
});
const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

function themed(layout) {
  layout.paper_bgcolor = "rgba(0,0,0,0)";
  layout.plot_bgcolor = colour("--card");
  layout.font = { ...layout.font, color: colour("--ink"), family: getComputedStyle(document.body).fontFamily };
  layout.hoverlabel = {
    ...layout.hoverlabel, bgcolor: colour("--card"), bordercolor: colour("--soft"),
    font: { color: colour("--ink") },
  };
  layout.modebar = { color: colour("--soft"), activecolor: colour("--accent"), bgcolor: "rgba(0,0,0,0)" };
  for (const key of Object.keys(layout)) {
    if (!/^[xy]axis\d*$/.test(key)) continue;
    Object.assign(layout[key], {
      gridcolor: colour("--line"), zerolinecolor: colour("--soft"), linecolor: colour("--line"),
      spikecolor: colour("--soft"),
    });
  }
  return layout;
}

// names that a narrow screen has no room for would push the picture aside
function narrowed(layout, width) {
  if (width > 600) return layout;
  layout.margin = { ...layout.margin, l: 8, r: 4 };
  const bar = layout.coloraxis && layout.coloraxis.colorbar;
  if (bar) { bar.thickness = 8; bar.tickfont = { size: 10 }; bar.xpad = 2; }
  layout.font = { ...layout.font, size: 11 };
  return layout;
}

export async function draw(plot, figure, revision) {
  await plotly;
  const layout = narrowed(themed(figure.layout), plot.clientWidth);
  layout.uirevision = revision;
  for (const key of Object.keys(layout)) {
    if (/^xaxis\d*$/.test(key)) layout[key].uirevision = String(layout[key].range);
  }
  plot.style.height = `${layout.height}px`;
  plot.setAttribute("aria-label", (layout.meta && layout.meta.about) || "A figure.");
  await Plotly.react(plot, figure.data, layout, config);
}

export function recolour() {
  for (const plot of document.querySelectorAll(".plot")) {
    if (!plot.layout || !plot.data) continue;
    Plotly.react(plot, plot.data, themed(plot.layout), config);
  }
}

export function theme(name) {
  root.dataset.theme = name;
  const button = document.getElementById("theme");
  button.textContent = name === "dark" ? "Light theme" : "Dark theme";
  button.setAttribute("aria-pressed", String(name === "dark"));
  recolour();
}

// the stretch that a zoom with the mouse has left, or "all"; null where it was not about steps
export function stretch(change) {
  for (const [key, value] of Object.entries(change)) {
    const found = /^(xaxis\d*)\.(range|autorange)(\[0\])?$/.exec(key);
    if (!found) continue;
    if (found[2] === "autorange") return "all";
    return Array.isArray(value) ? value.map(Number) : [Number(value), Number(change[`${found[1]}.range[1]`])];
  }
  return null;
}
