"""Commands about the runs on this machine: report, and runs ls, show, pause, resume, rm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lasro_client.cli.output import ApiKey, AsJson, print_json, print_table

runs_app = typer.Typer(help="List, describe, pause and delete runs.", no_args_is_help=True)
MaybeRedis = Annotated[
    str | None,
    typer.Option(
        "--redis", envvar="LASRO_REDIS_URL", help="Redis of the services; absent: leave it.", show_default=False
    ),
]
MaybeTrainer = Annotated[
    str | None,
    typer.Option(
        "--surrogate-trainer",
        envvar="LASRO_SURROGATE_TRAINER_URL",
        help="URL of the surrogate trainer; absent: leave it.",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Argument(help="Folder of the run.", show_default=False)]
Root = Annotated[Path, typer.Option(help="Folder of run folders.")]


def report(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/demo.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Write a run's report.html anew."""
    from lasro_client.report.page import write_report

    path = write_report(run)
    print_json({"report": str(path)}) if as_json else print(path)


@runs_app.command("ls")
def list_runs(
    root: Root = Path("runs"),
    redis: MaybeRedis = None,
    surrogate_trainer: MaybeTrainer = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Runs here and at the given services: how far each is, and where its report lies."""
    from lasro_client.run.list_runs import find_runs, names_at_services

    runs = find_runs(root, names_at_services(redis, surrogate_trainer, api_key))
    if as_json:
        print_json({"runs": [run._asdict() for run in runs]})
    else:
        rows = [(run.name, run.state, f"{run.round}/{run.rounds}" if run.folder else None, run.folder) for run in runs]
        print_table(("run", "state", "round", "folder"), rows)


@runs_app.command("show")
def show_run(name: Name, root: Root = Path("runs"), as_json: AsJson = False) -> None:
    """A run as Markdown to paste: gain, drift, cost, settings that are not the defaults, versions, seed."""
    from lasro_client.report.pasted import as_markdown, facts
    from lasro_client.report.run_data import read_run
    from lasro_client.run.list_runs import find_run

    run = find_run(root, name)
    found = facts(read_run(root / name), run.state)
    print_json(found) if as_json else print(as_markdown(found), end="")


@runs_app.command("pause")
def pause(name: Name, root: Root = Path("runs"), as_json: AsJson = False) -> None:
    """Have a run wait after the round under way: its services stay, and its time budget stands still."""
    from lasro_client.run.list_runs import find_run, pause_run
    from lasro_client.run.pause import resume_command

    pause_run(find_run(root, name))
    goes_on = resume_command(root / name)
    print_json({"pausing": name}) if as_json else print(f"{name} pauses after this round; {goes_on} has it go on")


@runs_app.command("resume")
def resume(name: Name, root: Root = Path("runs"), as_json: AsJson = False) -> None:
    """Have a run go on that `lasro runs pause` holds."""
    from lasro_client.run.list_runs import find_run, resume_run

    resume_run(find_run(root, name))
    print_json({"resumed": name}) if as_json else print(f"{name} goes on")


@runs_app.command("rm")
def remove_run(
    name: Annotated[str, typer.Argument(help="Folder of the run, or its name at the services.", show_default=False)],
    root: Root = Path("runs"),
    redis: MaybeRedis = None,
    surrogate_trainer: MaybeTrainer = None,
    api_key: ApiKey = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a run: its folder, and at the given services its weights and every key; refused while it goes on."""
    from lasro.redis_store.url import without_password
    from lasro_client.run.list_runs import (
        check_not_running,
        delete_at_services,
        delete_folder,
        find_run,
        kept_from_starting,
        names_at_services,
        service_name,
    )

    run = find_run(root, name, names_at_services(redis, surrogate_trainer, api_key))
    check_not_running(run)
    at_services = name if run.folder is None else service_name(Path(run.folder))
    places = [place for place in (run.folder, surrogate_trainer, redis and without_password(redis)) if place]
    if not yes:
        typer.confirm(f"Delete {name} for good from {', '.join(places)}?", abort=True, err=True)
    with kept_from_starting(run):
        delete_at_services(at_services, redis, surrogate_trainer, api_key)
        delete_folder(run)
    print_json({"removed": name, "from": places}) if as_json else print(f"removed {name} from {', '.join(places)}")
