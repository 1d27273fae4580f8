"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def medical_data() -> Path:
    """Folder of real medical data, or a skip where the checkout has none."""
    folder = Path(os.environ.get("MPC_IMAGING_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real medical data: set MPC_IMAGING_DATA to the folder that holds pneumoniamnist.npz")
    return folder
