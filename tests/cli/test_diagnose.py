"""`diagnose` and `trace`: what they print, write and return."""

import dataclasses
import json
import sys

import pytest

import signalprop as sp
import signalprop.report
from signalprop.cli import main, screen
from signalprop.diagnosis import engine
from signalprop.diagnosis.finding import Diagnosis, Finding

ISSUE = Finding(
    "SP101",
    "Error signal vanishes",
    "issue",
    ("0",),
    -9.0,
    "nats",
    7.0,
    "It is lost.",
    ("residual",),
)
TIP = dataclasses.replace(ISSUE, code="SP103", severity="tip", title="Units are dead")


@pytest.fixture
def verdict(monkeypatch):
    """Let `diagnose` find these, on a real trace; gives what it was called with."""

    def verdict(*findings, failure=None):
        calls = {}

        def diagnose(model, batch, loss=None, optimizer=None, **options):
            calls.update(options, model=model, batch=batch, loss=loss, optimizer=optimizer)
            options["progress"]("rules")
            seen = dataclasses.replace(sp.trace(model, batch, loss), failure=failure)
            return Diagnosis(seen, findings, (), {}, None, None, None, "It is what it is.")

        monkeypatch.setattr(engine, "diagnose", diagnose)
        return calls

    return verdict


@pytest.fixture
def report(monkeypatch):
    """A report that is one line."""

    def save(result, path, *, assets="inline"):
        path.write_text("<html>")
        return path

    monkeypatch.setattr(signalprop.report, "save", save, raising=False)


class TestStatus:
    @pytest.mark.parametrize(
        ("findings", "fail_on", "status"),
        [
            ((ISSUE, TIP), None, 0),
            ((ISSUE, TIP), "never", 0),
            ((ISSUE, TIP), "issue", 1),
            ((ISSUE, TIP), "tip", 1),
            ((TIP,), "issue", 0),
            ((TIP,), "tip", 1),
            ((), "tip", 0),
        ],
    )
    def test_fail_on(self, run, train, verdict, findings, fail_on, status):
        verdict(*findings)
        words = ["--fail-on", fail_on] if fail_on else []
        assert run("diagnose", "train.py:build", "--quiet", *words).status == status

    def test_unknown_fail_on(self, refused, train):
        said = refused("train.py:build", "--fail-on", "warning", command="diagnose")
        assert '"warning"' in said
        assert '"issue"' in said or "'issue'" in said

    def test_a_program_that_does_not_run(self, run, train, verdict):
        """A rule may explain it, and it still is bad input."""
        verdict(ISSUE, failure=sp.capture.trace.Failure("loss", "", "IndexError", "Target 9"))
        ran = run("diagnose", "train.py:build", "--quiet")
        assert ran.status == 2
        assert "SP101" in ran.out
        assert ran.err == "error: the loss pass stopped: IndexError: Target 9\n"


class TestPassedOn:
    def test_everything_built(self, run, train, verdict):
        calls = verdict()
        run("diagnose", "train.py:build", "--quiet")
        assert [tuple(x.shape) for x in calls["batch"]] == [(16, 6), (16,)]
        assert calls["loss"].__name__ == "cross_entropy"
        assert type(calls["optimizer"]).__name__ == "SGD"
        assert calls["batch_dim"] == 0

    def test_ignore(self, run, train, verdict, monkeypatch):
        calls = verdict()
        run(
            "diagnose", "train.py:build", "--quiet", "--ignore", "sp101, SP102", "--ignore", "SP103"
        )
        assert calls["ignore"] == ["SP101", "SP102", "SP103"]

    def test_ignore_unknown(self, refused, train):
        said = refused("train.py:build", "--ignore", "SP1O1", command="diagnose")
        assert said.startswith("there is no rule 'SP1O1'; did you mean SP101")

    def test_ignore_nothing_near(self, refused, train):
        said = refused("train.py:build", "--ignore", "SP999", command="diagnose")
        assert said == "there is no rule 'SP999'; `signalprop rules` lists all"


class TestShown:
    def test_view(self, run, train, verdict):
        verdict(ISSUE)
        ran = run("diagnose", "train.py:build")
        assert ran.status == 0, ran.err
        assert "SP101" in ran.out
        assert ran.err == ""

    def test_quiet(self, run, train, verdict):
        verdict(ISSUE, TIP)
        assert run("diagnose", "train.py:build", "--quiet").out.splitlines() == [
            "issue SP101 Error signal vanishes: It is lost.",
            "tip SP103 Units are dead: It is lost.",
        ]

    def test_quiet_and_healthy(self, run, train, verdict):
        verdict()
        assert run("diagnose", "train.py:build", "--quiet").out == "It is what it is.\n"

    def test_json(self, run, train, verdict):
        verdict(ISSUE)
        found = json.loads(run("diagnose", "train.py:build", "--json").out)
        assert found["healthy"] is False
        assert found["findings"][0]["code"] == "SP101"
        assert found["trace"]["spine"] == ["input", "0", "1", "2"]

    def test_trace(self, run, train):
        ran = run("trace", "train.py:build")
        assert ran.status == 0, ran.err
        assert ran.out

    def test_trace_json(self, run, train):
        found = json.loads(run("trace", "train.py:build", "--json").out)
        assert list(found["sites"]) == ["input", "0", "1", "2"]

    def test_words_of_the_user_go_to_stderr_with_json(self, run, write):
        write("""
            import os, torch, torch.nn as nn, torch.nn.functional as F
            print("imported")
            class Net(nn.Linear):
                def forward(self, x):
                    print("forward")
                    return super().forward(x)
            def build():
                os.system("echo child")
                print("built", flush=True)
                return Net(3, 2), (torch.randn(2, 3), torch.tensor([0, 1])), F.cross_entropy
        """)
        ran = run("trace", "train.py:build", "--json")
        assert json.loads(ran.out)["model"] == "Net"
        assert {"imported", "child", "built", "forward"} <= set(ran.err.split())

    def test_words_of_the_user_stay_where_they_were_without(self, run, write):
        write(
            "print('hello')\nimport torch\ndef build():\n"
            "    return torch.nn.Linear(3, 1), torch.ones(2, 3), torch.sum\n"
        )
        assert "hello" in run("trace", "train.py:build", "--quiet").out


class TestHtml:
    def test_written(self, run, train, verdict, report, folder):
        verdict()
        ran = run("diagnose", "train.py:build", "--quiet", "--html", "report.html")
        assert (folder / "report.html").read_text() == "<html>"
        assert ran.err == "report: report.html\n"

    def test_nothing_but_json_on_stdout(self, run, train, report):
        ran = run("trace", "train.py:build", "--json", "--html", "report.html")
        assert json.loads(ran.out)

    def test_missing_folder(self, refused, train):
        said = refused("train.py:build", "--html", "out/deep/report.html")
        assert said.endswith("the folder out/deep does not exist; make it first: mkdir -p out/deep")

    def test_folder(self, refused, train, folder):
        (folder / "out").mkdir()
        said = refused("train.py:build", "--html", "out")
        assert said == "--html out is a folder; name a file, e.g. out/report.html"

    def test_may_not_be_written(self, refused, train, monkeypatch):
        from signalprop.cli import session

        monkeypatch.setattr(session.os, "access", lambda path, mode: False)
        assert "may not be written" in refused("train.py:build", "--html", "report.html")

    def test_disk_full(self, refused, train, monkeypatch):
        def save(result, path, *, assets="inline"):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(signalprop.report, "save", save, raising=False)
        said = refused("train.py:build", "--html", "report.html")
        assert said == "--html report.html could not be written: No space left on device"

    def test_looked_at_before_anything_is_run(self, refused, folder):
        assert "is a folder" in refused("nowhere.py:build", "--html", str(folder))


class TestDoor:
    def test_unknown_option(self, refused, train):
        said = refused("train.py:build", "--inputs", "3x4")
        assert "--inputs" in said
        assert said.endswith("see signalprop trace --help")

    def test_unknown_command(self, run):
        ran = run("diagnos")
        assert ran.status == 2
        assert 'Did you mean "diagnose"?' in ran.err

    def test_no_target(self, run):
        ran = run("diagnose")
        assert ran.status == 2
        assert "TARGET" in ran.err

    def test_not_a_number(self, refused, train):
        assert "--seed" in refused("train.py:build", "--seed", "one")

    def test_interrupted(self, run, write):
        write("raise KeyboardInterrupt")
        ran = run("trace", "train.py:build")
        assert (ran.status, ran.out, ran.err) == (130, "", "interrupted\n")

    def test_bug(self, run, train, monkeypatch):
        monkeypatch.setattr(screen, "write_json", lambda value: {}["oops"])
        ran = run("trace", "train.py:build", "--json")
        assert ran.status == 2
        # the line that raised is in this file, so it counts as the user's
        assert "KeyError: 'oops'" in ran.err

    def test_own_bug(self, run, train, monkeypatch):
        monkeypatch.setattr(screen, "write_json", screen.say)
        ran = run("trace", "train.py:build", "--json")
        assert ran.status == 2
        assert ran.err.startswith("error: this is a bug in signalprop: ")
        assert ran.err.endswith("; run again with --debug and report it\n")

    def test_debug(self, run, write):
        write("def build():\n    raise ValueError('deep')\n")
        ran = run("trace", "train.py:build", "--debug")
        assert ran.status == 2
        assert "Traceback (most recent call last)" in ran.err
        assert ran.err.splitlines()[-1].startswith("error: build() in train.py raised")

    def test_markup_in_a_message_is_left_alone(self, refused, write):
        write("raise ValueError('[bold]x[/bold] [/nope]')")
        assert "[bold]x[/bold] [/nope]" in refused("train.py:build")

    def test_progress_on_a_terminal_only(self, capsys, monkeypatch, train, verdict):
        verdict()
        monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
        assert main(["diagnose", "train.py:build", "--quiet"]) == 0
        assert capsys.readouterr().err == ""
        assert main(["diagnose", "train.py:build", "--json"]) == 0
        caught = capsys.readouterr()
        assert "rules ..." in caught.err
        assert json.loads(caught.out)

    def test_no_arguments_are_the_words_of_the_shell(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["signalprop", "--version"])
        assert main() == 0
        assert capsys.readouterr().out.startswith(f"signalprop {sp.__version__} (torch ")


SICK = """
    import torch, torch.nn as nn, torch.nn.functional as F

    def build(activation=nn.Sigmoid):
        layers = []
        for _ in range(20):
            layers += [nn.Linear(32, 32), activation()]
        net = nn.Sequential(*layers, nn.Linear(32, 4))
        for layer in net:
            if isinstance(layer, nn.Linear) and activation is nn.ReLU:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        batch = torch.randn(64, 32), torch.randint(4, (64,))
        return net, batch, F.cross_entropy, torch.optim.SGD(net.parameters(), lr=0.01)

    def well():
        return build(nn.ReLU)
"""


class TestReal:
    """With nothing replaced."""

    def test_sick(self, run, write):
        write(SICK)
        ran = run("diagnose", "train.py:build", "--json", "--fail-on", "issue")
        assert ran.status == 1, ran.err
        assert "SP101" in {f["code"] for f in json.loads(ran.out)["findings"]}

    def test_well(self, run, write):
        write(SICK)
        ran = run("diagnose", "train.py:well", "--fail-on", "issue", "--quiet")
        assert ran.status == 0, ran.out + ran.err

    def test_wrong_shapes(self, refused, train):
        said = refused("train.py:net", "--input", "8x7", "--classes", "3", command="diagnose")
        assert "mat1 and mat2 shapes" in said
