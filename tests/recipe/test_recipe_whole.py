"""All stages on a CPU at miniature scale, stopped and moved on the way, to a folder that stock diffusers draws from."""

from __future__ import annotations

import io
import json
import re
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from PIL import Image
from rich.console import Console

from tiny_recipe import stages
from tiny_recipe.config import Recipe
from tiny_recipe.emoji import EMOJI_PX, write_emoji
from tiny_recipe.figures import FIGURES
from tiny_recipe.reporting import Stop
from tiny_recipe.work_dir import WorkDir

pytestmark = pytest.mark.proof  # the whole recipe, in miniature


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, miniature: Recipe) -> WorkDir:
    """A finished work directory: each stage on another machine, that is, in a folder to which only the state came."""
    torch.set_num_threads(1)
    recipe = miniature.model_copy(update={"data": miniature.data.model_copy(update={"emoji_share": 0.25})})
    console, folder = Console(file=io.StringIO()), tmp_path_factory.mktemp("recipe")
    work_dir = WorkDir(folder / "none", recipe)
    for name in ("vae", "teacher", "lcm"):
        here = WorkDir(folder / name, recipe)
        if work_dir.state.exists():
            shutil.copytree(work_dir.state, here.state)
        picture = np.full((EMOJI_PX, EMOJI_PX, 4), (220, 40, 40, 255), np.uint8)
        write_emoji(here.emoji, [("red patch", "noto", picture)])
        with Stop() as stop:
            assert stages.train([name], here, stop, console)
        work_dir = here
    stages.export_model(work_dir, console)
    return work_dir


def test_stock_diffusers_draws_from_the_folder(made: WorkDir) -> None:
    """Bug: an exported folder that only this project can load, or whose scheduler, dtype or guidance is off."""
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(str(made.folder / "model"), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn = [
        pipeline(prompt, num_inference_steps=2, guidance_scale=4.0, generator=torch.Generator().manual_seed(0)).images[
            0
        ]
        for prompt in ("a red circle left of a blue square", "red patch, noto style")
    ]
    assert [image.size for image in drawn] == [(32, 32), (32, 32)]
    assert drawn[0].tobytes() != drawn[1].tobytes(), "the prompt changes nothing"
    assert pipeline.unet.config.time_cond_proj_dim
    posterior = pipeline.vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist
    expected = made.recipe.vae.deviation / pipeline.vae.config.scaling_factor
    assert posterior.std.detach().numpy() == pytest.approx(expected, rel=2e-3)
    scaled = pipeline.vae.config.scaling_factor
    assert scaled == pytest.approx(made.progress("vae").figures["scaling_factor"])


def test_weights_are_half_precision_and_name_no_folder(made: WorkDir) -> None:
    """Bug: a folder of twice the size, or one that tells where it was made."""
    model = made.folder / "model"
    for path in model.rglob("*.json"):
        assert str(made.folder) not in path.read_text()
    assert "\n" not in (model / "tokenizer" / "tokenizer.json").read_text()
    weights = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
    state = sum(path.stat().st_size for path in made.state.glob("*.safetensors"))
    assert weights < state, "the state has the teacher too"


def test_each_stage_leaves_pictures(made: WorkDir) -> None:
    """Bug: a stage whose result nobody can look at."""
    places = (made.folder.parent / name / "grids" for name in ("vae", "teacher", "lcm"))
    names = sorted(path.name for folder in places for path in folder.iterdir())
    assert names == ["lcm-1.webp", "lcm-2.webp", "lcm-4.webp", "teacher.webp", "vae.webp"]
    with Image.open(made.folder / "grids" / "lcm-2.webp") as grid:
        assert grid.size == (8 * 32, 4 * 32)


def test_what_is_done_is_not_done_again(made: WorkDir, miniature: Recipe) -> None:
    """Bug: `make tiny-model`, given again, trains anew."""
    before = (made.state / "progress.json").read_bytes()
    with Stop() as stop:
        assert stages.train(["vae", "teacher", "lcm"], made, stop, Console(file=io.StringIO()))
    assert (made.state / "progress.json").read_bytes() == before


def test_the_report_measures_and_fills_the_card(made: WorkDir) -> None:
    """Bug: a table without a figure that is wanted, or a card that is not of this model."""
    card = (made.folder / "model" / "README.md").read_text()
    assert "Not measured yet" in card
    out = io.StringIO()
    stages.report_models(made, [str(made.folder / "model")], 2, 0, Console(file=out, width=200))
    report = json.loads((made.folder / "report" / "report.json").read_text())
    (figures,) = report["models"].values()
    assert set(figures) == {figure.key for figure in FIGURES}
    assert 0 < figures["vae_error"]["mean"] < 2
    card = (made.folder / "model" / "README.md").read_text()
    assert "Not measured yet" not in card
    assert "@iconify-json/noto 1.2.9" in card
    assert not re.search(r"\$\w", card)
    assert {path.name for path in (made.folder / "report" / "model").iterdir()} == {
        f"{name}.webp" for name in ("vae", "one_step", "two_step", "four_step", "single_object", "emoji")
    }
