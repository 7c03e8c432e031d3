"""Commands that draw with a model: generate, evaluate, export."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lasro.num_steps import MOST_STEPS, ONE_AND_TWO, NumSteps
from lasro_client.cli.output import ApiKey, AsJson, RewardApiOrOwn, Rewards, print_json, print_scores, progress_bar
from lasro_client.cli.prompts import Comments, Prompts, read_checked_prompts

if TYPE_CHECKING:
    from lasro.config import ModelSettings
    from lasro.models.adapter import AdapterKeys

Model = Annotated[str, typer.Option(help="`bundled`, a diffusers folder, a hub id, or one .safetensors file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another setting of the model, as model.unet=PATH. Repeatable."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Guidance = Annotated[float, typer.Option(min=0.0, max=50.0, help="Guidance scale.")]
Timesteps = Annotated[
    str | None,
    typer.Option(help="Of the steps, as 999,299; one step takes the first.", show_default="the scheduler's own"),
]
NumberOfSteps = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_STEPS, help="So many.", show_default="the most that the adapter was trained in, or 2"),
]
STEPS_HELP = "Numbers of steps to draw in, 1 to 8, fewer first, as 1,4."
NumbersOfSteps = Annotated[str, typer.Option("--steps", help=STEPS_HELP)]
StepsOfAdapter = Annotated[
    str | None,
    typer.Option("--steps", help=STEPS_HELP, show_default="those that the adapter was trained in, or 1,2"),
]
Adapter = Annotated[
    Path | None, typer.Option(help="LoRA adapter: its folder or file, such as runs/demo/adapter.", show_default=False)
]
ExportForm = Literal["diffusers", "kohya", "peft", "merged"]
ExportDtype = Literal["float32", "bfloat16", "float16"]
Partial = Annotated[bool, typer.Option("--partial", help="Load an adapter of which not every key fits the model.")]


def generate(
    prompts: Prompts,
    out: Annotated[Path, typer.Option(help="Folder for 00000.png ... and index.json.", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Prompt i is drawn with SEED + i.")] = 0,
    steps: NumberOfSteps = None,
    model: Model = "bundled",
    adapter: Adapter = None,
    partial: Partial = False,
    guidance: Guidance = 4.0,
    timesteps: Timesteps = None,
    device: Device = "auto",
    settings: Set = None,
    comments: Comments = False,
    as_json: AsJson = False,
) -> None:
    """Draw a prompt file, pixel for pixel as stock diffusers would with the same seeds."""
    chosen = model_settings(model, guidance, device, settings or [], timesteps)
    number = max(_steps_to_draw(adapter, None if steps is None else (steps,)))
    if chosen.timesteps is not None and number > len(chosen.timesteps):
        got = (
            f"got {number} with timesteps {list(chosen.timesteps)}, expected at most {len(chosen.timesteps)}; give as "
            "many as there are steps, or leave them out"
        )
        raise typer.BadParameter(got, param_hint="--steps")
    texts = read_checked_prompts(prompts, comments, chosen)
    from lasro_client.evaluation.generate import generate as run_generate  # torch, once the input is known to be good

    with progress_bar("drawing") as progress:
        index, keys = run_generate(chosen, adapter, texts, seed, number, out, progress=progress, partial=partial)
    print_json({"index": str(index), "images": len(texts)} | _as_json(keys)) if as_json else print(index)


def evaluate(
    prompts: Prompts,
    reward: Rewards,
    seed: Annotated[int, typer.Option(min=0, help="Prompt i is drawn with SEED + i.")] = 10_000,
    model: Model = "bundled",
    adapter: Adapter = None,
    partial: Partial = False,
    guidance: Guidance = 4.0,
    timesteps: Timesteps = None,
    steps: StepsOfAdapter = None,
    device: Device = "auto",
    settings: Set = None,
    best_of: Annotated[
        int, typer.Option(min=1, metavar="N", help="Draw N images of each prompt; the first reward chooses.")
    ] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for images and evaluation.json.")] = None,
    reward_api: RewardApiOrOwn = None,
    api_key: ApiKey = None,
    comments: Comments = False,
    as_json: AsJson = False,
) -> None:
    """Score images of few steps with any rewards, trained on or not; with an adapter, compared with the base."""
    asked = None if steps is None else numbers_of_steps(steps)
    chosen = model_settings(model, guidance, device, settings or [], timesteps)
    texts = read_checked_prompts(prompts, comments, chosen)
    from lasro.models.adapter_file import read_adapter
    from lasro_client.evaluation.compare_to_base import evaluate_beside_base, reward_service

    if adapter is not None:
        read_adapter(adapter)  # services take seconds to start, and a broken file would end them again
    numbers = _steps_to_draw(adapter, asked)
    with reward_service(reward, reward_api, api_key) as (client, names), progress_bar("evaluating") as progress:
        table, keys = evaluate_beside_base(
            chosen, adapter, texts, names, client, seed, out, progress, partial, numbers, best_of
        )
    if as_json:
        about: dict[str, Any] = {"prompts": len(texts), "seed": seed}
        if best_of > 1:
            about |= {"best_of": best_of, "chosen_by": names[0]}
        if chosen.timesteps is not None:
            about["timesteps"] = chosen.timesteps
        print_json(about | {"rewards": table} | _as_json(keys))
    else:
        print_scores(table, ("base", "best_of" if best_of > 1 and adapter is None else "adapted", "difference"))


def export(
    adapter: Annotated[
        Path, typer.Argument(help="A run's folder, or an adapter, such as runs/demo/adapter.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.", show_default=False)],
    form: Annotated[
        ExportForm | None,
        typer.Option("--format", help="An adapter for other tools, or a whole model.", show_default="merged, no card"),
    ] = None,
    dtype: Annotated[
        ExportDtype | None,
        typer.Option(help="Of what is written.", show_default="float32, or a whole model's model.dtype"),
    ] = None,
    strength: Annotated[float, typer.Option(help="What the adapter adds, times this.")] = 1.0,
    repo: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="REPO", help="Upload it too, as USER/NAME.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="`bundled`, a diffusers folder, a hub id, or one .safetensors file.",
            show_default="the run's, or bundled",
        ),
    ] = None,
    partial: Partial = False,
    settings: Set = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter for ComfyUI, A1111, diffusers or peft, or fuse it into its model: a whole diffusers folder."""
    if not math.isfinite(strength) or strength == 0:
        raise typer.BadParameter(
            f"got {strength:g}, expected a number other than 0; 1 leaves it as it is", param_hint="--strength"
        )
    from lasro_client.export.source import find_source

    source = find_source(adapter)
    base = {"path": "bundled"} | source.model if model is None else {"path": model}
    chosen = _with_settings({"guidance": 1.0, "device": "cpu", **base}, settings or [])
    from lasro_client.export.write import ExportRequest, export_model  # torch, once the input is known to be good

    done = export_model(ExportRequest(source, chosen, out, form, dtype, strength, partial, repo))
    if not as_json:
        print(*filter(None, (out, done.url)), sep="\n")
        return
    result = {"model": str(out)} if form in (None, "merged") else {"adapter": str(done.path), "format": form}
    print_json(result | _as_json(done.keys) | ({} if done.url is None else {"repo": done.url}))


def numbers_of_steps(text: str) -> tuple[int, ...]:
    """`--steps` of several numbers; raises BadParameter."""
    from pydantic import TypeAdapter, ValidationError

    from lasro.config import Steps

    try:
        return TypeAdapter[tuple[int, ...]](Steps).validate_python(tuple(text.split(",")))
    except ValidationError as error:
        got = f"got {text}, expected one or more numbers from 1 to 8, the smaller first, such as 1,4"
        raise typer.BadParameter(got, param_hint="--steps") from error


def _steps_to_draw(adapter: Path | None, asked: tuple[NumSteps, ...] | None) -> tuple[NumSteps, ...]:
    if adapter is None:
        return asked or ONE_AND_TWO
    from lasro_client.evaluation.adapted_model import steps_to_draw  # torch, which not every wrong usage waits for

    return steps_to_draw(adapter, asked)


def _as_json(keys: AdapterKeys | None) -> dict[str, Any]:
    """How many of an adapter's keys were loaded, of how many; nothing where there was no adapter."""
    return {} if keys is None else {"adapter_keys": keys.as_dict()}


def model_settings(
    model: str, guidance: float, device: str, settings: list[str], timesteps: str | None = None
) -> ModelSettings:
    """Of the options of a command that draws; raises ConfigError."""
    table: dict[str, object] = {"path": model, "guidance": guidance, "device": device}
    if timesteps is not None:
        table["timesteps"] = timesteps.split(",")
    return _with_settings(table, settings)


def _with_settings(table: dict[str, object], settings: list[str]) -> ModelSettings:
    """A model's settings with those of `--set` in place of these."""
    from pydantic import ValidationError

    from lasro.config import ModelSettings
    from lasro.config.load import assign
    from lasro.errors import ConfigError
    from lasro.validation import explain

    tree: dict[str, object] = {"model": table}
    for setting in settings:
        assign(tree, setting)
    if set(tree) != {"model"} or tree["model"] is not table:
        raise ConfigError(f"--set {settings[-1]}: expected a setting of the model, such as model.unet=PATH")
    try:
        return ModelSettings.model_validate(table)
    except ValidationError as error:
        raise ConfigError(explain(error, ModelSettings)) from error
