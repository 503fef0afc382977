"""alexnet: counts from the model itself."""

from __future__ import annotations

import pytest

from signalprop.studies import alexnet

PAPER, PLAIN, TOWER = (variant.name for variant in alexnet.VARIANTS)


def test_numbers(quick):
    r = quick("alexnet")
    assert r.verdict == "holds in part"
    assert [c.verdict for c in r.claims] == [
        "holds", "holds in part", "holds in part", "does not hold as printed",
    ]  # fmt: skip
    # the published totals
    assert r[f"{PAPER}: parameters"] == 60_965_224
    assert r[f"{PLAIN}: parameters"] == 62_378_344
    assert r[f"{TOWER}: parameters"] == 61_100_840
    for name in (PAPER, PLAIN, TOWER):
        assert r[f"{name}: multiply-accumulates"] == r[f"{name}: multiply-accumulates, torch"]
    what = "share of parameters fully connected", "share of computation in convolutions"
    assert [round(r[f"{PAPER}: {w}"], 1) for w in what] == [96.2, 91.9]
    assert [round(r[f"{PLAIN}: {w}"], 1) for w in what] == [94.0, 94.8]
    assert [round(r[f"{TOWER}: {w}"], 1) for w in what] == [96.0, 91.8]


def test_nothing_is_allocated():
    model = alexnet.build(alexnet.VARIANTS[0])
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_shapes_of_the_paper():
    found = list(alexnet.layers(alexnet.build(alexnet.VARIANTS[0]), 227))
    assert [layer.shape for layer in found] == [
        (96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13),
        (4096,), (4096,), (1000,),
    ]  # fmt: skip
    # the numbers of neurons in section 3.5; the first one printed there, 253,440, does not fit
    # 55 x 55 x 96 = 290,400
    assert [layer.shape[0] * layer.shape[1] ** 2 for layer in found[1:5]] == [
        186_624, 64_896, 64_896, 43_264,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "verdicts"),
    [
        ({f"{n}: parameters": 16.1e6 for n in (PAPER, PLAIN, TOWER)}, "hpph"),
        (
            {f"{n}: share of parameters fully connected": 94.2 for n in (PAPER, PLAIN, TOWER)},
            "hhpd",
        ),
        ({f"{PLAIN}: share of computation in convolutions": 90.0}, "hpdd"),
        ({f"{TOWER}: convolutions": 4}, "dppd"),
    ],
)
def test_doctored_numbers_change_the_verdict(changed, verdicts, quick):
    numbers = {m.name: m.value for m in quick("alexnet").measurements} | changed
    short = {"holds": "h", "holds in part": "p", "does not hold as printed": "d"}
    assert "".join(short[c.verdict] for c in alexnet.judge(numbers)) == verdicts
