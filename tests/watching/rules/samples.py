"""Samples of a run of twelve layers, made of what a healthy run shows and what is changed in it."""

import numpy as np

from signalprop.watching.file.schema import RunSite
from signalprop.watching.rules.judge import Judge
from signalprop.watching.sample import Sample

SITES = tuple(RunSite(f"layer{k}") for k in range(12))


def healthy(rng, step, sites=12, steps=10_000):
    """Statistics of a sampled step: all fall with the loss and the rate, layers differ widely."""
    k = np.arange(sites)
    fall = 1 / (1 + step / 1000)
    rate = 1e-3 * (0.5 + 0.5 * np.cos(np.pi * step / steps)) + 1e-6

    def noise():
        return np.exp(0.3 * rng.normal(size=sites))

    own = np.exp(np.sin(7.0 * k))
    values = {
        "activation_rms": own * noise(),
        "delta_rms": fall * own * noise(),
        "weight_norm": 5 * own,
        "gradient_norm": fall * noise() / own,
        "update_ratio": rate * own * noise(),
        "learning_share": noise() / sites,
        "dead": np.clip(0.1 + 0.02 * rng.normal(size=sites), 0, 1),
        "attention_entropy": np.full(sites, 2.0) + 0.1 * rng.normal(size=sites),
        "attention_entropy_most": np.full(sites, 4.0),
        "attention_logit": 8 * noise(),
    }
    return values


def loss_at(rng, step):
    return 0.5 + 2 / (1 + step / 1000) + 0.05 * rng.normal()


def run(change=None, samples=400, every=20, loss=loss_at, judge=None, seed=0, sites=SITES, **also):
    """Show a run to a judge.

    Args:
        change: `(step, values)` changes the values of a sampled step.
        also: further scalars, functions of the step.
    """
    rng = np.random.default_rng(seed)
    judge = judge or Judge()
    found = []
    for step in range(0, samples * every, every):
        values = healthy(rng, step, len(sites), samples * every)
        if change:
            change(step, values)
        scalars = {name: f(step) for name, f in also.items()}
        if loss:
            scalars["loss"] = loss(rng, step)
        found += judge.see(Sample(step, sites, values, scalars))
        found += judge.step(step, scalars, values.get("gradient_rms"))
        if loss:  # the loss is known more often
            for between in range(step + 4, step + every, 4):
                found += judge.step(between, {"loss": loss(rng, between)}, None)
    return found


def codes(found):
    return [alarm.code for alarm in found]
