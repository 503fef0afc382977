"""Compiled models: bit for bit the same training, and the sites of the model all the same."""

import logging
import warnings

import numpy as np
import pytest
import torch
from tests.watching.loops import COMPILED, train

from signalprop.watching.file.reader import Run

pytestmark = [
    pytest.mark.slow,
    # torch's own, while it compiles
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute"
    ),
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", COMPILED)
def test_the_same_training_and_the_sites_of_the_model(kind, tmp_path, caplog):
    losses, weights, state, _ = train(kind, False)
    torch._dynamo.reset()
    with caplog.at_level(logging.WARNING, "signalprop"):
        seen, same, after, run = train(kind, True, tmp_path / "run.sp")
    assert seen == losses
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    assert torch.equal(state, after)
    assert run.failed is None
    with Run(tmp_path / "run.sp") as written:
        names = [site.name for site in written.sites]
        if kind == "compiled-fn":  # nothing is seen of what is compiled into a function
            assert set(names) == {"a", "norm", "b", "c"}
            assert "compile the module itself" in caplog.text
            return
        assert names[:6] == ["a", "tanh", "norm", "b", "relu", "add"]
        assert not [r for r in caplog.records if r.name == "signalprop"]
        train("zeroed", True, tmp_path / "eager.sp")  # the same network, in Python
        with Run(tmp_path / "eager.sp") as eager:
            for statistic in ("activation_rms", "delta_rms", "update_ratio"):
                a, b = eager.values(statistic).mean[1:], written.values(statistic).mean[1:]
                keep = [names.index(s.name) for s in eager.sites if s.name in names]
                assert np.allclose(a, b[-len(a) :, keep], rtol=1e-3, equal_nan=True)


def test_no_recompilation_and_no_warning(tmp_path):
    from torch._dynamo.utils import counters

    def graphs(watched):
        torch._dynamo.reset()
        counters.clear()
        train("compiled-wrap", watched, tmp_path / f"{watched}.sp" if watched else None)
        return counters["stats"]["unique_graphs"], dict(counters["graph_break"])

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert graphs(True) == graphs(False)
