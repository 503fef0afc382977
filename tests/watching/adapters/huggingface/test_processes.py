"""The Trainer in two processes: one file, of the global batch, and nobody waits in vain."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.watching.adapters.huggingface.trainers import gpt
from torch import nn

from signalprop.watching.file.reader import Run
from signalprop.watching.watch import watch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes have left what they found, and their run files."""
    folder = tmp_path_factory.mktemp("two")
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2 -m".split()
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            *launch,
            "tests.watching.adapters.huggingface.worker",
            str(folder),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    """What each of the two has found."""
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["", " accumulated", " own"])
def test_training_is_the_same_bit_for_bit(ranks, kind):
    for found in ranks:
        plain, watched = found[f"plain{kind}"], found[f"watched{kind}"]
        assert (watched["failed"], watched["ranks"]) == (None, 2)
        assert plain["logged"] == watched["logged"]
        assert torch.equal(plain["random"], watched["random"])
        assert all(map(torch.equal, plain["weights"], watched["weights"]))
    assert not torch.equal(ranks[0]["watched"]["batches"], ranks[1]["watched"]["batches"])


def twin(path: Path, ranks, several):
    """One process with the batches of both."""
    net = gpt()
    net.load_state_dict(ranks[0]["begin"])
    net.train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0)
    batches = torch.cat([found["batches"] for found in ranks], 1)
    losses = []
    with watch(net, optimizer, every=4, to=path) as run:
        for i, x in enumerate(batches):
            # the Trainer counts every label, also the first ones, which nothing predicts
            count = x.numel() * several
            loss = net(input_ids=x, labels=x, use_cache=False, num_items_in_batch=count).loss
            loss.backward()
            losses.append(loss.item())
            if (i + 1) % several == 0:
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                run.log(loss=sum(losses[-several:]))


@pytest.mark.parametrize(
    ("kind", "several", "name"),
    [("", 1, "watched"), (" accumulated", 2, "accumulated"), (" own", 1, "own")],
)
def test_the_numbers_are_those_of_one_process_with_the_whole_batch(
    folder, ranks, tmp_path, kind, several, name
):
    twin(tmp_path / "b.sp", [found[f"watched{kind}"] for found in ranks], several)
    with Run(folder / f"{name}.sp") as a, Run(tmp_path / "b.sp") as b:
        assert a.meta["ranks"] == 2
        assert a.steps.tolist() == b.steps.tolist() == [0, 4, 8]
        names = [site.name for site in a.sites if site.name in {s.name for s in b.sites}]
        assert "transformer.h.1.mlp.act" in names
        assert len(names) > 30
        assert set(a.statistics) == set(b.statistics)
        for statistic in a.statistics:
            if statistic == "delta_rms":
                # of one row for all samples each rank has the sum over its own
                names.remove("transformer.wpe")
            np.testing.assert_allclose(
                a.values(statistic, names).mean,
                b.values(statistic, names).mean,
                rtol=2e-3 if statistic == "gradient_snr" else 1e-4,
                atol=1e-6,
                err_msg=statistic,
            )
        ours, theirs = a.scalars(), b.scalars()
        # of several processes the factor of clipping to 1 is not known
        clipped = np.minimum(theirs["gradient_norm"][1], 1.0)
        np.testing.assert_allclose(ours["gradient_norm"][1], clipped, rtol=1e-4)
        for scalar in ("loss", "learning_rate"):
            np.testing.assert_array_equal(ours[scalar][0], theirs[scalar][0])
            np.testing.assert_allclose(ours[scalar][1], theirs[scalar][1], rtol=1e-4)
        # the Trainer's own means over five steps are of all processes, too
        logged = ranks[0][f"watched{kind}"]["logged"]
        assert ours["loss"][1][:5].mean() == pytest.approx(logged[0], rel=1e-4)


def test_both_stop_at_the_same_step(folder, ranks):
    first, second = ranks[0]["stops"], ranks[1]["stops"]
    assert first["steps"] == second["steps"]
    assert 6 <= first["steps"] <= 9  # told at step 5, known to both at step 8
    assert first["stopped"] == second["stopped"] == "SP411"
    assert (folder / "stops.sp").exists()


def test_one_file_is_written(folder):
    names = {"watched.sp", "accumulated.sp", "own.sp", "stops.sp", "alone.sp"}
    assert {path.name for path in folder.glob("*.sp")} == names


def test_a_callback_on_one_rank_alone_is_said_and_changes_nothing(folder, ranks):
    first, second = ranks[0]["alone"], ranks[1]["alone"]
    assert "rank 1 has not called sp.watch" in first["said"][0]
    assert first["seconds"] < 30
    assert (first["ranks"], first["steps"], second["steps"]) == (1, 12, 12)
    for found in ranks:
        assert all(map(torch.equal, found["plain"]["weights"], found["alone"]["weights"]))
    with Run(folder / "alone.sp") as run:
        assert run.steps.tolist() == [0, 4, 8]
        assert "ranks" not in run.meta
        assert len(run.scalars()["loss"][0]) == 12
