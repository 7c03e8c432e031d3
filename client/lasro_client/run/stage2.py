"""Stage 2: improve the generator against a surrogate that is adapted online. `lasro train CONFIG.toml`.

A sample's way: `sampling` draws a group, `reward_client` posts it, the reward API scores it, the surrogate trainer
learns from it, `generator` ascends the surrogate's gradient; `fine_tuning` is the round, `run_folder` keeps count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lasro.config import RunSettings
from lasro.errors import BudgetError
from lasro.files import write_atomically, write_json
from lasro.images import png_bytes
from lasro.methods.registry import create_trainer
from lasro.models.base import GeneratorModel
from lasro.models.lora import parameters_set
from lasro.models.registry import load_model
from lasro.training.distributed import DistributedContext, processes
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.prompts import Prompt, read_prompts
from lasro_client.evaluation.drift import measure_drift
from lasro_client.evaluation.result import Evaluation, load_evaluation, save_evaluation, summary_table
from lasro_client.evaluation.score_prompts import draw_both_stages, evaluate
from lasro_client.report.page import write_report
from lasro_client.run.alternation import FineTuning
from lasro_client.run.base_sample_rewards import preload_replay
from lasro_client.run.divergence import told
from lasro_client.run.folder import SURROGATE_FILE, RunFolder
from lasro_client.run.stop_signal import StopRequest
from lasro_client.services.connect import Services, open_surrogate, services
from lasro_client.services.feedback import FeedbackClient
from lasro_client.services.surrogate_scores import score_source
from lasro_client.watch.prometheus import round_metrics
from lasro_client.watch.terminal import RoundDisplay

WATCHED_PROMPTS = 8


def train(config: RunSettings, out: Path, console: Console) -> dict[str, Any]:
    """Run or resume stage 2 in folder `out`; returns its summary. A finished run returns the one it has.

    Started several times by `accelerate launch`, the processes share the work of the one run.
    Ctrl-C and SIGTERM end it after the round under way, with a checkpoint, as KeyboardInterrupt and SystemExit.
    """
    with processes() as peers:
        return _train(config, out, console, peers)


def _train(config: RunSettings, out: Path, console: Console, peers: DistributedContext) -> dict[str, Any]:
    folder = peers.on_main_and_broadcast(lambda: RunFolder(out, config, "train"))
    if (finished := peers.on_main_and_broadcast(folder.summary)) is not None:
        return finished
    started = time.monotonic()
    prompts, held_out = read_prompts(config.prompts.train), read_prompts(config.prompts.held_out)
    held_out = held_out[: config.evaluation.prompts]
    model = load_model(config.model)
    trainer = create_trainer(config, model, peers)
    overlap = config.train.overlap
    with services(config, folder.path, peers, trainer_cores=0.5 if overlap else 1.0) as connected:
        source = score_source(config.train.mode, config.name, config.surrogate, model, connected.surrogates)
        tuning = FineTuning(
            folder, trainer, FeedbackClient(connected, config.name, config.services.timeout_s, peers), source, prompts
        )
        resumed_s = tuning.progress.elapsed_s
        tuning.begin(peers.on_main_and_broadcast(lambda: _opened(tuning, connected, console)))
        before = peers.on_main_and_broadcast(lambda: _evaluated(folder, "before", model, held_out, connected, console))
        with _cores_shared(overlap and connected.local and model.device.type == "cpu"):
            _run_rounds(tuning, held_out, console)
        peers.on_main_and_broadcast(lambda: _keep_surrogate(tuning, connected))
        with parameters_set(trainer.parameters, trainer.average):
            after = peers.on_main_and_broadcast(
                lambda: _evaluated(folder, "after", model, held_out, connected, console)
            )
            drift = peers.on_main_and_broadcast(lambda: _drift(folder, model))
    summary = {
        "run": config.name,
        "seed": config.seed,
        "rounds": tuning.progress.round,
        "ended": tuning.progress.ended,
        "prompts": len(held_out),
        "rewards": summary_table(before, after),
        "drift": drift,
        "reward_calls": tuning.progress.reward_calls,
        "duration_s": resumed_s + time.monotonic() - started,
        "adapter": "adapter",
        "surrogate": SURROGATE_FILE,
    }
    if peers.is_main:
        folder.finish(summary)
        write_report(folder.path)
    return summary


@contextmanager
def _cores_shared(shared: bool) -> Iterator[None]:
    """With a trainer that computes at the same time: threads of both on all cores would wait for one another."""
    threads = torch.get_num_threads()
    if shared:
        torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _opened(tuning: FineTuning, connected: Services, console: Console) -> int:
    """Create or join the run at the trainer, with what stage 1 left for it; returns the surrogate's version."""
    config, progress = tuning.config, tuning.progress
    initial, resumed = config.train.initial_surrogate, progress.surrogate_version
    version = open_surrogate(connected, config.name, config, initial, resumed)
    if progress.round == 0:
        feedback = FeedbackClient(connected, config.name, config.services.timeout_s)
        accuracy = preload_replay(tuning.trainer.model, config, feedback)
        if accuracy is not None:
            console.print(
                f"stage 1's groups are in the replay; the surrogate ranks {accuracy:.1%} of their pairs right"
            )
    return version


def _run_rounds(tuning: FineTuning, held_out: list[Prompt], console: Console) -> None:
    """All rounds that are left, then the adapter; a signal ends them early, with a checkpoint."""
    config, folder, peers, known = tuning.config.train, tuning.folder, tuning.feedback.peers, None
    minutes = tuning.config.budget.max_minutes
    with (
        StopRequest() as stop,
        round_metrics(tuning.config.name) if peers.is_main else nullcontext(lambda line: None) as observe,
        RoundDisplay(console, "stage 2", config.rounds, tuning.progress.round, minutes) as display,
    ):
        while not tuning.over:
            try:
                line = tuning.round()
            except BudgetError as error:
                console.print(f"{error}; the run ends after {tuning.progress.round} rounds")
                break
            stop.agree(peers)
            if peers.is_main:
                folder.log(line)
            observe(line)
            display.update(line)
            done = tuning.progress.round
            if line["action"] is not None or (line["trouble"] is not None and known is None):
                console.print(f"round {done}: {told(line)}", highlight=False, soft_wrap=True)
            known = line["trouble"]
            if stop.asked or done % config.checkpoint_rounds == 0:
                tuning.checkpoint()
                folder.export(tuning.trainer)
            if stop.asked:
                console.print(f"stopped after {done} rounds; the same command goes on from there", soft_wrap=True)
                stop.raise_if_requested()
            if done % config.report_rounds == 0 and peers.is_main:
                _show(folder, tuning.trainer, held_out, done)
        tuning.checkpoint()
        folder.export(tuning.trainer)


def _keep_surrogate(tuning: FineTuning, connected: Services) -> None:
    """For a later run to begin with."""
    weights = connected.surrogates.weights_of(tuning.config.name, tuning.surrogate_version)
    tuning.folder.keep_surrogate(weights)


def _evaluated(
    folder: RunFolder, name: str, model: GeneratorModel, prompts: list[Prompt], connected: Services, console: Console
) -> Evaluation:
    """The evaluation of that name: read back where the run has it, else made and written."""
    config, path = folder.config, folder.path / "evaluation" / f"{name}.json"
    if name == "before" and path.exists():
        return load_evaluation(path)
    rewards = list(dict.fromkeys([*config.weights, *config.evaluation.rewards]))
    with console.status(f"evaluating {name} on {len(prompts)} held-out prompts"):
        evaluation = evaluate(
            model,
            prompts,
            rewards,
            connected.rewards,
            config.evaluation.seed,
            folder.path / "evaluation" / name,
            base=name == "before",
        )
    save_evaluation(path, evaluation)
    write_report(folder.path)
    return evaluation


def _drift(folder: RunFolder, model: GeneratorModel) -> dict[str, Any] | None:
    config = folder.config
    if config.prompts.drift is None or config.evaluation.drift_prompts == 0:
        return None
    prompts = read_prompts(config.prompts.drift)[: config.evaluation.drift_prompts]
    drift = measure_drift(model, prompts, config.evaluation.seed, folder.path / "drift").as_dict()
    write_json(folder.path / "drift.json", drift)
    return drift


def _show(folder: RunFolder, trainer: GeneratorTrainer, held_out: list[Prompt], round: int) -> None:
    """Draw the watched prompts with the averaged weights, and rewrite the report."""
    prompts = [prompt.text for prompt in held_out[:WATCHED_PROMPTS]]
    seeds = range(folder.config.evaluation.seed, folder.config.evaluation.seed + len(prompts))
    with parameters_set(trainer.parameters, trainer.average):
        _, images = draw_both_stages(trainer.model, prompts, seeds)
    for index, image in enumerate(images):
        write_atomically(folder.path / "progress" / f"{round:05d}" / f"{index}.png", png_bytes(image))
    write_json(folder.path / "progress" / "prompts.json", prompts)
    write_report(folder.path)
