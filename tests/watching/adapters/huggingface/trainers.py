"""Small trainings of Hugging Face's Trainer, with and without the callback."""

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

CONFIG = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}


class Data(torch.utils.data.Dataset):
    """Sequences of 12 tokens out of 50."""

    def __init__(self):
        draws = torch.Generator().manual_seed(1)
        self.x = torch.randint(0, 50, (64, 12), generator=draws)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"input_ids": self.x[i], "labels": self.x[i]}


def gpt(nan_at=None, raises_at=None):
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, bos_token_id=0, eos_token_id=0, **CONFIG)
    )
    model.calls = 0

    def trouble(module, args, output):
        if module.training:
            model.calls += 1
        if model.calls - 1 == raises_at:
            raise RuntimeError("boom")
        return output * float("nan") if module.training and model.calls - 1 == nan_at else None

    model.lm_head.register_forward_hook(trouble)
    return model


def trainer(folder, callbacks, model=None, *, steps=12, patch=None, **options):
    transformers.set_seed(0)
    arguments = transformers.TrainingArguments(
        str(folder),
        **{
            "max_steps": steps,
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 5,
            "learning_rate": 1e-3,
            **options,
        },
    )
    made = transformers.Trainer(
        gpt() if model is None else model,
        arguments,
        train_dataset=Data(),
        eval_dataset=Data(),
        callbacks=callbacks,
    )
    if patch is not None:
        patch(made)
    made.remove_callback(transformers.PrinterCallback)
    return made


def outcome(folder, callbacks=(), resume=None, **options):
    made = trainer(folder, list(callbacks), **options)
    made.train(resume_from_checkpoint=resume)
    logged = [(x.get("loss"), x.get("eval_loss")) for x in made.state.log_history]
    return logged, list(made.model.parameters()), torch.get_rng_state()


def same(a, b):
    return a[0] == b[0] and all(map(torch.equal, a[1], b[1])) and torch.equal(a[2], b[2])


def scaled(made):
    """A GradScaler on the CPU, which accelerate makes on accelerators only."""
    made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
