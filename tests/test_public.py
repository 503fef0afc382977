"""The public names: importable, documented, frozen, and plain data inside."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import inspect
import json
import math
import pickle
import subprocess
import sys

import pytest
import torch
from tests.cases import by_name

import signalprop as sp

HEAVY = ("torch", "pandas", "plotly", "networkx", "rich", "numpy", "transformers", "sklearn")
NAMES = ["mlp-sigmoid-30", "resnet-a", "gpt2", "mlp-relu-dead", "nan-data", "one-sample", "lstm"]


@pytest.fixture(params=NAMES, scope="module")
def results(request):
    case = by_name(request.param)
    model, batch, loss = case.build()
    trace = sp.trace(model, batch, loss)
    return trace, sp.diagnose(model, batch, loss, case.optimizer(model))


@pytest.mark.parametrize("name", sp.__all__)
def test_every_public_name_imports_and_is_documented(name):
    value = getattr(sp, name)
    assert name in dir(sp)
    if callable(value):
        assert value.__doc__
        assert len(value.__doc__.splitlines()[0]) > 10
        assert value.__module__.startswith("signalprop")


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="treace"):
        sp.treace
    with pytest.raises(ImportError):
        from signalprop import treace  # noqa: F401


@pytest.mark.parametrize("function", [sp.trace, sp.diagnose], ids=["trace", "diagnose"])
@pytest.mark.parametrize("seed", range(10))
def test_the_examples_in_the_docstrings_run(function, seed):
    torch.manual_seed(seed)  # they draw random numbers: they must hold for all of them
    (example,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__)
    assert example.examples
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("function", [sp.trace, sp.diagnose], ids=["trace", "diagnose"])
def test_every_argument_is_documented(function):
    text = inspect.getdoc(function)
    for argument in inspect.signature(function).parameters:
        assert f"\n    {argument}: " in text


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    out = in_a_new_process(
        "import sys, signalprop as sp; sp.__version__, sp.__all__, dir(sp);"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    assert out.strip() == "[]"


def test_tracing_imports_neither_pandas_nor_plotly():
    out = in_a_new_process(
        "import sys, torch, signalprop as sp\n"
        "x, y = torch.randn(8, 4), torch.randint(2, (8,))\n"
        "d = sp.diagnose(torch.nn.Linear(4, 2), (x, y), torch.nn.functional.cross_entropy)\n"
        "print([m for m in ('pandas', 'plotly', 'networkx', 'transformers') if m in sys.modules])"
    )
    assert out.strip() == "[]"


# ---- results -------------------------------------------------------------------------------------


def objects_in(value):
    """All result objects inside a result."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for field in dataclasses.fields(value):
            yield from objects_in(getattr(value, field.name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from objects_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from objects_in(item)


def test_results_are_frozen_all_the_way_down(results):
    seen = {}
    for result in results:
        for found in objects_in(result):
            seen.setdefault(type(found), found)
    assert {sp.Trace, sp.Site, sp.Diagnosis, sp.Result} <= set(seen)
    for found in seen.values():
        field = dataclasses.fields(found)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(found, field, None)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(found, field)


def test_results_are_plain_data(results):
    """No tensor, module or graph is kept alive by a result."""
    plain = (str, int, float, bool, type(None))

    def check(value):
        if isinstance(value, dict):
            for k, v in value.items():
                assert type(k) is str
                check(v)
        elif isinstance(value, (list, tuple)):
            for v in value:
                check(v)
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                check(getattr(value, field.name))
        else:
            assert type(value) in plain, type(value)

    for result in results:
        check(result)


def test_to_dict_is_json(results):
    for result in results:
        text = json.dumps(result.to_dict(), allow_nan=False)
        again = json.loads(text)
        assert again.keys() == {f.name for f in dataclasses.fields(result)}
        trace = again.get("trace", again)
        assert trace["spine"] == list(results[0].spine)
        assert trace["sites"].keys() == results[0].sites.keys()


def test_frames_have_a_row_per_site(results):
    trace, diagnosis = results
    for frame in (trace.frame(), diagnosis.frame()):
        assert list(frame.index) == list(trace.sites)
        assert frame.index.is_unique
        assert frame["activation_rms"].tolist() == pytest.approx(
            [s.activation.rms for s in trace.sites.values()], nan_ok=True
        )
        assert list(frame.index[frame["spine"]]) == [n for n in trace.sites if n in trace.spine]
        if math.isfinite(trace.decay):
            assert frame["decay"].sum() == pytest.approx(trace.decay)
    assert "findings" in diagnosis.frame()


def test_results_can_be_pickled_and_copied(results):
    for result in results:
        for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
            assert type(again) is type(result)
            assert json.dumps(again.to_dict()) == json.dumps(result.to_dict())
        assert len(pickle.dumps(result)) < 2_000_000


def test_properties_of_a_diagnosis_are_those_of_its_trace(results):
    _, diagnosis = results
    for ours, theirs in (
        (diagnosis.decay, diagnosis.trace.decay),
        (diagnosis.split, diagnosis.trace.split),
    ):
        assert ours == theirs or math.isnan(ours)
    assert diagnosis.healthy == all(f.severity != "issue" for f in diagnosis.findings)
    assert [r.code for r in diagnosis.results] == sorted(r.rule.code for r in sp.DEFAULT_RULES)


def test_the_same_look_gives_the_same_result():
    model, batch, loss = by_name("dropout-mlp").build()
    torch.manual_seed(0)
    one = sp.diagnose(model, batch, loss).to_dict()
    torch.manual_seed(0)
    assert sp.diagnose(model, batch, loss).to_dict() == one


def test_nothing_of_the_pass_stays_in_memory():
    import gc
    import weakref

    model, batch, loss = by_name("mlp-relu-he-10").build()
    made = weakref.WeakSet()
    model[0].register_forward_hook(lambda _, __, out: made.add(out))
    kept = sp.trace(model, batch, loss), sp.diagnose(model, batch, loss)
    assert not made or (gc.collect() is not None and not made), "an activation outlives the pass"
    assert kept
