"""Clients made of the OpenAPI documents, by a generator that is installed for it, call every operation."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from starlette.types import ASGIApp

from lasro import wire
from lasro.config import ModelSettings, SurrogateRun, SurrogateSettings
from lasro.images import png_bytes
from lasro.reward_sdk import create_reward_app, reward
from lasro_reward_api.app import create_app as create_reward_api
from lasro_reward_api.settings import RewardApiSettings
from lasro_surrogate_trainer.app import create_app as create_trainer
from lasro_surrogate_trainer.settings import TrainerEnvironment

# In an environment of its own: it wants an older typer than the command line does.
GENERATOR = "openapi-python-client==0.29.1"
CALLS = Path(__file__).parents[1] / "support" / "generated_client_calls.py"
KEY = "generated"
LATENT_SHAPE = (4, 8, 8)


@reward
def half(images: list, prompts: list[str], metadata: list) -> list[float]:
    return [0.5] * len(images)


@pytest.fixture(scope="module")
def urls(redis_url: str, serve: Callable[[ASGIApp], str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    given = {"redis_url": redis_url, "api_key": KEY}
    api = RewardApiSettings.model_validate(given | {"allowed_networks": "127.0.0.0/8"})
    trainer = TrainerEnvironment.model_validate(given | {"data_dir": tmp_path_factory.mktemp("runs")})
    return {
        "reward_api": serve(create_reward_api(api)),
        "surrogate_trainer": serve(create_trainer(trainer)),
        "reward": serve(create_reward_app(half)),
    }


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def inputs(urls: dict[str, str], model_path: Path) -> dict[str, object]:
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, *LATENT_SHAPE)).astype(np.float32)
    asked = {"latents": latents, "timesteps": np.array([3, 50]), "noise": latents}
    files = {
        "png": png_bytes(np.full((16, 16, 3), 90, np.uint8)),
        "latents": wire.pack_tensors({"latents": latents}),
        "gradient": wire.pack_tensors(asked, {"prompts": wire.pack_prompts(["a", "b"])}),
    }
    surrogate = SurrogateSettings(head_channels=16, device="cpu")
    config = SurrogateRun(model=ModelSettings(path=str(model_path)), surrogate=surrogate, weights={"half": 1.0})
    return {
        "urls": urls,
        "key": KEY,
        "files": {name: base64.b64encode(content).decode() for name, content in files.items()},
        "spec": {"name": "half", "url": urls["reward"], "protocol": "native"},
        "config": config.model_dump(mode="json", exclude_defaults=True),
    }


@pytest.mark.proof
def test_a_generated_client_calls_every_operation(urls: dict[str, str], tiny_model_path: Path, tmp_path: Path) -> None:
    """Bug: the generator left out operations whose bodies or answers it could not name, and gave others names of a
    line; what it made knew of no key."""
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    run(binaries / "pip", "install", "-q", GENERATOR, cwd=tmp_path)
    for name in ("reward_api", "surrogate_trainer"):
        document = httpx.get(f"{urls[name]}/openapi.json", trust_env=False)
        (tmp_path / f"{name}.json").write_bytes(document.content)
        options = ("--path", f"{name}.json", "--meta", "none", "--output-path", name)
        said = run(binaries / "openapi-python-client", "generate", *options, cwd=tmp_path)
        # The two kinds of body that each operation takes next to one that the generator knows.
        unknown = {line for line in said.splitlines() if line.startswith("Unsupported content type")}
        assert unknown <= {f"Unsupported content type {kind}" for kind in (wire.MSGPACK_TYPE, wire.SAFETENSORS_TYPE)}
        assert "will not be generated" not in said
        assert "Cannot parse response" not in said
    (tmp_path / "inputs.json").write_text(json.dumps(inputs(urls, tiny_model_path)))
    (tmp_path / "calls.py").write_bytes(CALLS.read_bytes())
    run(binaries / "python", tmp_path / "calls.py", tmp_path, cwd=tmp_path)
