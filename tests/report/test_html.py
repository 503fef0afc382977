import base64
import hashlib
import json
import os
import re
import stat
from html.parser import HTMLParser

import pytest
from tests.report.samples import deep, diagnosed, emptied, named_badly, traced

from signalprop.errors import SignalpropError
from signalprop.report import html, notebook, page, save

VOID = {"meta", "input", "br", "img", "link", "hr", "rect"}


class Outline(HTMLParser):
    """Elements, ids, scripts and text of a page; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.scripts, self.text = [], [], [], [], []
        self.attributes = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "script":
            self.scripts.append([dict(attrs), ""])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1][1] += data
        else:
            self.text.append(data)


@pytest.fixture(scope="module")
def report():
    return Outline(page(diagnosed(traced("mlp-sigmoid-30"))))


def test_one_file_with_all_it_needs(report):
    assert report.tags.count("h1") == 1
    assert len(report.ids) == len(set(report.ids))
    for tag, attributes in report.attributes:
        assert not {"src", "srcset", "data", "action"} & set(attributes), (tag, attributes)
        assert attributes.get("href", "#").startswith("#")
    assert "link" not in report.tags
    plotly = [text for attributes, text in report.scripts if len(text) > 1_000_000]
    assert len(plotly) == 1


def test_the_policy_allows_our_scripts_and_nothing_else(report):
    (policy,) = [
        a["content"]
        for tag, a in report.attributes
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert "http" not in policy
    for attributes, text in report.scripts:
        if attributes.get("type") == "application/json":
            json.loads(text)
            continue
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    # no handler in an attribute: it could not run
    assert not any(name.startswith("on") for _, a in report.attributes for name in a)


def test_order_and_content(report):
    said = " ".join(" ".join(report.text).split())
    parts = ["issues found", "The error signal vanishes with depth.", "SP101", "SP204"]
    parts += ["Why the signal changes", "Along the depth", "Sites (62)", "Parameters (62)", "Rules"]
    places = [said.index(part) for part in parts]
    assert places == sorted(places)
    assert "Lost 59." in said
    assert "no recurrent layer" in said
    assert "he-init" in said


def test_every_figure_says_what_it_shows(report):
    plots = [a for tag, a in report.attributes if a.get("class") == "plot"]
    assert len(plots) == 3
    assert all(a["role"] == "img" and len(a["aria-label"]) > 30 for a in plots)


def test_findings_know_their_places(report):
    (issue,) = [a for _, a in report.attributes if a.get("class") == "card finding issue"]
    assert json.loads(issue["data-places"])["depth"] == list(range(62))
    assert set(json.loads(issue["data-rows"])) <= set(report.ids)
    links = [a["href"][1:] for tag, a in report.attributes if tag == "a"]
    assert links
    assert set(links) <= set(report.ids)


@pytest.mark.parametrize("show", [page, notebook])
def test_names_stay_names(show):
    text = show(diagnosed(named_badly()))
    outline = Outline(text)
    assert "img" not in outline.tags
    assert not [a for tag, a in outline.attributes if a.get("href", "#")[0] != "#"]
    assert "onerror" in "".join(outline.text)


def test_embedded_json_cannot_end_its_script():
    value = {"name": "</script><!--\u2028&"}
    text = html.embedded(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_a_page_of_blocks():
    from plotly import graph_objects as go

    bare = Outline(html.page("A & B", ["<p>said</p>"]))
    assert "A & B" in bare.text
    assert all(len(text) < 100_000 for _, text in bare.scripts)  # no figure, no Plotly
    figure = go.Figure(layout={"height": 300, "meta": {"about": "x" * 31, "caption": "<i>"}})
    both = Outline(html.page("t", ["<p>before</p>", figure, "<p>after</p>"]))
    assert "<i>" in both.text
    assert both.tags.index("figure") < len(both.tags)
    with pytest.raises(SignalpropError, match="inline, directory"):
        html.page("t", [], assets="cdn")


def test_odd_results_make_a_page():
    for trace in (
        traced("produces-nan"),
        traced("mlp-relu-dead"),
        traced("detached-encoder"),
        traced("lstm-cell-loop"),
        traced("one-linear"),
        emptied(deep(1)),
    ):
        Outline(page(trace))
        if trace.weights:
            Outline(page(diagnosed(trace)))
        Outline(notebook(trace))


def test_many_rows_are_there_but_not_all_shown():
    outline = Outline(page(deep(150)))
    rows = [a for tag, a in outline.attributes if tag == "tr" and a.get("id", "").startswith("s")]
    assert len(rows) == 302
    assert sum(a.get("class") == "far" for a in rows) == 102
    assert "Show all 302" in outline.text


def test_save_inline(tmp_path):
    path = save(deep(2), tmp_path / "report.html")
    assert path == tmp_path / "report.html"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.stat().st_size < 6_000_000
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_save_with_the_script_beside(tmp_path):
    path = deep(2).save(tmp_path / "a.html", assets="directory")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "plotly.min.js"]
    assert path.stat().st_size < 300_000
    assert '<script src="plotly.min.js"></script>' in path.read_text("utf-8")


def test_save_replaces_the_old_file_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SignalpropError, match="No space left"):
        save(deep(1), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_save_says_what_is_wrong(tmp_path):
    trace = deep(1)
    with pytest.raises(SignalpropError, match=r"no folder .*missing"):
        save(trace, tmp_path / "missing" / "report.html")
    with pytest.raises(SignalpropError, match="is a folder"):
        save(trace, tmp_path)
    with pytest.raises(SignalpropError, match="assets must be one of"):
        save(trace, tmp_path / "r.html", assets="cdn")
    assert list(tmp_path.iterdir()) == []


def test_notebook_is_small_and_runs_nothing():
    result = diagnosed(deep(1000))
    text = notebook(result)
    outline = Outline(text)
    assert len(text) < 60_000
    assert "script" not in outline.tags
    assert "svg" in outline.tags
    assert not any({"src", "href"} & set(a) for _, a in outline.attributes)
    assert not re.search(r"url\(|@import", text)
    assert "×" in "".join(outline.text)
    assert result._repr_html_() == text
