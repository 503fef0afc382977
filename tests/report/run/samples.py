"""Runs that were never trained: written by hand, so that what they show is known."""

import json
from pathlib import Path

import numpy as np

from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter

LOG = ("activation_rms", "delta_rms", "gradient_norm", "update_ratio", "weight_norm")
HOSTILE = "<img src=x onerror=alert(1)>"
VANISHED = {
    "title": "A layer stops learning",
    "sites": ["block1.attention.query", "block1.attention.key"],
    "value": -14.2,
    "unit": "nats",
    "threshold": -7.0,
    "since": 4000,
    "explanation": "The gradient of block1.attention.query fell by 14.2 nats within 600 steps.",
    "cures": ["warmup", "qk-norm"],
}
SPIKE = {
    "title": "Loss spike",
    "sites": ["block4.mlp.up"],
    "value": 9.1,
    "unit": "",
    "threshold": 4.0,
    "since": 7000,
    "explanation": "The loss rose from 2.1 to 9.1 at step 7,000; block4.mlp.up moved first.",
    "cures": ["clip"],
}


def sites(blocks=6):
    """A small transformer."""
    names = ["embed"]
    for k in range(blocks):
        names += [f"block{k}.attention.{p}" for p in ("query", "key", "value", "out")]
        names += [f"block{k}.mlp.up", f"block{k}.mlp.down"]
    return [RunSite(name, "linear", "weights") for name in [*names, "head"]]


def values(step, count, *, sick=False, seed=0):
    """Statistics of a step; a layer dies at 4000, and all jump at 7000."""
    draw = np.random.default_rng([seed, step])
    wave = np.exp(0.25 * draw.standard_normal(count))
    depth = np.linspace(0, 1, count)
    gradient = 0.3 * wave * np.exp(-1.5 * depth) / (1 + step / 3000)
    if sick and step >= 4000:
        gradient[7:9] *= np.exp(-min(14.2, (step - 4000) / 40))
    if sick and 6900 <= step <= 7100:
        gradient *= 40 * np.exp(-3 * np.abs(depth - 0.75))
    dead = np.clip(0.05 + 0.3 * depth * step / 10000, 0, 1)
    share = gradient / gradient.sum()
    found = {
        "gradient_norm": gradient,
        "activation_rms": wave * (1 + depth),
        "delta_rms": gradient / 30,
        "update_ratio": 1e-3 * wave * gradient / gradient.mean(),
        "weight_norm": 12 + depth + step / 5000,
        "dead": dead,
        "learning_share": share,
    }
    if sick and step >= 9500:
        found["activation_rms"][-3:] = np.inf
        found["delta_rms"][:4] = 0
    return {name: np.asarray(v, np.float32) for name, v in found.items()}


def loss(step, *, sick=False, seed=0):
    """A loss that falls, and jumps where the run is sick."""
    noise = 0.05 * np.random.default_rng([seed, step, 1]).standard_normal()
    extra = 6.0 * np.exp(-abs(step - 7000) / 150) if sick else 0.0
    return 1.6 + 4 * np.exp(-step / 2500) + noise + extra


def record(writer, steps, *, sick=False, seed=0, blocks=6):
    """Write these steps."""
    where = writer.add_sites(sites(blocks))
    for step in steps:
        writer.put(step, values(step, len(where), sick=sick, seed=seed), where)
        rate = 3e-4 * min(1, step / 1000)
        writer.scalar(step, {"loss": loss(step, sick=sick, seed=seed), "learning_rate": rate})
        writer.scalar(step, {"accuracy": 0.9 - 0.6 * float(np.exp(-step / 3000))})
        if sick and step == 4600:
            writer.alert(step, "SP402", "issue", VANISHED["sites"][0], VANISHED)
        if sick and step == 7050:
            before = list(range(step - 99, step + 1))
            stack = [values(s, len(where), sick=True) for s in before]
            kept = {n: np.stack([v[n] for v in stack]) for n in ("gradient_norm", "delta_rms")}
            writer.window(step, "loss spike: 9.1 after 2.1", before, kept)
            writer.alert(step, "SP404", "tip", "block4.mlp.up", SPIKE)


def write(path, *, sick=True, steps=range(0, 10_001, 50), seed=0, blocks=6):
    """A whole run; sick or healthy."""
    meta = {"model": "GPT", "optimizer": "AdamW", "every": 50, "torch": "2.13.0"}
    with RunWriter(path, mode="overwrite", log=LOG, meta=meta) as writer:
        record(writer, steps, sick=sick, seed=seed, blocks=blocks)
    assert writer.failed is None
    return Path(path)


def hostile(path):
    """A run whose every text tries to run something."""
    meta = {HOSTILE: HOSTILE, "model": "</script><script>alert(2)</script>"}
    names = [HOSTILE, "<a href='javascript:alert(3)'>here</a>", "</script><svg onload=alert(4)>"]
    detail = {
        "title": HOSTILE, "sites": names, "value": "x", "unit": HOSTILE, "threshold": None,
        "since": 10**30, "explanation": "<b onclick=alert(5)>" + HOSTILE, "cures": [HOSTILE, 3],
    }  # fmt: skip
    with RunWriter(path, mode="overwrite", log=LOG, meta=meta) as writer:
        where = writer.add_sites(RunSite(name, HOSTILE, HOSTILE) for name in names)
        for step in range(0, 100, 10):
            put = {"gradient_norm": np.ones(3), HOSTILE: np.arange(3.0)}
            writer.put(step, put, where)
            writer.scalar(step, {HOSTILE: step, "loss": 1.0})
        writer.alert(20, HOSTILE, HOSTILE, names[0], detail)
        writer.alert(30, "SP1", "issue", None, "no dict")
        writer.window(90, HOSTILE, [80, 90], {"gradient_norm": np.ones((2, 3)), HOSTILE:
                                              np.ones((2, 3))})  # fmt: skip
    assert json.dumps(detail)
    return Path(path)
