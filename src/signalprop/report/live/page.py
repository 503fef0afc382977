"""The page and the files it loads: all of them known when the server starts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from html import escape
from importlib import resources

from signalprop.report import html as report

#: name, where it lies in `signalprop.report`, kind
_OWN = (
    ("report.css", "static", "text/css"),
    ("live.css", "live/static", "text/css"),
    ("styles.js", "live/static", "text/javascript"),
    ("live.js", "live/static", "text/javascript"),
    ("plots.js", "live/static", "text/javascript"),
    ("parts.js", "live/static", "text/javascript"),
    ("ask.js", "live/static", "text/javascript"),
)
#: an empty style sheet, see `_sheets`
SHEET = "plotly.css"

Asset = tuple[bytes, str, str]


def assets() -> dict[str, Asset]:
    """Every file the page loads.

    Returns:
        By name: its bytes, its kind, and a tag that changes with its content.
    """
    folder = resources.files("signalprop.report")
    found = {
        name: _tagged(folder.joinpath(*where.split("/"), name).read_bytes(), kind)
        for name, where, kind in _OWN
    }
    found[SHEET] = _tagged(b"", "text/css")
    found[report.SCRIPT] = _tagged(report.plotly_script().encode(), "text/javascript")
    return found


def html(names: Sequence[str]) -> bytes:
    """The page itself; what it shows comes later.

    Args:
        names: of the runs.

    Returns:
        The document.
    """
    title = names[0] if len(names) == 1 else f"{len(names)} runs"
    text = resources.files("signalprop.report").joinpath("live/static/live.html").read_text("utf-8")
    sheets = "\n".join(
        f'<link rel="stylesheet" id="{escape(identity)}" href="/assets/{SHEET}">'
        for identity in _sheets(report.plotly_script())
    )
    return text.replace("{title}", escape(title)).replace("{sheets}", sheets).encode()


def _sheets(script: str) -> list[str]:
    """Ids of style elements that Plotly makes in a page that has none of that id.

    The page forbids inline styles. It brings a style sheet of the same id instead: empty, Plotly
    adds its rules to it one by one, which is allowed.

    Args:
        script: Plotly's.

    Returns:
        The ids.
    """
    return ["plotly.js-style-global", *sorted(set(re.findall(r'"([0-9a-f]{64})"', script)))]


def _tagged(body: bytes, kind: str) -> Asset:
    return body, f"{kind}; charset=utf-8", f'"{hashlib.sha256(body).hexdigest()[:24]}"'
