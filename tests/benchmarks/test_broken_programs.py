"""The benchmark's builder: Keras's numbers, not torch's, and descriptions that hold together."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from benchmarks.broken_programs import compile as compiled
from benchmarks.broken_programs import data, faults, fixes, keras, repair, run, score
from benchmarks.broken_programs.descriptions import Case, CaseError, load
from benchmarks.broken_programs.program import Program, programs
from benchmarks.broken_programs.spec import Spec
from torch import nn

from signalprop.diagnosis import DEFAULT_RULES

CASES = load()


# ---- descriptions ----------------------------------------------------------------------------


def test_all_77_are_described_and_65_have_a_program() -> None:
    roles = [case.role for case in CASES]
    assert len(CASES) == 77
    assert (roles.count("sick"), roles.count("healthy"), roles.count("no program")) == (40, 25, 12)
    assert all(case.source["repository"] and case.source["commit"] for case in CASES)


def test_every_program_builds_and_gives_a_loss() -> None:
    built: set[tuple[object, ...]] = set()
    for program in programs(CASES):
        if program.spec.data["name"] in ("mnist", "cifar10", "photos", "adult"):
            shape = {"cifar10": (3, 32, 32), "photos": (3, 64, 64), "adult": (14,)}.get(
                program.spec.data["name"],
                (784,) if program.spec.data.get("flat") else (1, 28, 28),
            )
        else:
            shape = tuple(program.data.x.shape[1:])
        key = (shape, tuple(map(str, program.spec.layers)))
        if key in built:
            continue
        built.add(key)
        model = keras.build(program.spec.layers, shape)
        weighted = [m for m in model if isinstance(m, nn.Linear | nn.Conv2d)]
        assert len(weighted) == sum("units" in x or "filters" in x for x in program.spec.layers)
        compiled.loss(program.spec.loss, torch.zeros(1))
        compiled.optimizer(program.spec.optimizer, model, {})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"role": "ill"}, "role 'ill'"),
        ({"faults": ["bad luck"]}, "fault 'bad luck'"),
        ({"metric": "beauty"}, "metric 'beauty'"),
        ({"faults": []}, "has faults"),
        ({"correct": "magic"}, "correct 'magic'"),
    ],
)
def test_a_wrong_description_is_named(change: dict[str, object], told: str, tmp_path: Path) -> None:
    raw = json.loads((Path(data.__file__).parent / "cases" / "autotrainer.json").read_text())
    raw["cases"] = [raw["cases"][0] | change]
    (tmp_path / "x.json").write_text(json.dumps(raw))
    with pytest.raises(CaseError, match=told):
        load(tmp_path)


def test_faults_name_rules_that_exist() -> None:
    codes = {rule.rule.code for rule in DEFAULT_RULES}
    assert all(named <= codes for named, _ in faults.FAULTS.values())
    assert faults.named(("loss", "epochs"), frozenset({"SP205"}))
    assert not faults.named(("epochs",), frozenset({"SP205"}))


# ---- layers ----------------------------------------------------------------------------------


def test_flatten_puts_the_channels_last() -> None:
    x = torch.arange(2 * 3 * 4).view(1, 2, 3, 4)
    flat = keras.ChannelsLastFlatten()(x)
    slow = [int(x[0, c, h, w]) for h in range(3) for w in range(4) for c in range(2)]
    assert flat[0].tolist() == slow


def test_dense_acts_on_the_last_dimension() -> None:
    model = keras.build([{"type": "Dense", "units": 7, "activation": "softmax"}], (5, 3))
    out = model(torch.randn(2, 5, 3))
    assert out.shape == (2, 5, 7)
    torch.testing.assert_close(out.sum(-1), torch.ones(2, 5))
    assert [name for name, _ in model.named_children()] == ["dense_1", "softmax_1"]


@pytest.mark.parametrize(
    ("name", "variance", "bound"),
    [
        ("glorot_uniform", 2 / (200 + 400), math.sqrt(6 / 600)),
        ("he_uniform", 2 / 200, math.sqrt(6 / 200)),
        ("lecun_uniform", 1 / 200, math.sqrt(3 / 200)),
        ("uniform", 0.1**2 / 12, 0.05),
        ("RandomUniform", 0.1**2 / 12, 0.05),
        ("he_normal", 2 / 200, 2 * math.sqrt(2 / 200) / keras.CUT),
        ("lecun_normal", 1 / 200, 2 * math.sqrt(1 / 200) / keras.CUT),
        ("normal", 0.05**2, 1.0),
        ("normal(std=1)", 1.0, 9.0),
        ("TruncatedNormal", (0.05 * keras.CUT) ** 2, 0.1),
        ("Ones", 0.0, 1.0),
    ],
)
def test_initialisers(name: str, variance: float, bound: float) -> None:
    torch.manual_seed(0)
    weight = torch.empty(400, 200)
    keras.fill(weight, name)
    assert float(weight.var(correction=0)) == pytest.approx(variance, rel=0.03)
    assert float(weight.abs().max()) <= bound * (1 + 1e-6)


def test_defaults_are_keras_s() -> None:
    torch.manual_seed(0)
    conv = keras.build([{"type": "Conv2D", "filters": 8, "kernel_size": [3, 3]}], (4, 9, 9))[0]
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    assert conv.bias.count_nonzero() == 0
    assert float(conv.weight.detach().abs().max()) <= math.sqrt(6 / (4 * 9 + 8 * 9))
    norm = keras.build([{"type": "BatchNormalization"}], (4,))[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert (norm.eps, norm.momentum) == (1e-3, pytest.approx(0.01))


@pytest.mark.parametrize(
    "layer",
    [
        {"type": "Attention"},
        {"type": "Activation", "activation": "wish"},
        {"type": "Dense", "units": 2, "kernel_initializer": "luck"},
    ],
)
def test_what_is_not_known_is_named(layer: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="there is no"):
        keras.build([layer], (3,))


# ---- losses and optimizers -------------------------------------------------------------------


def test_categorical_crossentropy_divides_by_the_sum_and_cuts_off() -> None:
    p = torch.tensor([[0.2, 0.6, 0.8], [0.0, 0.9, 0.9]], dtype=torch.float64)
    y = torch.tensor([[0, 0, 1], [1, 0, 0]])
    slow = [-math.log(0.8 / 1.6), -math.log(1e-7)]
    found = compiled.categorical_crossentropy(p, y)
    assert float(found) == pytest.approx(sum(slow) / 2, rel=1e-9)


def test_where_probabilities_are_cut_off_there_is_no_gradient() -> None:
    p = torch.tensor([[0.0], [0.5], [1.5]], requires_grad=True)
    value = compiled.binary_crossentropy(p, torch.ones(3, 1))
    value.backward()
    assert p.grad is not None
    assert p.grad.flatten().tolist() == pytest.approx([0.0, -2 / 3, 0.0])
    slow = -(math.log(1e-7) + math.log(0.5) + math.log(1 - 1e-7)) / 3
    assert float(value.detach()) == pytest.approx(slow, rel=1e-3)


def test_targets_that_torch_refuses_are_taken_as_keras_does() -> None:
    p, y = torch.tensor([[0.3], [0.9]], dtype=torch.float64), torch.tensor([[2.0], [1.0]])
    slow = -(2 * math.log(0.3) - math.log(0.7) + math.log(0.9)) / 2
    value = compiled.loss("binary_crossentropy", y)(p, y.double())
    assert float(value) == pytest.approx(slow, rel=1e-9)


def test_sparse_is_categorical_with_numbers() -> None:
    p = torch.softmax(torch.randn(6, 4), 1)
    y = torch.tensor([[0], [1], [2], [3], [0], [1]])
    a = compiled.sparse_categorical_crossentropy(p, y)
    b = compiled.categorical_crossentropy(p, F.one_hot(y.flatten(), 4))
    torch.testing.assert_close(a, b)


def test_l2_is_the_gradient_of_keras_s_penalty() -> None:
    layers = ({"type": "Dense", "units": 2, "l2": 0.01},)
    model = keras.build(layers, (3,))
    before = model[0].weight.detach().clone()
    made, _ = compiled.optimizer({"name": "sgd", "lr": 0.5}, model, {"dense_1.weight": 0.01})
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    made.step()
    # d(0.01 sum w^2)/dw = 0.02 w
    torch.testing.assert_close(model[0].weight.detach(), before * (1 - 0.5 * 0.02))


def test_decay_of_the_rate() -> None:
    model = nn.Linear(2, 1)
    made, schedule = compiled.optimizer({"name": "SGD", "lr": 0.1, "decay": 0.5}, model, {})
    assert schedule is not None
    rates = []
    for _ in range(3):
        rates.append(made.param_groups[0]["lr"])
        made.step()
        schedule.step()
    assert rates == pytest.approx([0.1, 0.1 / 1.5, 0.1 / 2])


def test_metrics() -> None:
    two = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    assert compiled.metric("accuracy", two, torch.tensor([[1, 0], [1, 0]]), 0) == 0.5
    assert compiled.metric("accuracy", torch.tensor([[0.9], [0.2]]), torch.ones(2, 1), 0) == 0.5
    y = torch.tensor([[0.0], [2.0]])
    assert compiled.metric("r2", y, y, 0) == 1
    assert compiled.metric("r2", torch.ones(2, 1), y, 0) == 0
    assert math.isnan(compiled.metric("r2", y * math.nan, y, 0))


# ---- programs --------------------------------------------------------------------------------


def test_the_same_seed_trains_the_same() -> None:
    xor = next(p for p in programs(CASES) if p.case.id == "DL-SO-31556268")
    first, session = xor.train(3, steps=20)
    again, other = xor.train(3, steps=20)
    assert first == again
    assert session.loss == other.loss != xor.train(4, steps=20)[1].loss


def test_an_overflow_ends_the_training() -> None:
    name = "AT-Circle-model_0ae2cd88"
    program = next(p for p in programs(CASES) if p.case.id == name)
    metric, session = program.train(0)
    assert session.steps < 5
    assert math.isnan(session.loss)
    assert math.isnan(metric)


def test_autotrainer_s_first_solution_changes_the_hidden_layers_only() -> None:
    spec = Spec(
        layers=(
            {"type": "Dense", "units": 5, "kernel_initializer": "he_uniform"},
            {"type": "Activation", "activation": "sigmoid"},
            {"type": "Dense", "units": 3, "kernel_initializer": "he_uniform"},
            {"type": "Activation", "activation": "sigmoid"},
        ),
        loss="mse",
        optimizer={"name": "sgd"},
        batch_size=32,
        epochs=1,
        data={"name": "xor"},
    )
    changed = fixes.derive(spec, "selu").layers
    assert changed[0]["kernel_initializer"] == "lecun_uniform"
    assert changed[1]["activation"] == "selu"
    assert changed[2:] == spec.layers[2:]
    assert fixes.derive(spec, "batch-norm").layers[1] == {"type": "BatchNormalization"}


def test_without_a_folder_there_are_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGNALPROP_DATA", raising=False)
    data._made.cache_clear()
    for spec, shape in (
        ({"name": "mnist", "samples": 100}, (1, 28, 28)),
        ({"name": "cifar10", "samples": 100}, (3, 32, 32)),
        ({"name": "photos", "classes": 3, "target": "number", "size": 64}, (3, 64, 64)),
        ({"name": "adult"}, (14,)),
    ):
        found = data.load(spec)
        assert tuple(found.x.shape[1:]) == shape
        assert found.stand_in is not None
    data._made.cache_clear()


# ---- judging ---------------------------------------------------------------------------------


def _row(case: Case, metric: float | None, codes: list[str]) -> score.Row:
    findings = [{"code": c, "severity": "issue"} for c in codes]
    result = {
        "metric": metric,
        "constant": 0.4,
        "diagnosis": {"start": {"findings": findings}, "early": {"findings": []}},
    }
    return score.Row(f"{case.id}/buggy/0", case, "buggy", result)


def test_summary_counts() -> None:
    sick = next(c for c in CASES if c.faults == ("vanishing gradient",))
    healthy = next(c for c in CASES if c.role == "healthy" and c.target is not None)
    rows = [
        _row(sick, 0.4, ["SP101"]),
        _row(sick, 0.4, ["SP212"]),
        _row(sick, 0.4, []),
        _row(healthy, 1.0, ["SP101"]),
        _row(healthy, 1.0, []),
        _row(healthy, 0.4, ["SP101"]),
    ]
    counts = score.summary(rows)
    assert counts["sick: detected at the start"] == (2, 3)
    assert counts["sick: named rightly at the start"] == (1, 3)
    assert counts["controls: false alarm at the start, of those that train well"] == (1, 2)
    assert counts["controls: alarm, of those that do not"] == (1, 1)


def test_repaired_within_two_points() -> None:
    assert repair.repaired(0.785, 0.8, lower_is_better=False)
    assert not repair.repaired(0.775, 0.8, lower_is_better=False)
    assert repair.repaired(0.70, 0.69, lower_is_better=True)
    assert repair.repaired(None, 0.8, lower_is_better=False) is False
    assert repair.repaired(0.9, None, lower_is_better=False) is None


def test_the_batch_to_be_diagnosed_is_neither_tiny_nor_huge() -> None:
    for program in (p for p in programs(CASES) if p.spec.data["name"] == "threshold"):
        assert isinstance(program, Program)
        assert len(program.batch(0)[0]) == 200


def test_a_fix_mends_only_where_it_is_better() -> None:
    case = next(c for c in CASES if c.id == "DL-SO-51930566")
    sick = _row(case, 0.69, [])
    for metric, expected in ((0.70, False), (0.90, True), (None, False)):
        fix = score.Row(f"{case.id}/correct/0", case, "correct", {"metric": metric})
        assert score.mends(sick, [sick, fix]) is expected
    assert score.mends(sick, [sick])


def test_one_class_is_nothing_to_learn() -> None:
    case = next(c for c in CASES if c.id == "DL-SO-41372874")
    row = score.Row(f"{case.id}/buggy/0", case, "buggy", {"metric": 1.0, "constant": 1.0})
    assert not row.well


def test_the_command_keeps_its_results_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    line = ["--cases", "31556268", "--programs", "buggy", "--json", str(path)]
    line += ["--threads", str(torch.get_num_threads())]
    run.main([*line, "--diagnose"])
    kept = json.loads(path.read_text())
    assert set(kept) == {"DL-SO-31556268/buggy/0"}
    assert set(kept["DL-SO-31556268/buggy/0"]["diagnosis"]) == {"start", "early"}
    assert "sick: detected at the start" in capsys.readouterr().out
    run.main([*line, "--diagnose", "--cure"])
    again = json.loads(path.read_text())["DL-SO-31556268/buggy/0"]
    assert again.pop("cure") is not None
    assert again == kept["DL-SO-31556268/buggy/0"]


def test_a_case_that_does_not_exist() -> None:
    with pytest.raises(SystemExit, match="no case has nonesuch in its id"):
        run.main(["--cases", "nonesuch"])
