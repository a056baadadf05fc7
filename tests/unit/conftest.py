"""Tiny models run fastest with one thread a process, and many times slower with two on a busy machine."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _one_thread():
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
