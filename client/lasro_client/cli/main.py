"""`lasro`, the command line. Heavy imports wait inside the commands, so that `lasro --help` answers at once."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

import lasro
from lasro.errors import LasroError
from lasro_client.cli import analyze, audit, doctor, images, queue, rewards, runs, train

app = typer.Typer(
    help="Reward fine-tuning for one- and two-step diffusion models with rewards nobody can differentiate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (train.demo, train.up, train.worker, train.train, train.pretrain):
    app.command()(command)
for command in (images.generate, images.evaluate, images.export):
    app.command()(command)
for command in (runs.report, doctor.doctor):
    app.command()(command)
rewards.rewards_app.command("audit")(audit.audit_reward)
app.add_typer(analyze.analyze_app, name="analyze")
app.add_typer(rewards.rewards_app, name="rewards")
app.add_typer(rewards.surrogate_app, name="surrogate")
app.add_typer(queue.queue_app, name="queue")
app.add_typer(runs.runs_app, name="runs")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(lasro.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command: 0 only on success, 1 for a LaSRO error, 2 for wrong usage, 130 for Ctrl-C, 143 for SIGTERM."""
    # Both libraries warn at import about optional parts that nothing here uses.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    # As an exception, so that context managers end what they started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except LasroError as error:
        print(f"lasro: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except MemoryError as error:  # where nothing knew what to lower
        print(
            f"lasro: out of memory ({str(error) or 'of this machine'}); end other processes, or do less",
            file=sys.stderr,
        )
        sys.exit(1)
    except ModuleNotFoundError as error:
        missing = (error.name or "lasro").partition(".")[0]
        if missing.startswith("lasro"):  # no extra would bring it
            raise
        print(f"lasro: got no package {missing}, expected it here; pip install 'lasro[all]'", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:
            print("lasro: interrupted", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
