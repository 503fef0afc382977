"""Sphinx configuration.

The pages on the rules, the studies and the public names are written from the code when the
documentation is built, so they cannot disagree with it.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import signalprop

project = "signalprop"
author = "The signalprop authors"
copyright = author  # noqa: A001, RUF100 - the name Sphinx reads
release = metadata.version("signalprop")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [
    "Shape", "Shapes", "Unit", "Units", "Formula", "Source", "Cost", "Where it misleads",
    "How it is detected", "Why it matters", "How to cure it",
]  # fmt: skip
default_role = "literal"  # `name` in a docstring is code

html_theme = "furo"
html_title = f"signalprop {release}"
html_show_sourcelink = False
html_show_copyright = False

DOCS = Path(__file__).parent
RESULTS = ("Trace", "Finding", "Diagnosis")
SECTIONS = ("How it is detected", "Why it matters", "How to cure it")

# While the package has no front door yet, a missing part gets a line instead of a page; once
# `diagnose` is there every part must be.
COMPLETE = hasattr(signalprop, "diagnose")
NOT_YET = "Not in this version yet.\n"


def public_names() -> list[str]:
    """The names `signalprop` exports, without the version."""
    return [name for name in getattr(signalprop, "__all__", ()) if not name.startswith("_")]


def member(module: str, name: str) -> Any:
    """Look up a part of the package; None only while the package is incomplete.

    Raises:
        AttributeError: The module has no such name.
        ImportError: There is no such module.
    """
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        if COMPLETE:
            raise
        return None


def text(value: Any) -> str:
    """A value as one line of Markdown: an enum by its value, a class by its name."""
    value = getattr(value, "value", value)
    if inspect.isclass(value) or inspect.isfunction(value):
        value = value.__name__
    return " ".join(str(value).split())


def code(values: Iterable[Any]) -> str:
    """Several names, each set as code."""
    return ", ".join(f"`{text(value)}`" for value in values)


def sections(docstring: str) -> Iterator[tuple[str, str]]:
    """Find the three sections of a rule's docstring, however their headings are marked.

    Yields:
        Heading and body; the text before the first heading comes first, with an empty heading.
    """
    wanted = {title.lower(): title for title in SECTIONS}
    arguments = re.compile(r"(Args|Arguments|Yields|Returns|Raises|Examples?):$")
    heading, body, keep = "", [], True
    for line in docstring.splitlines():
        bare = line.strip().strip("#*:").strip()
        first_of_section = bare.lower() in wanted
        if first_of_section or arguments.match(line):
            if keep:
                yield heading, inspect.cleandoc("\n" + "\n".join(body))
            heading, body, keep = wanted.get(bare.lower(), ""), [], first_of_section
        elif not (bare and set(bare) <= set("-=~")):  # an underline
            body.append(line)
    if keep:
        yield heading, inspect.cleandoc("\n" + "\n".join(body))


def rules_page(rules: Iterable[Any]) -> Iterator[str]:
    """The page of the rules, from their metadata, their signatures and their docstrings.

    Yields:
        Lines of Markdown.

    Raises:
        ValueError: A rule's docstring lacks one of its sections.
    """
    rules = list(rules)
    yield "# Rules\n"
    yield (
        f"The {len(rules)} rules that `diagnose` applies unless told otherwise. Thresholds are the "
        "keyword defaults in the code; this page is written from them. "
        "In a terminal: `signalprop rules`, `signalprop explain CODE`.\n"
    )
    yield "| code | finding | severity | thresholds |\n|---|---|---|---|"
    for rule in (function.rule for function in rules):
        thresholds = ", ".join(f"`{k}={v!r}`" for k, v in dict(rule.thresholds).items())
        link = f"[{rule.code}](#{rule.code.lower()})"
        yield f"| {link} | {text(rule.title)} | {text(rule.severity)} | {thresholds or 'none'} |"
    for function in rules:
        rule = function.rule
        yield f"\n({rule.code.lower()})=\n## {rule.code}: {text(rule.title)}\n"
        found = dict(sections(inspect.getdoc(function) or ""))
        missing = [title for title in SECTIONS if not found.get(title)]
        if missing:
            raise ValueError(f"{rule.code}: its docstring lacks {', '.join(missing)}")
        yield found[""] + "\n"
        yield f"Severity: {text(rule.severity)}  "
        yield f"Needs: {code(rule.needs) or 'nothing but the model'}  "
        yield f"Cures: {code(rule.cures) or 'none is automatic'}\n"
        if rule.thresholds:
            yield "| threshold | default |\n|---|---|"
            yield from (f"| `{k}` | `{v!r}` |" for k, v in dict(rule.thresholds).items())
        yield from (f"\n### {title}\n\n{found[title]}" for title in SECTIONS)


def studies_page(studies: Iterable[Any]) -> Iterator[str]:
    """The page of the studies.

    Yields:
        Lines of Markdown.
    """
    yield "# Studies\n"
    yield (
        "A study takes one statement about deep networks, runs it on real input, and reports what "
        "it measured and whether the statement holds, holds in part, or does not hold as printed. "
        "`signalprop study list` lists them; every study takes `--quick`, `--seed` and `--html`.\n"
    )
    for study in studies:
        yield f"\n## {study.name}\n"
        yield f"> {text(study.statement)}\n"
        yield f"Source: {text(study.source)}\n"
        yield f"```console\n$ signalprop study {study.name}\n```"


def autodoc(kind: str, name: str, *options: str) -> str:
    """One autodoc directive inside a Markdown page."""
    lines = [f".. auto{kind}:: signalprop.{name}", *(f"   :{option}:" for option in options)]
    return "\n".join(["```{eval-rst}", *lines, "```", ""])


def documented(name: str) -> str:
    """The directive that fits a public name."""
    value = getattr(signalprop, name)
    if inspect.isclass(value):
        return autodoc("exception" if issubclass(value, Exception) else "class", name, "members")
    return autodoc("function" if callable(value) else "data", name)


def api_page(names: Iterable[str]) -> Iterator[str]:
    """The page of the public names, except those on the page of the results.

    Yields:
        Lines of Markdown.
    """
    groups: dict[str, list[str]] = {"Functions": [], "Objects": [], "Errors": [], "Constants": []}
    for name in names:
        value = getattr(signalprop, name)
        if inspect.ismodule(value) or name in RESULTS:
            continue
        if inspect.isclass(value):
            group = "Errors" if issubclass(value, Exception) else "Objects"
        else:
            group = "Functions" if callable(value) else "Constants"
        groups[group].append(name)
    yield "# Public names\n"
    yield "Everything here is importable from `signalprop` itself; nothing else is promised.\n"
    yield "`Trace`, `Finding` and `Diagnosis` have [a page of their own](results.md).\n"
    for title, members in groups.items():
        if members:
            yield f"\n## {title}\n"
            yield from (documented(name) for name in members)


def results_fragment(names: Iterable[str]) -> Iterator[str]:
    """The result objects, for the page that explains them.

    Yields:
        Lines of Markdown.

    Raises:
        ValueError: The package is complete and lacks one of them, or one is not a frozen dataclass.
    """
    names = set(names)
    for name in RESULTS:
        yield f"\n## {name}\n"
        if name not in names:
            if COMPLETE:
                raise ValueError(f"signalprop does not export {name}")
            yield NOT_YET
            continue
        value = getattr(signalprop, name)
        if not (dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen):
            raise ValueError(f"signalprop.{name} is not a frozen dataclass")
        yield autodoc("class", name, "members", "inherited-members")


def escape_formulas(
    _app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Keep the bars of a norm and a closing underscore from being read as reStructuredText."""
    for i, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = (re.sub(r"(?<=\w)_(?!\w)", r"\_", p.replace("|", r"\|")) for p in parts[::2])
        lines[i] = "`".join(parts)


def write_generated_pages(_app: Any) -> None:
    """Write the generated pages; leave a page alone that would not change."""
    rules = member("signalprop.diagnosis", "DEFAULT_RULES")
    studies = member("signalprop.studies", "STUDIES")
    pages: Mapping[str, Iterable[str]] = {
        "rules.md": rules_page(rules) if rules else ["# Rules\n", NOT_YET],
        "studies.md": studies_page(studies) if studies else ["# Studies\n", NOT_YET],
        "api.md": api_page(public_names()),
        "_generated/results.md": results_fragment(public_names()),
    }
    for name, lines in pages.items():
        path, page = DOCS / name, "\n".join(lines) + "\n"
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != page:
            path.write_text(page, encoding="utf-8")


def setup(app: Any) -> None:
    """Connect the two hooks; the pages are written before Sphinx looks for its sources."""
    app.connect("builder-inited", write_generated_pages)
    app.connect("autodoc-process-docstring", escape_formulas, priority=400)
