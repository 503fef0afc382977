"""One of two processes of a Trainer: trains with and without the callback, and tells of it."""

import logging
import os
import sys
import time
from pathlib import Path

import torch
from tests.watching.adapters.huggingface.trainers import gpt, trainer
from torch import nn

from signalprop.watching.adapters.huggingface import SignalpropCallback
from signalprop.watching.ranks import control

FOLDER, RANK = Path(sys.argv[1]), int(os.environ["RANK"])
#: with two sequences a rank, attention is measured of all that one process would look at
OPTIONS = {
    "ddp_backend": "gloo",
    "ddp_find_unused_parameters": False,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 2,
}


class Lines(logging.Handler):
    """Keeps what is said."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


LINES = Lines()


def model(nan_at=None):
    """The same on both ranks; its second hook keeps the batches it is called with."""
    torch.manual_seed(0)
    made = gpt(nan_at=nan_at)
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    made.config.use_cache = False
    made.batches = []
    made.register_forward_pre_hook(
        lambda module, args, kwargs: made.batches.append(kwargs["input_ids"].clone()),
        with_kwargs=True,
    )
    return made


def trained(name, *, watched=True, nan_at=None, on="warn", **options):
    """What is the same with and without the callback, and what the test compares with."""
    net = model(nan_at)
    begin = {key: value.clone() for key, value in net.state_dict().items()}
    callback = SignalpropCallback(every=4, to=FOLDER / f"{name}.sp", on=on)
    made = trainer(FOLDER, [callback] if watched else [], net, **OPTIONS, **options)
    made.train()
    return {
        "begin": begin,
        "batches": torch.stack(net.batches),
        "weights": [p.detach() for p in net.parameters()],
        "random": torch.get_rng_state(),
        "steps": made.state.global_step,
        "logged": [x["loss"] for x in made.state.log_history if "loss" in x],
        "failed": callback.watch.failed if watched else None,
        "ranks": callback.watch.ranks if watched else 0,
        "stopped": callback.watch.stopped.code
        if watched and callback.watch.stopped is not None
        else None,
    }


def alone(**options):
    """The callback on the first rank only; the other one must not be waited for for long."""
    control.ATTACH = 2.0
    LINES.lines.clear()
    begun = time.monotonic()
    found = trained("alone", watched=RANK == 0, **options)
    found["said"], found["seconds"] = list(LINES.lines), time.monotonic() - begun
    control.ATTACH = 60.0
    return found


def main():
    torch.set_num_threads(1)
    logging.getLogger("signalprop").addHandler(LINES)
    two = {"gradient_accumulation_steps": 2}
    own = {"average_tokens_across_devices": False}
    found = {
        "plain": trained("plain", watched=False),
        "watched": trained("watched"),
        "plain accumulated": trained("plain", watched=False, **two),
        "watched accumulated": trained("accumulated", **two),
        "plain own": trained("plain", watched=False, **own),
        "watched own": trained("own", **own),
        "plain nan": trained("plain", watched=False, nan_at=5),
        # only the first rank has a value that is not finite before gradients are added
        "stops": trained("stops", nan_at=5 if RANK == 0 else None, on={"SP411": "stop"}, steps=30),
        "alone": alone(on="stop"),
    }
    torch.save(found, FOLDER / f"found-{RANK}.pt")


if __name__ == "__main__":
    main()
