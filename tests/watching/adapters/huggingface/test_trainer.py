"""The Trainer of Hugging Face, with and without the callback."""

import gc
import logging
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from tests.watching.adapters.huggingface.trainers import gpt, outcome, same, scaled, trainer
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.watching.adapters.huggingface import SignalpropCallback
from signalprop.watching.file.reader import Run
from signalprop.watching.watch import watch

pytestmark = [
    # torch and transformers about names of theirs that change
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"activation_checkpointing": True},
        {"eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True},
        {"bf16": True},
        {"max_grad_norm": 0.0, "optim": "adafactor"},
        {"patch": scaled, "max_grad_norm": 0.0},
    ],
    ids=["plain", "accumulated", "checkpointed", "evaluated", "bfloat16", "adafactor", "scaled"],
)
def test_training_is_the_same_bit_for_bit(tmp_path, options):
    callback = SignalpropCallback(every=4, to=tmp_path / "run.sp")
    watched = outcome(tmp_path, [callback], **options)
    assert same(watched, outcome(tmp_path, **options))
    assert callback.watch.failed is None
    with Run(tmp_path / "run.sp") as run:
        assert run.steps.tolist() == [0, 4, 8]
        found = {name for name in run.statistics if np.isfinite(run.values(name).mean).any()}
        assert {"activation_rms", "delta_rms", "update_ratio", "attention_entropy"} <= found
        scalars = run.scalars()
        assert scalars["loss"][0].tolist() == list(range(12))
        assert ("loss_scale" in scalars) == ("patch" in options)


@pytest.mark.parametrize("several", [1, 2])
def test_the_numbers_are_those_of_a_plain_loop(tmp_path, several):
    callback = SignalpropCallback(every=4, to=tmp_path / "a.sp")
    model = gpt()
    batches = []
    made = trainer(
        tmp_path,
        [callback],
        model,
        gradient_accumulation_steps=several,
        lr_scheduler_type="constant",
    )
    start = {name: value.clone() for name, value in model.state_dict().items()}
    model.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(dict(kwargs)), with_kwargs=True
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.use_cache = False
    made.train()

    twin = gpt()
    twin.load_state_dict(start)
    twin.train()
    for module in twin.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    with watch(twin, optimizer, every=4, to=tmp_path / "b.sp") as run:
        for i, batch in enumerate(batches):
            loss = twin(**batch).loss
            loss.backward()  # num_items_in_batch divides it
            losses.append(loss.item())
            if (i + 1) % several == 0:
                nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                run.log(loss=sum(losses[-several:]))
    with Run(tmp_path / "a.sp") as a, Run(tmp_path / "b.sp") as b:
        names = [site.name for site in a.sites if site.name in {s.name for s in b.sites}]
        assert "transformer.h.1.mlp.act" in names
        for name in ("activation_rms", "delta_rms", "weight_norm", "update_ratio", "gradient_norm"):
            np.testing.assert_allclose(
                a.values(name, names).mean, b.values(name, names).mean, rtol=1e-4, err_msg=name
            )
        np.testing.assert_allclose(a.scalars()["loss"][1], b.scalars()["loss"][1], rtol=1e-4)


def test_what_the_trainer_logs_is_recorded_when_it_does(tmp_path):
    callback = SignalpropCallback(every=4, to=tmp_path / "run.sp")
    made = trainer(tmp_path, [callback], eval_strategy="steps", eval_steps=6)
    made.train()
    with Run(tmp_path / "run.sp") as run:
        scalars = run.scalars()
    assert scalars["eval_loss"][0].tolist() == [5, 11]
    assert scalars["grad_norm"][0].tolist() == [4, 9]
    logged = [x["loss"] for x in made.state.log_history if "loss" in x]
    assert scalars["loss"][1][:5].mean() == pytest.approx(logged[0], rel=1e-5)
    assert scalars["learning_rate"][0].tolist() == [0, 4, 8]  # the watch's own, at its samples
    assert not made.model._forward_hooks


def test_without_a_look_at_the_loss_it_is_the_trainers_mean(tmp_path):
    callback = SignalpropCallback(every=4, to=tmp_path / "run.sp", loss=False)
    trainer(tmp_path, [callback]).train()
    with Run(tmp_path / "run.sp") as run:
        assert run.scalars()["loss"][0].tolist() == [4, 9]


@pytest.mark.parametrize("looks", [False, True], ids=["plain", "evaluated first"])
def test_a_training_that_is_resumed_goes_on_in_its_file(tmp_path, looks):
    options = {"save_strategy": "steps", "save_steps": 6, "lr_scheduler_type": "constant"}
    if looks:  # numbers before the first update, which are of no step
        options |= {"eval_strategy": "steps", "eval_steps": 4, "eval_on_start": True}
    first = SignalpropCallback(every=4, to=tmp_path / "run.sp")
    outcome(tmp_path, [first], steps=10, **options)
    second = SignalpropCallback(every=4, to=tmp_path / "run.sp")
    resumed = outcome(
        tmp_path, [second], steps=12, resume=str(tmp_path / "checkpoint-6"), **options
    )
    plain = outcome(tmp_path, steps=12, resume=str(tmp_path / "checkpoint-6"), **options)
    assert same(resumed, plain)
    assert not (tmp_path / "run-2.sp").exists()
    with Run(tmp_path / "run.sp") as run:
        assert run.steps.tolist() == [0, 4, 8]
        assert run.scalars()["loss"][0].tolist() == list(range(12))


@pytest.mark.parametrize("on", ["stop", {"SP411": ("warn", "stop")}], ids=str)
def test_stop_ends_training_in_the_trainers_own_way(tmp_path, on):
    callback = SignalpropCallback(every=2, to=tmp_path / "run.sp", on=on)
    made = trainer(tmp_path, [callback], gpt(nan_at=5), steps=30)
    found = made.train()
    assert 6 <= found.global_step < 10
    assert any(alarm.code == "SP411" for alarm in callback.watch.alarms)
    assert not callback._attached.open


def test_an_exception_leaves_a_whole_file_and_with_closes_it(tmp_path):
    callback = SignalpropCallback(every=2, to=tmp_path / "run.sp")
    made = trainer(tmp_path, [callback], gpt(raises_at=5))
    with pytest.raises(RuntimeError, match="boom"), callback:
        made.train()
    assert not callback._attached.open
    assert not made.model._forward_hooks
    with Run(tmp_path / "run.sp") as run:
        assert run.steps.tolist() == [0, 2, 4]
        assert run.scalars()["loss"][0].tolist() == list(range(5))


def test_a_failed_training_ends_with_the_next_one_or_with_its_callback(tmp_path):
    callback = SignalpropCallback(every=2, to=tmp_path / "run.sp")
    made = trainer(tmp_path, [callback], gpt(raises_at=5))
    with pytest.raises(RuntimeError, match="boom"):
        made.train()
    first = callback.watch
    made.model.calls = 0
    with pytest.raises(RuntimeError, match="boom"):
        made.train()
    second = callback.watch
    assert first._closed
    assert not second._closed
    made.remove_callback(SignalpropCallback)
    del callback, made
    gc.collect()
    assert second._closed


def test_a_failed_training_is_whole_when_the_interpreter_ends(tmp_path):
    code = f"""
        from signalprop.watching.adapters.huggingface import SignalpropCallback
        from tests.watching.adapters.huggingface.trainers import gpt, trainer
        callback = SignalpropCallback(every=2, to={str(tmp_path / "run.sp")!r})
        trainer({str(tmp_path)!r}, [callback], gpt(raises_at=5)).train()
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "RuntimeError: boom" in done.stderr
    with Run(tmp_path / "run.sp") as run:
        assert run.scalars()["loss"][0].tolist() == list(range(5))


def test_skipped_updates_of_a_scaler_are_told(tmp_path):
    callback = SignalpropCallback(every=2, to=tmp_path / "run.sp")
    model = gpt(nan_at=3)
    options = {"patch": scaled, "max_grad_norm": 0.0, "optim": "adamw_torch"}
    made = trainer(tmp_path, [callback], model, **options)
    made.train()
    with Run(tmp_path / "run.sp") as run:
        assert run.scalars()["skipped"][1][-1] == 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"every": True}, "every=True"),
        ({"scaler": None}, "scaler=: the trainer gives it"),
        ({"logs": 1}, "logs=: watch has no such option"),
        ({"on": "halt"}, "on= has the action 'halt'"),
    ],
)
def test_wrong_options_are_said_before_training(options, part):
    with pytest.raises(SignalpropError, match=part):
        SignalpropCallback(**options)


def test_a_file_that_cannot_be_written_disturbs_nothing(tmp_path, caplog):
    callback = SignalpropCallback(every=4, to=tmp_path / "none" / "run.sp")
    with caplog.at_level(logging.WARNING, "signalprop"):
        assert same(outcome(tmp_path, [callback]), outcome(tmp_path))
    assert "see that its folder exists" in caplog.text
