"""Many small networks of one shape trained side by side, each on its own rows of one table.

On a CPU a step of one small network is mostly overhead. So networks that differ in weights, rows
and learning rate are one stack: all parameters are one matrix, a row per network, and
`torch.func.vmap` runs the module as it is over them. No network sees anything of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

#: of outputs (networks, batch, out) and targets (networks, batch, ...): sum of their losses
Loss = Callable[[Tensor, Tensor], Tensor]
#: of outputs (n, out) and targets (n, ...): higher is better
Score = Callable[[Tensor, Tensor], float]
#: Adam's
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Budget:
    """How long every network is trained.

    Attributes:
        steps: updates at most.
        batch: rows per update, drawn with replacement.
        every: updates between two looks at the validation rows.
        patience: looks without a better score in any network, after which training ends.
    """

    steps: int
    batch: int = 128
    every: int = 50
    patience: int = 5


@dataclass(frozen=True)
class Rows:
    """The rows that one network learns from and stops by.

    Attributes:
        train: rows for the updates, and for mean and variance of the inputs.
        validation: rows that say when it was best.
    """

    train: Tensor
    validation: Tensor


@dataclass(frozen=True)
class Problem:
    """A table and what is to be learnt from it.

    Attributes:
        x: inputs (n, features), float32.
        y: targets (n, ...).
        outputs: outputs of a network.
        loss: what is minimised.
        score: what a network is judged by.
        clip: inputs further from the mean than this many standard deviations are cut off there.
    """

    x: Tensor
    y: Tensor
    outputs: int
    loss: Loss
    score: Score
    clip: float = float("inf")

    def scaler(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the features over these rows; 1 where it is 0."""
        seen = self.x[rows]
        deviation = seen.std(0, correction=0)
        return seen.mean(0), torch.where(deviation > 1e-6, deviation, 1.0)


class Stack:
    """Networks of one shape, side by side.

    Args:
        make: makes one network; called once per network.
        copies: how many.
    """

    def __init__(self, make: Callable[[], nn.Module], copies: int) -> None:
        made = [make() for _ in range(copies)]
        self.base = made[0]
        names = [name for name, _ in self.base.named_parameters()]
        shapes = [p.shape for p in self.base.parameters()]
        self.parts = list(zip(names, shapes, strict=True))
        rows = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in made]
        #: one row of parameters per network
        self.flat = torch.stack(rows).requires_grad_()
        buffers = [dict(net.named_buffers()) for net in made]
        self.buffers = {name: torch.stack([b[name] for b in buffers]) for name in buffers[0]}
        self._run = vmap(self._one, randomness="different")

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.base, (parameters, buffers), (x,))

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (networks, n, out) for inputs (networks, n, features)."""
        pieces = self.flat.split([shape.numel() for _, shape in self.parts], dim=1)
        parameters = {
            name: piece.unflatten(1, shape) if len(shape) > 1 else piece.reshape(-1, *shape)
            for (name, shape), piece in zip(self.parts, pieces, strict=True)
        }
        return self._run(parameters, self.buffers, x)

    @torch.no_grad()
    def keep(self, best: Stack | None, which: Tensor) -> Stack:
        """A copy whose networks are these where `which` says so, and those of `best` elsewhere."""
        kept = object.__new__(Stack)
        kept.__dict__.update(self.__dict__)
        kept._run = vmap(kept._one, randomness="different")

        def pick(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(which.view(-1, *[1] * (new.ndim - 1)), new, old)

        other = self if best is None else best
        kept.flat = pick(self.flat, other.flat)
        kept.buffers = {k: pick(v, other.buffers[k]) for k, v in self.buffers.items()}
        return kept


@dataclass(frozen=True)
class Fitted:
    """Networks at their best on their validation rows.

    Attributes:
        stack: the networks.
        scores: their scores on the validation rows; -inf where every look gave no number.
        steps: updates after which each was best.
        problem: what they learnt.
        mean: of each network's inputs, (networks, 1, features).
        deviation: their standard deviation.
    """

    stack: Stack
    scores: list[float]
    steps: list[int]
    problem: Problem
    mean: Tensor
    deviation: Tensor

    def inputs(self, index: Tensor) -> Tensor:
        """Scaled inputs of these rows, (networks, n) to (networks, n, features)."""
        p = self.problem
        x = p.x[index].sub_(self.mean).div_(self.deviation)
        return x.clamp_(-p.clip, p.clip) if p.clip < float("inf") else x

    @torch.no_grad()
    def outputs(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of every network for its own rows."""
        index, lengths = _padded(rows)
        self.stack.base.eval()
        # a few thousand rows at once: the hidden layers of all networks have to fit into memory
        pieces = [self.stack(self.inputs(part)) for part in index.split(4096, dim=1)]
        self.stack.base.train()
        out = torch.cat(pieces, 1)
        return [one[:n] for one, n in zip(out, lengths.tolist(), strict=True)]

    def score(self, rows: Sequence[Tensor]) -> list[float]:
        """Score of every network on its own rows."""
        p = self.problem
        return [
            p.score(out, p.y[r]) if bool(out.isfinite().all()) else float("-inf")
            for out, r in zip(self.outputs(rows), rows, strict=True)
        ]


def fit(
    make: Callable[[], nn.Module],
    problem: Problem,
    rows: Sequence[Rows],
    rates: Sequence[float],
    budget: Budget,
) -> Fitted:
    """Train a stack with Adam, one network per entry of `rows` and `rates`.

    Returns:
        The networks, each as it was when its score on its validation rows was best.
    """
    stack = Stack(make, len(rows))
    index, lengths = _padded([r.train for r in rows])
    validation = [r.validation for r in rows]
    scales = [problem.scaler(r.train) for r in rows]
    mean, deviation = (torch.stack(part).unsqueeze(1) for part in zip(*scales, strict=True))
    rate = torch.tensor(rates, dtype=torch.float32).unsqueeze(1)
    first, second = torch.zeros_like(stack.flat), torch.zeros_like(stack.flat)
    now = Fitted(stack, [], [], problem, mean, deviation)
    best: Stack | None = None
    scores, steps, waited = [float("-inf")] * len(rows), [0] * len(rows), 0
    stack.base.train()
    for step in range(1, budget.steps + 1):
        place = (torch.rand(len(rows), budget.batch) * lengths.unsqueeze(1)).long()
        pick = index.gather(1, place)
        (grad,) = torch.autograd.grad(
            problem.loss(stack(now.inputs(pick)), problem.y[pick]), [stack.flat]
        )
        first.lerp_(grad, 1 - BETA_1)
        second.lerp_(grad.square_(), 1 - BETA_2)
        size = (second / (1 - BETA_2**step)).sqrt_().add_(EPSILON)
        with torch.no_grad():
            stack.flat.sub_(rate / (1 - BETA_1**step) * first / size)
        if step % budget.every and step != budget.steps:
            continue
        found = now.score(validation)
        better = [new > old for new, old in zip(found, scores, strict=True)]
        best = stack.keep(best, torch.tensor(better))
        scores = [max(pair) for pair in zip(found, scores, strict=True)]
        steps = [step if b else old for b, old in zip(better, steps, strict=True)]
        waited = 0 if any(better) else waited + 1
        if waited == budget.patience:
            break
    assert best is not None
    return Fitted(best, scores, steps, problem, mean, deviation)


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Row numbers as one matrix, the short ones filled up with row 0; and how many count."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), torch.tensor(
        [len(r) for r in rows]
    )
