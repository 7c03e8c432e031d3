"""Pickle servers as rewards: what they are asked, which of their answers are scores, and how they fail.

The whole way, by the command and through a reward API, is in test_protocol_transcripts.py.
"""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pickle_server import PickleService, pickle_service
from PIL import Image

from lasro.errors import ConfigError, LasroError, RewardError, TimeoutExceededError, UnreachableError
from lasro_rewards.pickle_bridge import BridgeEnvironment, pickle_bridge

RED = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (51, 204)]
TRACEBACK = b"Traceback (most recent call last):\n  x\nRuntimeError: no GPU\n"
METADATA = [None, {"tag": "counting", "include": [{"class": "cat", "count": 2}]}]


@pytest.fixture(scope="module")
def running() -> Iterator[PickleService]:
    with pickle_service() as service:
        yield service


@pytest.fixture
def service(running: PickleService) -> PickleService:
    running.status, running.reply, running.silence_s = 200, None, 0.0
    running.requests.clear()
    return running


def scored(service: PickleService, **settings: Any) -> list[Any]:
    environment = BridgeEnvironment(bridge_url=service.url, **{f"bridge_{name}": it for name, it in settings.items()})
    return pickle_bridge(environment)(RED, ["a", "b"], METADATA)


def test_a_server_of_flow_grpo_is_asked_as_by_its_own_client(service: PickleService) -> None:
    """Bug: GenEval's server lacks `only_strict` or a prompt's tag, and answers 500; or images are no JPEG."""
    assert scored(service) == [0.2, 0.8]
    [request] = service.requests
    images = request.pop("images")
    assert [Image.open(io.BytesIO(image)).format for image in images] == ["JPEG", "JPEG"]
    metadata = [{"prompt": "a"}, {"prompt": "b", "tag": "counting", "include": [{"class": "cat", "count": 2}]}]
    assert request == {"prompts": ["a", "b"], "meta_datas": metadata, "only_strict": False, "metadata": {}}
    service.reply = {"scores": [1.0, 2.0]}
    scored(service, images="png", send={"only_strict": True, "level": 3})
    assert service.requests[1]["level"] == 3
    assert service.requests[1]["only_strict"]
    assert Image.open(io.BytesIO(service.requests[1]["images"][0])).format == "PNG"


def test_without_images_nothing_is_asked(service: PickleService) -> None:
    """Bug: where no image of a call can be read, the server is asked about none, and fails."""
    bridge = pickle_bridge(BridgeEnvironment(bridge_url=service.url))  # pyright: ignore[reportCallIssue]
    assert bridge([], [], []) == []
    assert service.requests == []


@pytest.mark.parametrize(
    ("reply", "settings"),
    [
        ({"scores": [0.5, 2]}, {}),
        ({"outputs": [0.5, 2.0]}, {}),
        ({"scores": (0.5, 2.0), "outputs": ["x", "y"]}, {}),
        ({"scores": np.array([0.5, 2.0])}, {}),
        ({"scores": np.array([[0.5], [2.0]], np.float16)}, {}),
        ({"scores": [np.float32(0.5), np.float64(2)]}, {}),
        (OrderedDict(scores=[0.5, 2.0]), {}),
        ({"scores": [1, 1], "strict": [0.5, 2.0], "group_rewards": {"counting": [-10.0]}}, {"scores": "strict"}),
        ({"error": None, "scores": [0.5, 2.0]}, {}),
    ],
)  # fmt: skip
def test_scores_in_every_form_that_servers_use(service: PickleService, reply: Any, settings: dict[str, Any]) -> None:
    """Bug: a server whose scores are an array, or under another key, does not plug in."""
    service.reply = reply
    assert scored(service, **settings) == [0.5, 2.0]


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def tuples_in_tuples() -> bytes:
    """A pickle of 80 tuples, each the last one twice: whoever shows it fills the memory, a failing test too."""
    deep: Any = ()
    for _ in range(80):
        deep = (deep, deep)
    return pickle.dumps({"scores": [0.5, deep]})


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"scores": [0.5]}, "scores: got 1 entries, expected one number per image (2)"),
        ({"scores": 0.5}, "scores: got float"),
        ({"scores": {"a": 1}}, "scores: got dict"),
        ({"scores": np.zeros((2, 2))}, "scores: got shape [2, 2], expected [2] or [2, 1]"),
        ({"scores": np.array([True, False])}, "scores: got bool, expected numbers"),
        ({"scores": [True, False]}, "scores: got bool"),
        ({"scores": ["0.5", "2"]}, "scores: got str"),
        ({"scores": [0.5, None]}, "scores: got NoneType"),
        (tuples_in_tuples(), "scores: got tuple"),
        ({"scores": [1 << 20_000, 1]}, "scores: got an integer too large for a float"),
        ({"scores": [0.5, float("nan")]}, "scores[1] is nan"),
        ({"rewards": [0.5, 2.0]}, "got the keys ['rewards'], expected scores; --scores names it"),
        ({1 << 20_000: 1}, "got the keys [], expected scores"),
        ({"error": "CUDA out of memory"}, "an error: CUDA out of memory"),
        ([0.5, 2.0], "got list, expected a dict"),
        ({"scores": Runs()}, "pickle: got the name 'posix system'" if os.name == "posix" else "pickle: got the name"),
        (b"<html>", "pickle: got 6 bytes that are no whole pickle"),
        (b"x" * 5000, "more than 4096 bytes"),
    ],
)
def test_other_answers_are_no_scores(service: PickleService, reply: Any, reason: str) -> None:
    """Bug: a pickle runs what it likes, or what is no number becomes one."""
    service.reply = reply
    with pytest.raises(RewardError) as refused:
        scored(service, max_reply_bytes=4096)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("status", "reply", "kind", "reason"),
    [
        (500, TRACEBACK, UnreachableError, "HTTP 500: RuntimeError: no GPU"),
        (500, {"error": "no GPU"}, UnreachableError, "HTTP 500: no GPU"),
        (503, pickle.dumps(Runs()), UnreachableError, "HTTP 503"),
        (400, b'{"error": "empty request body"}', RewardError, "HTTP 400: empty request body"),
    ],
)  # fmt: skip
def test_a_failure_keeps_the_servers_own_words(
    service: PickleService, status: int, reply: Any, kind: type[LasroError], reason: str
) -> None:
    """Bug: the traceback that the server answers is lost in the bridge; or what may pass is not tried again."""
    service.status, service.reply = status, reply
    with pytest.raises(kind) as refused:
        scored(service)
    assert str(refused.value) == f"the pickle server answered {reason}"


def test_silence_and_absence_differ(service: PickleService) -> None:
    """Bug: a server that is slow or away ends the bridge's call in a traceback."""
    service.silence_s = 0.3
    with pytest.raises(TimeoutExceededError, match=r"did not answer within 0.05 s"):
        scored(service, timeout_s=0.05)
    with pytest.raises(UnreachableError, match="cannot be reached"):
        scored(PickleService("http://127.0.0.1:1"))


@pytest.mark.parametrize("url", ["ftp://a/", "127.0.0.1:18085", "http://", "http://[::1"])
def test_a_bridge_to_nowhere_does_not_start(url: str) -> None:
    """Bug: a URL without a scheme is found out by the first image."""
    with pytest.raises(ConfigError, match="expected http"):
        pickle_bridge(BridgeEnvironment(bridge_url=url))  # pyright: ignore[reportCallIssue]
