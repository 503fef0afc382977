"""Draw the pictures of the README and of these pages; run by `make pictures`.

The terminal view and the report are those of the demo's sick network, as today's code writes them.
Needs the system's chromium, which draws them; nothing is loaded from a network.
"""

import io
import re
import shutil
import sys
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from playwright.sync_api import Browser, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from torch import nn

import signalprop as sp

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
        browser.close()
    for path in sorted(IMAGES.glob("*.png")):
        print(f"{path.relative_to(DOCS.parent)}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
