"""The sessions in the documentation run as they are printed."""

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
#: those of results.md are digits of one machine
PAGES = [p for p in sorted(DOCS.glob("*.md")) if "```pycon" in p.read_text("utf-8")]
PAGES = [p for p in PAGES if p.name != "results.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_sessions(page):
    blocks = re.findall(r"```pycon\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    example = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page.name, str(page), 0)
    assert example.examples
    said = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert not said, "".join(said)


def test_there_are_some():
    assert {p.name for p in PAGES} >= {"cures.md", "nets.md"}
