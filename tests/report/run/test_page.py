"""The report of runs as a page and in a terminal."""

import io
import re

import numpy as np
import pytest
from rich.console import Console
from tests.report.run import samples

from signalprop.errors import SignalpropError
from signalprop.report.run import console, result, sections


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    samples.write(folder / "sick.sp")
    samples.write(folder / "healthy.sp", sick=False, seed=1)
    samples.hostile(folder / "hostile.sp")
    return folder


def printed(found, width=80):
    out = Console(width=width, file=io.StringIO(), color_system=None, force_terminal=False)
    out.print(found)
    return out.file.getvalue().splitlines()


def test_a_page_tells_what_went_wrong_first(folder):
    with result.read([folder / "sick.sp"]) as found:
        blocks = sections.blocks(found)
    words = [block for block in blocks if isinstance(block, str)]
    assert "issues found" in words[0]
    assert "from step 4,000 on" in words[0]
    assert words[1] == "<h2>Alerts</h2>"
    assert "fell by 14.2 nats" in words[2]
    figures = [block.layout.meta["id"] for block in blocks if not isinstance(block, str)]
    assert figures == ["timeline", "sites", "window", "scalars"]
    timeline = next(b for b in blocks if not isinstance(b, str))
    assert timeline.layout.meta["choices"][0] == "gradient norm"
    assert len(timeline.layout.meta["choices"]) == 7


def test_two_runs(folder):
    with result.read([folder / "sick.sp", folder / "healthy.sp"]) as found:
        assert found.heading == "2 runs"
        blocks = sections.blocks(found)
    assert "sick.sp" in blocks[0]
    assert "no alerts" in blocks[1]
    timeline = next(b for b in blocks if not isinstance(b, str))
    assert {t.xaxis for t in timeline.data} == {"x", "x2"}


def test_runs_that_share_no_statistic(folder, tmp_path):
    from signalprop.watching.file.schema import RunSite
    from signalprop.watching.file.writer import RunWriter

    with RunWriter(tmp_path / "own.sp") as writer:
        writer.add_sites([RunSite("a")])
        for step in range(20):
            writer.put(step, {"mine": [float(step)]})
    with result.read([folder / "sick.sp", tmp_path / "own.sp"]) as found:
        blocks = sections.blocks(found)
        assert printed(found)
    figures = [block.layout.meta["id"] for block in blocks if not isinstance(block, str)]
    assert figures.count("timeline") == 2


def test_no_name_is_markup(folder):
    with result.read([folder / "hostile.sp"]) as found:
        path = found.save(folder / "hostile.html", assets="directory")
    text = path.read_text()
    body = text[text.index("<body>") :]
    assert "<img" not in body
    assert "<svg onload" not in body
    assert "<b onclick" not in body
    assert not re.search(r"<a [^>]*javascript", body)
    assert body.count("<script") == body.count("</script>")


# ---- the terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 132])
def test_lines_fit(folder, width):
    names = ["sick.sp", "healthy.sp", "hostile.sp"]
    with result.read([folder / name for name in names]) as found:
        lines = printed(found, width)
    assert all(len(line) <= width for line in lines)


def test_the_picture_shows_the_layer_that_vanished(folder):
    with result.read([folder / "sick.sp"]) as found:
        lines = printed(found)
    picture = {line.split()[0]: line for line in lines if line.startswith(("block", "embed"))}
    assert len(picture) == 13
    # nothing is left of it at the end; its neighbour lives
    assert picture["block1.attention"].endswith("▁▁▁▁▁▁")
    assert "▁▁▁" not in picture["block1.mlp"]


def test_spark():
    assert console.spark(np.arange(8), 8) == "▁▂▃▄▅▆▇█"
    assert console.spark(np.arange(8), 8, plain=True) == "_.-~=*^#"
    assert console.spark([1.0, 1.0], 8) == "▅▅"
    assert console.spark([1.0, np.nan, 2.0], 8)[1] == "!"
    assert console.spark([np.inf], 8) == "!"
    line = console.spark(np.r_[np.zeros(500), 9.0, np.zeros(499)], 50)
    assert line.count("█") == 1


def test_groups():
    names = [f"block{k}.{part}" for k in range(6) for part in ("a", "b", "c")] + ["head"]
    found = console.groups(names, 16)
    assert [label for label, _ in found] == [*(f"block{k}" for k in range(6)), "head"]
    assert np.concatenate([m for _, m in found]).tolist() == list(range(19))
    found = console.groups([f"layer{k}" for k in range(100)], 16)
    assert len(found) == 16
    assert found[0][0] == "layer0 (+6)"
    assert console.groups(["a", "b"], 16)[1][0] == "b"
    # everything inside one module: its parts are what can be told apart
    assert len(console.groups([f"model.{k}.x" for k in range(100)], 16)) == 16


def test_refusals(tmp_path):
    with pytest.raises(SignalpropError, match="more than a page can hold"):
        result.read([tmp_path / "run.sp"] * 17)
    with pytest.raises(SignalpropError, match="does not exist"):
        result.read([tmp_path / "run.sp"])
