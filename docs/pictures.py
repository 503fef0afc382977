"""Draw the pictures of the README and of these pages; run by `make pictures`.

The terminal view and the report are those of the demo's sick network, as today's code writes them.
Needs the system's chromium, which draws them; nothing is loaded from a network.
"""

import io
import math
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import plotly.graph_objects as go
from playwright.sync_api import Browser, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from tests.theory.networks import log_ratio
from torch import nn

import signalprop as sp
from signalprop.theory import table

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
WIDTH, MARGIN = 1200, 20  # pixels
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()


def demo() -> ModuleType:
    """The module of `make demo`, so that both show the same network."""
    spec = spec_from_file_location("demo", DOCS.parent / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def terminal(diagnosis: sp.Diagnosis) -> str:
    """What rich prints at 80 columns, as an SVG in the system's own monospaced font."""
    console = Console(
        record=True, width=80, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(diagnosis)
    template = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    template = template.replace("Fira Code", "DejaVu Sans Mono")
    svg = console.export_svg(
        title="make demo", code_format=template, theme=MONOKAI, unique_id="terminal"
    )
    # the letters are stretched to their columns, so that a bar has no gaps
    return svg.replace(" textLength=", ' lengthAdjust="spacingAndGlyphs" textLength=')


def draw_terminal(browser: Browser, svg: str, path: Path) -> None:
    """The SVG as a PNG, on nothing."""
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    page.set_content(f'<body style="margin:0; background:transparent; width:1000px">{svg}</body>')
    page.locator("svg").first.screenshot(path=path, omit_background=True)
    page.close()


def draw_report(browser: Browser, report: Path, scheme: str, path: Path) -> None:
    """The report down to the end of its first figure as a PNG."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": WIDTH, "height": 1000})
    page.goto(report.as_uri())
    page.evaluate("window.signalpropReady")
    card = page.locator(".plot").first.locator("..").bounding_box()
    assert card is not None
    height = card["y"] + card["height"] + MARGIN
    page.screenshot(
        path=path, clip={"x": 0, "y": 0, "width": WIDTH, "height": height}, full_page=True
    )
    page.close()


def draw_view(browser: Browser, folder: Path, path: Path) -> None:
    """The offline page of a training that goes wrong, down to the end of its first figure."""
    run = folder / "run.sp"
    subprocess.run([sys.executable, DOCS.parent / "examples" / "watched.py", run], check=True)
    page = folder / "run.html"
    command = [sys.executable, "-m", "signalprop", "report", run, "--html", page, "-q"]
    subprocess.run(command, check=True)
    draw_report(browser, page, "light", path)


def cures() -> go.Figure:
    """Expected against measured ratio of the error signal at the first and the last layer."""
    figure = go.Figure()
    ends: list[float] = []
    for depth, symbol in zip(table.DEPTHS, ("circle", "square", "diamond"), strict=True):
        rows = table.rows(50)
        expected = [row.expected(depth).nats / math.log(10) for row in rows]
        found = [
            sum(log_ratio(row.key, depth, seed) for seed in range(6)) / 6 / math.log(10)
            for row in rows
        ]
        ends += [*expected, *found]
        apart = [depth == 100 and abs(x) > 5 for x in expected]
        figure.add_scatter(
            x=expected,
            y=found,
            mode="markers+text",
            name=f"{depth} layers",
            text=[row.block if far else "" for row, far in zip(rows, apart, strict=True)],
            textposition="bottom right",
            marker={"symbol": symbol, "size": 9},
        )
    line = [min(ends) - 1, max(ends) + 1]
    figure.add_scatter(x=line, y=line, mode="lines", name="equal", line={"dash": "dot"})
    figure.update_layout(
        width=900,
        height=620,
        template="plotly_white",
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        xaxis_title="expected by theory, log10(|delta| at the first / last layer)",
        yaxis_title="measured, width 50, mean of six networks",
        xaxis_range=[line[0], line[1] + 12],
    )
    return figure


def draw_figure(browser: Browser, figure: go.Figure, path: Path) -> None:
    """A figure as a PNG."""
    page = browser.new_page(viewport={"width": 900, "height": 620})
    page.set_content(figure.to_html(include_plotlyjs=True, config={"staticPlot": True}))
    page.wait_for_selector(".plot-container")
    page.locator(".plotly-graph-div").screenshot(path=path)
    page.close()


def main() -> None:
    """Draw all of them."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("the pictures are drawn by chromium, and none is on the path")
    IMAGES.mkdir(exist_ok=True)
    shown = demo()
    sick = shown.diagnosed(shown.network(nn.Sigmoid), shown.digits())
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        report = sick.save(Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        draw_terminal(browser, terminal(sick), IMAGES / "terminal.png")
        draw_report(browser, report, "light", IMAGES / "report.png")
        draw_report(browser, report, "dark", IMAGES / "report-dark.png")
        draw_figure(browser, cures(), IMAGES / "theory.png")
        draw_view(browser, Path(folder), IMAGES / "view.png")
        browser.close()
    for path in sorted(IMAGES.glob("*.png")):
        print(f"{path.relative_to(DOCS.parent)}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
