"""Every rule over time: sick, healthy and with its data missing."""

import math

import numpy as np
import pytest
from tests.watching.rules.samples import SITES, codes, healthy, loss_at, run

from signalprop.watching.file.schema import RunSite
from signalprop.watching.rules.judge import DEFAULT_RULES_OVER_TIME, Judge
from signalprop.watching.sample import Sample

ONSET = 4000


def late(step, over=1.0):
    """How far the sickness has gone, from 0 to 1 within `over` steps after the onset."""
    return float(np.clip((step - ONSET) / over, 0, 1))


def vanishing(step, v):
    v["delta_rms"] *= np.exp(-8 * late(step) * np.linspace(1, 0, 12))
    v["learning_share"][:4] *= 1 - 0.99 * late(step)


def vanishing_slowly(step, v):
    v["delta_rms"] *= np.exp(-20 * step / 8000 * np.linspace(1, 0, 12))
    v["update_ratio"][:4] *= np.exp(-9 * step / 8000)


def explosion(step, v):
    v["delta_rms"] *= np.exp(8 * late(step) * np.linspace(1, 0, 12))
    v["learning_share"][:2] += 8 * late(step)
    v["learning_share"] /= v["learning_share"].sum()


def dying(step, v):
    v["dead"][3] = max(v["dead"][3], 0.9 * late(step))


def dead(step, v):
    v["dead"][[3, 5]] = np.maximum(v["dead"][[3, 5]], late(step))


def stopping(step, v):
    for name in ("gradient_norm", "update_ratio", "learning_share"):
        v[name][6] *= math.exp(-6 * late(step))


def too_fast(step, v):
    v["update_ratio"][2] *= 1 + 500 * late(step)


def idle(step, v):
    v["update_ratio"][2] *= 1e-5


def collapse(step, v):
    v["attention_entropy"][[4, 5]] *= 1 - 0.999 * late(step)
    v["attention_logit"][[4, 5]] *= 1 + 9 * late(step)


def drifting(step, v):
    v["gradient_norm"] *= (1 + step / 1000) * math.exp(4 * step / 8000)


def no_fall(rng, step):
    return 0.5 + 0.05 * rng.normal()


def chance(rng, step):
    return 2.303 + 0.005 * rng.normal()


def back(rng, step):
    return loss_at(rng, step) if step < ONSET else 2.4 + 0.05 * rng.normal()


def leap(rng, step):
    return loss_at(rng, step) + (1.5 if ONSET <= step < ONSET + 30 else 0)


SICK = {
    "SP401": [(vanishing, {}), (vanishing_slowly, {})],
    "SP402": [(explosion, {})],
    "SP403": [(dying, {}), (dead, {})],
    "SP404": [(stopping, {})],
    "SP405": [(None, {"loss": leap})],
    "SP406": [(None, {"loss": chance}), (None, {"loss": back})],
    "SP407": [(drifting, {"loss": no_fall})],
    "SP408": [(too_fast, {}), (idle, {})],
    "SP409": [(collapse, {"loss": no_fall})],
}
NAMED = {
    "SP401": {"layer0"}, "SP402": {"layer0"}, "SP403": {"layer3"}, "SP404": {"layer6"},
    "SP408": {"layer2"}, "SP409": {"layer4", "layer5"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "change", "also"), [(c, f, a) for c, many in SICK.items() for f, a in many]
)
def test_sick(code, change, also):
    found = [a for a in run(change, **also) if a.code == code]
    assert found
    first = found[0]
    assert NAMED.get(code, set()) <= set(first.sites)
    if change not in (idle, drifting, vanishing_slowly) and also.get("loss") is not chance:
        assert abs(first.since - ONSET) <= 400 or code == "SP406"
        assert ONSET <= first.step < 0.75 * 8000 or code == "SP406"
    assert len(found) <= 3
    assert first.explanation.endswith(".")
    assert math.isfinite(first.value)
    assert first.step >= first.since


def test_healthy_is_silent():
    for seed in range(3):
        assert run(seed=seed) == []
        assert run(seed=seed, samples=300, every=1) == []


@pytest.mark.parametrize(
    ("code", "change", "missing"),
    [
        ("SP401", vanishing, ["delta_rms"]),
        ("SP402", explosion, ["delta_rms"]),
        ("SP403", dying, ["dead"]),
        ("SP404", stopping, ["gradient_norm"]),
        ("SP404", stopping, ["update_ratio"]),
        ("SP408", too_fast, ["update_ratio"]),
        ("SP409", collapse, ["attention_entropy_most"]),
    ],
)
@pytest.mark.parametrize("how", ["absent", "nan"])
def test_missing(code, change, missing, how):
    def without(step, v):
        change(step, v)
        for name in missing:
            if how == "nan":
                v[name][:] = np.nan
            else:
                del v[name]

    assert code not in codes(run(without))


def test_missing_loss():
    for change in (vanishing, explosion, dying, stopping, too_fast):
        assert run(change, loss=None)
    assert run(loss=None) == []


def test_all_nan_is_silent():
    def nothing(step, v):
        for value in v.values():
            value[:] = np.nan

    assert run(nothing) == []


# ---- what looks like it and is not -----------------------------------------------------------


def test_vanishing_from_the_start_is_not_setting_in():
    assert run(lambda s, v: v["delta_rms"].__imul__(np.geomspace(1e-9, 1, 12))) == []


def test_vanishing_that_harms_nothing():
    """With Adam the lower layers learn on."""

    def forgiven(step, v):
        v["delta_rms"] *= np.exp(-8 * late(step) * np.linspace(1, 0, 12))

    assert "SP401" not in codes(run(forgiven))


def test_branches_that_start_at_zero_do_not_explode():
    def rezero(step, v):
        v["delta_rms"][1::2] *= 1e-6 + min(step / 3000, 1)
        v["update_ratio"][1::2] = np.maximum(v["update_ratio"][1::2], 1 / (1 + step))

    assert run(rezero) == []


def test_several_models_are_judged_each_by_itself():
    sites = tuple(RunSite(f"{m}.{k}", model=m) for m in ("g", "d") for k in range(12))

    def second(step, v):
        v["delta_rms"][12:] *= np.exp(-8 * late(step) * np.linspace(1, 0, 12))
        v["learning_share"][12:16] *= 1 - 0.99 * late(step)

    found = [a for a in run(second, sites=sites) if a.code == "SP401"]
    assert len(found) == 1
    assert {name[0] for name in found[0].sites} == {"d"}


def test_units_that_are_silent_in_one_batch_only():
    rng = np.random.default_rng(0)

    def changing(step, v):
        v["dead"][:] = np.where(rng.random(12) < 0.3, 0.95, 0.2)

    def sparse(step, v):
        v["dead"][:] = 0.9

    assert run(changing) == []
    assert run(sparse) == []


def test_frozen_on_purpose():
    def frozen(step, v):
        if step >= ONSET:
            for name in ("gradient_norm", "learning_share", "delta_rms"):
                v[name][:4] = np.nan
            v["update_ratio"][:4] = 0

    assert run(frozen) == []


def test_a_group_whose_rate_was_lowered():
    def lowered(step, v):
        v["update_ratio"][6] *= 1 - 0.999 * late(step)
        v["learning_share"][6] *= 1 - 0.999 * late(step)

    assert "SP404" not in codes(run(lowered))


def test_weights_before_a_normalisation_may_grow():
    """Its gradient falls as 1/|w| and its update ratio as 1/|w|^2."""

    def grows(step, v):
        size = 1 + 9 * step / 8000
        v["weight_norm"][::2] *= size
        v["gradient_norm"][::2] /= size
        v["update_ratio"][::2] /= size**2

    assert run(grows) == []


def test_what_starts_at_zero_has_large_updates_at_first():
    def head(step, v):
        v["update_ratio"][-1] = 1 / (1 + step)

    assert run(head, every=1, samples=500) == []


def test_sharp_heads_that_come_with_a_falling_loss():
    def sharpens(step, v):
        v["attention_entropy"] *= 1 - 0.99 * late(step, 500)
        v["attention_logit"] *= 1 + 9 * late(step, 500)

    def learns(rng, step):
        return 2.5 + 0.05 * rng.normal() - (1.5 * (1 - math.exp(-max(step - ONSET, 0) / 1000)))

    assert "SP409" not in codes(run(sharpens, loss=learns))


def test_gradients_that_grow_while_the_loss_falls():
    assert run(drifting, loss=lambda rng, s: 3 - 2 * s / 8000 + 0.02 * rng.normal()) == []


# ---- half precision --------------------------------------------------------------------------


def scaler(skipped, scale):
    judge, found = Judge(), []
    for step in range(6000):
        scalars = {"loss": 1.0, "skipped": skipped(step), "loss_scale": scale(step)}
        found += judge.step(step, scalars, None)
    return [a for a in found if a.code == "SP410"]


def test_grad_scaler_as_it_works_by_design():
    found = scaler(lambda s: min(s, 16) + s // 2000, lambda s: 65536.0 / 2 ** min(s, 16))
    assert found == []
    assert scaler(lambda s: min(s, 3) + s // 50, lambda s: 8192.0) == []


def test_skips_again_and_again():
    (alarm,) = scaler(lambda s: max(s - 3000, 0) // 4, lambda s: 1024.0)[:1]
    assert alarm.value == pytest.approx(0.25, abs=0.15)
    assert 3000 <= alarm.step <= 4200


def test_a_scale_that_falls_without_end():
    found = scaler(
        lambda s: max(s - 3000, 0) // 50, lambda s: 65536.0 / 2 ** (max(s - 3000, 0) / 50)
    )
    assert found
    assert found[0].unit == "loss scale"
    assert 3300 < found[0].step < 3600


def test_without_a_scaler_nothing_is_said_of_it():
    assert "SP410" not in codes(run())


# ---- not finite ------------------------------------------------------------------------------


def sampled(step, loss=1.0, change=None, **scalars):
    values = healthy(np.random.default_rng(0), step)
    for name, places in (change or {}).items():
        values[name][places] = np.inf
    return Sample(step, SITES, values, {"loss": loss, **scalars})


def only(found):
    (alarm,) = found
    assert alarm.code == "SP411"
    return alarm


def test_the_first_activation_that_is_not_finite():
    alarm = only(Judge().see(sampled(7, math.nan, {"activation_rms": slice(5, None)})))
    assert alarm.sites == ("layer5",)
    assert alarm.unit == "activation"
    assert alarm.step == 7


def test_the_first_delta_on_the_way_back():
    change = {"delta_rms": slice(0, 8), "gradient_norm": slice(0, 8)}
    alarm = only(Judge().see(sampled(7, 1.0, change)))
    assert alarm.sites == ("layer7",)
    assert alarm.unit == "delta"


def test_gradient_and_weights():
    assert only(Judge().see(sampled(7, 1.0, {"gradient_norm": [3]}))).sites == ("layer3",)
    alarm = only(Judge().see(sampled(7, 1.0, {"weight_norm": [2]})))
    assert alarm.unit == "weights"
    assert alarm.sites == ("layer2",)


def test_on_a_step_that_is_not_sampled():
    judge = Judge()
    judge.sites = SITES
    gradients = np.ones(12)
    assert judge.step(1, {"loss": 1.0}, gradients) == ()
    gradients[:5] = np.inf
    assert only(judge.step(2, {"loss": 1.0}, gradients)).sites == ("layer4",)
    judge = Judge()
    judge.sites = SITES
    gradients[:] = np.inf
    alarm = only(judge.step(2, {"loss": math.nan}, gradients))
    assert "forward" in alarm.explanation
    assert only(Judge().step(3, {"loss": math.nan}, None)).sites == ()


def test_it_is_told_once():
    judge, found = Judge(), []
    judge.sites = SITES
    for step in range(5000):
        if step % 10 == 0:
            found += judge.see(sampled(step, math.nan, {"activation_rms": slice(5, None)}))
        found += judge.step(step, {"loss": math.nan}, np.full(12, np.inf))
    only(found)


def test_masked_scores_are_meant():
    judge = Judge()
    for step in range(0, 500, 5):
        assert judge.see(sampled(step, 1.0, {"activation_rms": [2]})) == ()
    alarm = only(judge.see(sampled(600, math.nan, {"activation_rms": [2, 8, 9]})))
    assert alarm.sites == ("layer8",)


def test_overflow_under_a_loss_scale_is_the_scalers_matter():
    change = {"delta_rms": slice(0, 8), "gradient_norm": slice(0, 8)}
    judge = Judge()
    judge.sites = SITES
    assert judge.see(sampled(7, 1.0, change, loss_scale=65536.0)) == ()
    assert judge.step(8, {"loss": 1.0, "loss_scale": 65536.0}, np.full(12, np.inf)) == ()
    assert only(judge.step(9, {"loss": math.nan}, np.full(12, np.inf)))


def test_every_rule_is_tested_here():
    there = {judge.rule.code for judge in DEFAULT_RULES_OVER_TIME}
    assert there == set(SICK) | {"SP410", "SP411", "SP412"}
