"""Stage 2: improve the generator against a surrogate that is adapted online. `lasro train CONFIG.toml`.

A sample's way: `sampling` draws a group, `reward_client` posts it, the reward API scores it, the surrogate trainer
learns from it, `generator` ascends the surrogate's gradient; `rounds` and `run_folder` keep count.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from lasro.adapters import parameters_set
from lasro.backbone import TwoStepModel, load_model
from lasro.config import RunSettings
from lasro.errors import BudgetError
from lasro_client.connection import Services, open_surrogate, services
from lasro_client.drift import measure_drift
from lasro_client.evaluate import draw_both_stages, evaluate
from lasro_client.evaluation import Evaluation, load_evaluation, save_evaluation, summary_table
from lasro_client.files import png_bytes, write_atomically, write_json
from lasro_client.generator import GeneratorTrainer, StepStatistics
from lasro_client.labels import carry_over
from lasro_client.progress import RoundDisplay
from lasro_client.prompts import Prompt, read_prompts
from lasro_client.report import write_report
from lasro_client.rounds import Collector, adapt_entries, reward_means, stop_at_round_end
from lasro_client.run_folder import Progress, RunFolder
from lasro_client.sampling import draw_prompts, generator_for, sample_groups, two_step_latents
from lasro_client.score_sources import score_source

WATCHED_PROMPTS = 8


def train(config: RunSettings, out: Path, console: Console) -> dict[str, Any]:
    """Run or resume stage 2 in folder `out`; returns its summary. A finished run returns the one it has.

    Ctrl-C and SIGTERM end it after the round under way, with a checkpoint, as KeyboardInterrupt.
    """
    folder = RunFolder(out, config, "train")
    if (finished := folder.summary()) is not None:
        return finished
    prompts, held_out = read_prompts(config.prompts.train), read_prompts(config.prompts.held_out)
    held_out = held_out[: config.evaluation.prompts]
    model = load_model(config.model)
    trainer = GeneratorTrainer(model, config)
    progress = folder.start(trainer)
    started = time.monotonic() - progress.elapsed_s
    with services(config, folder.path) as connected, stop_at_round_end() as stop:
        version = open_surrogate(connected, config.name, config, config.train.initial_surrogate)
        source = score_source(config, config.name, model, connected.surrogates)
        source.refresh(version)
        collector = Collector(connected, config.name, config, progress.attempt)
        if progress.round == 0 and (accuracy := carry_over(model, config, collector)) is not None:
            console.print(
                f"stage 1's groups are in the replay; the surrogate ranks {accuracy:.1%} of their pairs right"
            )
        before = _evaluated(folder, "before", model, held_out, connected, console)
        with RoundDisplay(console, "stage 2", config.train.rounds, progress.round) as display:
            for round in range(progress.round, config.train.rounds):
                generator = generator_for(config.seed, "train prompts", round)
                chosen = draw_prompts(prompts, config.train.prompts_per_round, generator)
                beside = partial(two_step_latents, model, base=True) if trainer.version else None
                groups = sample_groups(model, chosen, config.train, config.seed, "train", round, beside=beside)
                try:
                    scored = collector.score(groups, round, trainer.version)
                except BudgetError as error:
                    console.print(f"{error}; the run ends after {round} rounds")
                    break
                reply = collector.adapt(scored, round, config.train.surrogate_steps)
                source.refresh(reply.version)
                steps: list[StepStatistics] = []
                if round >= config.train.warmup_rounds:
                    for _ in range(config.train.generator_steps):
                        batch = draw_prompts(prompts, config.train.batch_size, generator)
                        steps.append(trainer.step([prompt.text for prompt in batch], source))
                calls = scored[-1].reward_calls
                progress = Progress(round + 1, progress.attempt, time.monotonic() - started, calls)
                line = {
                    "stage": "train",
                    "round": round,
                    "rounds": config.train.rounds,
                    "elapsed_s": progress.elapsed_s,
                    **reward_means(groups, scored, config, reply.statistics.scales),
                    **_step_entries(steps),
                    **adapt_entries(reply, connected.surrogates.status(config.name).reward_gap),
                    "reward_calls": calls,
                    "policy_version": trainer.version,
                }
                folder.log(line)
                display.update(line)
                if stop.asked or progress.round % config.train.checkpoint_rounds == 0:
                    folder.checkpoint(progress, trainer)
                    folder.export(trainer)
                if stop.asked:
                    raise KeyboardInterrupt
                if progress.round % config.train.report_rounds == 0:
                    _show(folder, trainer, held_out, progress.round)
        folder.checkpoint(progress, trainer)
        folder.export(trainer)
        with parameters_set(trainer.parameters, trainer.average):
            after = _evaluated(folder, "after", model, held_out, connected, console)
            drift = _drift(folder, model)
    summary = {
        "run": config.name,
        "seed": config.seed,
        "rounds": progress.round,
        "prompts": len(held_out),
        "rewards": summary_table(before, after),
        "drift": drift,
        "reward_calls": progress.reward_calls,
        "duration_s": time.monotonic() - started,
        "adapter": "adapter",
    }
    folder.finish(summary)
    write_report(folder.path)
    return summary


def _step_entries(steps: list[StepStatistics]) -> dict[str, Any]:
    """The generator's entries of a log line, averaged over the round's steps; null in a warm-up round."""
    if not steps:
        return {
            "score": {"one_step": None, "two_step": None},
            "loss": None,
            "regulariser": None,
            "grad_norm": None,
        }
    mean = StepStatistics(*(sum(values) / len(steps) for values in zip(*steps, strict=True)))
    return {
        "score": {"one_step": mean.score_1, "two_step": mean.score_2},
        "loss": mean.loss,
        "regulariser": mean.regulariser,
        "grad_norm": mean.grad_norm,
    }


def _evaluated(
    folder: RunFolder, name: str, model: TwoStepModel, prompts: list[Prompt], connected: Services, console: Console
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


def _drift(folder: RunFolder, model: TwoStepModel) -> dict[str, Any] | None:
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
