"""Sentences in the log are results here; some packages that other tests load turn loggers off."""

import logging

import pytest
from torch.nn.modules import module as hooks

from signalprop.compiled import sums


@pytest.fixture(autouse=True)
def heard():
    logger = logging.getLogger("signalprop")
    before = logger.disabled, logger.propagate, logger.level, logging.root.manager.disable
    logger.disabled, logger.propagate = False, True
    logger.setLevel(logging.WARNING)
    logging.disable(logging.NOTSET)
    yield
    logger.disabled, logger.propagate = before[:2]
    logger.setLevel(before[2])
    logging.disable(before[3])


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks


@pytest.fixture(params=["compiled", "pure"])
def each_way(request, monkeypatch):
    """With the compiled sums, and without."""
    monkeypatch.setenv("SIGNALPROP_COMPILED", "0" if request.param == "pure" else "1")
    sums.functions.cache_clear()
    if request.param == "compiled" and sums.functions() is None:
        pytest.skip(sums.LIBRARY.status())
    yield
    sums.functions.cache_clear()
