"""Evaluation from the command line: a model compared with its base, by rewards registered elsewhere or served here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lasro.config import ModelSettings, RewardSettings
from lasro.errors import ConfigError, RewardError
from lasro.models.adapter import AdapterKeys
from lasro.num_steps import ONE_AND_TWO, NumSteps
from lasro.training.prompts import Prompt
from lasro.validation import explain
from lasro_client.evaluation.adapted_model import load_adapted
from lasro_client.evaluation.best_of import evaluate_best_of
from lasro_client.evaluation.num_steps import by_name
from lasro_client.evaluation.paired_statistics import estimate
from lasro_client.evaluation.result import Evaluation, save_evaluation, summary_table
from lasro_client.evaluation.score_prompts import Progress, evaluate
from lasro_client.services.local_stack import BUILT_IN_REWARDS, LocalStack
from lasro_client.services.reward_client import RewardClient

Table = dict[str, dict[str, Any]]
BEST_OF = "best_of"


class Comparison(NamedTuple):
    """Rewards of base and adapted model, and how much of the adapter was loaded; None without one."""

    table: Table
    adapter_keys: AdapterKeys | None


def evaluate_beside_base(
    settings: ModelSettings,
    adapter: Path | None,
    prompts: Sequence[Prompt],
    rewards: Sequence[str],
    client: RewardClient,
    seed: int,
    out: Path | None,
    progress: Progress,
    partial: bool = False,
    steps: Sequence[NumSteps] = ONE_AND_TWO,
    best_of: int = 1,
) -> Comparison:
    """Reward -> `one_step`, `two_step`, ... -> `base` (mean, sem), `n`, `failed`; of each of `steps`.

    With an adapter also `adapted` and `difference`, which is paired: same prompts, same seeds. With `out`, images and
    scores are kept in its folders `base` and `adapted`. `partial` is that of `GeneratorModel.load_lora`.

    With `best_of` above 1 both are the best of so many images, by the first reward; without an adapter `base` stays a
    single image and `best_of` stands beside it. Raises ModelError and PromptTooLongError before anything is drawn,
    RewardError when a reward scored nothing at all.
    """
    model, keys = load_adapted(settings, adapter, partial)
    model.check_prompts([prompt.text for prompt in prompts])
    model.embed_ahead([prompt.text for prompt in prompts])
    found, beside = [], "adapted" if adapter is not None else BEST_OF if best_of > 1 else None
    for name in ("base",) if beside is None else ("base", beside):
        folder = None if out is None else out / name
        count = 1 if beside == BEST_OF and name == "base" else best_of
        what = model, prompts, rewards, client, seed, folder, progress, name != "adapted", steps
        found.append(evaluate(*what) if count == 1 else evaluate_best_of(count, *what))
        found[-1].check_scored()
        if folder is not None:
            save_evaluation(folder / "evaluation.json", found[-1])
    table = _alone(found[0]) if beside is None else _paired(found[0], found[1], beside)
    for name, rows in table.items():
        if all(row["n"] == 0 for row in rows.values()):
            raise RewardError(f"{name}: scored no prompt of the {len(prompts)} both times, so there is no difference")
    return Comparison(table, keys)


def _alone(found: Evaluation) -> Table:
    table: Table = {}
    for name, scores in found.rewards.items():
        estimates = {key: estimate(values) for key, values in by_name(scores).items()}
        table[name] = {key: {"base": one.as_dict(), "n": one.n, "failed": one.failed} for key, one in estimates.items()}
    return table


def _paired(base: Evaluation, other: Evaluation, name_of_other: str) -> Table:
    names = {"before": "base", "after": name_of_other}
    return {
        name: {steps: {names.get(key, key): value for key, value in row.items()} for steps, row in rows.items()}
        for name, rows in summary_table(base, other).items()
    }


@contextmanager
def reward_service(
    rewards: Sequence[str],
    url: str | None,
    api_key: str | None,
    known: Sequence[RewardSettings] = (),
    timeout_s: float = 60.0,
) -> Iterator[tuple[RewardClient, list[str]]]:
    """A client and the names to ask for.

    Without `url` the rewards are served here: names of `known` ones that say how, built-in names, or NAME=TARGET.
    """
    if url is not None:
        if served := [reward for reward in rewards if "=" in reward]:
            raise ConfigError(f"reward {served[0]}: expected a name registered at {url}; see `lasro rewards serve`")
        with RewardClient(url, api_key, timeout_s) as client:
            yield client, list(rewards)
        return
    wanted = [reward_to_serve(reward, known) for reward in rewards]
    with (
        tempfile.TemporaryDirectory(prefix="lasro-") as folder,
        LocalStack(Path(folder), wanted, trainer=False) as stack,
        RewardClient(stack.reward_api, api_key, timeout_s, stack.registered) as client,
    ):
        yield client, [reward.name for reward in wanted]


def reward_to_serve(reward: str, known: Sequence[RewardSettings] = ()) -> RewardSettings:
    """Of NAME=TARGET, or of the name of a built-in or `known` reward that says how it is served.

    Raises ConfigError for anything else.
    """
    servable = {each.name: each for each in (*BUILT_IN_REWARDS, *known) if each.serve is not None}
    name, equals, target = reward.partition("=")
    if equals:
        try:
            return RewardSettings.model_validate({"name": name, "serve": target})
        except ValidationError as error:
            raise ConfigError(f"reward {reward}: {explain(error, RewardSettings)}") from error
    if name not in servable:
        raise ConfigError(
            f"reward {name}: got no --reward-api, and nothing to serve under that name; expected one of "
            f"{sorted(servable)} or NAME=module:function"
        )
    return servable[name]
