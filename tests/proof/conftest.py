"""A proof serves nobody whom a call that blocks could keep waiting: its own loop is not watched."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> None:
    """In place of the one that all other tests have."""
