"""What a task with a long time lag is: sequences, a loss, a lag, and when it counts as solved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from signalprop.errors import SignalpropError
from signalprop.studies.tasks.checks import on_cpu, whole
from signalprop.studies.tasks.scores import Score, Scoring
from signalprop.studies.tasks.sequences import Sequences, same_shape

Target = Literal["every step", "last step"]
Loss = Literal["mse", "cross-entropy", "bce"]
#: number of sequences and generator -> sequences
Draw = Callable[[int, torch.Generator | None], Sequences]


@dataclass(frozen=True)
class Criterion:
    """When the source counts the task as solved.

    Attributes:
        text: in one sentence.
        sequences: over how many random sequences it is asked; None where the source names none.
        wrong: how many of them may be unsolved.
        error: the mean error (see `Score`) has to be below this as well; None: not asked.
    """

    text: str
    sequences: int | None
    wrong: int = 0
    error: float | None = None

    def met(self, score: Score) -> bool:
        """Whether a score fulfils it: the share of unsolved sequences is at most the allowed."""
        allowed = self.wrong / self.sequences if self.sequences else 0.0
        # shares are float32: half a sequence of room
        few = (1 - score.solved - allowed) * score.sequences < 0.5
        return few and (self.error is None or score.error < self.error)


@dataclass(frozen=True)
class Published:
    """One published result.

    Attributes:
        what: the method and its settings.
        sequences: mean number of training sequences until the criterion was met, where given.
        success: share of the runs that met it, where given.
        source: paper and table.
        note: what else the source says of it.
    """

    what: str
    sequences: int | None
    success: float | None
    source: str
    note: str = ""


@dataclass(frozen=True)
class Task:
    """A task that needs credit carried over many steps.

    Attributes:
        name: unique among the tasks, e.g. `adding-100`.
        title: in a few words.
        source: paper and section.
        n_in: number of inputs.
        n_out: number of outputs.
        target: whether there is an error signal at every step or at the last one only.
        loss: what a net is trained on today: `mse` on plain outputs, `cross-entropy` on logits of
            classes, `bce` on one logit. (The papers of 1997 and 2000 train logistic output units
            on the mean squared error.)
        lag: over how many steps at least an error has to be carried back to solve the task:
            from the error to the first of the inputs needed for it, in the sequence where that is
            shortest. A net whose credit reaches less far solves nothing but by chance.
        nearest: the same to the last of the inputs needed ("minimal time lag" in table 10 of
            Hochreiter & Schmidhuber 1997); equals `lag` where one input is needed.
        score: activations, truth, mask -> share of sequences solved, and the mean error.
        criterion: when the source counts the task as solved.
        published: published results, as plain facts.
        draw: makes training sequences; call `sample`.
        draw_test: makes test sequences; None where every draw is new anyway.
        data: name of the real data, `""` where the task is made by a rule.
    """

    name: str
    title: str
    source: str
    n_in: int
    n_out: int
    target: Target
    loss: Loss
    lag: int
    nearest: int
    score: Scoring
    criterion: Criterion
    draw: Draw
    published: tuple[Published, ...] = ()
    draw_test: Draw | None = None
    data: str = ""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Sequences:
        """Draw training sequences; the same state of the generator gives the same sequences.

        Args:
            n: how many.
            generator: on the CPU; None: torch's own.

        Returns:
            The sequences, on the CPU.

        Raises:
            SignalpropError: n is no whole number above zero, or the generator not on the CPU.
        """
        return self.draw(whole("n, the number of sequences,", n, 1), on_cpu(generator))

    def sample_test(self, n: int, generator: torch.Generator | None = None) -> Sequences:
        """Draw test sequences: from held-out data where the data are real, else as `sample`.

        Args:
            n: how many.
            generator: on the CPU; None: torch's own.

        Returns:
            The sequences, on the CPU.

        Raises:
            SignalpropError: n is no whole number above zero, or the generator not on the CPU.
        """
        draw = self.draw if self.draw_test is None else self.draw_test
        return draw(whole("n, the number of sequences,", n, 1), on_cpu(generator))

    def objective(self, outputs: Tensor, sequences: Sequences) -> Tensor:
        """The loss to train on, averaged over all error signals of the batch.

        Args:
            outputs: of the net before any output nonlinearity, (B, T, n_out); or (B, n_out) for a
                task with its error at the last step.
            sequences: the batch, on the same device.

        Returns:
            A scalar.

        Raises:
            SignalpropError: the outputs do not fit the sequences.
        """
        self._fits(outputs, sequences)
        if self.target == "last step":
            outputs, targets = sequences.at_end(outputs), sequences.targets
        elif outputs.dim() == 3:
            outputs, targets = outputs[sequences.mask], sequences.targets[sequences.mask]
        else:
            raise SignalpropError(
                f"{self.name} has errors at every step: give the outputs as "
                "(sequences, steps, units)"
            )
        if self.loss == "cross-entropy":
            return F.cross_entropy(outputs, targets)
        if self.loss == "bce":
            return F.binary_cross_entropy_with_logits(outputs, targets)
        return F.mse_loss(outputs, targets)

    def activations(self, outputs: Tensor) -> Tensor:
        """What the loss makes of the net's outputs: softmax, logistic function, or themselves."""
        if self.loss == "cross-entropy":
            return outputs.softmax(-1)
        return outputs.sigmoid() if self.loss == "bce" else outputs

    def evaluate(self, outputs: Tensor, sequences: Sequences) -> Score:
        """Score outputs that come before the output nonlinearity, as `objective` takes them.

        Args:
            outputs: (B, T, n_out), or (B, n_out) where only the last step is judged.
            sequences: the batch, on the same device.

        Returns:
            Share of sequences solved, and the mean error.

        Raises:
            SignalpropError: the outputs do not fit the sequences.
        """
        self._fits(outputs, sequences)
        with torch.no_grad():
            return self.score(self.activations(outputs), sequences.truth, sequences.mask)

    def _fits(self, outputs: Tensor, sequences: Sequences) -> None:
        same_shape(outputs, sequences.truth, sequences.mask)
        if outputs.shape[-1] != self.n_out:
            raise SignalpropError(
                f"{self.name} needs {self.n_out} outputs, and there are {outputs.shape[-1]}; "
                "put a linear layer after the recurrent one"
            )
