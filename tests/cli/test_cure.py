"""`cure`: what it passes on, prints, writes and returns; and small runs from end to end."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.cli.curing import CURES
from tests.cli.test_process import ENVIRONMENT
from tests.report import trials_samples as samples

from signalprop.cli import cure as command
from signalprop.cli import screen
from signalprop.cures import catalogue
from signalprop.cures.trials import prove
from signalprop.errors import SignalpropError

DEEP = """
    import torch
    from torch import nn
    from parts import Head

    FILE = __file__

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [m for _ in range(8) for m in (nn.Linear(8, 8), nn.Sigmoid())]
            self.body = nn.Sequential(*layers)
            self.head = Head(8, 2)

        def forward(self, x):
            return self.head(self.body(x))

    def own_loss(output, target):
        return nn.functional.cross_entropy(output, target)

    def build():
        net = Net()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(320, 8, generator=generator)
        data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
        loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
        return net, loader, own_loss, torch.optim.Adam(net.parameters(), lr=0.02)
"""
PARTS = """
    from torch import nn

    class Head(nn.Linear):
        pass
"""


@pytest.fixture
def deep(write):
    """A network whose error signal vanishes, in a folder that is not the current one."""
    write(PARTS, "code/parts.py")
    yield write(DEEP, "code/train.py")
    sys.modules.pop("parts", None)


@pytest.fixture
def cures(monkeypatch):
    """A catalogue of tiny cures."""
    monkeypatch.setattr(catalogue, "CATALOGUE", CURES)
    monkeypatch.setattr(prove, "CATALOGUE", CURES)


@pytest.fixture
def calls(monkeypatch):
    """Replace the trials; gives what they were called with, and what they are to give."""
    calls = {"result": samples.helped()}

    def cure(model, data, loss=None, optimizer=None, **options):
        options.pop("progress")(1, 2, "untouched, seed 0")
        calls.update(options, model=model, data=data, loss=loss, optimizer=optimizer)
        print("a word")  # noqa: T201
        if isinstance(calls["result"], BaseException):
            raise calls["result"]
        return calls["result"]

    monkeypatch.setattr(prove, "cure", cure)
    return calls


class TestPassedOn:
    def test_defaults(self, run, train, calls):
        ran = run("cure", "train.py:build")
        assert ran.status == 0, ran.err
        assert [tuple(x.shape) for x in calls.pop("data")] == [(16, 6), (16,)]
        assert calls.pop("loss").__name__ == "cross_entropy"
        calls.pop("optimizer"), calls.pop("result"), calls.pop("model")
        assert calls == {
            "budget": "2min", "seeds": (0, 1, 2), "most": 8, "rounds": 2, "cures": None,
            "batch_size": None, "engine": "auto", "workers": None, "resume": None,
            "held_out": None, "batch_dim": 0,
        }  # fmt: skip

    def test_every_option(self, run, train, calls, cures, folder):
        words = "--budget 40 --seeds 2 --seed 7 --most 3 --rounds 1 --batch-size 4 --workers 2"
        words += " --engine serial --resume kept --only frozen,no-cure --only frozen"
        ran = run("cure", "train.py:build", *words.split())
        assert ran.status == 0, ran.err
        wanted = {
            "budget": 40, "seeds": (7, 8), "most": 3, "rounds": 1, "batch_size": 4, "workers": 2,
            "engine": "serial", "resume": Path("kept"),
            "cures": (CURES["frozen"], CURES["no-cure"]),
        }  # fmt: skip
        assert {name: calls[name] for name in wanted} == wanted

    def test_a_function_is_called_for_every_seed(self, run, train, calls):
        run("cure", "train.py:build", "--seed", "3")
        models = [calls["model"]() for _ in range(3)]
        weights = [m[0].weight for m in models]
        assert not any(torch.equal(weights[0], w) for w in weights[1:])
        torch.manual_seed(4)
        assert torch.equal(torch.nn.Linear(6, 8).weight, weights[1])
        # the optimizer is of the first
        assert calls["optimizer"].param_groups[0]["params"][0] is weights[0]

    def test_a_network_is_taken_as_it_is(self, run, train, write, calls):
        write("from torch import nn\nnet = nn.Linear(6, 3)\ndef same(): return net", "one.py")
        for name in ("net", "same"):
            words = ["--input", "4x6", "--classes", "3"]
            ran = run("cure", f"one.py:{name}", *words)
            assert ran.status == 0, ran.err
            assert isinstance(calls["model"], torch.nn.Linear)

    def test_a_loader_is_handed_on_whole(self, run, deep, calls):
        ran = run("cure", "code/train.py:build")
        assert ran.status == 0, ran.err
        assert len(calls["data"]) == 10

    def test_random_data_are_learned_by_heart(self, run, train, calls):
        ran = run("cure", "train.py:net", "--input", "64x6", "--classes", "3")
        assert calls["held_out"] is calls["data"]
        assert "Note: The data are random" in ran.out
        assert "judged on what is learned from" in ran.out


class TestShown:
    def test_view(self, run, train, calls):
        ran = run("cure", "train.py:build")
        assert "helps: accuracy 0.35 -> 0.93" in " ".join(ran.out.split())
        assert "\x1b" not in ran.out

    def test_json_and_html(self, run, train, calls, folder):
        ran = run("cure", "train.py:build", "--json", "--html", "cures.html")
        found = json.loads(ran.out)
        assert found["best"] == samples.helped().trials[0].name
        assert [t["verdict"] for t in found["trials"]][:2] == ["helps", "helps"]
        assert "a word" in ran.err
        assert "report: cures.html" in ran.err
        assert "Cures of Net" in (folder / "cures.html").read_text()

    def test_quiet_is_one_line(self, run, train, calls):
        lines = run("cure", "train.py:build", "--quiet").out.splitlines()
        assert len(lines) == 2  # the user's own word, and ours
        assert "helps: accuracy" in lines[1]

    @pytest.mark.parametrize(
        ("name", "status"), [("helped", 0), ("healthy", 0), ("nothing", 1), ("odd", 130)]
    )
    def test_status(self, run, train, calls, name, status):
        calls["result"] = getattr(samples, name)()
        assert run("cure", "train.py:build").status == status

    def test_a_tip_that_nothing_helps_is_no_failure(self, run, train, calls):
        calls["result"] = samples.made(before=(samples.TIP,))
        assert run("cure", "train.py:build").status == 0

    def test_the_bar(self, monkeypatch):
        console = Console(stderr=True, force_terminal=True, width=100)
        monkeypatch.setattr(screen, "stderr", lambda: console)
        with console.capture() as caught, command.bar("loading [b]x") as (phase, tell):
            phase("building")
            tell(1, 4, "he-init, seed 0")
            tell(4, 4, "he-init, seed 2")
            tell(1, 2, "rate, seed 0")
        assert "round 2: rate, seed 0 done" in caught.get()


class TestInterrupted:
    def test_what_had_finished_is_shown(self, run, train, calls):
        calls["result"] = samples.odd()
        words = "--resume 'a folder' --budget 40 --only frozen --seed 2 --json"
        words = shlex.split(words)
        ran = run("cure", "train.py:build", *[w for w in words if w not in ("--only", "frozen")])
        assert json.loads(ran.out)["complete"] is False
        line = ran.err.splitlines()[-1]
        assert line.startswith("interrupted; go on with: signalprop cure train.py:build ")
        assert shlex.split(line.partition("cure ")[2]) == [
            "train.py:build", "--budget", "40", "--resume", "a folder", "--seed", "2", "--json",
        ]  # fmt: skip

    def test_nothing_had_finished(self, run, train, calls):
        calls["result"] = KeyboardInterrupt()
        ran = run("cure", "train.py:build")
        assert ran.status == 130
        assert ran.err == "interrupted; with --resume FOLDER what is finished would be kept\n"
        ran = run("cure", "train.py:build", "--resume", "kept")
        assert ran.err.endswith("go on with: signalprop cure train.py:build --resume kept\n")


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--budget", "soon"], "budget='soon'; give a time"),
            (["--budget", "0"], "give at least 1"),
            (["--seeds", "0"], "--seeds 0 must be at least 1"),
            (["--workers", "0"], "--workers 0 must be at least 1"),
            (["--batch-size", "-3"], "--batch-size -3 must be at least 1"),
            (["--only", "frosen"], "there is no cure 'frosen'; did you mean frozen?"),
            (["--only", "xyz"], "there is sigmoid-to-relu, frozen, no-cure"),
            (["--only", ","], "--only names no cure"),
            (["--engine", "threads"], "threads"),
            (["--html", "no/such/page.html"], "does not exist"),
            (["--input", "4x6"], "leave out --input"),
        ],
    )
    def test_words(self, refused, train, cures, calls, words, said):
        assert said in refused("train.py:build", *words, command="cure")

    def test_a_missing_file(self, refused, folder):
        assert refused("tran.py:build", command="cure").startswith("there is no file tran.py")

    def test_what_trials_say(self, refused, train, monkeypatch):
        def cure(*args, **options):
            raise SignalpropError("the data loader is empty")

        monkeypatch.setattr(prove, "cure", cure)
        assert refused("train.py:build", command="cure") == "the data loader is empty"

    def test_what_the_function_returns(self, refused, write):
        write("from torch import nn\ndef build(): return nn.Linear(2, 2), (1, 2), 'loss'")
        assert "as the loss" in refused("train.py:build", command="cure")
        write("def build(): return 3")
        assert "it has to return a model" in refused("train.py:build", command="cure")
        write("def build(x): return x")
        assert "needs arguments" in refused("train.py:build", command="cure")


class TestWhole:
    WORDS = "--budget 20 --json --only sigmoid-to-relu,frozen,no-cure".split()

    def test_in_this_process(self, run, deep, cures):
        ran = run("cure", "code/train.py:build", "--engine", "serial", *self.WORDS)
        assert ran.status in (0, 1), ran.err
        found = json.loads(ran.out)
        assert found["model"] == "Net"
        assert found["metric"] == "accuracy"
        assert found["steps"] == 20
        assert {t["name"] for t in found["trials"]} == {"sigmoid-to-relu", "frozen"}
        assert len(found["untouched"]["metric"]) == 3
        assert found["rejected"] == {"no-cure": "the network has no attention"}
        assert found["notes"] == []  # every seed has weights of its own
        assert "_signalprop_target_train" not in sys.modules

    def test_in_other_processes(self, run, deep, cures):
        here = run("cure", "code/train.py:build", "--engine", "serial", *self.WORDS)
        words = ["--engine", "loky", "--workers", "1", "--seeds", "3", *self.WORDS]
        there = run("cure", "code/train.py:build", *words)
        assert there.status == here.status, there.err
        one, two = json.loads(here.out), json.loads(there.out)
        for a, b in zip(one["trials"], two["trials"], strict=True):
            assert (a["name"], a["metric"], a["curves"]) == (b["name"], b["metric"], b["curves"])
        from loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True, kill_workers=True)

    def test_interrupted_and_resumed(self, deep, folder):
        words = ["cure", "code/train.py:build", "--engine", "serial", "--resume", "kept"]
        words += ["--budget", "8000", "--seeds", "1"]
        process = subprocess.Popen(
            [sys.executable, "-m", "signalprop", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            # a shell's background jobs start with the signal ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        limit = time.monotonic() + 60
        while not list(folder.glob("kept/leg-*.pkl")) and time.monotonic() < limit:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "Interrupted: this is what had finished." in out
        assert "2,000" in out  # a quarter
        assert err.splitlines()[-1] == "interrupted; go on with: signalprop " + shlex.join(
            [*words[:2], "--budget", "8000", "--seeds", "1", "--engine", "serial", *words[4:6]]
        )
