"""Commands about the queue in Redis: what waits, and what is dead-lettered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lasro_client.cli.output import AsJson, RedisUrl, print_json, print_table

if TYPE_CHECKING:
    import redis

    from lasro.redis_store.dead_letters import DeadLetter
    from lasro.redis_store.overview import WorkFigures

queue_app = typer.Typer(help="Groups that wait to be scored, and dead letters.", no_args_is_help=True)
Ids = Annotated[
    list[str] | None, typer.Argument(metavar="ID...", help="As `lasro queue ls` shows them.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="All dead letters.")]
SHOWN_REASON = 120


@queue_app.command("ls")
def list_queue(redis: RedisUrl, as_json: AsJson = False) -> None:
    """Groups to be scored and by whom, samples to be trained on, and dead letters."""
    from lasro.redis_store.connection import connect
    from lasro.redis_store.dead_letters import dead_letters
    from lasro.redis_store.overview import run_figures, work_figures

    with connect(redis) as client:
        work, runs, letters = work_figures(client), run_figures(client), dead_letters(client)
    if as_json:
        workers = [worker._asdict() for worker in work.workers]
        print_json(
            {
                "work": work._asdict() | {"workers": workers},
                "runs": [run._asdict() for run in runs],
                "dead": [letter._asdict() for letter in letters],
            }
        )
        return
    _print_work(work)
    if runs:
        print()
        print_table([name.replace("_", " ") for name in runs[0]._fields], runs)
    if letters:
        print()
        print_table(("dead-lettered", *letters[0]._fields[1:]), [_row(letter) for letter in letters])


@queue_app.command("retry")
def retry_dead(redis: RedisUrl, ids: Ids = None, everything: All = False, as_json: AsJson = False) -> None:
    """Put dead-lettered groups back into the queue, and samples back on their stream.

    Exit status 1 where a named one is nothing that could be put back.
    """
    from lasro.redis_store.connection import connect
    from lasro.redis_store.dead_letters import retry

    with connect(redis) as client:
        letters = _chosen(client, ids, everything)
        retried = [letter.id for letter in letters if retry(client, letter)]
    left = [letter.id for letter in letters if letter.id not in retried]
    if as_json:
        print_json({"retried": retried, "left": left})
    else:
        print(f"put back {len(retried)}" + (f", left {', '.join(left)}" if left else ""))
    if ids and left:
        raise typer.Exit(1)


@queue_app.command("drop")
def drop_dead(
    redis: RedisUrl,
    ids: Ids = None,
    everything: All = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters for good; the id of a group may then be submitted again."""
    from lasro.redis_store.connection import connect
    from lasro.redis_store.dead_letters import drop

    with connect(redis) as client:
        letters = _chosen(client, ids, everything)
        if letters and not yes:
            typer.confirm(f"Forget {len(letters)} for good?", abort=True, err=True)
        for letter in letters:
            drop(client, letter)
    dropped = [letter.id for letter in letters]
    print_json({"dropped": dropped}) if as_json else print(f"dropped {len(dropped)}")


def _chosen(client: redis.Redis, ids: list[str] | None, everything: bool) -> list[DeadLetter]:
    from lasro.redis_store.dead_letters import dead_letters, named

    if bool(ids) == everything:
        raise typer.BadParameter("expected ids, or --all", param_hint="ID...")
    return dead_letters(client) if everything else named(client, ids or [])


def _print_work(work: WorkFigures) -> None:
    oldest = None if work.oldest_s is None else f"{work.oldest_s:.0f} s"
    print_table(("waiting", "claimed", "oldest", "dead"), [(work.waiting, work.claimed, oldest, work.dead)])
    if work.workers:
        print()
        rows = [(worker.name, worker.claims, f"{worker.idle_s:.0f} s ago") for worker in work.workers]
        print_table(("worker", "claims", "heard of"), rows)


def _row(letter: DeadLetter) -> tuple[object, ...]:
    return letter._replace(reason=letter.reason[:SHOWN_REASON])
