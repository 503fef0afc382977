"""One HTML file that opens offline: figures and blocks of HTML, one script, no request.

The Content-Security-Policy names the scripts of the page by their hash, so nothing that a model is
called can ever run, and forbids every connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signalprop.errors import SignalpropError

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: name of Plotly's script beside a report with `assets="directory"`
SCRIPT = "plotly.min.js"
ASSETS = ("inline", "directory")


def page(title: str, blocks: Sequence[go.Figure | str], *, assets: str = "inline") -> str:
    """A complete page.

    Args:
        title: its title and main heading; plain text.
        blocks: figures, and pieces of HTML; whoever writes the HTML escapes what comes from a
            model. A figure's `layout.meta` may hold `about`, said to people who do not see it,
            `caption`, and `choices`: names of what a menu shows one at a time; every trace that
            belongs to one says so in its own `meta`, as `choice`.
        assets: `inline`, or `directory` where Plotly's script lies beside the file.

    Returns:
        The text of the file.

    Raises:
        SignalpropError: if `assets` is neither of the two.
    """
    if assets not in ASSETS:
        raise SignalpropError(f"assets must be one of {', '.join(ASSETS)}, not {assets!r}")
    body: list[str] = []
    count = 0
    for block in blocks:
        if isinstance(block, str):
            body.append(block)
        else:
            count += 1
            body.append(_figure(block, f"figure-{count}"))
    own = _static("report.js")
    scripts = [own]
    sources = [_hash(own)]
    plotly = ""
    if count and assets == "inline":
        scripts.insert(0, plotly_script())
        sources.append(_hash(scripts[0]))
    elif count:
        plotly = f'<script src="{SCRIPT}"></script>\n'
        # 'self' means nothing to some browsers where the page is a file
        sources += ["'self'", "file:"]
    policy = (
        f"default-src 'none'; script-src {' '.join(sources)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    inline = "".join(f"<script>{script}</script>\n" for script in scripts)
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en" data-theme="light">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>{_static('report.css')}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>"
        '<button id="theme" type="button" aria-pressed="false">Dark theme</button></header>\n'
        "<main>\n" + "\n".join(body) + "\n</main>\n"
        "<footer>Made by signalprop. This file holds all it needs and sends nothing.</footer>\n"
        f"{plotly}{inline}</body>\n</html>\n"
    )


def write(text: str, path: Path, *, assets: str = "inline") -> Path:
    """Write a page, and Plotly's script beside it where asked for, each as a whole or not at all.

    Args:
        text: what `page` returned for the same `assets`.
        path: where to write; the folder must exist.
        assets: `inline` or `directory`.

    Returns:
        The path written.

    Raises:
        SignalpropError: if the folder does not exist or cannot be written to.
    """
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        raise SignalpropError(f"there is no folder {folder} to save {path.name} in; make it first")
    if path.is_dir():
        raise SignalpropError(f"{path} is a folder; give the name of a file")
    if assets == "directory":
        _replace(folder / SCRIPT, plotly_script())
    _replace(path, text)
    return path


def plotly_script() -> str:
    """Plotly's own script from its package."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def embedded(value: Any) -> str:
    """A value as JSON inside a script element: `</script>` in a name ends nothing."""
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _figure(figure: go.Figure, identity: str) -> str:
    layout: Any = figure.layout
    meta = layout.meta or {}
    about = escape(str(meta.get("about", "A figure.")))
    caption = meta.get("caption")
    height = int(layout.height or 420)
    return (
        f'<figure>{_chooser(meta, identity)}<div class="plot" role="img" aria-label="{about}" '
        f'data-figure="{identity}" style="height:{height}px"></div>'
        + (f"<figcaption>{escape(str(caption))}</figcaption>" if caption else "")
        + f'<script type="application/json" id="{identity}">{embedded(figure.to_json())}</script>'
        "</figure>"
    )


def _chooser(meta: dict[str, Any], identity: str) -> str:
    """A menu of what to show, where a figure holds more than one thing."""
    choices = meta.get("choices")
    if not choices:
        return ""
    options = "".join(
        f'<option value="{i}"{" selected" if i == meta.get("chosen", 0) else ""}>'
        f"{escape(str(choice))}</option>"
        for i, choice in enumerate(choices)
    )
    name = escape(str(meta.get("choose", "Show")))
    return (
        f'<label class="choose">{name} <select data-figure="{identity}">{options}</select></label>'
    )


def _static(name: str) -> str:
    return resources.files("signalprop.report").joinpath("static", name).read_text("utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _replace(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never a part."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise SignalpropError(f"cannot write to {path.parent}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise SignalpropError(f"cannot write {path}: {error.strerror}") from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
