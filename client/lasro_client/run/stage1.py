"""Stage 1: the surrogate learns to rank samples of the base model. `lasro pretrain CONFIG.toml`.

Samples and scores go through the same services as in stage 2; the trained weights end up in
`surrogate.safetensors` and the rewards in `labels.jsonl`, which `train.initial_surrogate` and
`train.initial_base_rewards` of a stage-2 run name. Samples that earlier runs kept (`pretrain.initial_samples`) can
start the replay, or be all there is.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from lasro.config import RunSettings
from lasro.errors import BudgetError
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.training.distributed import DistributedContext, processes
from lasro.training.prompts import Prompt, read_prompts
from lasro.training.sampling import Group, draw_prompts, generator_for, sample_groups
from lasro_client.report.page import write_report
from lasro_client.run.base_sample_rewards import BASE_REWARDS_FILE, base_rewards_of
from lasro_client.run.collect import adapt_entries, check_time_budget, collect, reward_means
from lasro_client.run.folder import SURROGATE_FILE, Progress, RunFolder
from lasro_client.run.probe_generator import ProbeGenerator
from lasro_client.run.saved_samples import preload_samples
from lasro_client.run.stop_signal import StopRequest
from lasro_client.services.connect import open_surrogate, services
from lasro_client.services.feedback import FeedbackClient
from lasro_client.services.surrogate_scores import score_source
from lasro_client.watch.terminal import RoundDisplay, clock

FINAL_STEPS_PER_CALL = 50


def pretrain(config: RunSettings, out: Path, console: Console) -> Path:
    """Run or resume stage 1; returns the file with the trained surrogate. A spent budget ends it early, whole."""
    with processes() as peers:
        return _pretrain(config, out, console, peers)


def _pretrain(config: RunSettings, out: Path, console: Console, peers: DistributedContext) -> Path:
    folder = peers.on_main_and_broadcast(lambda: RunFolder(out, config, "pretrain"))
    weights_path = folder.path / SURROGATE_FILE
    if peers.on_main_and_broadcast(folder.summary) is not None:
        return weights_path
    settings, run = config.pretrain, f"{config.name}-pretrain"
    prompts = read_prompts(config.prompts.train)
    model = load_model(config.model)
    probe = ProbeGenerator(model, config, peers)
    keep = folder.path if settings.keep_samples else None
    timeout_s = config.services.timeout_s
    progress, _ = folder.start(probe.trainer)
    started = time.monotonic() - progress.elapsed_s
    with (
        services(config, folder.path, peers) as connected,
        RoundDisplay(console, "stage 1", settings.rounds, progress.round, config.budget.max_minutes) as display,
        StopRequest() as stop,
    ):
        resumed = progress.surrogate_version
        version = peers.on_main_and_broadcast(
            lambda: open_surrogate(connected, run, config, settings.initial_surrogate, resumed)
        )
        source = score_source(config.train.mode, run, config.surrogate, model, connected.surrogates)
        feedback = FeedbackClient(connected, run, timeout_s, peers)
        if progress.surrogate_version is None:
            if settings.initial_samples:
                display.note(f"samples of {len(settings.initial_samples)} earlier runs go into the replay")
                carried = peers.on_main_and_broadcast(
                    lambda: preload_samples(config, FeedbackClient(connected, run, timeout_s))
                )
                display.note(f"{carried} groups of earlier runs are in the replay")
            progress = Progress(surrogate_version=version)
            folder.checkpoint(progress, probe.trainer)
        for round in range(progress.round, settings.rounds):
            generator = generator_for(config.seed, "pretrain prompts", round)
            chosen = draw_prompts(prompts, settings.prompts_per_round, generator)
            try:
                check_time_budget(config, started, peers)
                draw = partial(_groups, model, config, probe, round)
                collected = collect(feedback, config, chosen, draw, round, 0, keep)
            except BudgetError as error:
                console.print(f"{error}; stage 1 ends after {round} rounds")
                break
            reply = feedback.adapt(collected.scored, round, settings.steps_per_round)
            source.refresh(reply.version)
            probe.update(round, prompts, generator, source)
            elapsed_s, reward_calls = time.monotonic() - started, collected.reward_calls
            line = {
                "stage": "pretrain",
                "round": round,
                "rounds": settings.rounds,
                "elapsed_s": elapsed_s,
                **reward_means(collected, config, reply.statistics.scales),
                **adapt_entries(reply),
                "reward_calls": reward_calls,
                "policy_version": 0,
            }
            stop.agree(peers)
            if peers.is_main:
                folder.log(line)
                folder.label(base_rewards_of(config.seed, round, *collected))
            display.update(line)
            progress = Progress(round + 1, elapsed_s, reward_calls, reply.version)
            if stop.asked or progress.round % config.train.checkpoint_rounds == 0:
                folder.checkpoint(progress, probe.trainer)
                feedback.lease(reply.version)
            if (round + 1) % config.train.report_rounds == 0 and peers.is_main:
                write_report(folder.path)
            stop.raise_if_requested()
        folder.checkpoint(progress, probe.trainer)
        _final_steps(config, feedback, display, stop)
        status = connected.surrogates.status(run)
        body = connected.surrogates.weights_of(run, status.version)
        peers.all_gather(lambda: None)  # the first ends the services
    if not peers.is_main:
        return weights_path
    folder.keep_surrogate(body)
    summary: dict[str, Any] = {
        "run": config.name,
        "stage": "pretrain",
        "seed": config.seed,
        "rounds": progress.round,
        "surrogate": SURROGATE_FILE,
        "labels": BASE_REWARDS_FILE,
        "surrogate_version": status.version,
        "surrogate_steps": status.steps,
        "held_out_pair_accuracy": status.held_out_pair_accuracy,
        "held_out_groups": status.held_out_groups,
        "reward_calls": progress.reward_calls,
        "duration_s": time.monotonic() - started,
    }
    folder.finish(summary)
    write_report(folder.path)
    return weights_path


def _final_steps(config: RunSettings, feedback: FeedbackClient, display: RoundDisplay, stop: StopRequest) -> None:
    """Those after all rounds, in parts: a run that is stopped goes on from the last one."""
    wanted, started = config.pretrain.final_steps, time.monotonic()
    for done in range(0, wanted, FINAL_STEPS_PER_CALL):
        steps = min(FINAL_STEPS_PER_CALL, wanted - done)
        reply = feedback.adapt([], config.pretrain.rounds, steps, done)
        left_s = (time.monotonic() - started) / (done + steps) * (wanted - done - steps)
        figures = f"loss {reply.statistics.loss:.3f}  " if reply.statistics.loss is not None else ""
        display.note(f"final steps {done + steps}/{wanted}  {figures}about {clock(left_s)} left")
        stop.agree(feedback.peers)
        stop.raise_if_requested()


def _groups(
    model: GeneratorModel, config: RunSettings, probe: ProbeGenerator, round: int, prompts: list[Prompt], first: int
) -> list[Group]:
    beside, seed = probe.policy if probe.is_active(round) else None, (config.seed, "pretrain", round)
    return sample_groups(model, prompts, config.pretrain, *seed, base=True, beside=beside, first=first)
