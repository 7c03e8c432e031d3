"""Commands about what is on this machine: report, runs, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lasro_client.output import AsJson, print_json, print_table

runs_app = typer.Typer(help="List and delete run folders.", no_args_is_help=True)
Root = Annotated[Path, typer.Option(help="Folder of run folders.")]


def report(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/demo.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Write a run's report.html anew."""
    from lasro_client.report import write_report

    path = write_report(run)
    print_json({"report": str(path)}) if as_json else print(path)


def doctor(as_json: AsJson = False) -> None:
    """Check that everything LaSRO needs is here; exit status 1 where something essential fails."""
    from lasro_client.doctor import diagnose

    checks = diagnose()
    if as_json:
        print_json({"ok": all(c.ok for c in checks if c.essential), "checks": [c._asdict() for c in checks]})
    else:
        words = {(True, True): "ok", (True, False): "ok", (False, True): "FAILED", (False, False): "warning"}
        print_table(("check", "result", "detail"), [(c.name, words[c.ok, c.essential], c.detail) for c in checks])
    if not all(check.ok for check in checks if check.essential):
        raise typer.Exit(1)


@runs_app.command("ls")
def list_runs(root: Root = Path("runs"), as_json: AsJson = False) -> None:
    """Runs here, by name: how far each is, and where its report lies."""
    from lasro_client.runs import find_runs

    runs = find_runs(root)
    if as_json:
        print_json({"runs": [run._asdict() for run in runs]})
    else:
        rows = [(run.name, run.state, f"{run.round}/{run.rounds}", run.folder) for run in runs]
        print_table(("run", "state", "round", "folder"), rows)


@runs_app.command("rm")
def remove_run(
    name: Annotated[str, typer.Argument(help="Folder name of the run.", show_default=False)],
    root: Root = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a run folder with everything in it; refused while the run is going on."""
    from lasro_client.runs import delete_run, find_run

    run = find_run(root, name)
    if not yes:
        typer.confirm(f"Delete {run.folder} for good?", abort=True, err=True)
    delete_run(run)
    print_json({"removed": run.folder}) if as_json else print(f"removed {run.folder}")
