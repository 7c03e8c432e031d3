"""Best of N: what a reward's calls buy when an image is drawn, without any training.

Each prompt is drawn N times, every image is scored, and the one that the first reward likes best counts. The other
rewards say of the same image whether it is better by them too.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from lasro.models.base import GeneratorModel
from lasro.num_steps import ONE_AND_TWO, NumSteps
from lasro.training.prompts import Prompt
from lasro_client.evaluation.result import IMAGE_FOLDERS, Evaluation, PromptRewards
from lasro_client.evaluation.score_prompts import Progress, evaluate
from lasro_client.services.reward_client import RewardClient


def evaluate_best_of(
    count: int,
    model: GeneratorModel,
    prompts: Sequence[Prompt],
    rewards: Sequence[str],
    client: RewardClient,
    seed: int,
    folder: Path | None = None,
    progress: Progress | None = None,
    base: bool = False,
    steps: Sequence[NumSteps] = ONE_AND_TWO,
) -> Evaluation:
    """As `evaluate`, of the best of `count` images for each prompt and number of steps, by the first of `rewards`.

    Candidate j of prompt i is drawn with seed + i + j * len(prompts), so that the first is the image of `evaluate`. One
    that this reward did not score is not chosen while another was scored. Images of the chosen go to `folder`.
    """
    total, found = count * len(prompts), list[Evaluation]()
    with nullcontext() if folder is None else tempfile.TemporaryDirectory(prefix="lasro-") as drawn:
        for j in range(count):
            images = None if drawn is None else Path(drawn) / str(j)

            def advance(done: int, _: int, before: int = j * len(prompts)) -> None:
                if progress is not None:
                    progress(before + done, total)

            first_seed = seed + j * len(prompts)
            found.append(evaluate(model, prompts, rewards, client, first_seed, images, advance, base, steps))
        chosen: dict[NumSteps, list[int]] = {n: _best([each.rewards[rewards[0]][n] for each in found]) for n in steps}
        if folder is not None:
            _keep_images(Path(str(drawn)), folder, chosen)
    return _of_chosen(found, chosen)


def _best(scores: Sequence[Sequence[float | None]]) -> list[int]:
    """Which candidate each prompt's highest score is of; the first where none was scored."""
    return [
        max(range(len(of_prompt)), key=lambda j: (of_prompt[j] is not None, of_prompt[j] or 0.0, -j))
        for of_prompt in zip(*scores, strict=True)
    ]


def _keep_images(drawn: Path, folder: Path, chosen: dict[NumSteps, list[int]]) -> None:
    for num_steps, candidates in chosen.items():
        name = IMAGE_FOLDERS[num_steps]
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, j in enumerate(candidates):
            shutil.copyfile(drawn / str(j) / name / f"{i:05d}.png", folder / name / f"{i:05d}.png")


def _of_chosen(found: Sequence[Evaluation], chosen: dict[NumSteps, list[int]]) -> Evaluation:
    """The chosen candidates' scores; of those that are missing, the commonest reason."""
    scores: dict[str, PromptRewards] = {}
    failures, errors = dict[str, dict[str, int]](), dict[str, str]()
    for name in found[0].rewards:
        scores[name] = {
            n: [found[j].rewards[name][n][i] for i, j in enumerate(of_steps)] for n, of_steps in chosen.items()
        }
        failed = sum(value is None for values in scores[name].values() for value in values)
        told = [each for each in found if name in each.errors]
        if failed and told:
            reasons = sum((Counter(each.failures[name]) for each in told), Counter[str]())
            failures[name], errors[name] = {reasons.most_common(1)[0][0]: failed}, told[0].errors[name]
    return found[0].model_copy(update={"rewards": scores, "failures": failures, "errors": errors})
