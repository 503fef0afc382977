"""The engine: every rule once, six outcomes, what the user may ask for, and the verdict."""

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name
from tests.diagnosis.support import features, labels, mlp
from torch import nn

from signalprop.diagnosis import verdict
from signalprop.diagnosis.engine import DEFAULT_RULES, diagnose
from signalprop.diagnosis.finding import Diagnosis
from signalprop.diagnosis.rule import NotApplicable, finding, rule
from signalprop.errors import BatchError, LossError, ModelError, SignalpropError

OUTCOMES = {"issue", "tip", "passed", "not applicable", "skipped", "ignored"}
CODES = sorted(r.rule.code for r in DEFAULT_RULES)


def batch(n=32):
    return features(n), labels(n)


def healthy(**options):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return diagnose(model, batch(), F.cross_entropy, optimizer, **options)


def run(name, **options):
    case = by_name(name)
    model, data, loss = case.build()
    return diagnose(model, data, loss, case.optimizer(model), **options)


def outcomes(found):
    return {r.code: r.outcome for r in found.results}


@rule("XX901", "The batch is odd", severity="tip", cures=("even-batch",))
def odd_batch(evidence, *, most=16):
    """A user's own rule."""
    if evidence.trace.batch == 1:
        raise NotApplicable("one sample is neither")
    if evidence.trace.batch > most:
        yield finding(
            odd_batch,
            value=evidence.trace.batch,
            unit="samples",
            threshold=most,
            explanation=f"{evidence.trace.batch} samples are more than {most}",
        )


@rule("XX902", "Needs everything", needs=("optimizer", "noise", "sharpness"))
def greedy(evidence):
    """Looks at what it asked for."""
    assert evidence.optimizer is not None
    assert evidence.noise is not None
    assert evidence.sharpness is not None
    return []


@rule("XX903", "Broken")
def broken(evidence):
    """Fails for a reason of its own, after a finding."""
    yield finding(broken, value=1.0, unit="x", threshold=0.0, explanation="found before the fall")
    raise KeyError("fc9")


# ---- results -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mlp-sigmoid-30", "labels-from-one", "nan-data", "resnet-20", "mlp-two-layer-default"]
)
def test_every_rule_is_listed_once_in_order(name):
    found = run(name)
    assert [r.code for r in found.results] == CODES
    titles = {r.rule.code: r.rule.title for r in DEFAULT_RULES}
    for r in found.results:
        assert r.outcome in OUTCOMES
        assert r.title == titles[r.code]
        assert bool(r.reason) == (r.outcome in ("not applicable", "skipped", "ignored"))
    assert {f.code for f in found.findings} == {
        r.code for r in found.results if r.outcome in ("issue", "tip")
    }


def test_all_six_outcomes_occur():
    model = mlp()
    data = batch(n=7)
    found = diagnose(
        model, data, F.cross_entropy, ignore="SP206", rules=(*DEFAULT_RULES, greedy, odd_batch)
    )
    seen = set(outcomes(found).values())
    seen |= set(outcomes(run("mlp-sigmoid-30", rules=(*DEFAULT_RULES, odd_batch))).values())
    assert seen == OUTCOMES


def test_a_rule_is_skipped_with_the_reason_of_what_is_missing():
    found = diagnose(mlp(), batch(), F.cross_entropy, rules=(greedy,))
    (only,) = found.results
    assert only.outcome == "skipped"
    assert only.reason == "needs optimizer: no optimizer was given"


def test_findings_are_sorted_issues_first():
    found = run("mlp-sigmoid-30", rules=(odd_batch, *DEFAULT_RULES))
    severities = [f.severity for f in found.findings]
    assert severities == sorted(severities)
    ranks = [verdict.rank(f) for f in found.findings if f.severity == "issue"]
    assert ranks == sorted(ranks)
    assert found.findings[-1].code == "XX901"


def test_the_order_of_causes_knows_every_rule():
    assert sorted(verdict._ORDER) == CODES


# ---- what the user asks for --------------------------------------------------------------------


@pytest.mark.parametrize("ignore", ["SP101", ["SP101"], ("SP101", "SP106"), {"SP101"}])
def test_ignored_rules_are_listed_and_find_nothing(ignore):
    found = run("mlp-sigmoid-30", ignore=ignore)
    left = {ignore} if isinstance(ignore, str) else set(ignore)
    assert {c for c, o in outcomes(found).items() if o == "ignored"} == left
    assert not left & {f.code for f in found.findings}
    assert len(found.results) == len(CODES)


def test_an_unknown_code_is_refused_before_anything_runs():
    with pytest.raises(SignalpropError, match="there is no rule SP999; the rules are SP101, SP102"):
        diagnose("not even a module", None, ignore=["SP101", "SP999"])


def test_a_users_own_rule_stands_beside_the_defaults():
    found = healthy(rules=(odd_batch, *DEFAULT_RULES))
    assert [r.code for r in found.results] == [*CODES, "XX901"]
    (own,) = found.findings
    assert (own.code, own.severity, own.value, own.threshold) == ("XX901", "tip", 32.0, 16.0)
    assert own.cures == ("even-batch",)
    assert found.healthy
    assert outcomes(healthy(rules=(odd_batch,))) == {"XX901": "tip"}
    assert outcomes(healthy(rules=(odd_batch,), ignore="XX901")) == {"XX901": "ignored"}


def test_a_rule_that_fails_is_skipped_and_says_so():
    """One broken rule must not cost the user the other verdicts."""
    found = run("mlp-sigmoid-30", rules=(*DEFAULT_RULES, broken))
    result = found.results[-1]
    assert (result.code, result.outcome) == ("XX903", "skipped")
    assert "KeyError" in result.reason
    assert "fc9" in result.reason
    assert "XX903" not in {f.code for f in found.findings}
    assert found.findings[0].code == "SP101"


def test_no_rules_at_all():
    found = healthy(rules=())
    assert found.results == found.findings == ()
    assert found.healthy
    assert found.sharpness is None  # dear, and no rule asked for it


def test_sharpness_is_measured_only_where_a_rule_needs_it():
    phases = []
    healthy(rules=(odd_batch,), progress=phases.append)
    assert not any("sharpness" in phase for phase in phases)
    phases.clear()
    found = healthy(rules=(greedy,), progress=phases.append)
    assert found.sharpness > 0
    assert set(found.noise) == {"0", "2", "4"}
    assert len(phases) == len(set(phases)) == 5


def test_progress_tells_the_phases_in_order():
    phases = []
    healthy(progress=phases.append)
    assert phases[0] == "one pass, seen"
    assert phases[-1] == "rules"
    assert any("updates" in phase for phase in phases)


def test_an_interrupt_during_progress_leaves_the_model():
    model = mlp()
    before = copy.deepcopy(model.state_dict())

    def stop(phase):
        if "noise" in phase:
            raise KeyboardInterrupt

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(KeyboardInterrupt):
        diagnose(model, batch(), F.cross_entropy, optimizer, progress=stop)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# ---- the same, twice ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp-sigmoid-30", "dropout-mlp", "data-loader", "vit", "gru"])
def test_twice_the_same(name):
    case = by_name(name)
    model, data, loss = case.build()
    optimizer = case.optimizer(model)
    first, second = (diagnose(model, data, loss, optimizer).to_dict() for _ in range(2))
    assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


def test_plain_data():
    found = run("mlp-sigmoid-30")
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["verdict"] == found.verdict
    assert [r["code"] for r in plain["results"]] == CODES
    frame = found.frame()
    lower = found.findings[0].sites[0]
    assert "SP101" in frame.loc[lower, "findings"]


# ---- passes that stop --------------------------------------------------------------------------


class Fails(nn.Module):
    def __init__(self, phase):
        super().__init__()
        self.layer, self.phase = nn.Linear(16, 5), phase

    def forward(self, x):
        x = self.layer(x)
        if self.phase == "forward":
            raise ZeroDivisionError("on purpose")
        if self.phase == "backward":
            x.register_hook(lambda grad: 1 / 0)
        return x


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("forward", "the model raised.*ZeroDivisionError: on purpose"),
        ("backward", "the backward pass raised: ZeroDivisionError"),
    ],
)
def test_an_error_that_no_rule_explains_is_raised(phase, words):
    model = Fails(phase)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=words) as raised:
        diagnose(model, batch(), F.cross_entropy)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_loss_that_raises():
    def loss(output, target):
        raise ValueError("no such loss")

    with pytest.raises(LossError, match="the loss raised: ValueError: no such loss"):
        diagnose(mlp(), batch(), loss)


def test_an_error_that_a_rule_explains_is_a_finding():
    found = run("labels-from-one")
    assert found.findings[0].code == "SP207"
    assert found.learning is None
    assert outcomes(found)["SP101"] == "skipped"
    assert found.verdict.startswith("Labels") or "SP207" in {f.code for f in found.findings}
    reason = next(r.reason for r in found.results if r.code == "SP101")
    assert "the pass stopped" in reason


def test_an_ignored_explanation_brings_the_error_back():
    with pytest.raises(LossError, match="out of bounds"):
        run("labels-from-one", ignore="SP207")


class AsksItsInput(nn.Module):
    """As transformers' Wav2Vec2 does in training: fails on what is not a leaf."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 5)

    def forward(self, x):
        x = x[:, None]
        x.requires_grad = True
        return self.layer(x)[:, 0]


def test_a_model_that_asks_its_input_for_a_gradient():
    found = diagnose(AsksItsInput(), batch(), F.cross_entropy)
    assert set(found.learning.share) == {"layer"}


def test_an_empty_batch():
    with pytest.raises(BatchError):
        diagnose(mlp(), (torch.zeros(0, 16), torch.zeros(0, dtype=torch.long)), F.cross_entropy)


def test_nothing_to_train():
    model = mlp().requires_grad_(False)
    model[4].requires_grad_(True)
    found = diagnose(model, batch(), F.cross_entropy)
    assert set(found.learning.share) == {"4"}


def test_values_that_are_not_finite_skip_what_needs_them():
    """No rule judges a delta that is not a number."""
    found = run("nan-data")
    assert outcomes(found)["SP202"] == "issue"
    assert {f.code for f in found.findings if f.code < "SP200"} == set()
    assert outcomes(found)["SP101"] == "skipped"
    overflow = run("own-softmax-overflows")
    assert {f.code for f in overflow.findings if f.code < "SP200"} == set()


# ---- the verdict -------------------------------------------------------------------------------


def test_verdict_of_a_healthy_network():
    found = healthy()
    assert found.verdict.startswith("No issue found: the error signal loses ")
    assert f"loses {-found.decay:.1f} nats on its way back from 4 to input (" in found.verdict


def test_verdict_counts_tips():
    assert healthy(rules=(odd_batch,)).verdict.startswith("No issue found, 1 tip: ")


def test_verdict_of_a_sick_network_names_the_first_cause():
    found = run("mlp-sigmoid-30")
    issues = [f for f in found.findings if f.severity == "issue"]
    assert found.verdict.startswith(f"{issues[0].title} ({len(issues)} issues in all): ")
    assert issues[0].explanation in found.verdict
    assert "In all," not in found.verdict  # the explanation says it already
    assert not found.healthy


def test_verdict_adds_how_far_the_signal_gets():
    found = run("mlp-layer-norm-60")
    assert found.verdict.startswith("Inputs become indistinguishable")
    assert " In all, the error signal " in found.verdict
    # a ratio of norms alone would pass: directions and samples are weighed with it
    assert re.search(r"the weakest of 8 directions comes back at \de-\d\d of", found.verdict)
    assert re.search(r"two samples goes from -?0.\d\d to (1|0.99)", found.verdict)
    assert found.verdict.endswith(".")
    assert ".." not in found.verdict


def test_verdict_where_delta_becomes_zero():
    model = mlp()
    nn.init.constant_(model[2].bias, -100.0)
    found = diagnose(model, batch(), F.cross_entropy, torch.optim.SGD(model.parameters(), lr=1e-3))
    words = verdict.split_sentence(found.trace)
    assert words == "the error signal becomes exactly zero at 2 on its way back from 4"


def test_verdict_without_a_spine():
    found = diagnose(nn.Linear(16, 5), batch(), F.cross_entropy)
    bare = replace(found.trace, blocks=(), spine=())
    assert verdict.split_sentence(bare) == ""
    assert verdict.of(bare, None, ()) == "No issue found."


def test_diagnosis_holds_its_trace():
    found = healthy()
    assert isinstance(found, Diagnosis)
    assert found.decay == found.trace.decay
    assert found.split == found.trace.split
