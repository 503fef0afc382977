"""Restricted Boltzmann machines, learnt by contrastive divergence.

E(v, h) = -v.b - h.c - h.W v for binary visible units, and |v - b|^2 / 2 - h.c - h.W v for Gaussian
ones of unit variance; p(v, h) = exp(-E) / Z.

Hinton 2002, "Training products of experts by minimizing contrastive divergence" (CD); Tieleman
2008, "Training restricted Boltzmann machines using approximations to the likelihood gradient"
(persistent CD); Hinton, Osindero & Teh 2006, "A fast learning algorithm for deep belief nets";
Hinton 2012, "A practical guide to training restricted Boltzmann machines" (the settings).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.nets._seeded import Seeded, checked_rows

Units = Literal["binary", "gaussian"]

#: epochs with the small momentum (Hinton 2012, section 9.1), and that momentum
EARLY, EARLY_MOMENTUM = 5, 0.5
#: weights start as N(0, 0.01^2) (section 8.1)
START = 0.01
#: visible biases start within the log odds of this many in the data (section 8.1)
_RARE = 0.01
#: exact sums run over the states of at most so many units
ENUMERABLE = 22


@dataclass(frozen=True)
class Divergence:
    """The direction in which contrastive divergence moves the parameters.

    Attributes:
        weight: <h v^T>_data - <h v^T>_model, (hidden, visible), mean over samples.
        visible_bias: <v>_data - <v>_model, (visible,).
        hidden_bias: <h>_data - <h>_model, (hidden,).
        reconstruction: mean squared difference of the data to its mean reconstruction after one
            step, per visible unit; not what is minimised, but what can be watched.
    """

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor
    reconstruction: float


class RBM(Seeded):
    """A restricted Boltzmann machine with binary hidden units.

    As a module it maps v (n, visible) to the hidden probabilities sigmoid(W v + c), (n, hidden):
    `weight` and `hidden_bias` are those of a `torch.nn.Linear` before a sigmoid.

    Args:
        visible: number of visible units.
        hidden: number of hidden units.
        units: of which kind the visible ones are: binary (values in [0, 1] count as
            probabilities) or Gaussian of variance 1 (scale each feature to about that).
        seed: of the module's own random numbers; torch's global ones are never used.
        device: where the parameters are.
        dtype: of the parameters.

    Raises:
        ValueError: a size below 1, or unknown units.
    """

    def __init__(
        self,
        visible: int,
        hidden: int,
        *,
        units: Units = "binary",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(seed)
        if visible < 1 or hidden < 1:
            raise ValueError(f"at least one unit on either side, got {visible} and {hidden}")
        if units not in ("binary", "gaussian"):
            raise ValueError(f'units are "binary" or "gaussian", got {units!r}')
        self.visible, self.hidden, self.units = visible, hidden, units
        W = torch.empty(hidden, visible, device=device, dtype=dtype)
        self.weight = nn.Parameter(START * self.normal(W))
        self.visible_bias = nn.Parameter(torch.zeros(visible, device=device, dtype=dtype))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden, device=device, dtype=dtype))
        #: states of the persistent chains, (chains, visible), once there are any
        self.chains: Tensor | None
        self.register_buffer("chains", None, persistent=False)

    def extra_repr(self) -> str:
        """Sizes and units."""
        return f"visible={self.visible}, hidden={self.hidden}, units={self.units!r}"

    def forward(self, v: Tensor) -> Tensor:
        """P(h = 1 | v), (n, hidden)."""
        return torch.sigmoid(F.linear(v, self.weight, self.hidden_bias))

    def visible_mean(self, h: Tensor) -> Tensor:
        """E(v | h), (n, visible): sigmoid(W^T h + b), or W^T h + b of Gaussian units."""
        mean = h @ self.weight + self.visible_bias
        return torch.sigmoid(mean) if self.units == "binary" else mean

    def sample_hidden(self, v: Tensor) -> Tensor:
        """Hidden states, 0 or 1, given v."""
        return self.bernoulli(self(v))

    def sample_visible(self, h: Tensor) -> Tensor:
        """Visible states given h."""
        mean = self.visible_mean(h)
        return self.bernoulli(mean) if self.units == "binary" else mean + self.normal(mean)

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """E(v, h) of each pair, (n,)."""
        both = (F.linear(v, self.weight, self.hidden_bias) * h).sum(-1)
        return self._visible_energy(v) - both

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -ln sum_h exp(-E(v, h)), (n,)."""
        return self._visible_energy(v) - F.softplus(F.linear(v, self.weight, self.hidden_bias)).sum(
            -1
        )

    def _visible_energy(self, v: Tensor) -> Tensor:
        if self.units == "binary":
            return -v @ self.visible_bias
        return (v - self.visible_bias).square().sum(-1) / 2

    # ---- exact, for small machines -------------------------------------------------------------

    @torch.no_grad()
    def log_partition(self) -> Tensor:
        """Ln Z by summing over all states of the smaller side, in float64: 2^units terms.

        Returns:
            Ln Z, a scalar; of Gaussian units the density's, over the hidden states.

        Raises:
            ValueError: more than 22 units would have to be summed over.
        """
        W, b, c = (p.double() for p in (self.weight, self.visible_bias, self.hidden_bias))
        over_visible = self.units == "binary" and self.visible < self.hidden
        units = self.visible if over_visible else self.hidden
        if units > ENUMERABLE:
            raise ValueError(
                f"the exact sum runs over 2^{units} states; it is for {ENUMERABLE} units at most"
            )
        terms = []
        for numbers in torch.arange(2**units, device=W.device).split(2**16):
            s = (numbers[:, None] >> torch.arange(units, device=W.device) & 1).to(W.dtype)
            if over_visible:
                terms.append(s @ b + F.softplus(s @ W.T + c).sum(-1))
            elif self.units == "binary":
                terms.append(s @ c + F.softplus(s @ W + b).sum(-1))
            else:  # a Gaussian integral around b + W^T h
                a = s @ W
                terms.append(s @ c + a @ b + a.square().sum(-1) / 2)
        ln_z = torch.cat(terms).logsumexp(0)
        return ln_z + (self.units == "gaussian") * self.visible / 2 * math.log(2 * math.pi)

    @torch.no_grad()  # ln Z is summed without a graph, so a gradient would lack half
    def log_likelihood(self, v: Tensor) -> Tensor:
        """Ln p(v) of each sample, (n,), exactly: -F(v) - ln Z; for small machines."""
        return -self.free_energy(v) - self.log_partition().to(v.dtype)

    # ---- learning ------------------------------------------------------------------------------

    @torch.no_grad()
    def gibbs(self, v: Tensor, k: int = 1, *, mean_field: bool = False) -> Tensor:
        """Visible states after k steps v -> h -> v.

        Args:
            v: where the chains start, (n, visible).
            k: number of steps.
            mean_field: whether the visible units take their means instead of sampled states.

        Returns:
            The states, (n, visible).
        """
        for _ in range(k):
            h = self.sample_hidden(v)
            v = self.visible_mean(h) if mean_field else self.sample_visible(h)
        return v

    @torch.no_grad()
    def contrastive_divergence(
        self, v: Tensor, k: int = 1, *, persistent: bool = False, mean_field: bool = False
    ) -> Divergence:
        """CD-k: statistics on the data less those after k steps of Gibbs sampling.

        The hidden units drive the chain by sampled states and enter the statistics by their
        probabilities. For k to infinity this is the gradient of the mean ln p(v).

        Args:
            v: samples, (n, visible).
            k: steps of the chain.
            persistent: whether the chains go on from where they ended at the last call, instead of
                starting at the data; the first call starts as many chains as it has samples.
            mean_field: whether visible units take their means along the chain: less noise, not
                quite the model's distribution.

        Returns:
            The direction to move the parameters in.

        Raises:
            TypeError: v is not a floating tensor.
            ValueError: v does not fit, or k < 1.
        """
        v = checked_rows(v, self.visible, in_unit=self.units == "binary")
        if k < 1:
            raise ValueError(f"at least one step of the chain, got k={k}")
        h = self(v)
        rebuilt = self.visible_mean(self.bernoulli(h))
        if not persistent:
            start = rebuilt if mean_field else self._around(rebuilt)
            end = self.gibbs(start, k - 1, mean_field=mean_field)
        else:
            start = v if self.chains is None else self.chains
            if self.chains is None and self.units == "binary":
                start = self.bernoulli(v)
            end = self.chains = self.gibbs(start, k, mean_field=mean_field)
        h_end = self(end)
        return Divergence(
            h.T @ v / len(v) - h_end.T @ end / len(end),
            v.mean(0) - end.mean(0),
            h.mean(0) - h_end.mean(0),
            float((v - rebuilt).square().mean()),
        )

    def _around(self, mean: Tensor) -> Tensor:
        return self.bernoulli(mean) if self.units == "binary" else mean + self.normal(mean)

    @torch.no_grad()
    def match_(self, data: Tensor) -> RBM:
        """Set the visible biases to what the data has on its own (Hinton 2012, section 8.1).

        Args:
            data: samples, (n, visible).

        Returns:
            The machine; its biases are ln p / (1 - p) of each unit's mean p, or the mean itself of
            Gaussian units.

        Raises:
            TypeError: the data is not a floating tensor.
            ValueError: it does not fit.
        """
        data = checked_rows(data, self.visible, in_unit=self.units == "binary")
        mean = data.mean(0)
        if self.units == "binary":
            mean = mean.clamp(_RARE, 1 - _RARE).logit()
        self.visible_bias.copy_(mean)
        return self

    def fit(
        self,
        data: Tensor,
        *,
        epochs: int = 10,
        lr: float | None = None,
        batch_size: int = 100,
        k: int = 1,
        persistent: bool = False,
        mean_field: bool = False,
        momentum: float = 0.9,
        weight_decay: float = 2e-4,
        progress: Callable[[int, float], None] | None = None,
    ) -> list[float]:
        """Learn from samples by stochastic ascent along `contrastive_divergence`.

        Momentum is 0.5 in the first five epochs. The decay is on the weights only. Parameters with
        `requires_grad=False` stay as they are.

        Args:
            data: samples, (n, visible), on the parameters' device.
            epochs: how often all samples are seen.
            lr: rate; where none is given 0.1 for binary visible units (0.01 with persistent chains,
                which lose the model where it moves fast), and 0.001 for Gaussian ones.
            batch_size: samples a step.
            k: steps of the chain.
            persistent: whether the chains go on between steps.
            mean_field: whether visible units take their means along the chain.
            momentum: after the first epochs.
            weight_decay: of the weights.
            progress: called after each epoch, from 0, with the reconstruction error.

        Returns:
            The reconstruction error of each epoch (`Divergence.reconstruction`).

        Raises:
            TypeError: the data is not a floating tensor.
            ValueError: the data does not fit, a setting is out of range, or learning diverges.
        """
        data = checked_rows(data, self.visible, in_unit=self.units == "binary")
        data = data.to(self.weight)
        if epochs < 0 or batch_size < 1:
            raise ValueError(f"epochs >= 0 and batch_size >= 1, got {epochs} and {batch_size}")
        if lr is None:
            lr = 0.001 if self.units == "gaussian" else 0.01 if persistent else 0.1
        biases = [self.visible_bias, self.hidden_bias]
        optimizer = torch.optim.SGD(
            [{"params": [self.weight], "weight_decay": weight_decay}, {"params": biases}],
            lr=lr,
            momentum=momentum,
        )
        errors: list[float] = []
        for epoch in range(epochs):
            for group in optimizer.param_groups:
                group["momentum"] = min(EARLY_MOMENTUM, momentum) if epoch < EARLY else momentum
            total = 0.0
            for v in self.minibatches(data, batch_size):
                up = self.contrastive_divergence(v, k, persistent=persistent, mean_field=mean_field)
                total += up.reconstruction * len(v)
                for p, direction in (
                    (self.weight, up.weight),
                    (self.visible_bias, up.visible_bias),
                    (self.hidden_bias, up.hidden_bias),
                ):
                    p.grad = -direction if p.requires_grad else None
                optimizer.step()
            errors.append(total / len(data))
            if not math.isfinite(errors[-1]) or not bool(torch.isfinite(self.weight).all()):
                raise ValueError(f"learning diverged in epoch {epoch}; lower lr (now {lr:g})")
            if progress is not None:
                progress(epoch, errors[-1])
        optimizer.zero_grad()
        return errors
