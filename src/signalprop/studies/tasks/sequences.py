"""A batch of sequences: what a net reads, what it is trained on, and what it is judged by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from signalprop.errors import SignalpropError

#: the symbol of padding; its input vector is zero
PADDING = -1


@dataclass(frozen=True)
class Sequences:
    """Sequences of different lengths, batch first: give a recurrent layer `batch_first=True`.

    Sequences that end early are padded at their end with zeros; there the mask is False.

    Attributes:
        elements: (B, T, n_in) float32; or symbols (B, T) int64, -1 where padded, which stand for
            vectors with a single 1. The long lags of 1997 take 4 MB a sequence as vectors.
        n_in: number of inputs.
        targets: what a net is trained on. Task with errors at every step: classes (B, T) int64.
            Task with one error at the end: classes (B,) int64 or values (B, n_out) float32.
        truth: what the outputs are judged by, shaped like the targets. It differs from them
            where targets are noisy or only one of several right answers: then it is the
            noise-free target, or the legal answers (B, T, n_out) bool.
        lengths: (B,) int64, on the CPU, as `pack_padded_sequence` wants them.
        mask: (B, T) bool, True where the task has an error signal.
    """

    elements: Tensor
    n_in: int
    targets: Tensor
    truth: Tensor
    lengths: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def inputs(self) -> Tensor:
        """What the net reads, (B, T, n_in) float32; made anew from symbols at every access."""
        if self.elements.dim() == 3:
            return self.elements
        vectors = self.elements.new_zeros(*self.elements.shape, self.n_in, dtype=torch.float32)
        symbol = self.elements.unsqueeze(-1)
        return vectors.scatter_(-1, symbol.clamp(min=0), (symbol >= 0).float())

    def packed(self) -> PackedSequence:
        """The inputs without their padding, in the form that torch's recurrent layers take."""
        return pack_padded_sequence(
            self.inputs, self.lengths, batch_first=True, enforce_sorted=False
        )

    def to(self, device: torch.device | str) -> Sequences:
        """The same sequences on another device; the lengths stay on the CPU."""
        moved = {
            name: getattr(self, name).to(device)
            for name in ("elements", "targets", "truth", "mask")
        }
        return replace(self, **moved)

    def at_end(self, outputs: Tensor) -> Tensor:
        """The outputs at each sequence's last error signal.

        Args:
            outputs: (B, T, n_out); or (B, n_out), which is handed back as it is.

        Returns:
            (B, n_out).
        """
        return at_end(outputs, self.mask)


def at_end(outputs: Tensor, mask: Tensor) -> Tensor:
    """The outputs (B, T, n_out) at the last step where the mask (B, T) is True: (B, n_out)."""
    if outputs.dim() == 2:
        return outputs
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, steps, 0).amax(1)
    return outputs[torch.arange(len(outputs), device=outputs.device), last.to(outputs.device)]


def steps_before(lengths: Tensor, *, only_last: bool = False) -> Tensor:
    """Mask (B, T) of the steps inside each sequence, or of its last step only."""
    steps = torch.arange(int(lengths.max()))
    if only_last:
        return steps == lengths.unsqueeze(1) - 1
    return steps < lengths.unsqueeze(1)


def random_lengths(n: int, shortest: int, generator: torch.Generator | None) -> Tensor:
    """Lengths drawn evenly from T, T + 1, ..., T + T/10, as in experiments 3 to 6 of 1997."""
    longest = shortest + shortest // 10
    return torch.randint(shortest, longest + 1, (n,), generator=generator)


def same_shape(outputs: Tensor, truth: Tensor, mask: Tensor) -> None:
    """Refuse outputs that do not fit the truth.

    Raises:
        SignalpropError: another number of sequences or of steps.
    """
    if outputs.dim() not in {2, 3} or len(outputs) != len(truth):
        raise SignalpropError(
            "outputs have to be (sequences, steps, units), or (sequences, units) at the end, for "
            f"{len(truth)} sequences, not {tuple(outputs.shape)}; is the layer batch first?"
        )
    if outputs.dim() == 3 and outputs.shape[1] != mask.shape[1]:
        raise SignalpropError(
            f"the outputs have {outputs.shape[1]} steps and the sequences {mask.shape[1]}; "
            "give pad_packed_sequence the argument total_length"
        )
