"""The stages in order, each with what it needs, and the pictures that it leaves."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence

import torch
from rich.console import Console
from transformers import CLIPTokenizer

from lasro.files import write_atomically
from lasro.models.device import pick_device
from lasro_client.watch.terminal import clock
from tiny_recipe.data import TrainingData
from tiny_recipe.emoji import Picture, render, write_emoji
from tiny_recipe.emoji_sources import SOURCES, drawings, fetch
from tiny_recipe.latents import Pool, encode_pool
from tiny_recipe.lcm import lcm_grids, lcm_stage
from tiny_recipe.networks import new_tokenizer, saved_tokenizer
from tiny_recipe.reporting import Stop
from tiny_recipe.speed import allow_fast_arithmetic
from tiny_recipe.stage import Stage, StageRun
from tiny_recipe.teacher import teacher_grid, teacher_stage
from tiny_recipe.vae import finished_vae, measure, trained_vae, vae_grid, vae_stage
from tiny_recipe.work_dir import WorkDir


def make_emoji(work_dir: WorkDir, console: Console) -> None:
    """Fetch the packages, draw what is wanted and write the emoji file."""

    def drawn() -> Iterator[tuple[str, str, Picture]]:
        for source in SOURCES:
            before = len(seen)
            for name, svg in drawings(fetch(source, work_dir.folder / "packages")):
                seen.append(name)
                yield name, source.style, render(svg)
            console.print(f"{source.package} {source.version}: {len(seen) - before} emoji", highlight=False)

    seen: list[str] = []
    count = write_emoji(work_dir.emoji, drawn())
    console.print(f"{count} emoji, {work_dir.emoji.stat().st_size / 1e6:.1f} MB: {work_dir.emoji}", highlight=False)


def train(names: Sequence[str], work_dir: WorkDir, stop: Stop, console: Console) -> bool:
    """Train those stages that are not finished, in order; whether all are now."""
    device = pick_device("auto")
    allow_fast_arithmetic(device)
    wanted = [name for name in names if not work_dir.progress(name).finished]
    if not wanted:
        console.print(f"{', '.join(names)}: finished already", highlight=False)
        return True
    data = TrainingData(work_dir.recipe, work_dir.emoji, device)
    pool = functools.cache(lambda: _pool(work_dir, data, device))
    for name in wanted:
        if stop.wanted():
            return False
        torch.manual_seed(work_dir.recipe.seed)
        stage = _stage(name, work_dir, data, pool, device)
        run = StageRun(stage, work_dir, device, console)
        progress = run.run(stop)
        if not progress.finished:
            console.print(
                f"{name}: stopped at step {progress.steps}, {run.done_share(progress):.0%}; the same command goes on",
                highlight=False,
            )
            return False
        _finish(name, work_dir, data, device)
        console.print(f"{name}: done, {progress.steps} steps in {clock(progress.trained_s)}", highlight=False)
    return True


def _stage(name: str, work_dir: WorkDir, data: TrainingData, pool: Callable[[], Pool], device: torch.device) -> Stage:
    if name == "vae":
        return vae_stage(work_dir.recipe, data, device)
    if name == "lcm":
        work_dir.finished("teacher")
    drawn_from = pool()
    tokenizer = _tokenizer(work_dir, data)
    torch.manual_seed(work_dir.recipe.seed)
    if name == "teacher":
        return teacher_stage(work_dir.recipe, drawn_from, tokenizer, device)
    return lcm_stage(work_dir, drawn_from, tokenizer, device)


def _pool(work_dir: WorkDir, data: TrainingData, device: torch.device) -> Pool:
    """What teacher and distillation draw from: both the same, so one process makes it once."""
    return encode_pool(work_dir.recipe, data, finished_vae(work_dir, device), _tokenizer(work_dir, data), device)


def _tokenizer(work_dir: WorkDir, data: TrainingData) -> CLIPTokenizer:
    """The tokenizer of the state; made where there is none yet."""
    if not work_dir.tokenizer.exists():
        work_dir.finished("vae")
        made = new_tokenizer(work_dir.recipe, data.corpus())
        write_atomically(work_dir.tokenizer, made.backend_tokenizer.to_str().encode())
    return saved_tokenizer(work_dir.recipe, work_dir.tokenizer)


def _finish(name: str, work_dir: WorkDir, data: TrainingData, device: torch.device) -> None:
    """What a stage leaves besides its weights: the VAE's scaling factor, and pictures."""
    if name == "vae":
        vae = trained_vae(work_dir, device)
        progress = work_dir.progress("vae")
        figures = progress.figures | measure(vae, data, device)
        work_dir.save("vae", progress.model_copy(update={"figures": figures}), work_dir.weights("vae"))
        vae_grid(work_dir, vae, data, device)
        return
    tokenizer, vae = saved_tokenizer(work_dir.recipe, work_dir.tokenizer), finished_vae(work_dir, device)
    {"teacher": teacher_grid, "lcm": lcm_grids}[name](work_dir, vae, tokenizer, device)


def export_model(work_dir: WorkDir, console: Console) -> None:
    exporting = importlib.import_module("tiny_recipe.export")  # the pipeline: what a GPU machine need not have whole
    folder = exporting.export(work_dir)
    console.print(f"model: {folder}, {exporting.folder_bytes(folder) / 1e6:.1f} MB", highlight=False)


def report_models(work_dir: WorkDir, models: Sequence[str], prompts: int, seed: int, console: Console) -> None:
    """Measure models; the card of the exported one is written again with its figures."""
    reporting, card = (importlib.import_module(f"tiny_recipe.{name}") for name in ("report", "card"))
    found = reporting.report(models, work_dir.folder / "report", prompts, seed, console)
    made = work_dir.folder / "model"
    for path, figures in found.items():
        if (work_dir.folder / path).resolve() == made.resolve() or made.resolve().as_posix() == path:
            card.write_card(work_dir, made, figures)
