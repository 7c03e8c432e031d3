"""The recipe at miniature scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiny_recipe.config import Recipe, load_recipe

FOLDER = Path(__file__).parents[2] / "recipes" / "tiny-sdxl-lcm"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def miniature() -> Recipe:
    return load_recipe(FOLDER / "miniature.toml")


@pytest.fixture(scope="session")
def full() -> Recipe:
    return load_recipe(FOLDER / "full.toml")
