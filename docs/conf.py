"""Sphinx configuration.

The pages on the rules, the studies and the public names are written from the code when the
documentation is built, so they cannot disagree with it.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import signalprop
from signalprop.capture.kinds import Kind
from signalprop.cures.catalogue import CURES
from signalprop.diagnosis import DEFAULT_RULES
from signalprop.studies import STUDIES
from signalprop.watching.rules.judge import DEFAULT_RULES_OVER_TIME
from signalprop.watching.statistics import STATISTICS

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
#: the result objects that other code builds on, in the order of their page
RESULTS = ("Trace", "Site", "Block", "Diagnosis", "Finding", "Result", "Learning")
#: what they are made of; not importable from `signalprop` itself
PARTS = (
    "capture.statistics.ActivationStats", "capture.statistics.DeltaStats", "capture.trace.Step",
    "capture.trace.Weight", "capture.trace.TensorFacts", "capture.trace.FeatureFacts",
    "capture.trace.LossCall", "capture.trace.Failure",
)  # fmt: skip
STUDY = ("StudyResult", "Claim", "Measurement")
NEEDS = {
    "deltas": "a backward pass",
    "learning": "the optimizer's next updates, rehearsed on copies",
    "optimizer": "an optimizer given to `diagnose`",
    "leading": "the leading singular values of the Jacobian from input to output",
    "sharpness": "the largest eigenvalue of the loss's Hessian",
    "noise": "a batch that can be split into micro-batches",
    "horizon": "how far back in time credit reaches, where something recurs",
    "time": "one more forward pass of what recurs",
    "lag": "the lag of the task, given to `diagnose` or shown by the data",
    "clip": "the norm that training clips the gradient to, given to `diagnose`",
}
SECTIONS = ("How it is detected", "Why it matters", "How to cure it")


def public_names() -> list[str]:
    """The names `signalprop` exports, without the version."""
    return [name for name in getattr(signalprop, "__all__", ()) if not name.startswith("_")]


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
    """The page of the rules of `diagnose`.

    Yields:
        Lines of Markdown.
    """
    rules = sorted(rules, key=lambda function: function.rule.code)
    yield "# Rules\n"
    yield (
        f"The {len(rules)} rules that `diagnose` applies unless told otherwise; those of a watched "
        "run have [a page of their own](rules-over-time.md). Thresholds are the "
        "keyword defaults in the code; this page is written from them. "
        "In a terminal: `signalprop rules`, `signalprop explain CODE`.\n"
    )
    yield (
        "The severity is that of the rule's findings unless its text says otherwise. Where "
        "something that a rule needs could not be had, the rule is skipped, and says why:\n"
    )
    yield from rules_listed(rules, NEEDS, "nothing but the model")


def rules_over_time_page(rules: Iterable[Any]) -> Iterator[str]:
    """The page of the rules of a watched run.

    Yields:
        Lines of Markdown.
    """
    rules = sorted(rules, key=lambda function: function.rule.code)
    yield "# Rules over time\n"
    yield (
        f"The {len(rules)} rules that [`watch`](watch.md) asks while a training runs, and "
        "`signalprop report` afterwards. Each tells an alert once. Thresholds are the keyword "
        "defaults in the code; this page is written from them.\n"
    )
    yield "A rule is silent where what it needs was not recorded:\n"
    known = {statistic.name: statistic.meaning for statistic in STATISTICS.values()}
    scalars = {
        "loss": "the loss, given to `Watch.log`",
        "loss_scale": "a GradScaler, given to `watch`",
        "skipped": "a GradScaler, given to `watch`",
    }
    yield from rules_listed(rules, known | scalars, "nothing but the steps")


def rules_listed(rules: Iterable[Any], needs: Mapping[str, str], without: str) -> Iterator[str]:
    """What rules need, a table of them, and a section for each, from their docstrings.

    Yields:
        Lines of Markdown.

    Raises:
        ValueError: A rule's docstring lacks one of its sections.
    """
    needed = {need for function in rules for need in (*function.rule.needs, *function.rule.wants)}
    yield from (f"- `{need}`: {what}" for need, what in needs.items() if need in needed)
    yield (
        "\nA cure is named here by a short name; what to do by hand stands under *How to cure "
        "it*.\n"
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
        yield f"Needs: {code(rule.needs) or without}  "
        if rule.wants:
            yield f"Uses where it can be had: {code(rule.wants)}  "
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
        "The verdict is computed from the measured numbers. `signalprop study list` lists them; "
        "every study takes `--quick` (mostly half a minute at most, `lstm` one to two minutes; a "
        "full run of a study that trains says how long it takes before it starts), `--seed`, "
        "`--json` and `--html FILE`.\n"
    )
    for study in studies:
        about = inspect.getdoc(inspect.getmodule(study.function)) or ""
        yield f"\n## {study.name}: {text(study.title)}\n"
        yield f"> {text(study.statement)}\n"
        yield f"Source: {text(study.source)}.\n"
        yield about.partition("\n")[2].strip() + "\n"
        yield f"```console\n$ signalprop study {study.name}\n```"
    yield "\n## In Python\n"
    yield "A result has the same [views](results.md) as every other one.\n"
    yield autodoc("function", "studies.run")
    yield from (autodoc("class", f"studies.{name}", "members") for name in STUDY)


def cures_fragment(cures: Iterable[Any]) -> Iterator[str]:
    """All cures, in the order in which they are applied together.

    Yields:
        Lines of Markdown.
    """
    yield "| cure | what it does | changes | treats |\n|---|---|---|---|"
    for cure in cures:
        treats = ", ".join(f"[{c}](rules.md#{c.lower()})" for c in cure.treats)
        changes = "how it is trained" if cure.changes in ("settings", "training") else "the network"
        yield f"| `{cure.name}` | {cure.title} | {changes} | {treats} |"
    yield "\n## In Python\n"
    for cure in cures:
        yield f"\n### {cure.name}\n"
        about = inspect.getdoc(cure.function) or ""
        bare = inspect.signature(cure.function).replace(return_annotation=inspect.Signature.empty)
        yield f"```python\nsignalprop.cures.{cure.function.__name__}{bare}"
        yield "```\n\n```text\n" + about + "\n```"


def autodoc(kind: str, name: str, *options: str) -> str:
    """One autodoc directive inside a Markdown page."""
    lines = [f".. auto{kind}:: signalprop.{name}", *(f"   :{option}:" for option in options)]
    return "\n".join(["```{eval-rst}", *lines, "```", ""])


def documented(name: str) -> str:
    """The directive that fits a public name."""
    value = getattr(signalprop, name)
    if inspect.isclass(value):
        return autodoc("exception" if issubclass(value, Exception) else "class", name, "members")
    return autodoc("function", name)


def api_page(names: Iterable[str]) -> Iterator[str]:
    """The page of the public names, except those on the page of the results.

    Yields:
        Lines of Markdown.
    """
    groups: dict[str, list[str]] = {"Functions": [], "Objects": [], "Errors": []}
    for name in names:
        value = getattr(signalprop, name)
        if inspect.ismodule(value) or name in (*RESULTS, "DEFAULT_RULES"):
            continue
        if inspect.isclass(value):
            group = "Errors" if issubclass(value, Exception) else "Objects"
        else:
            group = "Functions"
        groups[group].append(name)
    yield "# Public names\n"
    yield "Everything here is importable from `signalprop` itself; nothing else is promised.\n"
    yield f"{code(RESULTS)} have [a page of their own](results.md).\n"
    yield (
        "`DEFAULT_RULES` is the tuple of the [rules](rules.md) that `diagnose` runs unless told "
        "otherwise.\n"
    )
    for title, members in groups.items():
        if members:
            yield f"\n## {title}\n"
            yield from (documented(name) for name in members)


def results_fragment(names: Iterable[str]) -> Iterator[str]:
    """The result objects, for the page that explains them.

    Yields:
        Lines of Markdown.

    Raises:
        ValueError: The package lacks one of them, or one is not a frozen dataclass.
    """
    names = set(names)
    for name in RESULTS:
        if name not in names:
            raise ValueError(f"signalprop does not export {name}")
        value = getattr(signalprop, name)
        if not (dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen):
            raise ValueError(f"signalprop.{name} is not a frozen dataclass")
        yield f"\n## {name}\n"
        yield autodoc("class", name, "members", "inherited-members")
    yield "\n## What they are made of\n"
    yield "These are read through the objects above, and are not importable from `signalprop`.\n"
    for path in PARTS:
        yield f"\n### {path.rpartition('.')[2]}\n"
        yield autodoc("class", path, "members")


def escape_formulas(
    _app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Keep bars of a norm, a closing underscore and `code`d from being read as reStructuredText."""
    for i, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = (re.sub(r"(?<=\w)_(?!\w)", r"\_", p.replace("|", r"\|")) for p in parts[::2])
        parts[2::2] = (re.sub(r"^(?=\w)", r"\ ", p) for p in parts[2::2])
        lines[i] = "`".join(parts)


def shorten_types(
    _app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Say a type by its last name, and the kinds of operation in one word."""
    kinds = ", ".join(repr(kind) for kind in get_args(Kind))
    for i, line in enumerate(lines):
        if line.startswith(":vartype "):
            _, name, value = line.split(":", 2)
            value = value.replace(f"Literal[{kinds}]", "Kind")
            lines[i] = f":{name}:{re.sub(r'[a-z_.]+[.](?=[A-Za-z])', '', value)}"


def write_generated_pages(_app: Any) -> None:
    """Write the generated pages; leave a page alone that would not change."""
    pages: Mapping[str, Iterable[str]] = {
        "rules.md": rules_page(DEFAULT_RULES),
        "rules-over-time.md": rules_over_time_page(DEFAULT_RULES_OVER_TIME),
        "studies.md": studies_page(STUDIES),
        "api.md": api_page(public_names()),
        "_generated/cures.md": cures_fragment(CURES),
        "_generated/results.md": results_fragment(public_names()),
    }
    for name, lines in pages.items():
        path, page = DOCS / name, "\n".join(lines) + "\n"
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != page:
            path.write_text(page, encoding="utf-8")


def setup(app: Any) -> None:
    """Connect the hooks; the pages are written before Sphinx looks for its sources."""
    app.connect("builder-inited", write_generated_pages)
    app.connect("autodoc-process-docstring", escape_formulas, priority=400)
    app.connect("autodoc-process-docstring", shorten_types, priority=600)
