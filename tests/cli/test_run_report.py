"""`report`: a recorded run in the terminal, as JSON, and as one file."""

import json
import os
import sqlite3

import pytest
from tests.report.run import samples


@pytest.fixture
def sick(folder):
    return samples.write(folder / "run.sp", blocks=2)


@pytest.fixture
def healthy(folder):
    return samples.write(folder / "other.sp", sick=False, seed=1, blocks=2)


def test_terminal(run, sick):
    ran = run("report", "run.sp")
    assert ran.status == 0
    assert ran.out.startswith("ISSUE  run.sp: 1 issue and 1 tip in 201 sampled steps")
    assert "SP402 A layer stops learning, from step 4,000 on" in ran.out
    assert "gradient norm, sites down, steps across" in ran.out
    assert all(len(line) <= 80 for line in ran.out.splitlines())
    assert "\x1b" not in ran.out


def test_quiet(run, sick, healthy):
    ran = run("report", "run.sp", "other.sp", "-q")
    lines = ran.out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["run.sp", "run.sp", "other.sp"]
    assert lines[0].startswith("run.sp: issue SP402 A layer stops learning, from step 4,000 on")
    assert lines[2] == "other.sp: No alerts in 201 sampled steps up to step 10,000."


def test_json(run, sick):
    ran = run("report", "run.sp", "--json")
    [found] = json.loads(ran.out)["runs"]
    assert found["state"] == "issue"
    assert found["last"] == 10_000
    assert found["sampled"] == 201
    assert [a["code"] for a in found["alerts"]] == ["SP402", "SP404"]
    assert found["windows"] == [{"step": 7050, "reason": "loss spike: 9.1 after 2.1", "steps": 100}]
    assert found["last_values"]["activation_rms"]["head"] == "inf"
    assert found["scalars"]["loss"]["first"] == pytest.approx(5.6, abs=0.3)


@pytest.mark.parametrize("assets", ["inline", "directory"])
def test_html(run, sick, folder, assets):
    ran = run("report", "run.sp", "--html", "out.html", "--assets", assets, "-q")
    assert ran.status == 0
    assert ran.err == "report: out.html\n"
    text = (folder / "out.html").read_text()
    assert "A layer stops learning" in text
    assert (folder / "plotly.min.js").exists() is (assets == "directory")
    assert (len(text) > 4_000_000) is (assets == "inline")


@pytest.mark.parametrize(
    ("fail_on", "status"), [("never", 0), ("issue", 1), ("tip", 1)]
)  # fmt: skip
def test_fail_on(run, sick, fail_on, status):
    assert run("report", "run.sp", "--fail-on", fail_on, "-q").status == status


def test_fail_on_a_healthy_run(run, healthy):
    assert run("report", "other.sp", "--fail-on", "tip", "-q").status == 0


@pytest.fixture
def refused(refused):
    return lambda *words: refused(*words, command="report")


def test_no_such_file(refused, folder):
    assert refused("nothing.sp") == "nothing.sp does not exist, or is no file"


def test_a_folder(refused, folder):
    assert refused(".") == ". does not exist, or is no file"


def test_no_run(refused, folder):
    (folder / "train.py").write_text("print('a program')\n" * 100)
    assert refused("train.py") == "train.py is no run file"


def test_empty(refused, folder):
    (folder / "run.sp").touch()
    assert refused("run.sp") == "run.sp is empty; no run was recorded there (yet)"


def test_nothing_recorded(refused, folder):
    samples.write(folder / "run.sp", steps=range(0))
    assert refused("run.sp") == "run.sp is a run of which nothing was recorded yet"


def test_another_database(refused, folder):
    connection = sqlite3.connect(folder / "run.sp")
    connection.execute("CREATE TABLE a(b)")
    connection.close()
    assert refused("run.sp") == "run.sp is no run file, but another program's database"


def test_a_newer_version(refused, sick):
    connection = sqlite3.connect(sick)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    assert "was written by a newer signalprop" in refused("run.sp")


def test_truncated(refused, sick):
    whole = sick.read_bytes()
    sick.write_bytes(whole[: len(whole) // 2])
    assert "run.sp is damaged" in refused("run.sp", "--html", "out.html")
    assert not os.path.exists("out.html")


def test_no_folder_to_write_to(refused, sick):
    assert refused("run.sp", "--html", "none/out.html").startswith(
        "--html none/out.html: the folder none does not exist"
    )


def test_only_scalars(run, folder):
    from signalprop.watching.file.writer import RunWriter

    with RunWriter(folder / "run.sp") as writer:
        for step in range(10):
            writer.scalar(step, {"loss": 1.0 / (1 + step)})
    ran = run("report", "run.sp", "--html", "out.html")
    assert ran.status == 0, ran
    assert "loss" in ran.out
