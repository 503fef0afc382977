"""The command: train every program, diagnose it before and early in training, keep the results.

    python -m benchmarks.broken_programs --diagnose --seeds 2 --json results.json

One process, one program after the other. Stop it whenever you like: what is done stands in the
file, and the next call goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from benchmarks.broken_programs import repair, score
from benchmarks.broken_programs.descriptions import Case, load
from benchmarks.broken_programs.program import Program, Session, programs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import signalprop as sp

RESULTS = Path(__file__).parent.parent / "results" / "broken_programs.json"


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, run what is not done, print the tables."""
    given = _parser().parse_args(arguments)
    cases = _chosen(load(), given.cases)
    torch.set_num_threads(given.threads)
    console = Console()
    wanted = [p for p in programs(cases) if given.programs in ("both", p.which)]
    results = _read(given.json)
    todo = [(p, seed) for seed in range(given.seeds) for p in wanted]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
            task = progress.add_task("programs", total=len(todo))
            for program, seed in todo:
                progress.update(task, description=f"{program.name} seed {seed}")
                key = f"{program.name}/{seed}"
                stamp = _stamp(program)
                kept = results.get(key, {})
                if kept.get("stamp") != stamp:
                    kept = {"stamp": stamp}
                done = dict(kept)
                if "metric" not in done or (given.diagnose and "diagnosis" not in done):
                    done |= one(program, seed, diagnose=given.diagnose)
                if given.cure and "cure" not in done and program.which == "buggy":
                    done["cure"] = repair.judge(program, seed)
                if done != kept:
                    results[key] = done
                    _write(given.json, results)
                progress.advance(task)
    except KeyboardInterrupt:
        console.print(f"stopped; what is done is in {given.json}, call again to go on")
    names = {f"{p.name}/{seed}" for p, seed in todo}
    score.show({k: v for k, v in results.items() if k in names}, cases, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broken_programs")
    parser.add_argument("--cases", nargs="*", default=[], help="ids, or parts of ids; all if none")
    parser.add_argument("--programs", choices=("both", "buggy", "correct"), default="both")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0 on")
    parser.add_argument("--diagnose", action="store_true", help="judge them with sp.diagnose")
    parser.add_argument("--cure", action="store_true", help="repair the sick ones with sp.cure")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results are kept")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    return parser


def _chosen(cases: tuple[Case, ...], parts: Iterable[str]) -> tuple[Case, ...]:
    parts = list(parts)
    chosen = tuple(c for c in cases if not parts or any(p in c.id for p in parts))
    if not chosen:
        raise SystemExit(f"error: no case has {' or '.join(parts)} in its id")
    return chosen


def _stamp(program: Program) -> str:
    """Changes with the description and the data, so that older results are not kept."""
    data = program.data
    sums = [float(part.double().sum()) for part in (data.x, data.y, data.x_test, data.y_test)]
    text = repr((program.spec, program.case.metric, data.what, [f"{s:.6g}" for s in sums]))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def one(program: Program, seed: int, *, diagnose: bool = True) -> dict[str, Any]:
    """Train one program once, and diagnose it on the way.

    Args:
        program: the program.
        seed: draws weights and order.
        diagnose: whether to diagnose.

    Returns:
        Plain data: metric, loss, updates, seconds; `diagnosis` at `start` and `early`.
    """
    found: dict[str, Any] = {}
    session = program.start(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if diagnose:
            found["start"] = _diagnosis(program, session, seed)
        program.go_on(session, program.early)
        if diagnose:
            found["early"] = _diagnosis(program, session, seed) | {"updates": session.steps}
        if math.isfinite(session.loss):
            program.go_on(session, program.steps)
    metric, value = program.measure(session.model)
    return {
        "metric": _plain(metric),
        "loss": _plain(value),
        "updates": session.steps,
        "seconds": round(session.seconds, 3),
        "seconds_per_update": session.seconds / max(1, session.steps),
        "constant": _plain(program.constant()),
        "data": program.data.what,
        "stand_in": program.data.stand_in,
        **({"diagnosis": found} if found else {}),
    }


def _diagnosis(program: Program, session: Session, seed: int) -> dict[str, Any]:
    batch = program.batch(seed)
    before = time.perf_counter()
    try:
        d = sp.diagnose(session.model, batch, program.loss, session.optimizer)
    except sp.SignalpropError as error:
        return {"error": str(error), "seconds": round(time.perf_counter() - before, 3)}
    seconds = round(time.perf_counter() - before, 3)
    findings = [
        {
            "code": f.code,
            "severity": f.severity,
            "value": _plain(f.value),
            "told": f.explanation,
            "cures": list(f.cures),
        }
        for f in d.findings
    ]
    skipped = {r.code: r.reason for r in d.results if r.outcome == "skipped"}
    return {"findings": findings, "skipped": skipped, "verdict": d.verdict, "seconds": seconds}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"error: {path} is no json ({error}); delete it to start over") from None


def _write(path: Path, results: dict[str, Any]) -> None:
    """Written beside and moved, so that an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
