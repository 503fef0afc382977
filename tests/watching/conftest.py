"""Sentences in the log are results here; some packages that other tests load turn loggers off."""

import logging

import pytest


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
