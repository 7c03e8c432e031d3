"""The surrogate trainer as the client sees it.

with SurrogateClient(url) as trainer:
    trainer.create("demo", SurrogateRun(weights={"binding": 1.0}))
    trainer.adapt("demo", AdaptRequest(request_id="round-1", new_groups=ids, steps=4))
    scores_B, gradient_BCHW, version = trainer.gradient("demo", latents_BCHW, timesteps_B, noise_BCHW, prompts)

Every method may raise UnreachableError, TimeoutExceededError, AuthError, NotFoundError, and ServiceError for a
request that the trainer refused. Shape legend: B samples, CHW one latent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from lasro import wire
from lasro.config import SurrogateRun
from lasro.errors import LasroError, TimeoutExceededError, WireError
from lasro_client.services.http import ServiceClient, message, send
from lasro_client.services.retry import with_retry

RETRY_FOR_S = 30.0
"""How long a call is made again while the trainer is away or busy. A killed trainer is back in less."""


def _version(response: httpx.Response) -> int:
    tag = response.headers.get("etag", "").strip('"')
    if not tag.isdigit():
        raise WireError(f"ETag: got {tag[:40]!r}, expected the version of the weights")
    return int(tag)


class SurrogateClient(ServiceClient):
    """One trainer. `timeout_s` bounds each wait for an answer; not for use from several threads at once."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 300.0) -> None:
        super().__init__(url, api_key, timeout_s)

    def ready(self) -> bool:
        """Whether the trainer, its Redis and its models answer."""
        try:
            send(self._http, "GET", "/health/ready")
        except LasroError:
            return False
        return True

    def create(self, run: str, config: SurrogateRun) -> wire.RunStatus:
        """Create the run, or find it; raises ConflictError where it exists with other settings."""
        response = send(self._http, "PUT", f"/v1/runs/{run}", json=config.model_dump(mode="json"))
        return message(response, wire.RunStatus)

    def status(self, run: str) -> wire.RunStatus:
        return message(send(self._http, "GET", f"/v1/runs/{run}"), wire.RunStatus)

    def runs(self) -> list[wire.RunStatus]:
        """Every run of the trainer, by name."""
        return message(send(self._http, "GET", "/v1/runs"), wire.RunList).runs

    def delete(self, run: str) -> None:
        """Remove the run with its weights and its keys in Redis."""
        send(self._http, "DELETE", f"/v1/runs/{run}")

    def upload_weights(self, run: str, weights: bytes) -> wire.RunStatus:
        """Start an untrained run from safetensors weights; raises ConflictError once it is trained."""
        headers = {"Content-Type": wire.SAFETENSORS_TYPE}
        response = send(self._http, "PUT", f"/v1/runs/{run}/weights", content=weights, headers=headers)
        return message(response, wire.RunStatus)

    def adapt(self, run: str, request: wire.AdaptRequest) -> wire.AdaptReply:
        """Train once the named groups are there. Sent again, under the same id, while the trainer is away."""
        body, headers = request.model_dump_json().encode(), {"Content-Type": "application/json"}
        return message(
            self._send_with_retry("POST", f"/v1/runs/{run}/adapt", content=body, headers=headers), wire.AdaptReply
        )

    def weights(self, run: str, newer_than: int | None = None, wait_s: float = 0.0) -> tuple[int, bytes] | None:
        """The newest version and its safetensors.

        None where it is not newer than `newer_than` after `wait_s`, at most 300 s and less than the client's timeout.
        """
        headers = {} if newer_than is None else {"If-None-Match": f'"{newer_than}"'}
        params = {"wait": str(wait_s)} if wait_s else {}
        response = self._send_with_retry("GET", f"/v1/runs/{run}/weights", headers=headers, params=params)
        return None if response.status_code == 304 else (_version(response), response.content)

    def weights_of(self, run: str, version: int) -> bytes:
        """The safetensors of one version; raises NotFoundError once it is no longer kept."""
        return self._send_with_retry("GET", f"/v1/runs/{run}/weights/{version}").content

    def lease(self, run: str, version: int) -> wire.RunStatus:
        """Have this version and all later ones kept until the next lease; raises NotFoundError for one not kept."""
        body, headers = wire.Lease(version=version).model_dump_json().encode(), {"Content-Type": "application/json"}
        path = f"/v1/runs/{run}/lease"
        return message(self._send_with_retry("PUT", path, content=body, headers=headers), wire.RunStatus)

    def versions(self, run: str) -> list[wire.VersionInfo]:
        """What the trainer knows of each version, oldest first."""
        return message(self._send_with_retry("GET", f"/v1/runs/{run}/versions"), wire.VersionList).versions

    def gradient(
        self,
        run: str,
        latents_BCHW: np.ndarray,
        timesteps_B: np.ndarray,
        noise_BCHW: np.ndarray,
        prompts: Sequence[str],
        version: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Scores [B] float32, d score_b / d latents_b in the latents' dtype, and the version that gave them.

        `latents_BCHW`, `noise_BCHW` float16 or float32, `timesteps_B` int64; `version`: absent for the newest.
        """
        metadata = {"prompts": wire.pack_prompts(list(prompts))}
        if version is not None:
            metadata["version"] = str(version)
        tensors = {"latents": latents_BCHW, "timesteps": timesteps_B, "noise": noise_BCHW}
        response = self._post_tensors(f"/v1/runs/{run}/gradient", wire.pack_tensors(tensors, metadata))
        answer, _ = wire.unpack_tensors(response.content)
        scores_B, gradient_BCHW = answer.get("scores"), answer.get("gradient")
        if scores_B is None or gradient_BCHW is None:
            raise WireError(f"gradient reply: got {sorted(answer)}, expected scores and gradient")
        if scores_B.shape != (len(latents_BCHW),) or gradient_BCHW.shape != latents_BCHW.shape:
            raise WireError(
                f"gradient reply: got scores {list(scores_B.shape)} and gradient {list(gradient_BCHW.shape)}, "
                f"expected [{len(latents_BCHW)}] and {list(latents_BCHW.shape)}"
            )
        return scores_B, gradient_BCHW, _version(response)

    def score_latents(self, run: str, latents_BCHW: np.ndarray, prompts: Sequence[str]) -> wire.SurrogateScoreReply:
        """Scores of clean latents, float16 or float32, by the newest version."""
        body = wire.pack_tensors({"latents": latents_BCHW}, {"prompts": wire.pack_prompts(list(prompts))})
        return _complete(self._post_tensors(f"/v1/runs/{run}/score", body), len(prompts))

    def score_images(self, run: str, images: Sequence[bytes], prompts: Sequence[str]) -> wire.SurrogateScoreReply:
        """Scores of encoded images (PNG, JPEG, WebP) of the model's own size, by the newest version."""
        request = wire.SurrogateScoreRequest(prompts=list(prompts), images=list(images))
        body, headers = request.model_dump_json().encode(), {"Content-Type": "application/json"}
        path = f"/v1/runs/{run}/score"
        return _complete(self._send_with_retry("POST", path, content=body, headers=headers), len(prompts))

    def _send_with_retry(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request, again while the trainer is away or busy. It must be one that may be sent twice.

        An answer that does not come in time is not asked for again: the trainer may still be at work on it.
        """
        deadline = time.monotonic() + RETRY_FOR_S
        return with_retry(lambda: send(self._http, method, path, **options), deadline, final=(TimeoutExceededError,))

    def _post_tensors(self, path: str, body: bytes) -> httpx.Response:
        headers = {"Content-Type": wire.SAFETENSORS_TYPE}
        return self._send_with_retry("POST", path, content=body, headers=headers)


def _complete(response: httpx.Response, count: int) -> wire.SurrogateScoreReply:
    reply = message(response, wire.SurrogateScoreReply)
    if len(reply.scores) != count:
        raise WireError(f"score reply: got {len(reply.scores)} scores, expected one per prompt ({count})")
    return reply
