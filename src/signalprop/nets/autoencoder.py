"""Denoising autoencoders: rebuild what was there before it was damaged.

x~ = damage(x), h = s(W x~ + b), x^ = W' h + b' (through a sigmoid for inputs in [0, 1]), and the
loss compares x^ to x. Vincent, Larochelle, Bengio & Manzagol 2008, "Extracting and composing robust
features with denoising autoencoders"; Vincent et al. 2010, "Stacked denoising autoencoders".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.nets._seeded import Seeded, checked_rows

Corruption = Literal["masking", "gaussian", "salt_and_pepper", "none"]
Inputs = Literal["binary", "real"]
Elementwise = Callable[[Tensor], Tensor]

#: how much is damaged where nothing is said: share of entries, standard deviation, share
AMOUNT: dict[str, float] = {"masking": 0.3, "gaussian": 0.3, "salt_and_pepper": 0.3, "none": 0.0}


class DenoisingAutoencoder(Seeded):
    """One hidden layer that learns to undo damage.

    As a module it maps x (n, visible) to its code (n, hidden); `weight` and `hidden_bias` are those
    of a `torch.nn.Linear` before the activation.

    Args:
        visible: number of inputs.
        hidden: number of hidden units.
        activation: s, elementwise.
        corruption: `masking` sets a share of the entries to 0, `gaussian` adds noise,
            `salt_and_pepper` sets a share to the lowest or the highest value of the batch (0 or 1
            for binary inputs), `none` leaves all.
        amount: the share, or the noise's standard deviation; 0.3 where none is given.
        inputs: `binary` for values in [0, 1]: sigmoid and cross-entropy; `real`: squared error.
        tied: whether W' = W^T.
        seed: of the module's own random numbers; torch's global ones are never used.
        device: where the parameters are.
        dtype: of the parameters.

    Raises:
        ValueError: a size below 1, unknown words, or an amount out of range.
    """

    def __init__(
        self,
        visible: int,
        hidden: int,
        *,
        activation: Elementwise = torch.sigmoid,
        corruption: Corruption = "masking",
        amount: float | None = None,
        inputs: Inputs = "binary",
        tied: bool = True,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(seed)
        if visible < 1 or hidden < 1:
            raise ValueError(f"at least one unit on either side, got {visible} and {hidden}")
        if inputs not in ("binary", "real"):
            raise ValueError(f'inputs are "binary" or "real", got {inputs!r}')
        if corruption not in AMOUNT:
            raise ValueError(f"corruption is one of {', '.join(AMOUNT)}, got {corruption!r}")
        amount = AMOUNT[corruption] if amount is None else amount
        if not 0 <= amount < math.inf or (corruption != "gaussian" and amount > 1):
            raise ValueError(f"{amount} is no amount of {corruption} corruption")
        self.visible, self.hidden, self.inputs = visible, hidden, inputs
        self.activation, self.corruption, self.amount = activation, corruption, amount
        W = torch.empty(hidden, visible, device=device, dtype=dtype)
        self.weight = nn.Parameter(self._start(W))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden, device=device, dtype=dtype))
        self.visible_bias = nn.Parameter(torch.zeros(visible, device=device, dtype=dtype))
        self.decoder_weight = None if tied else nn.Parameter(self._start(W.T))

    def _start(self, like: Tensor) -> Tensor:
        """Glorot's uniform distribution; four times that for the sigmoid, whose slope is 1/4."""
        sigmoid = self.activation in (torch.sigmoid, F.sigmoid)
        sigmoid = sigmoid or isinstance(self.activation, nn.Sigmoid)
        bound = (4 if sigmoid else 1) * math.sqrt(6 / (self.visible + self.hidden))
        return bound * (2 * self.uniform(like) - 1)

    def extra_repr(self) -> str:
        """Sizes and settings."""
        return (
            f"visible={self.visible}, hidden={self.hidden}, inputs={self.inputs!r}, "
            f"corruption={self.corruption!r}, amount={self.amount:g}, "
            f"tied={self.decoder_weight is None}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """The code s(W x + b), (n, hidden), of undamaged inputs."""
        return self.activation(F.linear(x, self.weight, self.hidden_bias))

    def decode(self, code: Tensor) -> Tensor:
        """Inputs rebuilt from codes, (n, visible)."""
        rebuilt = self._decoded(code)
        return torch.sigmoid(rebuilt) if self.inputs == "binary" else rebuilt

    def _decoded(self, code: Tensor) -> Tensor:
        weight = self.weight.T if self.decoder_weight is None else self.decoder_weight
        return F.linear(code, weight, self.visible_bias)

    def corrupt(self, x: Tensor) -> Tensor:
        """Damaged copies of the inputs, (n, visible)."""
        if self.corruption == "masking":
            return x * (self.uniform(x) >= self.amount)
        if self.corruption == "gaussian":
            return x + self.amount * self.normal(x)
        if self.corruption == "salt_and_pepper":
            low, high = (0.0, 1.0) if self.inputs == "binary" else (float(x.min()), float(x.max()))
            coin = torch.where(self.uniform(x) < 0.5, low, high).to(x.dtype)
            return torch.where(self.uniform(x) < self.amount, coin, x)
        return x

    def loss(self, x: Tensor) -> Tensor:
        """How far damaged inputs are rebuilt from what they were.

        Args:
            x: samples, (n, visible).

        Returns:
            Cross-entropy in nats for binary inputs, half the squared error for real ones; summed
            over the inputs of a sample, mean over samples.

        Raises:
            TypeError: x is not a floating tensor.
            ValueError: x does not fit.
        """
        x = checked_rows(x, self.visible, in_unit=self.inputs == "binary")
        rebuilt = self._decoded(self(self.corrupt(x)))
        if self.inputs == "binary":
            return F.binary_cross_entropy_with_logits(rebuilt, x, reduction="sum") / len(x)
        return F.mse_loss(rebuilt, x, reduction="sum") / (2 * len(x))

    def fit(
        self,
        data: Tensor,
        *,
        epochs: int = 10,
        lr: float = 1e-2,
        batch_size: int = 100,
        weight_decay: float = 0.0,
        progress: Callable[[int, float], None] | None = None,
    ) -> list[float]:
        """Learn from samples with Adam.

        Parameters with `requires_grad=False` stay as they are.

        Args:
            data: samples, (n, visible), on the parameters' device.
            epochs: how often all samples are seen.
            lr: Adam's rate.
            batch_size: samples a step.
            weight_decay: of the weights, decoupled from the rate's adaptation (AdamW).
            progress: called after each epoch, from 0, with the mean loss.

        Returns:
            The mean loss of each epoch.

        Raises:
            TypeError: the data is not a floating tensor.
            ValueError: the data does not fit, a setting is out of range, or learning diverges.
        """
        data = checked_rows(data, self.visible, in_unit=self.inputs == "binary").to(self.weight)
        if epochs < 0 or batch_size < 1:
            raise ValueError(f"epochs >= 0 and batch_size >= 1, got {epochs} and {batch_size}")
        own = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in own if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in own if p.dim() == 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr)
        losses: list[float] = []
        for epoch in range(epochs):
            total = 0.0
            for x in self.minibatches(data, batch_size):
                optimizer.zero_grad()
                with torch.enable_grad():
                    loss = self.loss(x)
                    loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(x)
            losses.append(total / len(data))
            if not math.isfinite(losses[-1]) or not bool(torch.isfinite(self.weight).all()):
                raise ValueError(f"learning diverged in epoch {epoch}; lower lr (now {lr:g})")
            if progress is not None:
                progress(epoch, losses[-1])
        optimizer.zero_grad()
        return losses
