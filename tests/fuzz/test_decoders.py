"""Whatever bytes arrive, a decoder answers with a message or with one of LaSRO's own errors, and soon.

`python tests/fuzz/coverage_guided.py` runs the same decoders for longer, led by what they have not executed yet.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
from collections.abc import Callable

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lasro import wire
from lasro.errors import LasroError, WireError
from lasro.images import check_image, decode_image
from lasro.service.error_text import error_of_body
from lasro.wire import Protocol
from lasro_reward_api.checks import ImageChecker, check_group
from lasro_reward_api.protocols import CODECS
from lasro_rewards.plain_pickle import read_plain_pickle
from lasro_surrogate_trainer.request_bodies import read_gradient, read_images, read_latents

SHAPE = (4, 2, 2)
MAX_PIXELS = 1 << 16
CODEC_SETTINGS = {
    Protocol.UNIRL: {"reward": "r"},
    Protocol.OPENAI_CHAT: {"model": "m"},
    Protocol.OIP_V2: {"model": "m", "output": "SCORE"},
    Protocol.MAPPING: {"request": {"i": {"$each": "{{image}}"}}, "scores": "a.b[*].c", "errors": "e"},
}
MSGPACK, JSON = wire.MSGPACK_TYPE, "application/json"


def same_again(kind: type[wire.Message], body: bytes) -> None:
    """Decode; what was read says the same once it is written and read again."""
    message = wire.from_msgpack(kind, body)
    assert wire.from_msgpack(kind, wire.to_msgpack(message)) == message


def tensors(body: bytes) -> None:
    found, metadata = wire.unpack_tensors(body)
    again, _ = wire.unpack_tensors(wire.pack_tensors(found, metadata))
    assert found.keys() == again.keys()
    assert all(np.array_equal(found[name], again[name]) for name in found)


def group(body: bytes) -> None:
    check_group(wire.from_msgpack(wire.GroupSubmission, body), ImageChecker(MAX_PIXELS))


def image(body: bytes) -> None:
    check_image(body, MAX_PIXELS)
    try:
        decode_image(body, MAX_PIXELS)
    except WireError as error:
        raise AssertionError("an endpoint would have got what cannot be decoded") from error


def reply(protocol: Protocol, content_type: str) -> Callable[[bytes], object]:
    return lambda body: CODECS[protocol].decode(content_type, body, 2, CODEC_SETTINGS.get(protocol, {}))


DECODERS: dict[str, Callable[[bytes], object]] = {
    "tensors": tensors,
    "prompts": lambda body: wire.unpack_prompts({"prompts": body.decode("utf-8", "replace")}, 2),
    "sample": lambda body: same_again(wire.ScoredGroup, body),
    "group": group,
    "group-json": lambda body: wire.from_json(wire.GroupSubmission, body),
    "score-request": lambda body: same_again(wire.ScoreRequest, body),
    "reward-spec": lambda body: wire.from_json(wire.RewardSpec, body),
    "image": image,
    "trainer-latents": lambda body: read_latents(body, SHAPE),
    "trainer-gradient": lambda body: read_gradient(body, SHAPE, 200),
    "trainer-images": lambda body: read_images([body], (4, 4)),
    "plain-pickle": read_plain_pickle,
    "error-body": error_of_body,
    "native-msgpack": reply(Protocol.NATIVE, MSGPACK),
    **{protocol.value: reply(protocol, JSON) for protocol in Protocol},
}


def encoded_image(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, form)
    return buffer.getvalue()


def packed(prompts: str | None = None, **arrays: np.ndarray) -> bytes:
    return wire.pack_tensors(arrays, None if prompts is None else {"prompts": prompts})


def whole_bodies() -> dict[str, list[bytes]]:
    """Bodies that each decoder takes: what mutations start from."""
    latents, steps = np.ones((2, *SHAPE), np.float16), np.array([1, 2])
    submission = wire.GroupSubmission(
        group_id="g", round=0, index=0, prompt="p", metadata={"a": [1, None]}, policy_version=0, rewards=["r"],
        stages=[1, 2], images=[encoded_image("PNG")] * 2, latents=packed(latents=latents), seeds=[0, 0], draws=[0, 1],
        reference=[False, True],
    )  # fmt: skip
    sample = wire.ScoredGroup(
        group_id="g", round=0, index=0, prompt="p", policy_version=0, stages=[1, 2], rewards={"r": [0.5, None]},
        versions={"r": 1}, latents=packed(latents=latents), seeds=[0, 0], draws=[0, 1], reference=[False, True],
    )  # fmt: skip
    spec = wire.RewardSpec(name="r", url="https://a.example/", protocol=Protocol.NATIVE, range=(0, 1))
    request = wire.ScoreRequest(prompts=["a"], images=[encoded_image("PNG")], rewards=["r"], metadata=[{"b": 1}])
    chat = {"choices": [{"message": {"content": "7.5"}, "finish_reason": "stop"}]}
    oip = {"outputs": [{"name": "SCORE", "datatype": "FP32", "shape": [2], "data": [0.5, 1]}]}
    replies = {
        "native": {"scores": [0.5, None], "errors": [None, "x"]},
        "flow-factory": {"rewards": [0.5, 1]},
        "unirl": {"results": [{"r": {"r": 0.5}}, {"r": {"r": 1}}], "errors": []},
        "openai-chat": chat,
        "oip-v2": oip,
        "mapping": {"a": {"b": [{"c": 1}, {"c": 2}]}, "e": [None, None]},
    }
    pair = json.dumps(["a", "b"])
    return {
        "tensors": [packed(latents=latents, steps=steps), packed(pair, a=np.zeros((0, 3), np.float32))],
        "prompts": [pair.encode()],
        "sample": [wire.to_msgpack(sample)],
        "group": [wire.to_msgpack(submission)],
        "group-json": [submission.model_dump_json().encode()],
        "score-request": [wire.to_msgpack(request)],
        "reward-spec": [spec.model_dump_json().encode()],
        "image": [encoded_image(form) for form in ("PNG", "JPEG", "WEBP")],
        "trainer-latents": [packed(pair, latents=latents)],
        "trainer-gradient": [packed(pair, latents=latents, timesteps=steps, noise=latents)],
        "trainer-images": [encoded_image(form) for form in ("PNG", "JPEG", "WEBP")],
        "plain-pickle": [pickle.dumps({"scores": np.ones(2), "o": [0.5, None]}, protocol) for protocol in (0, 2, 4, 5)],
        "error-body": [b'{"error": {"message": "no GPU"}}', b"<html><title>502</title></html>"],
        "native-msgpack": [msgpack.packb(replies["native"]) or b""],
    } | {name: [json.dumps(body).encode()] for name, body in replies.items()}


def decode(name: str, body: bytes) -> None:
    """Run a decoder; anything it raises that is not LaSRO's own is a bug."""
    message = ""
    try:
        DECODERS[name](body)
    except LasroError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 2000


@st.composite
def damaged(draw: st.DrawFn, bodies: list[bytes]) -> bytes:
    """A whole body with bytes overwritten, cut out, doubled or put in."""
    body = bytearray(draw(st.sampled_from(bodies)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 16)))
        part = bytes(body[start:end])
        body[start:end] = draw(st.sampled_from([b"", part + part]) | st.binary(max_size=9))
    return bytes(body)


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # of pickletools, for a broken string
@pytest.mark.parametrize("name", DECODERS)
def test_damaged_bodies_are_refused_in_lasros_own_words(name: str) -> None:
    """Bug: a foreign exception from a decoder ends the worker, the feed or the request it was meant to refuse."""
    bodies = whole_bodies()[name]
    for body in bodies:
        DECODERS[name](body)

    @settings(max_examples=120)
    @given(damaged(bodies) | st.binary(max_size=64))
    @example(b"")
    def check(body: bytes) -> None:
        decode(name, body)

    check()


def tensor_body(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def empty_tensors(count: int) -> bytes:
    entry = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return tensor_body(b"{%b}" % b",".join(entry % number for number in range(count)))


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HOSTILE = {
    "short": (b"\0\0\0", "expected at least 8"),
    "duplicate keys": (tensor_body(b'{"a":%b,"a":%b}' % (ENTRY, ENTRY), b"\0" * 4), "duplicate keys"),
    "duplicate metadata": (tensor_body(b'{"__metadata__":{"a":"1","a":"2"}}'), "duplicate keys"),
    "header beyond the body": (tensor_body(b"{}", length=1 << 62), "header of 4611686018427387904 bytes"),
    "header of 2 MiB": (tensor_body(b"{}" + b" " * (2 << 20)), "header of 2097154 bytes"),
    "50,000 empty tensors": (empty_tensors(50_000), "bytes, expected at most 1048576"),
    "5,000 empty tensors": (empty_tensors(5_000), "at most 4096 tensors"),
    "nested without end": (tensor_body(b"[" * (1 << 19)), "not JSON"),
    "a number without end": (tensor_body(b'{"a":' + b"9" * (1 << 19) + b"}"), "not JSON"),
    "overlap": (tensor_body(b'{"a":%b,"b":%b}' % (ENTRY, ENTRY), b"\0" * 4), "safetensors: "),
    "NaN": (packed(a=np.array([np.nan], np.float16)), "got NaN or infinity"),
    "a shape whose size overflows": (
        tensor_body(b'{"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,4]}}', b"\0" * 4),
        "safetensors: ",
    ),
    "a name of two lines": (wire.pack_tensors({"a\nb": np.array([np.inf], np.float32)}), "^a b: got NaN"),
    "a name without end": (wire.pack_tensors({"a" * 100_000: np.array([1.0])}), "^a{300}: got dtype"),
    "another dtype": (packed(a=np.array([1.0])), "got dtype float64"),
}


def test_unknown_keys_are_told_in_one_line() -> None:
    """Bug: a sender writes lines of its own into the log, or fills it."""
    with pytest.raises(WireError) as caught:
        wire.from_json(wire.NativeReply, json.dumps({"scores": [], "a\nb" * 1000: 1}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tensors_are_refused_at_once(name: str) -> None:
    """Bug: 3 MB of header cost seconds, or the later of two equal names wins unseen."""
    body, reason = HOSTILE[name]
    started_s = time.thread_time()
    with pytest.raises(WireError, match=reason):
        wire.unpack_tensors(body)
    assert time.thread_time() - started_s < 2  # 1.0 s on a slow core that others share
