"""What a dashboard is told of a sample, and when."""

import numpy as np
import pytest
from tests.watching.adapters.runs import ALARM, SITES, sample

from signalprop.errors import SignalpropError
from signalprop.watching.adapters.adapter import KEPT, Adapter
from signalprop.watching.adapters.summary import Summary, Told
from signalprop.watching.statistics import STATISTICS


class Heard(Adapter):
    """Keeps what it is told."""

    def __init__(self, **options):
        super().__init__(**options)
        self.told: list[Told] = []
        self.said = []

    def put(self, told):
        self.told.append(told)

    def say(self, alarm):
        self.said.append(alarm)

    def close(self):
        pass


def test_three_numbers_of_a_statistic_and_where():
    told = Summary().of(sample(8, [3.0, 1.0, 2.0], learning_rate=0.5))
    assert told == Told(
        8,
        {
            "signalprop/learning_rate": 0.5,
            "signalprop/update_ratio/smallest": 1.0,
            "signalprop/update_ratio/median": 2.0,
            "signalprop/update_ratio/largest": 3.0,
        },
        {
            "signalprop/update_ratio/smallest": "block.0.relu",
            "signalprop/update_ratio/largest": "first",
        },
    )


def test_values_that_are_not_finite_are_counted_and_never_told():
    told = Summary(sites=True).of(sample(0, [np.inf, np.nan, 2.0], loss=np.nan, a=-np.inf))
    assert told.numbers == {
        "signalprop/update_ratio/not_finite": 1.0,
        "signalprop/update_ratio/smallest": 2.0,
        "signalprop/update_ratio/median": 2.0,
        "signalprop/update_ratio/largest": 2.0,
        "signalprop_sites/update_ratio/block.1.relu": 2.0,
    }
    assert Summary().of(sample(0, [np.nan] * 3)).numbers == {}
    assert Summary().of(sample(0, [np.inf] * 3)).numbers == {
        "signalprop/update_ratio/not_finite": 3.0
    }


@pytest.mark.parametrize(
    ("sites", "names"),
    [
        (False, []),
        (True, ["first", "block.0.relu", "block.1.relu"]),
        ("block.*", ["block.0.relu", "block.1.relu"]),
        (["first", "*.1.*"], ["first", "block.1.relu"]),
        (["nothing"], []),
    ],
)
def test_a_curve_of_every_site_only_when_asked(sites, names):
    told = Summary("x", sites=sites).of(sample(0, [1, 2, 3]))
    alone = [n.removeprefix("x_sites/update_ratio/") for n in told.numbers if "_sites" in n]
    assert alone == names


def test_sites_that_come_later_are_chosen_too():
    summary = Summary(sites="block.1*")
    assert len(summary.of(sample(0, [1, 2, 3])).numbers) == 4
    more = sample(1, [1, 2, 3])
    more = type(more)(1, (*SITES, type(SITES[0])("block.10")), {"dead": np.ones(4)}, {})
    assert "signalprop_sites/dead/block.10" in summary.of(more).numbers


def test_a_number_of_the_whole_has_no_name_that_is_a_folder_of_others():
    told = Summary().of(sample(0, [1, 2, 3], update_ratio=5.0))
    assert told.numbers["signalprop/update_ratio/all"] == 5.0
    assert not any(b.startswith(f"{a}/") for a in told.numbers for b in told.numbers)


def test_only_the_statistics_asked_for():
    assert Summary(statistics=["dead"]).of(sample(0, [1, 2, 3])).numbers == {}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"statistics": ["update"]}, "'update' is no statistic"),
        ({"sites": 3}, "sites=3"),
        ({"prefix": "/"}, "prefix='/'"),
        ({"scalars": "some"}, "scalars='some'"),
    ],
)
def test_wrong_options_are_named(options, part):
    with pytest.raises(SignalpropError, match=part):
        Heard(**options)


def test_numbers_of_the_loop_are_told_of_sampled_steps():
    heard = Heard()
    heard.sample(sample(0, [1, 2, 3]))
    for step in range(4):
        heard.scalars(step, {"loss": float(step)})
    heard.scalars(4, {"loss": 4.0})  # on an accelerator its sample arrives later
    heard.sample(sample(4, [1, 2, 3]))
    assert [(t.step, t.numbers.get("signalprop/loss")) for t in heard.told] == [
        (0, None),
        (0, 0.0),
        (4, 4.0),
    ]


def test_numbers_of_every_step_or_none():
    every, none = Heard(scalars="all"), Heard(scalars="none")
    for one in (every, none):
        one.scalars(7, {"loss": 1.0})
        one.scalars(8, {"loss": np.nan})
    assert every.told == [Told(7, {"signalprop/loss": 1.0})]
    assert none.told == []


def test_what_waits_is_bounded():
    heard = Heard()
    for step in range(3 * KEPT):
        heard.scalars(step, {"loss": 1.0})
        heard.sample(sample(10**9 + step, [1, 2, 3]))
    assert len(heard._early) == len(heard._sampled) == KEPT


def test_every_statistic_can_be_told():
    assert len(STATISTICS) > 10
    assert Heard(statistics=list(STATISTICS)).summary is not None
    heard = Heard()
    heard.alarm(ALARM)
    assert heard.said == [ALARM]
