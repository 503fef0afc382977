"""Which rules name which published fault, and why.

Written from what the words of the benchmarks mean, before anything was run. A sick program counts
as named rightly where an issue has a code from the set of one of its published faults. DeepFD lists
every place where the fixed program differs from the broken one, so one of them is asked for, not
all.
"""

from __future__ import annotations

#: fault -> (codes, why these)
FAULTS: dict[str, tuple[frozenset[str], str]] = {
    # DeepFD's fault types
    "activation": (
        frozenset(
            "SP101 SP102 SP104 SP105 SP106 SP107 SP110 SP111 SP112 SP202 SP203 SP204".split()
        ),
        "a wrong activation function: at the output it does not fit the loss (SP203, SP204); in "
        "the hidden layers it loses or blows up the signal, saturates or dies; without a bound it "
        "overflows (SP202)",
    ),
    "loss": (
        frozenset("SP203 SP204 SP205 SP207".split()),
        "a loss that does not fit the output or the targets",
    ),
    "learning rate": (
        frozenset("SP210 SP211".split()),
        "too large or too small a learning rate",
    ),
    "optimizer": (
        frozenset("SP101 SP103 SP210 SP211 SP212".split()),
        "the fix is another optimizer: with this one the step is too large or too small, or layers "
        "stay idle that an adaptive one would move",
    ),
    "epochs": (
        frozenset("SP211".split()),
        "too few updates: the only thing to be seen in one step is that it hardly moves",
    ),
    "batch size": (
        frozenset("SP209 SP210".split()),
        "the batch does not fit the step or a normalisation",
    ),
    "preprocessing": (
        frozenset("SP204 SP205 SP206 SP207".split()),
        "inputs that are not scaled (SP206), or targets outside what the output reaches",
    ),
    "layer properties": (
        frozenset("SP204 SP205 SP207 SP209 SP213".split()),
        "number of outputs or units that do not fit the task",
    ),
    "data": (frozenset(), "more data is needed: nothing that a training step shows"),
    # AutoTrainer's problems, and how the descriptions read the models without a published label
    "vanishing gradient": (
        frozenset("SP101 SP103 SP106 SP111 SP112 SP114".split()),
        "the gradient vanishes: by saturation, and with it the differences between samples",
    ),
    "exploding": (
        frozenset("SP102 SP105 SP107 SP115 SP202 SP210".split()),
        "activations or gradients explode, up to values that are not finite",
    ),
    "forward collapse": (
        frozenset("SP101 SP104 SP106 SP110 SP112 SP114".split()),
        "the initial weights are too small: nothing of the input arrives at the head",
    ),
    "dying relu": (
        frozenset("SP101 SP104 SP106 SP110 SP112".split()),
        "rectified units are dead, and directions with them",
    ),
    "oscillating": (
        frozenset("SP209 SP210".split()),
        "the loss goes up and down: too large a step for so noisy a gradient",
    ),
    "output activation": (
        frozenset("SP203 SP204 SP202".split()),
        "the last activation does not fit the loss, which is then not finite",
    ),
    "does not train": (
        frozenset("SP101 SP104 SP106 SP110 SP112 SP210".split()),
        "published without a cause: a deep ReLU network with RMSprop at a rate of 0.01, so the "
        "step or what depth does to the signal",
    ),
}


def named(faults: tuple[str, ...], codes: frozenset[str]) -> bool:
    """Whether one of the codes names one of the faults."""
    return any(codes & FAULTS[fault][0] for fault in faults)
