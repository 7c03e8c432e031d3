"""Commands that start services or train: demo, up, worker, train, pretrain."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lasro.errors import RewardError
from lasro_client.cli.output import AsJson, RedisUrl, is_main_process, print_json, print_scores, stderr

if TYPE_CHECKING:
    from lasro.config import RunSettings, TrackingSettings
    from lasro_client.run.observer import Observer

Config = Annotated[Path, typer.Argument(help="TOML file of the run.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as train.rounds=20. Repeatable."),
]
InProcessTrainer = Annotated[
    bool,
    typer.Option(
        "--in-process-trainer",
        help="Run the surrogate trainer as a thread here, over the same loaded model: half the memory.",
    ),
]
Out = Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/NAME")]


def demo(
    from_scratch: Annotated[bool, typer.Option(help="Train the surrogate too, for hours.")] = False,
    settings: Set = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Teach the bundled two-step model to bind colours to shapes, and show before and after."""
    from lasro.config import load_config

    config = load_config(shipped_config("demo"), settings or [])
    if from_scratch:
        _check_tracking(config.tracking)
        from lasro.training.distributed import DistributedContext
        from lasro_client.run.from_scratch import surrogate_from_scratch, with_initial_surrogate
        from lasro_client.run.run_prompts import read_run_prompts

        read_run_prompts(config, out, DistributedContext()).check(config)  # hours before the part that uses them
        stage1, warm_up, final = (
            load_config(shipped_config(name)) for name in ("demo-stage1", "demo-warm-up", "demo-surrogate")
        )
        observers = _observers(stage1.tracking)  # of none: what is tracked is the demo
        config = with_initial_surrogate(config, *surrogate_from_scratch(stage1, warm_up, final, out, observers))
    _train(config, out, as_json)


def train(
    config: Config,
    settings: Set = None,
    out: Out = None,
    in_process_trainer: InProcessTrainer = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model as a TOML file says (stage 2); a run folder that exists is resumed.

    Without service URLs in the file or the environment, the services are started for the run.
    """
    from lasro.config import load_config

    run = load_config(config, _with_option(settings, in_process_trainer))
    _train(run, out or Path("runs") / run.name, as_json)


def pretrain(
    config: Config,
    settings: Set = None,
    out: Out = None,
    in_process_trainer: InProcessTrainer = False,
    as_json: AsJson = False,
) -> None:
    """Pre-train the surrogate on samples of the base model (stage 1)."""
    from lasro.config import load_config

    run = load_config(config, _with_option(settings, in_process_trainer))
    folder = _free(out or Path("runs") / run.name)
    _check_tracking(run.tracking)
    from lasro_client.run.stage1 import pretrain as run_pretrain  # torch, once the folder is known to be free

    path = run_pretrain(run, folder, _observers(run.tracking))
    if is_main_process():
        print_json({"surrogate": str(path)}) if as_json else print(path)


def up(
    folder: Annotated[Path, typer.Option(help="Logs, Redis data and the trainer's runs.")] = Path("runs/up"),
    rewards: Annotated[bool, typer.Option(help="Serve and register the built-in rewards.")] = True,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Scoring processes besides the reward API.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Start Redis, the reward API and the surrogate trainer here, and keep them running until SIGTERM or Ctrl-C."""
    from lasro.redis_store.url import without_password
    from lasro_client.services.local_stack import BUILT_IN_REWARDS, LocalStack

    with LocalStack(folder, BUILT_IN_REWARDS if rewards else (), workers=workers) as stack:
        urls = {
            "reward_api": stack.reward_api,
            "surrogate_trainer": stack.surrogate_trainer,
            "redis": without_password(stack.redis),
        }
        if as_json:
            print_json(urls)
        else:
            for name, url in urls.items():
                print(f"{name.replace('_', ' '):18} {url}", flush=True)
            stderr().print(f"Logs are in {folder}. Ctrl-C ends everything.", soft_wrap=True)
        while True:
            stack.check()
            time.sleep(0.5)


def worker(
    redis: RedisUrl,
    groups_at_once: Annotated[
        int, typer.Option(min=1, max=256, envvar="LASRO_GROUPS_AT_ONCE", help="Groups scored side by side.")
    ] = 4,
    host: Annotated[
        str, typer.Option(envvar="LASRO_HOST", help="Address to bind, for health and metrics.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, envvar="LASRO_PORT", help="Port to bind; 0 takes a free one.")
    ] = 0,
) -> None:
    """Score queued groups as the reward API does, until SIGTERM or Ctrl-C; any number of these share the queue.

    Rewards over plain http are reached only inside LASRO_ALLOWED_NETWORKS, as by the API.
    """
    os.environ |= {
        "LASRO_REDIS_URL": redis,
        "LASRO_GROUPS_AT_ONCE": str(groups_at_once),
        "LASRO_HOST": host,
        "LASRO_PORT": str(port),
    }
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "lasro_reward_api", "worker"])


def _with_option(settings: list[str] | None, in_process_trainer: bool) -> list[str]:
    return [*(settings or []), *(["services.in_process_trainer=true"] if in_process_trainer else [])]


def _train(config: RunSettings, out: Path, as_json: bool) -> None:
    _free(out)
    _check_tracking(config.tracking)
    from lasro_client.run.stage2 import train as run_train  # torch, once the folder is known to be free

    summary = run_train(config, out, _observers(config.tracking))
    if not is_main_process():
        return
    nothing_learned = summary.get("nothing_learned")  # absent where an earlier release finished the run
    if as_json:
        print_json(summary)
    elif nothing_learned:
        print(f"report   {out / 'report.html'}")
    else:
        _print_result(summary, config, out)
    if nothing_learned:
        raise RewardError(f"nothing was learned: {summary['ended']}")


def _print_result(summary: dict[str, Any], config: RunSettings, out: Path) -> None:
    print_scores(summary["rewards"], ("before", "after", "difference"))
    print(f"adapter  {out / summary['adapter']}\nreport   {out / 'report.html'}")
    if timesteps := summary.get("timesteps"):  # absent in that of an earlier release, too
        print(f"sample   pipeline(prompt, timesteps={timesteps}, guidance_scale={config.model.guidance:g})")


def _free(folder: Path) -> Path:
    """The folder, in which no run goes on. The other processes of a run leave that to its main one."""
    from lasro_client.run.run_lock import check_free

    if is_main_process():
        check_free(folder)
    return folder


def _check_tracking(tracking: TrackingSettings) -> None:
    from lasro_client.watch.tracking import check_tracking

    check_tracking(tracking)


def _observers(tracking: TrackingSettings) -> list[Observer]:
    """Those of a run that is started here."""
    from lasro_client.report.page import ReportWriter
    from lasro_client.watch.prometheus import PrometheusMetrics
    from lasro_client.watch.terminal import Terminal
    from lasro_client.watch.tracking import tracking_observers

    terminal = Terminal(stderr())
    return [PrometheusMetrics(), terminal, ReportWriter(), *tracking_observers(tracking, terminal.note)]


def shipped_config(name: str) -> Path:
    """`configs/NAME.toml`: inside the installed package, or at the root of a checkout."""
    import lasro

    package = Path(lasro.__file__).parent
    inside = package / "configs" / f"{name}.toml"
    return inside if inside.exists() else package.parent / "configs" / f"{name}.toml"
