"""From findings to candidates: the order, and what does not go together."""

from __future__ import annotations

import pytest

from signalprop.cures.catalogue import CATALOGUE
from signalprop.cures.trials.prescribe import FAMILIES, prescribe, together
from signalprop.diagnosis.finding import Finding


def finding(code, *cures, severity="issue"):
    return Finding(
        code=code, title="", severity=severity, sites=(), value=0.0, unit="", threshold=0.0,
        explanation="", cures=cures,
    )  # fmt: skip


def names(candidates):
    return ["+".join(c.name for c in candidate) for candidate in candidates]


def joined(*cures):
    return [c.name for c in together([CATALOGUE[name] for name in cures], CATALOGUE)]


def test_together_they_are_applied_in_the_order_of_the_catalogue():
    assert joined("lower-learning-rate", "he-init", "train-mode", "he-init") == [
        "train-mode", "he-init", "lower-learning-rate",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("critical-init", "he-init"), ["critical-init"]),
        (("he-init", "critical-init"), ["he-init"]),
        (("lsuv", "he-init", "residual"), ["residual", "lsuv"]),
        (("self-normalize", "he-init", "swap-activation"), ["self-normalize"]),
        (("swap-activation", "he-init", "self-normalize"), ["swap-activation", "he-init"]),
        (("shaped-activation", "residual"), ["shaped-activation"]),
        (("normalise", "self-normalize"), ["normalise"]),
        (("lower-learning-rate", "raise-learning-rate"), ["lower-learning-rate"]),
        (("use-mse", "use-cross-entropy", "remove-softmax"), ["use-mse", "remove-softmax"]),
        (("normalise", "residual", "he-init"), ["residual", "normalise", "he-init"]),
    ],
)
def test_of_a_family_the_first_stands(given, kept):
    assert joined(*given) == kept


def test_no_combination_has_two_of_a_family():
    everything = joined(*CATALOGUE)
    assert all(len(family & set(everything)) <= 1 for family in FAMILIES)
    assert len(everything) > 20


def test_options_do_not_make_it_another_cure():
    one = CATALOGUE["he-init"]
    assert together([one, one.with_options(mode="out")], CATALOGUE) == (one,)


def test_candidates():
    found = [
        finding("SP110", "leaky-activation", "he-init", "no-such-cure", severity="tip"),
        finding("SP101", "he-init", "residual"),
        finding("SP206", "normalise-inputs", "input-batchnorm"),
    ]
    made = names(prescribe(found, CATALOGUE))
    assert made[0] == "normalise-inputs+he-init"  # of the issues
    assert made[1] == "normalise-inputs+leaky-activation+he-init"  # of all
    assert sorted(made[2:4]) == ["he-init", "normalise-inputs"]
    assert made[4] == "leaky-activation"
    assert set(made[5:]) == {"residual", "input-batchnorm"}
    assert names(prescribe(found, CATALOGUE, most=2)) == made[:2]
    assert prescribe([], CATALOGUE) == []


def test_first_cures_of_one_family_are_no_combination():
    found = [finding("SP101", "he-init"), finding("SP114", "critical-init")]
    assert sorted(names(prescribe(found, CATALOGUE))) == ["critical-init", "he-init"]
    same = [finding("SP101", "he-init"), finding("SP104", "he-init")]
    assert names(prescribe(same, CATALOGUE)) == ["he-init"]


def test_issues_and_tips_together_where_there_is_one_of_each():
    found = [finding("SP211", "adam"), finding("SP215", "add-activations", severity="tip")]
    assert names(prescribe(found, CATALOGUE))[0] == "add-activations+adam"
