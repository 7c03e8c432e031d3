"""A reward server that speaks pickle, as a reward: `lasro rewards bridge URL` runs this in a process of its own.

Written from the clients and servers of
    flow_grpo/rewards.py                                    yifan123/flow_grpo 54809b5fcf4d3930d2a17fa553928704bd0b719e
    app_deqa.py, app_geneval.py                         yifan123/reward-server 7131478821a32716b53e9513ff8f34aef0aad303
    verl_omni/utils/reward_score/http_scorer_client.py  verl-project/verl-omni 0ef63e57e2af137519e24aeb375b9717dd018826
A request is a pickled dict of which each server takes what it knows: `images` (JPEG bytes), `prompts` (strings),
`meta_datas` (GenEval's dicts), `only_strict` (False) and `metadata` ({}).

The answer is a pickled dict with a list or numpy array under `scores` (GenEval, PickScore, HPSv3) or `outputs` (DeQA,
UnifiedReward), or {"error": text}. It is read without running it, see plain_pickle.py.
"""

from __future__ import annotations

import io
import pickle
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

import httpx
from PIL import Image
from pydantic import Field, JsonValue

from lasro.errors import ConfigError, RewardError, TimeoutExceededError, UnreachableError, WireError
from lasro.reward_sdk import Reward, RewardEnvironment, serve_reward
from lasro.service.error_text import error_of_body, error_of_json
from lasro_rewards.pickled_arrays import PlainArray
from lasro_rewards.plain_pickle import read_plain_pickle

SCORE_KEYS = ("scores", "outputs")
JPEG_QUALITY = 95
PROTOCOL = 4
"""Of the pickles that are sent; known since Python 3.4."""
LONGEST_REASON = 300


class BridgeEnvironment(RewardEnvironment):
    """Settings of a bridge."""

    bridge_url: str
    """Where the pickle server answers."""
    bridge_images: Literal["jpeg", "png"] = "jpeg"
    """What images are sent as: many of these servers open nothing but JPEG. PNG loses nothing."""
    bridge_scores: str | None = None
    """Key of the scores in the answer; absent: `scores`, or `outputs`."""
    bridge_send: dict[str, JsonValue] = Field(default_factory=dict)
    """More of the request, such as {"only_strict": true}."""
    bridge_timeout_s: float = Field(120.0, gt=0, le=3600)
    """For one call of the pickle server."""
    bridge_max_reply_bytes: int = Field(16 << 20, ge=1024)
    """Largest answer that is read."""


class PickleServer:
    """Calls a pickle server, one call at a time."""

    def __init__(self, settings: BridgeEnvironment) -> None:
        self._settings = settings
        self._client = httpx.Client(timeout=settings.bridge_timeout_s, trust_env=False)
        try:
            self._url = httpx.URL(settings.bridge_url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"got {settings.bridge_url[:80]!r}, expected http(s)://HOST[:PORT]/PATH") from error
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise ConfigError(f"got {settings.bridge_url[:80]!r}, expected http(s)://HOST[:PORT]/PATH")

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float]:
        """One score per image. Raises RewardError, UnreachableError and TimeoutExceededError."""
        if not images:
            return []
        body = pickle.dumps(self._request(images, prompts, metadata), PROTOCOL)
        status, answer = self._post(body)
        if status != 200:
            said = f"the pickle server answered HTTP {status}: {_reason(answer)}".removesuffix(": ")
            # A gateway's 502 is tried again, and counts against the reward.
            raise UnreachableError(said) if status >= 500 else RewardError(said)
        try:
            return self._scores(read_plain_pickle(answer), len(images))
        except WireError as error:
            raise RewardError(f"the pickle server's answer: {error}") from error

    def _request(
        self, images: Sequence[Image.Image], prompts: Sequence[str], metadata: Sequence[Any]
    ) -> dict[str, Any]:
        pairs = zip(prompts, metadata, strict=True)
        return {
            "images": [self._encoded(image) for image in images],
            "prompts": list(prompts),
            "meta_datas": [{"prompt": prompt} | (given if isinstance(given, dict) else {}) for prompt, given in pairs],
            "only_strict": False,
            "metadata": {},
        } | self._settings.bridge_send

    def _encoded(self, image: Image.Image) -> bytes:
        buffer = io.BytesIO()
        if self._settings.bridge_images == "png":
            image.save(buffer, "PNG", compress_level=1)
        else:
            image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()

    def _post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer, within the limits of time and size."""
        limit_s, limit_bytes = self._settings.bridge_timeout_s, self._settings.bridge_max_reply_bytes
        ends_at_s = time.monotonic() + limit_s
        headers = {"Content-Type": "application/octet-stream", "Accept-Encoding": "identity"}
        answer = bytearray()
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                for chunk in response.iter_raw():
                    answer += chunk
                    if len(answer) > limit_bytes:
                        raise RewardError(f"the pickle server's answer: more than {limit_bytes} bytes")
                    if time.monotonic() > ends_at_s:
                        raise httpx.ReadTimeout("the whole answer")
        except httpx.TimeoutException as error:
            raise TimeoutExceededError(f"the pickle server did not answer within {limit_s:g} s") from error
        except httpx.TransportError as error:
            raise UnreachableError(f"the pickle server at {self._url.host} cannot be reached ({error})") from error
        return response.status_code, bytes(answer)

    def _scores(self, answer: Any, count: int) -> list[float]:
        if not isinstance(answer, dict):
            raise WireError(f"got {type(answer).__name__}, expected a dict")
        if answer.get("error"):
            raise WireError(f"an error: {error_of_json(answer)[:LONGEST_REASON]}")
        wanted = self._settings.bridge_scores
        key = wanted or next((key for key in SCORE_KEYS if key in answer), None)
        if key is None or key not in answer:
            keys = sorted(one[:40] for one in answer if isinstance(one, str))[:8]
            raise WireError(f"got the keys {keys}, expected {wanted or 'scores'}; --scores names it")
        return _numbers(answer[key], count, key)


def _numbers(values: Any, count: int, key: str) -> list[float]:
    """A list or tuple of numbers, or an array of shape [count] or [count, 1]."""
    if isinstance(values, PlainArray):
        if values.values.shape not in ((count,), (count, 1)):
            raise WireError(f"{key}: got shape {list(values.values.shape)}, expected [{count}] or [{count}, 1]")
        values = values.values.reshape(count).tolist()
    if not isinstance(values, list | tuple) or len(values) != count:
        got = f"{len(values)} entries" if isinstance(values, list | tuple) else type(values).__name__
        raise WireError(f"{key}: got {got}, expected one number per image ({count})")
    # Here, not in Reward: to show a list of lists of lists may take for ever.
    if odd := [type(value).__name__ for value in values if type(value) not in (int, float)]:
        raise WireError(f"{key}: got {odd[0]}, expected numbers")
    try:
        return [float(value) for value in values]
    except OverflowError as error:
        raise WireError(f"{key}: got an integer too large for a float") from error


def _reason(answer: bytes) -> str:
    """What the server says of its failure: these servers send a traceback, or a pickled {"error": text}."""
    if not answer.startswith(b"\x80"):
        return error_of_body(answer)[:LONGEST_REASON]
    try:
        return error_of_json(read_plain_pickle(answer))[:LONGEST_REASON]
    except WireError:
        return ""


def pickle_bridge(settings: BridgeEnvironment) -> Reward:
    """The reward that a pickle server computes."""
    server = PickleServer(settings)

    def bridge(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
        return server.score(images, prompts, metadata)

    return Reward(bridge)


if __name__ == "__main__":
    sys.exit(serve_reward(BridgeEnvironment, pickle_bridge))
