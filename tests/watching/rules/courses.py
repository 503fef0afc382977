"""Courses of a loss as healthy trainings have them, of any length, and what is not healthy."""

import numpy as np


def ar1(rng, n, rho):
    noise = rng.normal(size=n) * np.sqrt(1 - rho**2)
    out = np.empty(n)
    last = 0.0
    for i, e in enumerate(noise):
        last = rho * last + e
        out[i] = last
    return out


def healthy(n, seed=0):
    """Name and losses, (n,)."""
    rng = np.random.default_rng(seed)
    t = np.arange(n)
    fall = 0.3 + 2.0 / (1 + t / 200)
    steps = np.exp(-t / (n / 3))
    yield "white noise", fall + 0.1 * rng.normal(size=n)
    yield "noise of its level", fall * np.exp(0.5 * rng.normal(size=n))
    yield "heavy tails", fall * np.exp(1.2 * rng.normal(size=n))
    yield "student t3", 2 + steps + 0.1 * rng.standard_t(3, size=n)
    yield "cauchy-like", 2 + steps + 0.05 * rng.standard_t(1.5, size=n)
    yield "batch of one", fall * rng.exponential(size=n)
    yield "correlated", fall + 0.1 * ar1(rng, n, 0.9)
    yield "strongly correlated", 1 + fall + 0.05 * ar1(rng, n, 0.995)
    yield "no noise", fall
    yield "log trend", 10 - np.log(1 + t) + 0.02 * rng.normal(size=n)
    yield "linear trend", 5 - 4 * t / n + 0.02 * rng.normal(size=n)
    yield "warm start", 0.05 + 0.02 * rng.random(n)
    yield "warm start, exponential", 0.02 * rng.exponential(size=n)
    yield "fine-tuning", 2 - 0.2 * np.minimum(t / n * 3, 1) + 0.05 * rng.normal(size=n)
    yield "game", 0.7 + 0.3 * np.sin(t / 37.0) + 0.1 * rng.normal(size=n)
    yield "game, in bursts", 1.4 + 0.4 * ar1(rng, n, 0.97) ** 2
    yield "around zero", 0.01 * rng.normal(size=n)
    yield "negative", -fall + 0.3 * rng.normal(size=n) - np.log(1 + t)
    yield "rare hard batches", fall * np.where(rng.random(n) < 0.03, 8, 1) * rng.gamma(9, 1 / 9, n)
    yield (
        "hard batches in twos",
        fall * np.where(np.repeat(rng.random(n // 2 + 1) < 0.01, 2)[:n], 9, 1),
    )
    yield "epochs", fall * (1 + 0.3 * ((t % 500) / 500)) + 0.05 * rng.normal(size=n)
    yield "zigzag", fall + 0.3 * (t % 2) + 0.02 * rng.normal(size=n)
    yield "edge of stability", fall * (1 + 0.1 * np.abs(np.sin(t / 3.0)))
    yield "converged", 1e-4 * np.exp(rng.normal(size=n)) + 2.3 * np.exp(-t / 100)
    yield (
        "steps down",
        np.where(t < n / 2, 1.0, 0.4) + 2 * np.exp(-t / 300) + 0.1 * rng.normal(size=n),
    )
    yield "annealed up", 1 + fall + t / n + 0.1 * rng.normal(size=n)
