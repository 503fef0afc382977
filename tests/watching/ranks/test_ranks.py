"""Statistics of several processes are those of one with the whole batch."""

import math

import pytest
import torch
from tests.watching.ranks.launch import launch
from tests.watching.ranks.nets import Former, Plain, batches, make, train


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return launch(1, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return launch(4, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def alone():
    return {
        (kind, dtype): train(make(kind, dtype), batches(kind, dtype))[0]
        for kind in (Plain, Former)
        for dtype in (torch.float64, torch.float32)
    }


def compare(found, wanted, tolerance, leave=()):
    assert [s["step"] for s in found] == [s["step"] for s in wanted]
    for mine, one in zip(found, wanted, strict=True):
        assert math.isclose(mine["norm"], one["norm"], rel_tol=tolerance)
        assert mine["values"].keys() == one["values"].keys()
        for name, values in one["values"].items():
            for site, value in values.items():
                if (name, site) in leave:
                    continue
                # attention weights are made again in float32
                allowed = max(tolerance, 1e-6) if name.startswith("attention") else tolerance
                got = mine["values"][name].get(site, math.nan)
                scale = max(abs(v) for v in values.values()) if name in SIGNED else abs(value)
                assert abs(got - value) <= allowed * scale, (mine["step"], name, site, got, value)


#: differences of near numbers: compared with the largest of a step
SIGNED = ("gradient_snr", "learning_share")

CASES = [
    ("one", "ddp", Plain),
    ("one", "fsdp layers", Plain),
    ("two", "ddp", Plain),
    ("two", "ddp former", Former),
    ("two", "fsdp", Plain),
    ("two", "fsdp layers", Plain),
    ("two", "fsdp former", Former),
    ("two", "tp", Former),
    ("two", "by tokens", Former),
    ("four", "ddp", Plain),
    ("four", "fsdp", Plain),
    ("four", "hsdp", Plain),
    ("four", "fsdp tp", Former),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("world", "name", "kind"), CASES, ids=lambda c: str(c))
def test_equals_one_process_with_the_whole_batch(request, alone, world, name, kind, dtype):
    ranks = request.getfixturevalue(world)
    assert isinstance(ranks[0][name], dict), ranks[0][name]
    found = ranks[0][name][str(dtype)]
    compare(found, alone[kind, dtype], 1e-9 if dtype is torch.float64 else 1e-5)


@pytest.mark.parametrize(("world", "name", "kind"), CASES, ids=lambda c: str(c))
def test_every_rank_trains_bit_for_bit_as_without(request, world, name, kind):
    for found in request.getfixturevalue(world):
        assert found[name]["torch.float64 equal"]
        assert found[name]["torch.float32 equal"]


@pytest.mark.parametrize(("world", "name", "kind"), CASES, ids=lambda c: str(c))
def test_only_rank_0_records(request, world, name, kind):
    for found in request.getfixturevalue(world)[1:]:
        assert found[name]["torch.float64"] == []


def test_replicas_averaged_by_hand(two, alone):
    assert "torch.float64" in two[0]["by_hand"], two[0]["by_hand"]
    compare(two[0]["by_hand"]["torch.float64"], alone[Plain, torch.float64], 1e-9)


def test_gradients_that_are_views_of_buckets(two):
    """The next backward pass writes to them: the signal-to-noise of two steps shows it."""
    wanted = train(make(Plain), batches(Plain), every=1)[0]
    found = two[0]["views"]["samples"]
    assert "gradient_snr" in found[-1]["values"]
    compare(found, wanted, 1e-9)


WAYS = ["buffers", "unused", "static", "accumulation", "views", "sharded"]


@pytest.mark.parametrize("way", WAYS)
def test_no_bit_is_another_in_any_mode_of_ddp(two, way):
    for found in two:
        assert isinstance(found["bits"], dict), found["bits"]
        assert found["bits"][way]


def test_one_file_and_both_go_on_where_it_ends(two):
    first, second = two[0]["writes"], two[1]["writes"]
    assert first["files"] == ["run.sp"]
    assert first["steps"] == [0, 2, 4]
    assert first["ranks"] == 2
    assert (first["first"], second["first"]) == (5, 5)
    assert (first["samples"], second["samples"]) == (1, 0)
    assert first["failed"] is second["failed"] is None


def test_all_ranks_stop_at_the_same_step_with_the_same_alarm(two):
    first, second = two[0]["stops"], two[1]["stops"]
    assert first["last"] == second["last"] == 8  # told at the sampled step after step 3: 4 or 8
    assert first["alarm"] == second["alarm"]
    assert "'since': 3" in first["alarm"]


def test_other_sites_on_another_rank(two):
    found = two[0]["differ"]
    assert found["failed"] is two[1]["differ"]["failed"] is None
    assert sum("seen other sites" in line for line in found["said"]) == 1
    for values in found["values"]:
        assert "a" in values["weight_norm"]  # these are of both
        assert set(values["activation_rms"]) == {"a", "relu", "b"}


def test_a_rank_that_fails_lets_the_others_go(two):
    for found in two:
        assert "a fault of ours" in found["fails"]["failed"]
        assert found["fails"]["equal"]
    assert "rank 1 has stopped watching" in two[0]["fails"]["failed"]


def test_a_rank_that_ends_early(two):
    assert "rank 1 has ended its watch" in two[0]["ends_early"]["failed"]
    assert two[0]["ends_early"]["steps"] == [0, 2]


def test_a_watch_on_one_rank_alone(two):
    found = two[0]["only_one"]
    assert found["failed"] is None
    assert any("rank 1 has not called sp.watch" in line for line in found["said"])
    for values in found["values"]:
        assert values["activation_rms"]  # its own samples
        assert "weight_norm" not in values  # a shard's norm is no weight's


def test_other_arguments_on_another_rank(two):
    found = two[0]["otherwise"]
    assert found["failed"] is two[1]["otherwise"]["failed"] is None
    assert "with other arguments" in found["said"][0]
    assert found["samples"] == 3


def test_a_spike_makes_all_ranks_look_closer(two):
    assert two[0]["closer"]["failed"] is two[1]["closer"]["failed"] is None
    assert two[0]["closer"]["steps"] == [0, 5, *range(7, 17)]


def test_what_is_not_finite_on_another_rank_is_seen(two):
    found = two[0]["elsewhere"]
    assert found["norms"][2] == math.inf or math.isnan(found["norms"][2])
    assert "SP411" in found["codes"]


def test_a_checkpoint_of_shards_says_how(two):
    assert "sharded over ranks" in two[0]["checkpoint"]["said"][0]
    assert two[0]["checkpoint"]["files"] == []
