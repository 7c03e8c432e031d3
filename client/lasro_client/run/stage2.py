"""Stage 2: improve the generator by a surrogate that keeps learning. `lasro train CONFIG.toml`.

A sample's way: `sampling` draws a group, `reward_client` posts it, the reward API scores it, the surrogate trainer
learns from it, `generator_trainer` follows the surrogate's gradient. `alternation` does one round, `folder` keeps its
state, and observers hear of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lasro.config import RunSettings
from lasro.errors import BudgetError, RewardError
from lasro.methods.registry import create_trainer, method_of
from lasro.models.lora import parameters_set
from lasro.models.registry import load_model
from lasro.training.distributed import DistributedContext, processes
from lasro_client.evaluation.num_steps import ByNumSteps
from lasro_client.evaluation.result import Evaluation, summary_table
from lasro_client.run.alternation import Alternation
from lasro_client.run.fit_to_budget import fit_to_budget
from lasro_client.run.folder import SURROGATE_FILE, RunFolder, Summary
from lasro_client.run.held_out import HeldOut
from lasro_client.run.initial_adapter import start_from_adapter
from lasro_client.run.least_budget import check_calls, check_minutes, finds_out_itself
from lasro_client.run.observer import Observer, Observers, RunInfo
from lasro_client.run.reward_watch import RewardWatch, probe_with
from lasro_client.run.round_record import RoundRecord
from lasro_client.run.run_prompts import RunPrompts, read_run_prompts
from lasro_client.run.run_surrogate import NoSurrogate, TrainedSurrogate
from lasro_client.run.start_audit import StartAudit
from lasro_client.run.start_findings import read_audit
from lasro_client.run.stop_signal import StopRequest
from lasro_client.run.stopped import stop_recorded
from lasro_client.services.connect import services
from lasro_client.services.feedback import FeedbackClient
from lasro_client.services.reward_client import RewardClient


def train(config: RunSettings, out: Path, observers: Sequence[Observer] = ()) -> Summary:
    """Run or resume stage 2 in folder `out`; returns its summary. A finished run returns the one it has, unless the
    settings now ask for more rounds of it.

    Started several times by `accelerate launch`, the processes share the work of the one run, and the main one calls
    the observers. Ctrl-C and SIGTERM end the run after the current round with a checkpoint, as KeyboardInterrupt and
    SystemExit.
    """
    folder = RunFolder(out, _without_ranking(config), "train")
    with processes() as peers, folder.held(peers):
        config = folder.go_on_as_begun(peers)
        finished = peers.on_main_and_broadcast(folder.result, Summary | None)
        if finished is not None:
            return finished
        prompts = read_run_prompts(config)
        notes = peers.on_main_and_broadcast(lambda: prompts.check(config), list[str])
        peers.on_main_and_broadcast(lambda: _check_budget(folder), None)
        peers.on_main_and_broadcast(folder.open, None)
        observer = Observers(observers if peers.is_main else ())
        info = RunInfo(config.name, "train", out, config.budget.max_minutes)
        with observer.run(info), stop_recorded(out, peers.is_main, observer):
            for note in notes:
                observer.note(note)
            return _train(folder, prompts, peers, observer)


def _train(folder: RunFolder, prompts: RunPrompts, peers: DistributedContext, observer: Observers) -> Summary:
    started = time.monotonic()
    config = folder.config
    model = load_model(config.model)
    trainer = create_trainer(config, model, peers)
    start_from_adapter(folder, trainer)
    overlap = config.train.overlap
    needs_surrogate, cores = trainer.method.needs_surrogate, 0.5 if overlap else 1.0
    with services(
        config.services,
        config.rewards,
        folder.path,
        peers,
        trainer_cores=cores if needs_surrogate else 0.0,
        also_scored=config.evaluation.rewards,
    ) as connected:
        feedback = FeedbackClient(connected, config.name, config.services.timeout_s, peers)
        surrogate = (
            TrainedSurrogate(config, model, connected, feedback)
            if needs_surrogate
            else NoSurrogate(config.reward_objective.required_rewards)
        )
        alternation = Alternation(folder, trainer, feedback, surrogate, prompts.train.prompts)
        resumed_s = alternation.progress.elapsed_s
        drift_prompts = [] if prompts.drift is None else prompts.drift.prompts
        held_out = HeldOut(folder, model, prompts.held_out.prompts, drift_prompts, connected.rewards, observer)
        probe = probe_with(model, prompts.train.prompts, config.seed, connected.rewards)
        watch = RewardWatch(config, probe, observer, peers, alternation.progress.round)
        watch.wait(held_out.rewards)
        peers.on_main_and_broadcast(lambda: _check_budget(folder, connected.rewards), None)
        audit = StartAudit(config, folder.path, connected.rewards, observer, peers)
        if finds_out_itself(config) and alternation.progress.round == 0:
            alternation.sampler.on_scored = audit.see
        resumed = alternation.progress.surrogate_version
        alternation.begin(peers.on_main_and_broadcast(lambda: surrogate.open(resumed, observer), int))
        before = _evaluated(held_out.evaluate_base, held_out, watch)
        units = peers.on_main_and_broadcast(lambda: list(held_out.base_images.units.values()), list[float | None])
        alternation.measure_by(ByNumSteps(*units))
        with _shared_cores(overlap and connected.local and model.device.type == "cpu"):
            _run_rounds(alternation, held_out, watch, observer, _judge_first_round(alternation, audit, before))
        watch.after_rounds(alternation.progress, folder)
        _keep_to_budget(alternation, held_out, observer)
        peers.on_main_and_broadcast(lambda: surrogate.save(folder, alternation.surrogate_version), None)
        with parameters_set(trainer.parameters, trainer.average):
            after = _evaluated(held_out.evaluate_adapted, held_out, watch)
            drifts = peers.on_main_and_broadcast(lambda: _drifts(held_out), dict[str, Any])
    duration_s = resumed_s + time.monotonic() - started
    summary = _summarise(alternation, before, after, drifts, duration_s)
    if peers.is_main:
        folder.finish(summary)
        observer.folder_updated()
    return summary


def _without_ranking(config: RunSettings) -> RunSettings:
    """The same, where the method follows no surrogate, with a generator that waits for none."""
    if method_of(config).needs_surrogate:
        return config
    train = config.train.model_copy(update={"warmup_rounds": config.train.warmup_rounds or 0})
    return config.model_copy(update={"train": train})


def _keep_to_budget(alternation: Alternation, held_out: HeldOut, observer: Observers) -> None:
    """Export the averaged adapter, scaled down where it is beyond the drift budget.

    Where the weights of a run from nothing stand at the budget, their average is a little behind: it is scaled up.
    """
    trainer, budget = alternation.trainer, alternation.config.train.drift_budget
    if budget is not None:
        factor = trainer.peers.on_main_and_broadcast(
            lambda: fit_to_budget(trainer, held_out.base_images, budget, alternation.most_scale), float
        )
        trainer.average = trainer.scaled_average(factor)
        if factor != 1:
            observer.note(f"the averaged adapter is scaled by {factor:.2f}, to train.drift_budget = {budget:g}")
    alternation.folder.export(trainer)


def _evaluated(measure: Callable[[], Evaluation], held_out: HeldOut, watch: RewardWatch) -> Evaluation:
    """What `measure` finds; it is taken again where a reward scored nothing, once that answers. Raises RewardError."""
    try:
        return watch.peers.on_main_and_broadcast(measure, Evaluation)
    except RewardError:
        watch.wait(held_out.rewards)
        return watch.peers.on_main_and_broadcast(measure, Evaluation)


def _drifts(held_out: HeldOut) -> dict[str, Any]:
    """The keys of summary.json that say how far the model moved: on other prompts, and on the held-out ones."""
    return {"drift": held_out.measure_drift(), "held_out_drift": held_out.measure_held_out_drift()}


def _check_budget(folder: RunFolder, client: RewardClient | None = None) -> None:
    """Refuse a new run whose reward calls lead nowhere, by its settings or, once there is a client, by what is
    registered. Raises BudgetError."""
    if not folder.has_checkpoint:
        rewards = folder.config.rewards
        check_calls(
            folder.config,
            {each.name: each.repeats or 1 if client is None else client.reward(each.name).repeats for each in rewards},
        )


def _judge_first_round(
    alternation: Alternation, audit: StartAudit, before: Evaluation
) -> Callable[[RoundRecord], None]:
    """To be made when the rounds begin and called after each: ends a run that by its first leads nowhere.

    Raises BudgetError where its minutes are too few; it can be resumed with more.
    """
    started = time.monotonic()
    peers, config = alternation.feedback.peers, alternation.config

    def judge(record: RoundRecord) -> None:
        if alternation.sampler.on_scored is None:
            return
        round_s, alternation.sampler.on_scored = time.monotonic() - started, None
        why = audit.after_first_round(record, before)
        if why is not None:
            alternation.give_up(why)
        else:
            peers.on_main_and_broadcast(lambda: check_minutes(config, record.elapsed_s, round_s), None)

    return judge


def _run_rounds(
    alternation: Alternation,
    held_out: HeldOut,
    watch: RewardWatch,
    observer: Observers,
    judge: Callable[[RoundRecord], None],
) -> None:
    """All rounds that are left, then the adapter. A signal ends them early, with a checkpoint; so do `watch` and
    `judge`."""
    config, folder, peers = alternation.config.train, alternation.folder, alternation.feedback.peers
    with StopRequest() as stop, observer.rounds(alternation.num_rounds, alternation.progress.round):
        while not alternation.over:
            try:
                record = alternation.round()
            except BudgetError as error:
                observer.note(f"{error}; the run ends after {alternation.progress.round} rounds")
                break
            if peers.is_main:
                folder.log(record)
            observer.round_done(record)
            try:
                watch.after_round(record, lambda: stop.asked)
                judge(record)
            except RewardError:
                alternation.checkpoint()
                folder.export(alternation.trainer)
                observer.folder_updated()
                raise
            stop.agree(peers)
            done = alternation.progress.round
            if stop.asked or done % config.checkpoint_rounds == 0:
                alternation.checkpoint()
                folder.export(alternation.trainer)
            if stop.asked:
                observer.note(f"stopped after {done} rounds; the same command goes on from there")
                stop.raise_if_requested()
            if done % config.report_rounds == 0 and peers.is_main:
                held_out.draw_progress(alternation.trainer, done)
        if (taken_back := alternation.conclude()) is not None:
            observer.note(taken_back)
        alternation.checkpoint()
        folder.export(alternation.trainer)


@contextmanager
def _shared_cores(shared: bool) -> Iterator[None]:
    """Leave half of the cores to a trainer that computes at the same time: threads would wait for one another."""
    threads = torch.get_num_threads()
    if shared:
        torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _summarise(
    alternation: Alternation, before: Evaluation, after: Evaluation, drifts: dict[str, Any], duration_s: float
) -> Summary:
    """The contents of summary.json."""
    config, progress = alternation.config, alternation.progress
    return {
        "run": config.name,
        "seed": config.seed,
        "rounds": progress.round,
        "ended": progress.ended,
        "nothing_learned": progress.nothing_learned,
        "audit": read_audit(alternation.folder.path) if config.train.is_from_nothing else None,
        "prompts": len(before.prompts),
        "rewards": summary_table(before, after),
        **drifts,
        "reward_calls": progress.reward_calls,
        "duration_s": duration_s,
        "timesteps": config.train.timesteps and list(config.train.timesteps),
        "adapter": "adapter",
        "surrogate": SURROGATE_FILE if alternation.surrogate.source is not None else None,
    }
