"""Stage 2: improve the generator by a surrogate that keeps learning. `lasro train CONFIG.toml`.

A sample's way: `sampling` draws a group, `reward_client` posts it, the reward API scores it, the surrogate trainer
learns from it, `generator_trainer` follows the surrogate's gradient. `alternation` does one round, `folder` keeps its
state, and observers hear of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from lasro.config import RunSettings
from lasro.errors import BudgetError, RewardError
from lasro.methods.registry import create_trainer, method_of
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.training.distributed import DistributedContext, processes
from lasro.training.generator_trainer import GeneratorTrainer
from lasro_client.run.alternation import Alternation
from lasro_client.run.embed_ahead import EMPTY, embed_for_stage2
from lasro_client.run.first_round import check_budget, judge_first_round
from lasro_client.run.folder import RunFolder, Summary
from lasro_client.run.held_out import HeldOut
from lasro_client.run.held_trunk import held_trunk
from lasro_client.run.initial_adapter import start_from_adapter
from lasro_client.run.observer import Observer, Observers, RunInfo
from lasro_client.run.outcome import evaluated, keep_to_budget, measured, summarise
from lasro_client.run.pause import Pause
from lasro_client.run.reward_watch import RewardWatch, probe_with
from lasro_client.run.round_record import RoundRecord
from lasro_client.run.run_prompts import RunPrompts, read_run_prompts
from lasro_client.run.run_surrogate import NoSurrogate, TrainedSurrogate
from lasro_client.run.sharded import check_shard, shard_generator
from lasro_client.run.start_audit import StartAudit
from lasro_client.run.stop_signal import StopRequest
from lasro_client.run.stopped import stop_recorded
from lasro_client.run.tiny_vae_check import check_tiny_vae
from lasro_client.services.connect import Services, services, urls
from lasro_client.services.feedback import FeedbackClient
from lasro_client.services.in_process_trainer import InProcessTrainer, check_in_process


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
        check_shard(config, "train", peers.count)
        finished = peers.on_main_and_broadcast(folder.result, Summary | None)
        if finished is not None:
            return finished
        prompts = read_run_prompts(config, out, peers)
        notes = peers.on_main_and_broadcast(lambda: prompts.check(config), list[str])
        peers.on_main_and_broadcast(lambda: check_budget(folder), None)
        peers.on_main_and_broadcast(folder.open, None)
        observer = Observers(observers if peers.is_main else ())
        info = RunInfo(config.name, "train", out, config.budget.max_minutes)
        with observer.run(info), stop_recorded(out, peers.is_main, observer):
            for note in notes:
                observer.note(note)
            return _train(folder, prompts, peers, observer)


def _train(folder: RunFolder, prompts: RunPrompts, peers: DistributedContext, observer: Observers) -> Summary:
    started, config = time.monotonic(), folder.config
    check_in_process(config, peers, local=urls(config.services) is None)
    model = load_model(config.model, config.model.shard)
    embed_for_stage2(model, prompts, config, peers)
    trunk = held_trunk(config, model, lambda trunk: embed_for_stage2(trunk, prompts, config, peers))
    trainer = create_trainer(config, model, peers)
    start_from_adapter(folder, trainer)
    if config.model.shard:
        shard_generator(trainer, EMPTY)
    trainer_cores = (0.5 if config.train.overlap else 1.0) if trainer.method.needs_surrogate else 0.0
    scored, in_process = config.evaluation.rewards, None
    if config.services.in_process_trainer and trainer_cores:
        in_process = InProcessTrainer(model, config.surrogate_run)
    with services(config.services, config.rewards, folder.path, peers, trainer_cores, scored, in_process) as connected:
        alternation = _alternation(folder, trainer, trunk, connected, prompts)
        resumed_s = alternation.progress.elapsed_s
        drift_prompts = [] if prompts.drift is None else prompts.drift.prompts
        held_out = HeldOut(folder, model, prompts.held_out.prompts, drift_prompts, connected.rewards, observer)
        probe = probe_with(model, prompts.train.prompts, config.seed, connected.rewards, max(config.train.steps))
        watch = RewardWatch(config, probe, observer, peers, alternation.progress.round)
        watch.wait(held_out.rewards)
        peers.on_main_and_broadcast(lambda: check_budget(folder, connected.rewards), None)
        _begin(alternation, observer)
        before = evaluated(held_out.evaluate_base, held_out, watch)
        check = partial(check_tiny_vae, config, folder.path, model, prompts.train.prompts, connected.rewards, observer)
        peers.on_main_and_broadcast(check, None)
        units = peers.on_main_and_broadcast(lambda: list(held_out.base_images.units.values()), list[float | None])
        alternation.measure_by(dict(zip(config.train.steps, units, strict=True)))
        audit = StartAudit(config, folder.path, connected.rewards, observer, peers)
        with _shared_cores(config.train.overlap and connected.local and model.device.type == "cpu"):
            _run_rounds(alternation, held_out, watch, observer, judge_first_round(alternation, audit, before))
        watch.after_rounds(alternation.progress, folder)
        keep_to_budget(alternation, held_out, observer)
        surrogate = alternation.surrogate
        peers.on_main_and_broadcast(lambda: surrogate.save(folder, alternation.surrogate_version), None)
        measurements = measured(alternation, before, held_out, watch)
    duration_s = resumed_s + time.monotonic() - started - alternation.clock.paused_s
    summary = summarise(alternation, measurements, duration_s)
    if peers.is_main:
        folder.finish(summary)
        observer.folder_updated()
    return summary


def _alternation(
    folder: RunFolder,
    trainer: GeneratorTrainer,
    trunk: GeneratorModel | None,
    connected: Services,
    prompts: RunPrompts,
) -> Alternation:
    """The run's rounds, with a surrogate where the method follows one."""
    config = folder.config
    feedback = FeedbackClient(connected, config.name, config.services.timeout_s, trainer.peers)
    surrogate = (
        TrainedSurrogate(config, trainer.model, trunk, connected, feedback)
        if trainer.method.needs_surrogate
        else NoSurrogate(config.reward_objective, trainer.method.learns_from_rewards)
    )
    return Alternation(folder, trainer, feedback, surrogate, prompts.train.prompts)


def _begin(alternation: Alternation, observer: Observers) -> None:
    """With the surrogate of the checkpoint, or a new one."""
    surrogate, resumed = alternation.surrogate, alternation.progress.surrogate_version
    peers = alternation.feedback.peers
    alternation.begin(peers.on_main_and_broadcast(lambda: surrogate.open(resumed, observer), int))


def _without_ranking(config: RunSettings) -> RunSettings:
    """The same, where the method follows no surrogate, with a generator that waits for none."""
    if method_of(config).needs_surrogate:
        return config
    train = config.train.model_copy(update={"warmup_rounds": config.train.warmup_rounds or 0})
    return config.model_copy(update={"train": train})


def _run_rounds(
    alternation: Alternation,
    held_out: HeldOut,
    watch: RewardWatch,
    observer: Observers,
    judge: Callable[[RoundRecord], None],
) -> None:
    """All rounds that are left, then the adapter. A signal ends them early, with a checkpoint; so do `watch` and
    `judge`. A pause has a checkpoint too, whatever becomes of it."""
    config, folder, peers = alternation.config.train, alternation.folder, alternation.feedback.peers
    pause = Pause(folder.path, alternation.clock, peers, observer)

    def keep() -> None:
        alternation.checkpoint()
        folder.export(alternation.trainer)

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
                keep()
                observer.folder_updated()
                raise
            stop.agree(peers)
            pause.obey(stop, keep)
            done = alternation.progress.round
            if stop.asked or done % config.checkpoint_rounds == 0:
                keep()
            if stop.asked:
                observer.note(f"stopped after {done} rounds; the same command goes on from there")
                stop.raise_if_requested()
            if done % config.report_rounds == 0 and peers.is_main:
                held_out.draw_progress(alternation.trainer, done)
        if (taken_back := alternation.conclude()) is not None:
            observer.note(taken_back)
        keep()


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
