"""The rules, as a list and one page each; everything comes from the functions themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markdown import Markdown
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from signalprop.cli import screen
from signalprop.errors import TargetError

if TYPE_CHECKING:
    from signalprop.diagnosis.rule import RuleInfo

#: sections of a docstring that are for those who call the function, not for those it judges
_NOT_SHOWN = {"args", "yields", "returns", "raises"}
_STYLES = {"issue": "bold red", "tip": "yellow"}


def rules() -> tuple[Any, ...]:
    """All rules, those of `diagnose` and those of a watched run, in order of code."""
    from signalprop.watching.rules.judge import DEFAULT_RULES_OVER_TIME

    return (*of_diagnose(), *DEFAULT_RULES_OVER_TIME)


def of_diagnose() -> tuple[Any, ...]:
    """The rules that `diagnose` runs, in order of code."""
    from signalprop.diagnosis.engine import DEFAULT_RULES

    return tuple(sorted(DEFAULT_RULES, key=lambda judge: judge.rule.code))


def chosen(codes: Iterable[str]) -> list[str]:
    """Codes of rules of `diagnose`, as they are written there.

    Args:
        codes: as written by a user, also several in one string with commas between.

    Returns:
        The codes, each once.

    Raises:
        TargetError: there is no such rule; the message lists near matches.
    """
    wanted = [part.strip() for text in codes for part in text.split(",") if part.strip()]
    known = [judge.rule.code for judge in of_diagnose()] if wanted else []
    return list(dict.fromkeys(_code(code, known) for code in wanted))


def _code(code: str, known: list[str]) -> str:
    if code.upper() in known:
        return code.upper()
    # letters that look like digits; and every code begins alike
    read = code.upper().translate(str.maketrans("OIL", "011"))
    close = screen.near(read, known, alike=0.7)
    hint = f"did you mean {screen.one_of(close)}? " if close else ""
    raise TargetError(f"there is no rule {code!r}; {hint}`signalprop rules` lists all")


def find(code: str) -> Any:
    """The rule of that code.

    Args:
        code: in upper or lower case.

    Returns:
        The function, with its `rule` attached.

    Raises:
        TargetError: there is none; the message lists near matches.
    """
    judges = {judge.rule.code: judge for judge in rules()}
    return judges[_code(code.strip(), list(judges))]


def plain_rule(judge: Any) -> dict[str, Any]:
    """A rule as plain data."""
    from signalprop.capture.trace import plain

    return plain(judge.rule)


def listing() -> RenderableType:
    """Every rule with what it needs and its thresholds."""
    table = Table(box=None, padding=(0, 2, 0, 0), expand=False, header_style="bold")
    for name in ("code", "severity", "rule"):
        table.add_column(name, no_wrap=name != "rule")
    for judge in rules():
        info: RuleInfo = judge.rule
        words = Text(info.title)
        for label, said in (("", _thresholds(info)), ("needs ", ", ".join(info.needs))):
            if said:
                words.append(f"\n{label}{said}", "dim")
        table.add_row(info.code, Text(info.severity, _STYLES[info.severity]), words)
    return Group(table, Text("\n`signalprop explain CODE` prints the page of one rule", "dim"))


def _thresholds(info: RuleInfo) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in info.thresholds.items())


def page(judge: Any) -> RenderableType:
    """What a rule detects, why it matters, how to cure it; its thresholds and cures."""
    info: RuleInfo = judge.rule
    head = Text.assemble(
        (info.code, "bold"),
        "  ",
        (info.title, "bold"),
        "  ",
        (info.severity, _STYLES[info.severity]),
    )
    parts: list[RenderableType] = [head, Text()]
    text = document(inspect.getdoc(judge) or "")
    if text:
        parts += [Markdown(text), Text()]
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for label, lines in (
        ("thresholds", [f"{name} = {value!r}" for name, value in info.thresholds.items()]),
        ("needs", list(info.needs)),
        ("wants", list(info.wants)),
        ("cures", list(info.cures)),
    ):
        if lines:
            facts.add_row(label, Text("\n".join(lines)))
    parts.append(Padding(facts, (0, 0)))
    return Group(*parts)


def document(docstring: str) -> str:
    """A docstring with Google sections as markdown, without arguments and return values.

    A section is a heading that ends in a colon, at the left edge, and an indented text below it.

    Args:
        docstring: cleaned, see `inspect.getdoc`.

    Returns:
        The markdown.
    """
    out: list[str] = []
    lines = docstring.splitlines()
    section: list[str] | None = None
    for i, line in enumerate([*lines, "."]):
        inside = not line.strip() or line.startswith((" ", "\t"))
        if section is not None and not inside:
            out += _section(section)
            section = None
        if i == len(lines):
            break
        following = lines[i + 1] if i + 1 < len(lines) else ""
        if re.fullmatch(r"[A-Z][^:`]{1,50}:", line) and following.startswith((" ", "\t")):
            section = [line.rstrip(":")]
        elif section is not None:
            section.append(line)
        else:
            out.append(line)
    return "\n".join(out).strip()


def _section(lines: list[str]) -> list[str]:
    heading, *body = lines
    if heading.lower() in _NOT_SHOWN:
        return []
    return ["", f"## {heading}", "", inspect.cleandoc("\n" + "\n".join(body)), ""]
