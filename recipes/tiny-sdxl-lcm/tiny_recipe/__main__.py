"""Command line of the recipe: `python -m tiny_recipe --help`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lasro.errors import LasroError
from tiny_recipe import stages
from tiny_recipe.config import load_recipe
from tiny_recipe.reporting import Stop
from tiny_recipe.session import carried, carried_table
from tiny_recipe.work_dir import WorkDir

HERE = Path(__file__).resolve().parents[1]
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
console = Console()

RecipeFile = Annotated[Path, typer.Option(help="The recipe's TOML file.")]
Work = Annotated[Path | None, typer.Option(help="Folder of the work. Absent: runs/ and the recipe's name.")]
Budget = Annotated[float | None, typer.Option(help="Minutes that all training stages take together.", min=0.01)]
Limit = Annotated[float | None, typer.Option(help="Stop after this many minutes, to go on another time.", min=0.01)]
INTERRUPTED = 130
FULL = HERE / "full.toml"


def work_dir_of(recipe_file: Path, work: Path | None, budget_minutes: float | None = None) -> WorkDir:
    recipe = load_recipe(recipe_file)
    recipe = recipe if budget_minutes is None else recipe.within(budget_minutes)
    return WorkDir(work or Path("runs") / recipe.name, recipe)


@app.command()
def emoji(recipe: RecipeFile = FULL, work: Work = None) -> None:
    """Fetch and draw the emoji into one file; needs npm, a network and resvg-py."""
    stages.make_emoji(work_dir_of(recipe, work), console)


@app.command()
def vae(
    recipe: RecipeFile = FULL, work: Work = None, budget_minutes: Budget = None, stop_after_minutes: Limit = None
) -> None:
    """Train the autoencoder."""
    _train(["vae"], work_dir_of(recipe, work, budget_minutes), stop_after_minutes)


@app.command()
def teacher(
    recipe: RecipeFile = FULL, work: Work = None, budget_minutes: Budget = None, stop_after_minutes: Limit = None
) -> None:
    """Train diffusion model and text encoders."""
    _train(["teacher"], work_dir_of(recipe, work, budget_minutes), stop_after_minutes)


@app.command()
def lcm(
    recipe: RecipeFile = FULL, work: Work = None, budget_minutes: Budget = None, stop_after_minutes: Limit = None
) -> None:
    """Distil the two-step model."""
    _train(["lcm"], work_dir_of(recipe, work, budget_minutes), stop_after_minutes)


@app.command()
def export(recipe: RecipeFile = FULL, work: Work = None) -> None:
    """Write the diffusers folder and its model card."""
    stages.export_model(work_dir_of(recipe, work), console)


@app.command("all")
def everything(
    recipe: RecipeFile = FULL, work: Work = None, budget_minutes: Budget = None, stop_after_minutes: Limit = None
) -> None:
    """All that is not done yet: emoji, VAE, teacher, distillation, export."""
    work_dir = work_dir_of(recipe, work, budget_minutes)
    if work_dir.recipe.data.emoji_share and not work_dir.emoji.exists():
        stages.make_emoji(work_dir, console)
    if _train(["vae", "teacher", "lcm"], work_dir, stop_after_minutes):
        stages.export_model(work_dir, console)


@app.command()
def carry(stage: str, recipe: RecipeFile = FULL, work: Work = None) -> None:
    """List what another machine needs for a stage, with sizes; refuse more than a session may carry."""
    console.print(carried_table(carried(work_dir_of(recipe, work), stage)), highlight=False, markup=False)


@app.command()
def report(
    models: Annotated[list[str], typer.Argument(help="`bundled` or folders; the first is compared with.")],
    recipe: RecipeFile = FULL,
    work: Work = None,
    prompts: Annotated[int, typer.Option(help="How many prompts of each kind.", min=2)] = 256,
    seed: int = 0,
) -> None:
    """Measure models and write the table, JSON and grids; the figures of the exported model go into its card."""
    stages.report_models(work_dir_of(recipe, work), models, prompts, seed, console)


def _train(names: list[str], work_dir: WorkDir, stop_after_minutes: float | None) -> bool:
    """Whether all are finished now; a run that a signal stopped ends with the status of an interrupted command."""
    with Stop(stop_after_minutes) as stop:
        finished = stages.train(names, work_dir, stop, console)
        if stop.asked and not finished:
            raise typer.Exit(INTERRUPTED)
        return finished


def main() -> None:
    try:
        app()
    except LasroError as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
