"""What the server says about runs: whole, damaged, missing, replaced."""

import base64
import json
import sqlite3

import numpy as np
import pytest
from starlette.testclient import TestClient
from tests.report.run import samples

from signalprop.report.live.answers import Answers
from signalprop.report.live.app import Live
from signalprop.report.live.query import Query
from signalprop.watching.file.reader import Run
from signalprop.watching.file.writer import RunWriter


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return samples.write(tmp_path_factory.mktemp("runs") / "run.sp")


@pytest.fixture
def client(path):
    with TestClient(Live([path]).app, base_url="http://127.0.0.1") as client:
        yield client


def array(packed):
    """Numbers as Plotly's own JSON packs them."""
    if isinstance(packed, list):
        return np.asarray(packed, dtype=float)
    flat = np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"])
    shape = packed.get("shape")
    return flat.reshape([int(n) for n in shape.split(",")]) if shape else flat


def trace(answer, name):
    return next(t for t in answer["figure"]["data"] if t["name"] == name)


def test_overview(client):
    [run] = client.get("/api/overview").json()["runs"]
    assert run["state"] == "open"
    assert run["verdict"] == "issue"
    assert run["headline"].startswith("1 issue and 1 tip in 201 sampled steps")
    assert len(run["sites"]) == 38
    assert [a["code"] for a in run["alerts"]] == ["SP402", "SP404"]
    assert run["alerts"][0]["when"] == "from step 4,000 on"
    assert run["windows"][0]["steps"] == [6951, 7050]
    assert run["shown"] == "gradient_norm"


def test_heat_map_holds_what_the_file_holds(client, path):
    answer = client.get("/api/timeline?statistic=gradient_norm&columns=400").json()
    heat = trace(answer, "heat")
    with Run(path) as run:
        values = run.values("gradient_norm")
    np.testing.assert_array_equal(array(heat["customdata"]), values.mean.T)
    np.testing.assert_allclose(array(heat["z"]), np.log10(values.mean.T), rtol=1e-6)


def test_a_stretch_is_finer(client):
    whole = client.get("/api/timeline?columns=20").json()
    part = client.get("/api/timeline?columns=20&start=4000&stop=4501").json()
    coarse, fine = trace(whole, "heat"), trace(part, "heat")
    assert array(coarse["z"]).shape[1] <= 21
    assert coarse["dx"] > 400
    assert fine["dx"] == 50
    assert fine["x0"] == 4000
    assert array(fine["z"]).shape == (38, 11)
    # the colours stay what they were
    bars = [a["figure"]["layout"]["coloraxis"] for a in (whole, part)]
    assert bars[0]["cmin"] == pytest.approx(bars[1]["cmin"], abs=0.7)


def test_cells_that_are_not_finite_or_zero(client):
    answer = client.get("/api/timeline?statistic=activation_rms").json()
    special = array(trace(answer, "special")["z"])
    assert (special[-3:, -1] == 1).all()
    answer = client.get("/api/timeline?statistic=delta_rms").json()
    special = array(trace(answer, "special")["z"])
    assert (special[:4, -1] == 0).all()
    assert np.isnan(special[5:, :]).all()


def test_sites_scalars_and_windows(client):
    lines = client.get("/api/sites?sites=7,8&statistic=gradient_norm").json()["figure"]
    assert [t["name"] for t in lines["data"]] == ["block1.attention.query", "block1.attention.key"]
    scalars = client.get("/api/scalars").json()["figure"]
    texts = [a["text"] for a in scalars["layout"]["annotations"]]
    assert texts == ["loss", "learning_rate", "accuracy"]
    window = client.get("/api/window?runs=0&number=0").json()
    assert array(trace(window, "heat")["z"]).shape == (38, 100)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/api/timeline?statistic=nothing", "run.sp has nothing of this statistic."),
        ("/api/window?number=1", "there is no such window"),
        ("/api/timeline?runs=1", "runs must be at most 16 numbers below 1"),
    ],
)
def test_refusals(client, address, said):
    reply = client.get(address)
    assert reply.status_code == 400
    assert reply.json() == {"error": said}


def test_a_stretch_without_steps(client):
    reply = client.get("/api/timeline?start=900000&stop=900100")
    assert reply.status_code == 200
    assert client.get("/api/sites?sites=1&start=900000").json() == {"figure": None}


def test_two_runs_on_one_scale(tmp_path, path):
    other = samples.write(tmp_path / "other.sp", sick=False, steps=range(0, 5000, 50))
    answers = Answers([path, other])
    answer = json.loads(answers.timeline(Query((0, 1), "gradient_norm", across=2)))
    heats = [t for t in answer["figure"]["data"] if t["name"] == "heat"]
    assert [h["coloraxis"] for h in heats] == ["coloraxis"] * 2
    assert answer["runs"] == [0, 1]
    answers.close()


def test_names_of_runs_are_told_apart(tmp_path):
    paths = [tmp_path / folder / "run.sp" for folder in ("a", "b", "a")]
    assert Answers(paths).names == ["a/run.sp", "b/run.sp", "a/run.sp (3)"]


# ---- files that are not as one would like ---------------------------------------------------


def state(answers):
    found = answers.states()[0]
    return found.state, found.sentence


def test_a_run_that_does_not_exist_yet(tmp_path):
    path = tmp_path / "later.sp"
    answers = Answers([path])
    assert state(answers) == (
        "waiting", "later.sp does not exist yet; this page waits for it."
    )  # fmt: skip
    path.touch()
    assert state(answers)[0] == "waiting"
    samples.write(path, steps=range(0, 500, 50))
    assert state(answers) == ("open", "")
    path.unlink()
    assert state(answers)[0] == "waiting"


def test_what_is_no_run(tmp_path):
    path = tmp_path / "notes.sp"
    path.write_text("not a run at all" * 100)
    answers = Answers([path])
    assert state(answers) == ("damaged", "notes.sp is no run file")
    reply = json.loads(answers.overview(Query(())))
    assert reply["runs"][0]["sentence"] == "notes.sp is no run file"


def test_a_newer_version(tmp_path):
    path = samples.write(tmp_path / "run.sp", steps=range(0, 500, 50))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    word, sentence = state(Answers([path]))
    assert word == "damaged"
    assert "newer signalprop" in sentence


def test_a_damaged_run_says_so_and_a_good_one_is_shown_again(tmp_path):
    path = samples.write(tmp_path / "run.sp", steps=range(0, 4000, 50))
    good = path.read_bytes()
    answers = Answers([path])
    assert state(answers)[0] == "open"
    other = tmp_path / "other"
    other.write_bytes(good[: len(good) // 3])
    other.replace(path)
    word, sentence = state(answers)
    if word == "open":  # what is missing shows when it is read
        with pytest.raises(Exception, match="damaged"):
            answers.timeline(Query((0,)))
    else:
        assert "damaged" in sentence
    other.write_bytes(good)
    other.replace(path)
    assert state(answers) == ("open", "")
    assert json.loads(answers.timeline(Query((0,))))["figure"]["data"]


def test_a_replaced_run_is_another_generation(tmp_path):
    path = samples.write(tmp_path / "run.sp", steps=range(0, 500, 50))
    answers = Answers([path])
    first = answers.states()[0]
    samples.write(path, steps=range(0, 300, 50), sick=False)
    second = answers.states()[0]
    assert first.generation != second.generation
    assert json.loads(answers.overview(Query(())))["runs"][0]["sampled"] == 6


def test_a_resumed_run_is_another_generation(tmp_path):
    path = samples.write(tmp_path / "run.sp", steps=range(0, 500, 50))
    answers = Answers([path])
    first = answers.states()[0]
    with RunWriter(path, mode="resume", log=samples.LOG) as writer:
        samples.record(writer, range(200, 260, 50))
    second = answers.states()[0]
    assert first.generation != second.generation
    assert json.loads(answers.overview(Query(())))["runs"][0]["last"] == 250


def test_hostile_names_are_text(tmp_path):
    answers = Answers([samples.hostile(tmp_path / "run.sp")])
    for call in (answers.timeline, answers.scalars, answers.window):
        figure = json.loads(call(Query((0,))))["figure"]
        del figure["layout"]["meta"]  # for attributes and text, which the page sets as such
        figure = json.dumps(figure)
        assert "<img" not in figure
        assert "<a " not in figure
        assert "<svg" not in figure
