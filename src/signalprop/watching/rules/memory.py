"""Rules over time: time that goes into memory rather than into the network."""

from __future__ import annotations

from collections.abc import Iterator

from signalprop.memory import memory_setting
from signalprop.watching.rules.past import Past
from signalprop.watching.rules.rule import RuleOverTime, alarm, over_time
from signalprop.watching.sample import Alarm

# ---- SP412 -----------------------------------------------------------------------------------


@over_time(
    "SP412",
    "Memory is mapped anew at every step",
    severity="tip",
    needs=("page_faults", "seconds"),
)
def page_faults(
    past: Past, *, share: float = 0.2, each: float = 5e-7, start: int = 100
) -> Iterator[Alarm]:
    """A large part of every step is spent on pages of memory that were given back a moment ago.

    How it is detected:
        The process's minor page faults per step, at `each` seconds for one, take more than a part
        `share` of the step's time, after the first `start` steps. It is asked where
        `signalprop.keep_memory` could help: glibc on Linux, with its own allocator.

    Why it matters:
        glibc gives every buffer above 32 MB back to the system when it is freed; the next one is
        mapped anew, and each of its pages cleared. An LSTM over 784 steps met 109,000 faults in
        every step, and was 1.8 times faster without.

    How to cure it:
        `signalprop.keep_memory()` before the training, or another allocator (jemalloc, tcmalloc)
        through LD_PRELOAD.

    Yields:
        One alarm.
    """
    if past.step - past.first < start or not memory_setting().startswith("given back"):
        return
    faults, seconds = past.scalars["page_faults"], past.scalars["seconds"]
    part = faults * each / seconds if seconds > 0 else 0.0
    if part > share:
        yield alarm(
            page_faults,
            past,
            value=part,
            unit="share of the step",
            threshold=share,
            since=past.step,
            explanation=f"{faults:,.0f} page faults in a step of {1e3 * seconds:.0f} ms: call "
            "signalprop.keep_memory() before the training",
        )


MEMORY_RULES: tuple[RuleOverTime, ...] = (page_faults,)
