"""`lasro analyze`: the paper's figure 2, and which step earns a gain, of any few-step model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lasro_client.cli.images import (
    Device,
    Guidance,
    NumbersOfSteps,
    Partial,
    Set,
    Timesteps,
    model_settings,
    numbers_of_steps,
)
from lasro_client.cli.output import (
    SERVED_HELP,
    ApiKey,
    AsJson,
    RewardApiOrOwn,
    Rewards,
    print_json,
    print_table,
    progress_bar,
)
from lasro_client.cli.prompts import FORMATS, Comments, read_checked_prompts
from lasro_client.cli.train import shipped_config

if TYPE_CHECKING:
    from lasro.config import ModelSettings
    from lasro.training.prompts import Prompt
    from lasro_client.analysis.subject import Subject
    from lasro_client.evaluation.score_prompts import Progress

analyze_app = typer.Typer(help="What a few-step model is like, and what an adapter changed.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="`bundled`, a diffusers folder, a hub id, or one .safetensors file.")]
Adapter = Annotated[
    Path | None, typer.Option(help="LoRA adapter to compare with the base: a run, folder or file.", show_default=False)
]
ItsPrompts = Annotated[Path | None, typer.Option("--prompts", help=FORMATS, show_default="the demo's held-out ones")]
Count = Annotated[int, typer.Option(min=1, help="Prompts, the first of the file.")]
Seed = Annotated[int, typer.Option(min=0, help="Of all noise.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the page, SVG and JSON.", show_default="runs/analyze-NAME")]


@analyze_app.command("diversity")
def analyze_diversity(
    model: Model = "bundled",
    adapter: Adapter = None,
    partial: Partial = False,
    steps: NumbersOfSteps = "1,2,3,4,5,6,7,8",
    seeds: Annotated[int, typer.Option(min=2, help="First noises of a prompt.")] = 4,
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="Draws of the later noise for each.", show_default="4, or 1 without such noise"),
    ] = None,
    prompts: ItsPrompts = None,
    count: Count = 8,
    seed: Seed = 0,
    guidance: Guidance = 4.0,
    timesteps: Timesteps = None,
    device: Device = "auto",
    settings: Set = None,
    comments: Comments = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How far samples of one prompt are apart, by how many steps add noise."""
    numbers = numbers_of_steps(steps)
    chosen = model_settings(model, guidance, device, settings or [], timesteps)
    texts = _prompts(prompts, comments, chosen, count)
    subject = _load(chosen, adapter, partial, texts, seed, numbers)
    from lasro_client.analysis.diversity import diversity

    _report("diversity", out, as_json, lambda folder, bar: diversity(subject, numbers, seeds, draws, folder, bar))


@analyze_app.command("lipschitz")
def analyze_lipschitz(
    model: Model = "bundled",
    adapter: Adapter = None,
    partial: Partial = False,
    reward: Annotated[list[str] | None, typer.Option(help=SERVED_HELP)] = None,
    gradient: Annotated[
        bool, typer.Option("--gradient", help="Rewards are torch functions: along their gradients too.")
    ] = False,
    steps: NumbersOfSteps = "1,2,4,8",
    directions: Annotated[int, typer.Option(min=1, help="Random directions from each point.")] = 8,
    delta: Annotated[
        float, typer.Option(min=1e-6, max=1.0, help="How far along them, as a share of the point's size.")
    ] = 0.03,
    prompts: ItsPrompts = None,
    count: Count = 8,
    seed: Seed = 0,
    guidance: Guidance = 4.0,
    timesteps: Timesteps = None,
    device: Device = "auto",
    settings: Set = None,
    comments: Comments = False,
    out: Out = None,
    reward_api: RewardApiOrOwn = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """How steep the generator is, and a reward behind it, by noise level and by number of steps."""
    if gradient and not reward:
        raise typer.BadParameter(
            "got it without --reward, expected one or more torch functions", param_hint="--gradient"
        )
    numbers = numbers_of_steps(steps)
    chosen = model_settings(model, guidance, device, settings or [], timesteps)
    texts = _prompts(prompts, comments, chosen, count)
    from lasro_client.analysis.lipschitz import Probe, lipschitz
    from lasro_client.analysis.outputs import ServedRewards, TorchRewards, torch_rewards
    from lasro_client.evaluation.compare_to_base import reward_service

    in_process = TorchRewards(torch_rewards(reward or []) if gradient else {})
    subject = _load(chosen, adapter, partial, texts, seed, numbers)

    def measure(probe: Probe) -> None:
        _report("lipschitz", out, as_json, lambda folder, bar: lipschitz(subject, numbers, probe, folder, bar))

    if gradient or not reward:
        measure(Probe(directions, delta, in_process, gradient))
        return
    with reward_service(reward, reward_api, api_key) as (client, names):
        measure(Probe(directions, delta, ServedRewards(client, names)))


@analyze_app.command("steps")
def analyze_steps(
    adapter: Annotated[Path, typer.Option(help="LoRA adapter: a run, folder or file.", show_default=False)],
    reward: Rewards,
    model: Model = "bundled",
    partial: Partial = False,
    steps: Annotated[int, typer.Option(min=2, max=8, help="Number of steps that are drawn in.")] = 2,
    prompts: ItsPrompts = None,
    count: Count = 128,
    seed: Annotated[int, typer.Option(min=0, help="Prompt i is drawn with SEED + i.")] = 10_000,
    guidance: Guidance = 4.0,
    timesteps: Timesteps = None,
    device: Device = "auto",
    settings: Set = None,
    comments: Comments = False,
    out: Out = None,
    reward_api: RewardApiOrOwn = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Which step carries what an adapter gains: the adapter in all steps, in each alone, and in none."""
    chosen = model_settings(model, guidance, device, settings or [], timesteps)
    texts = _prompts(prompts, comments, chosen, count)
    subject = _load(chosen, adapter, partial, texts, seed, (steps,))
    from lasro_client.analysis.which_step import which_step
    from lasro_client.evaluation.compare_to_base import reward_service

    with reward_service(reward, reward_api, api_key) as (client, names):
        _report("steps", out, as_json, lambda folder, bar: which_step(subject, steps, client, names, folder, bar))


def _prompts(source: Path | None, comments: bool, model: ModelSettings, count: int) -> list[Prompt]:
    from lasro.config import load_config

    return read_checked_prompts(source or load_config(shipped_config("demo")).prompts.held_out, comments, model)[:count]


def _load(
    model: ModelSettings,
    adapter: Path | None,
    partial: bool,
    prompts: Sequence[Prompt],
    seed: int,
    steps: Sequence[int],
) -> Subject:
    from lasro_client.export.source import find_source

    file = None if adapter is None else find_source(adapter).adapter
    from lasro_client.analysis.subject import load_subject  # torch, once the input is known to be good

    return load_subject(model, file, prompts, seed, steps, partial)


def _report(name: str, out: Path | None, as_json: bool, measure: Callable[[Path, Progress], dict[str, Any]]) -> None:
    """Measure with a progress bar, write what was found, and print it."""
    folder = out or Path("runs") / f"analyze-{name}"
    with progress_bar("measuring") as progress:
        result = measure(folder, progress)
    from lasro_client.analysis.pages import write_page

    page = write_page(folder, result)
    if as_json:
        print_json(result)
        return
    print_table(page.columns, page.rows)
    print(f"\n{page.lead}\npage  {folder / f'{name}.html'}")
