"""`lasro runs` where the surrogate trainer holds the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from starlette.types import ASGIApp
from typer.testing import CliRunner

from lasro.config import ModelSettings, SurrogateRun, SurrogateSettings
from lasro.redis_store import keys
from lasro_client.cli.main import app
from lasro_client.services.surrogate_client import SurrogateClient
from lasro_surrogate_trainer.app import create_app
from lasro_surrogate_trainer.settings import TrainerEnvironment

RUN = "runs-commands"


def lasro(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["runs", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_removed_run_leaves_neither_weights_nor_keys(
    redis_url: str,
    redis_client: redis.Redis,
    serve: Callable[[ASGIApp], str],
    one_level_model_path: Path,
    tmp_path: Path,
) -> None:
    """Bug: `lasro runs rm` deletes the folder here, and the trainer keeps weights, stream and memory for ever."""
    data_dir, root = tmp_path / "trainer", tmp_path / "runs"
    url = serve(create_app(TrainerEnvironment.model_validate({"redis_url": redis_url, "data_dir": data_dir})))
    settings = SurrogateSettings(head_channels=16, device="cpu")
    config = SurrogateRun(
        model=ModelSettings(path=str(one_level_model_path)), surrogate=settings, weights={"mean": 1.0}
    )
    with SurrogateClient(url) as trainer:
        trainer.create(RUN, config)
        folder = root / "mine"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"name": RUN, "stage": "train"}))
        redis_client.sadd(keys.RUNS, RUN)
        services = ("--root", str(root), "--redis", redis_url, "--surrogate-trainer", url)
        assert [run["name"] for run in lasro("ls", *services)["runs"]] == ["mine"]
        removed = lasro("rm", "mine", "--yes", *services)
        assert removed["from"][:2] == [str(folder), url]
        assert trainer.runs() == []
        assert lasro("ls", *services) == {"runs": []}
    assert list((data_dir / "runs").iterdir()) == []
    assert redis_client.keys(f"*{RUN}*") == []
