"""One thread and one seed for every test."""

import os
import random
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    """Start every test from the same random state, whatever order pytest picks."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    # Every build is a new compilation of the same code; without this dynamo
    # reaches its limit after eight of them and silently stops compiling.
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
