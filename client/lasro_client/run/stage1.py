"""Stage 1: the surrogate learns to rank samples of the base model. `lasro pretrain CONFIG.toml`.

Samples and rewards go through the same services as in stage 2. The run leaves the trained weights in
`surrogate.safetensors` and the rewards in `base_rewards.jsonl`, which `train.initial_surrogate` and
`train.initial_base_rewards` of a stage-2 run name. Samples that earlier runs kept (`pretrain.initial_samples`) go
into the replay first; with `pretrain.rounds = 0` they are all there is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from lasro.config import RunSettings
from lasro.errors import BudgetError, ConfigError, RewardError
from lasro.methods.registry import create_trainer
from lasro.models.backbone import with_latents
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.training.distributed import DistributedContext, processes
from lasro.training.prompts import Prompt
from lasro.training.sampling import Group, draw_prompts, generator_for
from lasro.wire import RunStatus
from lasro_client.run.base_sample_rewards import BASE_REWARDS_FILE, base_rewards_of
from lasro_client.run.collect import collect
from lasro_client.run.embed_ahead import embed_for_stage1
from lasro_client.run.folder import SURROGATE_FILE, RunFolder, Summary
from lasro_client.run.held_trunk import held_trunk
from lasro_client.run.observer import Observer, Observers, RunInfo
from lasro_client.run.pause import Pause
from lasro_client.run.probe_generator import ProbeGenerator
from lasro_client.run.progress import Progress
from lasro_client.run.reward_watch import RewardWatch, probe_with
from lasro_client.run.round_means import record_rewards, record_surrogate
from lasro_client.run.round_record import RoundRecord
from lasro_client.run.run_prompts import read_run_prompts
from lasro_client.run.saved_samples import preload_samples
from lasro_client.run.sharded import check_shard
from lasro_client.run.stop_signal import StopRequest
from lasro_client.run.stopped import stop_recorded
from lasro_client.run.submission import RoundHeader
from lasro_client.run.time_budget import TimeBudget
from lasro_client.run.versions import installed_versions
from lasro_client.services.connect import Services, open_surrogate, services, urls
from lasro_client.services.feedback import FeedbackClient
from lasro_client.services.in_process_trainer import InProcessTrainer, check_in_process
from lasro_client.services.surrogate_scores import score_source

FINAL_STEPS_PER_CALL = 50


def pretrain(config: RunSettings, out: Path, observers: Sequence[Observer] = ()) -> Path:
    """Run or resume stage 1 in folder `out`; returns the file with the trained surrogate.

    A spent budget ends the rounds early; final steps and files follow as usual. Of several processes the main one
    calls the observers. A finished run is left as it is, unless the settings now ask for more rounds of it.
    """
    folder = RunFolder(out, config, "pretrain")
    with processes() as peers, folder.held(peers):
        config = folder.go_on_as_begun(peers)
        check_shard(config, "pretrain", peers.count)
        if peers.on_main_and_broadcast(folder.result, Summary | None) is None:
            prompts = read_run_prompts(config, out, peers)
            notes = peers.on_main_and_broadcast(lambda: prompts.check(config), list[str])
            peers.on_main_and_broadcast(folder.open, None)
            observer = Observers(observers if peers.is_main else ())
            info = RunInfo(config.name, "pretrain", out, config.budget.max_minutes)
            with observer.run(info), stop_recorded(out, peers.is_main, observer):
                for note in notes:
                    observer.note(note)
                _pretrain(folder, prompts.train.prompts, peers, observer)
        return folder.path / SURROGATE_FILE


def _pretrain(folder: RunFolder, prompts: list[Prompt], peers: DistributedContext, observer: Observers) -> None:
    config = folder.config
    check_in_process(config, peers, local=urls(config.services) is None)
    model = load_model(config.model)
    embed_for_stage1(model, prompts, config, peers)
    trunk = held_trunk(config, model, lambda trunk: embed_for_stage1(trunk, prompts, config, peers))
    trainer = create_trainer(config, model, peers)
    probe = ProbeGenerator(trainer, config.pretrain, config.train.batch_size)
    if not trainer.method.needs_surrogate:
        raise ConfigError(f"method.type: got {config.method.type}, which needs no surrogate; run stage 2 at once")
    progress, _ = folder.start(probe.trainer)
    budget = TimeBudget(config.budget.max_minutes, progress.elapsed_s, peers)
    in_process = InProcessTrainer(model, config.surrogate_run) if config.services.in_process_trainer else None
    with services(config.services, config.rewards, folder.path, peers, in_process=in_process) as connected:
        ask = probe_with(trainer.model, prompts, config.seed, connected.rewards, max(config.train.steps))
        watch = RewardWatch(config, ask, observer, peers, progress.round)
        if progress.round < config.pretrain.rounds:
            watch.wait(list(config.weights))
        with observer.rounds(config.pretrain.rounds, progress.round), StopRequest() as stop:
            pretraining = Pretraining(folder, probe, trunk, connected, prompts, progress, budget, observer)
            pretraining.begin()
            pretraining.run_rounds(stop, watch)
            if config.pretrain.rounds:
                watch.after_rounds(pretraining.progress, folder)
            pretraining.final_steps(stop)
        status = connected.surrogates.status(pretraining.run)
        weights = connected.surrogates.weights_of(pretraining.run, status.version)
        peers.all_gather(lambda: None, None)  # the main process ends the services
    if peers.is_main:
        folder.keep_surrogate(weights)
        folder.finish(_summarise(config, pretraining.progress, status, budget.elapsed_s))
        observer.folder_updated()


class Pretraining:
    """The rounds of stage 1; `progress` says how far they are."""

    def __init__(
        self,
        folder: RunFolder,
        probe: ProbeGenerator,
        trunk: GeneratorModel | None,
        connected: Services,
        prompts: list[Prompt],
        progress: Progress,
        budget: TimeBudget,
        observer: Observers,
    ) -> None:
        self.folder, self.config, self.prompts = folder, folder.config, prompts
        self.probe, self.progress, self.observer = probe, progress, observer
        self.run = f"{self.config.name}-pretrain"
        self._budget, self._connected, self._peers = budget, connected, probe.trainer.peers
        self._pause = Pause(folder.path, budget, self._peers, observer)
        self._source = score_source(self.run, self.config.surrogate, trunk, connected.surrogates)
        self._feedback = FeedbackClient(connected, self.run, self.config.services.timeout_s, self._peers)

    def begin(self) -> None:
        """Create or join the run at the trainer. A new one gets the samples of earlier runs and a checkpoint."""
        config, resumed = self.config.pretrain, self.progress.surrogate_version
        described = with_latents(self.config.surrogate_run, self.probe.trainer.model)
        version = self._peers.on_main_and_broadcast(
            lambda: open_surrogate(self._connected, self.run, described, config.initial_surrogate, resumed), int
        )
        if resumed is None:
            if config.initial_samples:
                self._peers.on_main_and_broadcast(self._preload, None)
            self.progress = Progress(surrogate_version=version)
            self.folder.checkpoint(self.progress, self.probe.trainer)

    def _preload(self) -> None:
        runs = len(self.config.pretrain.initial_samples)
        self.observer.activity(f"samples of {runs} earlier runs go into the replay")
        feedback = FeedbackClient(self._connected, self.run, self.config.services.timeout_s)
        groups = preload_samples(self.config.pretrain.initial_samples, list(self.config.weights), feedback)
        self.observer.activity(f"{groups} groups of earlier runs are in the replay")

    def run_rounds(self, stop: StopRequest, watch: RewardWatch) -> None:
        """All rounds that are left. A signal ends them early, with a checkpoint, and so does what `watch` raises."""
        config, trainer = self.config.train, self.probe.trainer
        while self.progress.round < self.config.pretrain.rounds:
            try:
                record = self.round()
            except BudgetError as error:
                self.observer.note(f"{error}; stage 1 ends after {self.progress.round} rounds")
                break
            self.observer.round_done(record)
            try:
                watch.after_round(record, lambda: stop.asked)
            except RewardError:
                self.folder.checkpoint(self.progress, trainer)
                self.observer.folder_updated()
                raise
            stop.agree(self._peers)
            self._pause.obey(stop, self._keep)
            done = self.progress.round
            if stop.asked or done % config.checkpoint_rounds == 0:
                self._keep()
            if done % config.report_rounds == 0:
                self.observer.folder_updated()
            stop.raise_if_requested()
        self.folder.checkpoint(self.progress, trainer)

    def _keep(self) -> None:
        version = self.progress.surrogate_version
        assert version is not None, "begin() comes first"
        self.folder.checkpoint(self.progress, self.probe.trainer)
        self._feedback.lease(version)

    def round(self) -> RoundRecord:
        """Do and log the next round. Raises BudgetError where it may not be done; it then does not count."""
        config, settings, round = self.config, self.config.pretrain, self.progress.round
        draws = generator_for(config.seed, "pretrain prompts", round)
        chosen = draw_prompts(self.prompts, settings.prompts_per_round, draws)
        self._budget.check()
        keep = self.folder.path if settings.keep_samples else None
        header = RoundHeader(round, 0, list(config.weights), config.budget.max_reward_calls)
        collected = collect(self._feedback, chosen, self._sample, header, keep)
        reply = self._feedback.adapt(collected.scored, round, settings.steps_per_round)
        self._source.refresh(reply.version)
        unranked = collected.is_unranked(reply)
        self.probe.update(round, self.prompts, draws, self._source, unranked)
        self.progress = Progress(
            round=round + 1,
            elapsed_s=self._budget.elapsed_s,
            reward_calls=collected.reward_calls,
            surrogate_version=reply.version,
            unranked=self.progress.unranked + 1 if unranked else 0,
        )
        record = RoundRecord(
            stage="pretrain",
            round=round,
            num_rounds=settings.rounds,
            elapsed_s=self.progress.elapsed_s,
            rewards=record_rewards(collected, config.reward_objective, reply.statistics.scales),
            surrogate=record_surrogate(reply),
            reward_calls=self.progress.reward_calls,
            unranked_rounds=self.progress.unranked,
        )
        if self._peers.is_main:
            self.folder.log(record)
            self.folder.add_base_rewards(
                base_rewards_of(config.seed, round, *collected, config.train.timesteps, config.train.steps)
            )
        return record

    def _sample(self, prompts: list[Prompt], first: int) -> list[Group]:
        round = self.progress.round
        return self.probe.sample_groups(round, prompts, self.config.seed, "pretrain", round, first=first)

    def final_steps(self, stop: StopRequest) -> None:
        """`pretrain.final_steps` surrogate steps, a few per request: a stopped run goes on from the last request.

        Requests are named by the rounds that are done, so that a run which gets more rounds takes new steps after them.
        """
        wanted, started = self.config.pretrain.final_steps, time.monotonic()
        for done in range(0, wanted, FINAL_STEPS_PER_CALL):
            steps = min(FINAL_STEPS_PER_CALL, wanted - done)
            reply = self._feedback.adapt([], self.progress.round, steps, done)
            left_s = (time.monotonic() - started) / (done + steps) * (wanted - done - steps)
            loss = "" if reply.statistics.loss is None else f"  loss {reply.statistics.loss:.3f}"
            self.observer.activity(f"final steps {done + steps}/{wanted}{loss}", left_s)
            stop.agree(self._peers)
            self._pause.obey(stop)
            stop.raise_if_requested()


def _summarise(config: RunSettings, progress: Progress, status: RunStatus, duration_s: float) -> Summary:
    """The contents of summary.json."""
    return {
        "run": config.name,
        "stage": "pretrain",
        "seed": config.seed,
        "rounds": progress.round,
        "surrogate": SURROGATE_FILE,
        "base_rewards": BASE_REWARDS_FILE,
        "timesteps": config.train.timesteps and list(config.train.timesteps),
        "surrogate_version": status.version,
        "surrogate_steps": status.steps,
        "held_out_pair_accuracy": status.held_out_pair_accuracy,
        "held_out_groups": status.held_out_groups,
        "reward_calls": progress.reward_calls,
        "duration_s": duration_s,
        "versions": installed_versions(),
    }
