"""Calls every operation of both services by the clients that openapi-python-client made of their documents.

Run by the generator's own Python, with a folder that holds `reward_api`, `surrogate_trainer` and `inputs.json`.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
GIVEN = json.loads((FOLDER / "inputs.json").read_text())
PNG, LATENTS, GRADIENT = (GIVEN["files"][name] for name in ("png", "latents", "gradient"))


class Generated:
    """The client of one service; `call` gives what an operation answered, and fails where that is a refusal."""

    def __init__(self, package: str) -> None:
        self.package, self.called = package, set[str]()
        made = importlib.import_module(f"{package}.client")
        self.client = made.AuthenticatedClient(base_url=GIVEN["urls"][package], token=GIVEN["key"], timeout=120)
        self.stranger = made.Client(base_url=GIVEN["urls"][package])

    def model(self, name: str) -> Any:
        return getattr(importlib.import_module(f"{self.package}.models"), name)

    def file(self, content: str) -> Any:
        types = importlib.import_module(f"{self.package}.types")
        return types.File(payload=io.BytesIO(base64.b64decode(content)))

    def operation(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.api.{name}")

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        answer = self.operation(name).sync_detailed(*arguments, client=self.client, **options)
        assert answer.status_code < 300, (name, answer)
        assert answer.status_code == 204 or answer.parsed is not None, (name, answer)
        self.called.add(name)
        return answer.parsed

    def check_complete(self) -> None:
        api = importlib.import_module(f"{self.package}.api")
        found = {
            f"{tag.name}.{operation.name}"
            for tag in pkgutil.iter_modules(api.__path__)
            for operation in pkgutil.iter_modules([f"{api.__path__[0]}/{tag.name}"])
        }
        assert self.called == found, self.called ^ found


def call_reward_api() -> None:
    service = Generated("reward_api")
    live, ready = service.call("health.live"), service.call("health.is_ready")
    assert (live.status.value, ready.status.value) == ("live", "ready")
    spec = service.model("RewardSpec").from_dict(GIVEN["spec"])
    assert service.call("rewards.register_reward", body=spec).version == 1
    spec.repeats, spec.range_ = 2, [-1.0, 2.0]
    assert service.call("rewards.put_reward", spec.name, body=spec).version == 2
    assert service.call("rewards.get_reward", spec.name).range_ == [-1.0, 2.0]
    assert [one.name for one in service.call("rewards.list_rewards", limit=5).rewards] == [spec.name]
    assert service.call("rewards.probe_reward", spec.name).status.value == "ok"
    request = service.model("ScoreRequest")(prompts=["a"], images=[PNG], rewards=[spec.name])
    (item,) = service.call("scoring.score_images", body=request, x_request_timeout_s=60.0).items
    assert item.scores[spec.name].score == item.total == 0.5
    group = service.model("GroupSubmission").from_dict(
        {"group_id": "g", "round": 0, "index": 0, "prompt": "a", "policy_version": 0, "rewards": [spec.name]}
        | {"stages": [1, 2], "images": [PNG, PNG], "latents": LATENTS}
    )
    assert service.call("scoring.submit_group", "generated", body=group).group_id == "g"
    scored = service.call("scoring.get_group", "generated", "g", wait=30.0)
    assert [one.total for one in scored.items] == [0.5, 0.5]
    service.call("rewards.delete_reward", spec.name)
    missing = service.operation("rewards.get_reward").sync(spec.name, client=service.client)
    assert (missing.status, missing.type_) == (404, "urn:lasro:problem:not-found")
    refused = service.operation("rewards.list_rewards").sync(client=service.stranger)
    assert (refused.status, refused.type_) == (401, "urn:lasro:problem:not-authorised")
    service.check_complete()


def call_surrogate_trainer() -> None:
    service = Generated("surrogate_trainer")
    service.call("health.live")
    service.call("health.is_ready")
    config = service.model("SurrogateRun").from_dict(GIVEN["config"])
    assert service.call("runs.create_run", "generated", body=config).version == 0
    weights = service.call("training.get_newest_weights", "generated").payload.read()
    service.call("training.upload_weights", "generated", body=service.file(base64.b64encode(weights).decode()))
    request = service.model("AdaptRequest")(request_id="r", new_groups=[], steps=0)
    version = service.call("training.adapt_surrogate", "generated", body=request).version
    assert service.call("training.get_weights", "generated", version).payload.read()
    assert service.call("training.list_versions", "generated").versions[-1].version == version
    service.call("training.set_lease", "generated", body=service.model("Lease")(version=version))
    images = service.model("SurrogateScoreRequest")(prompts=["a"], images=[PNG])
    assert len(service.call("surrogate.score_samples", "generated", body=images).scores) == 1
    gradient = service.call("surrogate.compute_gradient", "generated", body=service.file(GRADIENT))
    assert b'"gradient"' in gradient.payload.read()
    assert [one.run for one in service.call("runs.list_runs").runs] == ["generated"]
    assert service.call("runs.get_run", "generated").version == version
    service.call("runs.delete_run", "generated")
    service.check_complete()


if __name__ == "__main__":
    call_reward_api()
    call_surrogate_trainer()
