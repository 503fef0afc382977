"""Rule over time: attention collapses onto single positions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from signalprop.diagnosis.program.words import quoted
from signalprop.watching.rules.past import Past
from signalprop.watching.rules.rule import RuleOverTime, alarm, over_time
from signalprop.watching.sample import Alarm


@over_time(
    "SP409",
    "Attention entropy collapses",
    needs=("attention_entropy", "attention_entropy_most"),
    wants=("attention_logit", "loss"),
    cures=("lower-learning-rate", "warm-up"),
)
def entropy_collapse(
    past: Past, *, low: float = 0.05, part: float = 0.2, grown: float = 2.0
) -> Iterator[Alarm]:
    """All heads of a layer look at one position each, with logits that have grown out of measure.

    How it is detected:
        The entropy of the attention, as a share of the largest it could be, is below `low` in the
        mean over heads, and below `part` of its median over the run so far; the largest logit is
        `grown` times that of the median; and the loss has not come down for it (it is not
        lower than ever before the last eighth of the run); for a tenth of the run. Sharp heads are
        normal in trained networks: they get sharp slowly, while the loss falls, and not all of a
        layer, so neither a low entropy nor a fall of it is a case. Where the logits are not known,
        `low` and `part` are halved.

    Why it matters:
        The softmax is then saturated: its gradient is zero, the layer stays as it is. Entropy that
        falls to zero comes with spikes and with divergence (Zhai et al. 2023).

    How to cure it:
        Bound the logits: normalise queries and keys (Dehghani et al. 2023), sigma-Reparam (Zhai et
        al. 2023), or weight decay on both; a lower learning rate or a longer warm-up.

    Yields:
        One alarm.
    """
    entropy, logit = past.now["entropy"], past.shift("logit")
    with np.errstate(invalid="ignore"):
        blind = np.isnan(logit)
        scale = np.where(blind, 0.5, 1.0)
        mask = (entropy < scale * low) & (entropy < scale * part * past.old("entropy"))
        mask &= blind | (logit > math.log(grown))
    if past.losses.lowest_ever:
        mask &= False
    picked = past.lasting("SP409", mask)
    if not picked.any():
        return
    places = np.flatnonzero(picked)
    places = places[np.argsort(entropy[places], kind="stable")]
    worst = int(places[0])
    name, old = quoted(past.sites[worst].name), float(past.old("entropy")[worst])
    logits = "" if blind[worst] else f", its logits are {math.exp(logit[worst]):.2g} times as large"
    yield alarm(
        entropy_collapse,
        past,
        sites=past.names(places.tolist()),
        value=float(entropy[worst]),
        unit="of the largest entropy",
        threshold=low,
        since=past.since("SP409", picked),
        explanation=f"the attention of {name} has {entropy[worst]:.2g} of the largest entropy, and "
        f"had {old:.2g}{logits}",
    )


ATTENTION_RULES: tuple[RuleOverTime, ...] = (entropy_collapse,)
