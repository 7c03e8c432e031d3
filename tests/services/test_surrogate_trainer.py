"""The surrogate trainer over real HTTP, fed through a real Redis."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from lasro import wire
from lasro.config import ModelSettings, SurrogateRun, SurrogateSettings
from lasro.errors import ConflictError, ModelError, NotFoundError, StorageError, TimeoutExceededError, WireError
from lasro.models.registry import load_model
from lasro.models.surrogate import build_surrogate, score_and_gradient
from lasro.redis_store import keys
from lasro.redis_store.connection import connect
from lasro.service.serve import bind
from lasro.training.replay_buffer import is_held_out
from lasro_client.services.surrogate_client import SurrogateClient
from lasro_surrogate_trainer import app as trainer_app
from lasro_surrogate_trainer.app import create_app
from lasro_surrogate_trainer.settings import TrainerEnvironment
from lasro_surrogate_trainer.store import check_folder

SHAPE = (4, 8, 8)
SEEDS = 6
PROMPTS = ["a red star", "a blue square", "a green circle and a red star"]


@contextmanager
def running(redis_url: str, data_dir: Path, port: int = 0) -> Iterator[str]:
    values = {
        "redis_url": redis_url,
        "data_dir": data_dir,
        "keep_versions_s": 0,
        "redo_s": 0,
        "max_runs": 64,
        "port": port,
    }
    settings = TrainerEnvironment.model_validate(values)
    listener = bind(settings)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(redis_url, tmp_path_factory) -> Iterator[str]:
    with running(redis_url, tmp_path_factory.mktemp("trainer")) as address:
        yield address


@pytest.fixture(scope="module")
def trainer(url) -> Iterator[SurrogateClient]:
    with SurrogateClient(url) as client:
        yield client


@pytest.fixture(scope="module")
def http(url) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def config(one_level_model_path) -> SurrogateRun:
    surrogate = SurrogateSettings(
        head_channels=16, learning_rate=3e-3, groups_per_step=8, held_out_share=0.2, device="cpu"
    )
    return SurrogateRun(model=ModelSettings(path=str(one_level_model_path)), surrogate=surrogate, weights={"mean": 1.0})


def separable_sample(number: int, rewards: Sequence[float | None] | None = None) -> wire.ScoredGroup:
    """Latents whose reward is the mean of their first channel: easy to rank, whatever the prompt."""
    rng = np.random.default_rng(number)
    latents = rng.normal(size=(2 * SEEDS, *SHAPE)).astype(np.float32)
    latents[:, 0] += rng.normal(size=(2 * SEEDS, 1, 1))
    return wire.ScoredGroup(
        group_id=f"g{number}",
        round=number // 4,
        index=number % 4,
        prompt=PROMPTS[number % len(PROMPTS)],
        policy_version=0,
        stages=[1, 2] * SEEDS,
        rewards={"mean": list(rewards or latents[:, 0].mean(axis=(1, 2)).tolist())},
        versions={"mean": 1},
        latents=wire.pack_tensors({"latents": latents}),
    )


def feed(redis_url: str, run: str, samples: list[wire.ScoredGroup]) -> list[str]:
    with connect(redis_url) as client:
        for sample in samples:
            client.xadd(keys.samples(run), {"sample": wire.to_msgpack(sample)})
    return [sample.group_id for sample in samples]


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def adapt(trainer: SurrogateClient, run: str, request_id: str, groups: list[str], steps: int) -> wire.AdaptReply:
    request = wire.AdaptRequest(request_id=request_id, new_groups=groups, steps=steps, timeout_s=120)
    return trainer.adapt(run, request)


def tensors(count: int = 3, dtype: type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "latents": rng.normal(size=(count, *SHAPE)).astype(dtype),
        "timesteps": rng.integers(0, 200, count),
        "noise": rng.normal(size=(count, *SHAPE)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def trained(trainer, config, redis_url) -> str:
    """A run trained on separable groups, which several tests look at and none changes."""
    assert trainer.create("trained", config).version == 0
    groups = feed(redis_url, "trained", [separable_sample(number) for number in range(40)])
    adapt(trainer, "trained", "first", groups, steps=80)
    return "trained"


def test_text_encoders_are_read_for_new_prompts_alone(
    trainer: SurrogateClient, http: httpx.Client, config: SurrogateRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: beside a client that has embedded all prompts the trainer held a second copy of the text encoders."""
    model = config.model.model_copy(update={"device": "cpu", "guidance": 3.0})  # no other test's run shares it
    load_model(model).embed_ahead(["", *PROMPTS])

    def unwanted(*_: object) -> None:
        raise ModelError("the text encoders were read")

    with monkeypatch.context() as patched:
        patched.setattr("lasro.models.text_encoders.load_text_encoders", unwanted)
        trainer.create("no-encoders", config.model_copy(update={"model": model}))
        url = "/v1/runs/no-encoders/score"
        headers = {"Content-Type": wire.SAFETENSORS_TYPE}
        latents = {"latents": tensors()["latents"]}
        body = wire.pack_tensors(latents, {"prompts": wire.pack_prompts(PROMPTS)})
        assert http.post(url, content=body, headers=headers).status_code == 200
        assert http.get("/health/ready").status_code == 200
        new = wire.pack_tensors(latents, {"prompts": wire.pack_prompts([*PROMPTS[:2], "a new prompt"])})
        assert http.post(url, content=new, headers=headers).status_code == 422
    known, unknown = (http.post(url, content=each, headers=headers).json()["scores"] for each in (body, new))
    assert known[:2] == unknown[:2]
    assert known[2] != unknown[2]
    trainer.delete("no-encoders")


def test_pair_accuracy_rises_on_separable_groups(trainer, trained, redis_url):
    """Guards against training that does not learn: wrong sign, wrong pairs, gradients that reach nothing."""
    fresh = feed(redis_url, trained, [separable_sample(number) for number in range(100, 110)])
    statistics = adapt(trainer, trained, "second", fresh, steps=4).statistics
    assert statistics.fresh_pair_accuracy is not None
    assert statistics.fresh_pair_accuracy > 0.9
    assert statistics.held_out_pair_accuracy is not None
    assert statistics.held_out_pair_accuracy > 0.9
    status = trainer.status(trained)
    assert (status.version, status.steps, status.trained) == (2, 84, "full")
    assert status.replay_groups + status.held_out_groups == 50
    assert status.held_out_groups > 0
    assert status.reward_gap is not None
    assert status.reward_gap < 0.2


def test_scores_rank_as_the_reward_does_and_do_not_depend_on_the_batch(trainer, trained):
    """Guards against scores that change with what else is in the request, or noise that decides the ranking."""
    latents = wire.unpack_tensors(separable_sample(200).latents)[0]["latents"]
    reply = trainer.score_latents(trained, latents, ["a red star"] * len(latents))
    score_ranks, reward_ranks = (np.argsort(np.argsort(x)) for x in (reply.scores, latents[:, 0].mean(axis=(1, 2))))
    assert np.corrcoef(score_ranks, reward_ranks)[0, 1] > 0.8
    alone = trainer.score_latents(trained, latents[3:4], ["a red star"])
    assert alone.scores[0] == pytest.approx(reply.scores[3], abs=1e-4)
    half = trainer.score_latents(trained, latents.astype(np.float16), ["a red star"] * len(latents))
    assert half.scores == pytest.approx(reply.scores, abs=0.05)


@pytest.mark.parametrize("trunk", ["full", "adapter"])
def test_gradient_over_http_equals_autograd_with_the_fetched_weights(trainer, config, redis_url, trunk):
    """Guards against gradient mode and weights mode training the generator differently."""
    run = f"parity-{trunk}"
    settings = config.surrogate.model_copy(update={"trunk": trunk, "adapter_rank": 4})
    trainer.create(run, config.model_copy(update={"surrogate": settings}))
    groups = feed(redis_url, run, [separable_sample(number) for number in range(8)])
    adapt(trainer, run, "one", groups, steps=5)
    given, prompts = tensors(40), [PROMPTS[i % 3] for i in range(40)]
    scores_B, gradient_BCHW, version = trainer.gradient(
        run, given["latents"], given["timesteps"], given["noise"], prompts, version=1
    )
    fetched = trainer.weights(run)
    assert fetched is not None
    assert fetched[0] == version == 1
    model = load_model(config.model.model_copy(update={"device": "cpu"}))
    surrogate = build_surrogate(model, settings)
    surrogate.load_safetensors(fetched[1])
    latents, timesteps, noise = (torch.from_numpy(given[name]) for name in ("latents", "timesteps", "noise"))
    scores, gradient = score_and_gradient(surrogate, latents, timesteps, noise, model.embed(prompts))
    assert np.linalg.norm(scores_B - scores.numpy()) <= 1e-4 * np.linalg.norm(scores.numpy())
    assert np.linalg.norm(gradient_BCHW - gradient.numpy()) <= 1e-4 * np.linalg.norm(gradient.numpy())
    assert np.linalg.norm(gradient_BCHW) > 0
    half = trainer.gradient(run, given["latents"].astype(np.float16), given["timesteps"], given["noise"], prompts)
    assert half[1].dtype == np.float16


def test_scores_come_from_the_published_version_while_training(trainer, url, config, redis_url):
    """Guards against requests that wait for training, or see weights that were never published."""
    trainer.create("busy", config)
    groups = feed(redis_url, "busy", [separable_sample(number) for number in range(8)])
    latents = tensors()["latents"]
    before = trainer.score_latents("busy", latents, PROMPTS)
    with SurrogateClient(url) as other:
        thread = threading.Thread(target=adapt, args=(other, "busy", "long", groups, 25))
        thread.start()
        answers = []
        while thread.is_alive():
            answers.append(trainer.score_latents("busy", latents, PROMPTS))
        thread.join()
    during = [answer for answer in answers if answer.version == 0]
    assert len(during) >= 3
    assert all(answer.scores == before.scores for answer in during)
    after = trainer.score_latents("busy", latents, PROMPTS)
    assert after.version == 1
    assert after.scores != before.scores


def test_adapt_is_idempotent_by_request_id(trainer, url, config, redis_url):
    """Guards against a request sent again after a broken connection training twice."""
    trainer.create("idempotent", config)
    groups = feed(redis_url, "idempotent", [separable_sample(number) for number in range(6)])
    replies = []

    def call() -> None:
        with SurrogateClient(url) as other:
            replies.append(adapt(other, "idempotent", "same", groups, 6))

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    replies.append(adapt(trainer, "idempotent", "same", groups, 6))
    assert [reply == replies[0] for reply in replies] == [True] * 4
    status = trainer.status("idempotent")
    assert (status.version, status.steps) == (1, 6)
    with pytest.raises(ConflictError, match="used before"):
        adapt(trainer, "idempotent", "same", groups, 7)


def test_weights_do_not_depend_on_the_order_of_arrival(trainer, config, redis_url):
    """Guards against runs that cannot be reproduced because samples raced each other."""
    samples, states = [separable_sample(number) for number in range(12)], []
    for run, order in (("forward", range(12)), ("shuffled", [5, 1, 8, 0, 11, 2, 3, 10, 4, 9, 7, 6])):
        trainer.create(run, config)
        feed(redis_url, run, [samples[i] for i in order])
        for round_number in range(3):
            names = [sample.group_id for sample in samples if sample.round == round_number]
            adapt(trainer, run, f"r{round_number}", names, steps=3)
        fetched = trainer.weights(run)
        assert fetched is not None
        states.append(wire.unpack_tensors(fetched[1])[0])
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


def test_failed_rewards_are_dropped_and_constant_groups_counted(trainer, config, redis_url):
    """Guards against failed rewards entering as numbers, and a run that learns nothing without saying so."""
    trainer.create("poor", config)
    half_failed: list[float | None] = [None, 1.0] * SEEDS
    samples = [separable_sample(0, half_failed), separable_sample(1, [0.5] * 2 * SEEDS)]
    statistics = adapt(trainer, "poor", "one", feed(redis_url, "poor", samples), steps=2).statistics
    assert statistics.failed_samples == SEEDS
    assert statistics.constant_groups == 2
    assert statistics.pairs == 0
    assert statistics.loss is None
    assert statistics.fresh_pair_accuracy is None


def test_groups_that_do_not_arrive_or_cannot_be_used_are_named(trainer, config, redis_url):
    """Guards against waiting for ever, or training without the groups that were asked for."""
    trainer.create("waiting", config)
    bad = separable_sample(1).model_copy(
        update={"latents": wire.pack_tensors({"latents": np.zeros((12, 4, 9, 9), np.float32)})}
    )
    feed(redis_url, "waiting", [separable_sample(0), bad])
    request = wire.AdaptRequest(request_id="a", new_groups=["g0", "g7"], steps=1, timeout_s=1)
    with pytest.raises(TimeoutExceededError, match=r"1 of 2 groups have not arrived after 1 s: g7"):
        trainer.adapt("waiting", request)
    started = time.monotonic()
    with pytest.raises(WireError, match=r"group g1 .*\[12, 4, 9, 9\].*\[12, 4, 8, 8\]"):
        adapt(trainer, "waiting", "b", ["g0", "g1"], 1)
    assert time.monotonic() - started < 60
    feed(redis_url, "waiting", [separable_sample(7)])
    assert adapt(trainer, "waiting", "a", ["g0", "g7"], 1).version == 1


def test_a_sample_that_cannot_be_trained_on_is_dead_lettered_with_the_reason(trainer, config, redis_url):
    """Guards against acknowledging it: what was paid for was gone for good, and nothing but a log line told of it."""
    trainer.create("unfit", config)
    feed(redis_url, "unfit", [separable_sample(1).model_copy(update={"rewards": {"other": [0.5] * 2 * SEEDS}})])
    with connect(redis_url) as client:
        wait_for(lambda: client.xlen(keys.dead_samples("unfit")) == 1)
        dead: Any = client.xrange(keys.dead_samples("unfit"))
        [(_, fields)] = dead
        assert b"expected also mean, which this run names" in fields[b"reason"]
        assert client.xlen(keys.samples("unfit")) == 0
    feed(redis_url, "unfit", [separable_sample(2)])
    assert adapt(trainer, "unfit", "a", ["g2"], 1).version == 1


def test_a_run_of_several_rewards_ranks_by_all_of_them(trainer, config, redis_url):
    """Guards against a guard that a high total outbids, units that drown a reward, and scales that nobody reports."""
    objective = {"weights": {"mean": 1.0, "kb": 1.0, "guard": 0.0}, "floors": {"guard": 0.5}, "normalised": ["kb"]}
    trainer.create("guarded", SurrogateRun.model_validate(config.model_dump() | objective))
    samples, means, sizes, guards = [], [], [], []
    for number in range(8):
        sample, rng = separable_sample(number), np.random.default_rng(number)
        mean = np.array(sample.rewards["mean"])
        kb, guard = 3000 + 500 * rng.normal(size=len(mean)), np.where(mean > 0, 0.2, 0.9)
        guard[0] = 0.5
        rewards = {"mean": mean.tolist(), "kb": kb.tolist(), "guard": [None, *guard[1:].tolist()]}
        samples.append(sample.model_copy(update={"rewards": rewards}))
        for found, values in ((means, mean), (sizes, kb), (guards, guard)):
            found.append(values[1:])
    training = [i for i, sample in enumerate(samples) if not is_held_out(sample.round, sample.index, 0.2)]
    kept = [np.array(samples[i].rewards["kb"]) for i in training]
    statistics = adapt(trainer, "guarded", "one", feed(redis_url, "guarded", samples), steps=60).statistics
    assert statistics.failed_samples == len(samples)
    deviation = np.sqrt(sum(((v - v.mean()) ** 2).sum() for v in kept) / sum(len(v) - 1 for v in kept))
    assert statistics.scales["kb"].mean == pytest.approx(np.concatenate(kept).mean())
    assert statistics.scales["kb"].deviation == pytest.approx(deviation)
    assert list(statistics.scales) == ["kb"]
    for i in training:
        latents = wire.unpack_tensors(samples[i].latents)[0]["latents"][1:]
        scores_N = np.array(trainer.score_latents("guarded", latents, [samples[i].prompt] * len(latents)).scores)
        vetoed_N = guards[i] < 0.5
        assert (means[i][vetoed_N].min(initial=9)) > means[i][~vetoed_N].max(initial=-9), "vetoed ones have more of it"
        assert np.mean(scores_N[~vetoed_N][:, None] > scores_N[vetoed_N][None]) > 0.9


def test_a_negative_reward_of_a_product_is_named(trainer, config, redis_url):
    """Guards against a trainer thread that dies of it, and a run that does not learn why."""
    trainer.create("product", config.model_copy(update={"combine": "product"}))
    good, bad = separable_sample(0, [0.5, 0.25] * SEEDS), separable_sample(1, [0.5, -0.25] * SEEDS)
    groups = feed(redis_url, "product", [good, bad])
    with pytest.raises(WireError, match=r"group g1 cannot be trained on: reward mean: got -0\.25, expected at least 0"):
        adapt(trainer, "product", "a", groups, 1)
    assert adapt(trainer, "product", "b", groups[:1], 1).version == 1


def gradient_problem(http: httpx.Client, run: str, body: bytes) -> tuple[int, str]:
    headers = {"Content-Type": wire.SAFETENSORS_TYPE}
    response = http.post(f"/v1/runs/{run}/gradient", content=body, headers=headers)
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, wire.Problem.model_validate_json(response.content).detail


@pytest.mark.parametrize(
    ("changed", "prompts", "metadata", "status", "expected"),
    [
        ({"latents": np.full((3, *SHAPE), np.nan, np.float32)}, PROMPTS, {}, 422, "latents: got NaN"),
        ({"latents": np.zeros((3, 4, 9, 8), np.float32)}, PROMPTS, {}, 422, "expected [3, 4, 8, 8]"),
        ({"latents": np.zeros((3, *SHAPE), np.int64)}, PROMPTS, {}, 422, "expected [3, 4, 8, 8] float"),
        ({"latents": np.zeros((0, *SHAPE), np.float32)}, [], {}, 422, "got 0 samples"),
        ({"noise": np.zeros((2, *SHAPE), np.float32)}, PROMPTS, {}, 422, "noise: got [2, 4, 8, 8]"),
        ({"timesteps": np.array([0, 1, 200])}, PROMPTS, {}, 422, "got 0 to 200, expected 0 to 199"),
        ({"timesteps": np.zeros(3, np.int32)}, PROMPTS, {}, 422, "expected [3] int64"),
        ({"other": np.zeros(3, np.float32)}, PROMPTS, {}, 422, "expected ['latents', 'noise', 'timesteps']"),
        ({}, PROMPTS[:2], {}, 422, "prompts: got 2, expected one per latent (3)"),
        ({}, ["a star " * 40, "a", "b"], {}, 422, "tokens, expected at most"),
        ({}, PROMPTS, {"version": "-1"}, 422, "expected a whole number"),
        ({}, PROMPTS, {"version": "99"}, 404, "version 99: not kept"),
    ],
)
def test_malformed_gradient_requests_are_refused(http, trained, changed, prompts, metadata, status, expected):
    """Guards against wrong shapes, counts and NaN being broadcast or answered with a body of NaN."""
    metadata = metadata | {"prompts": wire.pack_prompts(prompts)}
    body = wire.pack_tensors(tensors() | changed, metadata)
    answered, detail = gradient_problem(http, trained, body)
    assert answered == status
    assert expected in detail
    assert "\n" not in detail


def test_bodies_that_are_no_safetensors_are_refused(http, trained):
    """Guards against bytes from outside reaching a parser that trusts them."""
    assert gradient_problem(http, trained, b"\xff" * 64)[0] == 422
    assert gradient_problem(http, trained, b"")[0] == 422
    response = http.post(f"/v1/runs/{trained}/gradient", content=b"{}")
    assert response.status_code == 415
    assert wire.SAFETENSORS_TYPE in response.json()["detail"]
    assert gradient_problem(http, "nobody", b"")[0] == 404


def test_every_body_has_a_type(http, trained):
    """Bug: a page in a browser, which can send forms and text but no JSON, changed runs of the keyless trainer."""
    statuses = [
        http.request(
            method, path.format(run=trained), content=b"{}", headers={"Content-Type": "text/plain"}
        ).status_code
        for path, operations in http.get("/openapi.json").json()["paths"].items()
        for method, operation in operations.items()
        if "requestBody" in operation
    ]
    assert statuses == [415] * 6


def test_gradients_that_overflow_are_a_problem_not_a_body(http, trainer, config):
    """Guards against infinity reaching the generator's optimiser through half precision."""
    trainer.create("overflow", config)
    fetched = trainer.weights("overflow")
    assert fetched is not None
    state = {name: array.copy() for name, array in wire.unpack_tensors(fetched[1])[0].items()}
    last = next(
        name for name in state if name.startswith("head") and state[name].shape[0] == 1 and state[name].ndim == 2
    )
    state[last] *= 1e9
    assert trainer.upload_weights("overflow", wire.pack_tensors(state)).version == 1
    body = wire.pack_tensors(tensors(dtype=np.float16), {"prompts": wire.pack_prompts(PROMPTS)})
    status, detail = gradient_problem(http, "overflow", body)
    assert status == 422
    assert "float32" in detail


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 80).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def test_images_are_scored_from_plain_json(trainer, http, trained):
    """Guards against images of any size or kind reaching the VAE, and against a count that does not match."""
    images = [png(16), png(16)]
    reply = trainer.score_images(trained, images, PROMPTS[:2])
    assert len(reply.scores) == 2
    assert reply.scores[0] != reply.scores[1]
    with pytest.raises(WireError, match=r"images\[1\]: got 32 x 32 pixels, expected 16 x 16"):
        trainer.score_images(trained, [png(16), png(32)], PROMPTS[:2])
    with pytest.raises(WireError, match="no PNG, JPEG or WebP"):
        trainer.score_images(trained, [b"GIF89a"], PROMPTS[:1])
    with pytest.raises(WireError, match="a PNG that ends early"):
        trainer.score_images(trained, [png(16)[:90]], PROMPTS[:1])
    with pytest.raises(WireError, match="got 2, expected one per prompt"):
        trainer.score_images(trained, images, PROMPTS[:1])
    assert http.post(f"/v1/runs/{trained}/score", json={"prompts": ["a"], "images": ["@"]}).status_code == 422


def test_weights_are_fetched_once_and_waited_for(trainer, url, config, redis_url):
    """Guards against clients that download unchanged weights each round, or miss a new version."""
    trainer.create("poll", config)
    assert trainer.weights("poll", newer_than=0) is None
    groups = feed(redis_url, "poll", [separable_sample(number) for number in range(4)])
    found = []

    def wait() -> None:
        with SurrogateClient(url) as other:
            found.append(other.weights("poll", newer_than=0, wait_s=200))

    thread = threading.Thread(target=wait)
    thread.start()
    for version in range(1, 7):
        assert adapt(trainer, "poll", f"r{version}", groups, 1).version == version
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert found[0][0] >= 1
    assert trainer.weights_of("poll", 6) == (trainer.weights("poll") or (0, b""))[1]
    wait_for(lambda: kept(trainer, "poll") == [3, 4, 5, 6])
    with pytest.raises(NotFoundError, match=r"expected one of \[3, 4, 5, 6\]"):
        trainer.weights_of("poll", 2)
    with pytest.raises(NotFoundError, match="version 7: not published yet"):
        trainer.weights_of("poll", 7)


def kept(trainer: SurrogateClient, run: str) -> list[int]:
    return [info.version for info in trainer.versions(run) if info.kept]


def test_leased_versions_are_kept_and_listed_with_what_was_measured(trainer, config, redis_url):
    """Guards against a client that repeats rounds after a crash and finds their versions gone."""
    trainer.create("leased", config)
    samples = [separable_sample(number).model_copy(update={"policy_version": 3}) for number in range(8)]
    count = len(samples[0].stages)
    origins = {"seeds": list(range(count)), "draws": [0] * count, "reference": [False] * count}
    groups = feed(redis_url, "leased", [sample.model_copy(update=origins) for sample in samples])
    adapt(trainer, "leased", "r1", groups, 2)
    trainer.lease("leased", 1)
    for version in range(2, 8):
        adapt(trainer, "leased", f"r{version}", [], 1)
    wait_for(lambda: 0 not in kept(trainer, "leased"))
    assert kept(trainer, "leased") == [1, 2, 3, 4, 5, 6, 7]
    infos = trainer.versions("leased")
    assert [(info.version, info.steps) for info in infos] == [(0, 0), (1, 2), *((v, v + 1) for v in range(2, 8))]
    assert infos[1].policy_version == 3
    assert infos[1].fresh_pair_accuracy is not None
    assert infos[1].reward_gap is not None
    assert infos[1].accuracy_by_kind["across_seeds"].accuracy == pytest.approx(infos[1].fresh_pair_accuracy)
    with pytest.raises(NotFoundError, match="version 0: not kept"):
        trainer.lease("leased", 0)
    trainer.lease("leased", 5)
    adapt(trainer, "leased", "r8", [], 1)
    wait_for(lambda: kept(trainer, "leased") == [5, 6, 7, 8])


def test_a_run_is_created_once_and_differing_settings_are_named(trainer, http, config):
    """Guards against two clients sharing a run by accident, and unknown keys passing silently."""
    body = config.model_dump(mode="json")
    assert http.put("/v1/runs/once", json=body).status_code == 201
    assert http.put("/v1/runs/once", json=body).status_code == 200
    changed = config.model_copy(update={"surrogate": config.surrogate.model_copy(update={"seed": 1})})
    with pytest.raises(ConflictError, match=r"surrogate\.seed"):
        trainer.create("once", changed)
    unknown = http.put("/v1/runs/twice", json=body | {"colour": 1})
    assert (unknown.status_code, "colour" in unknown.json()["detail"]) == (422, True)
    absent = body | {"model": {"path": "/no/such/model"}}
    answer = http.put("/v1/runs/twice", json=absent)
    assert (answer.status_code, answer.json()["title"]) == (422, "unusable model")
    assert http.get("/v1/runs/twice").status_code == 404
    assert http.put("/v1/runs/bad:name", json=body).status_code == 422


def test_uploaded_weights_start_a_run_and_never_overwrite_training(trainer, config, trained, redis_url):
    """Guards against a stage-1 surrogate silently replaced or silently not used."""
    weights = trainer.weights(trained)
    assert weights is not None
    trainer.create("second-stage", config)
    assert trainer.upload_weights("second-stage", weights[1]).version == 1
    assert trainer.upload_weights("second-stage", weights[1]).version == 1
    latents = tensors()["latents"]
    ours, theirs = (trainer.score_latents(run, latents, PROMPTS).scores for run in ("second-stage", trained))
    assert ours == theirs
    with pytest.raises(WireError, match="names differ"):
        trainer.upload_weights("second-stage", wire.pack_tensors({"x": np.zeros(1, np.float32)}))
    adapt(trainer, "second-stage", "a", feed(redis_url, "second-stage", [separable_sample(0)]), 1)
    with pytest.raises(ConflictError, match="already trained"):
        trainer.upload_weights("second-stage", weights[1])


def test_versions_and_replies_survive_a_restart(redis_url, config, tmp_path):
    """Guards against a restarted trainer that starts over, or trains again for a reply that was lost."""
    with running(redis_url, tmp_path) as url, SurrogateClient(url) as trainer:
        trainer.create("kept", config)
        groups = feed(redis_url, "kept", [separable_sample(number) for number in range(6)])
        first = adapt(trainer, "kept", "one", groups, 3)
        weights = trainer.weights("kept")
    (tmp_path / "runs" / "kept" / "weights" / ".half.safetensors.written").write_bytes(b"x")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    with running(redis_url, tmp_path) as url, SurrogateClient(url) as trainer:
        assert trainer.ready()
        status = trainer.status("kept")
        assert (status.version, status.steps) == (1, 3)
        assert trainer.weights("kept") == weights
        assert adapt(trainer, "kept", "one", groups, 3) == first
        assert [run.run for run in trainer.runs()] == ["kept"]
        trainer.delete("kept")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["broken"]


def test_samples_not_yet_trained_on_survive_a_restart(redis_url, config, tmp_path):
    """Guards against samples acknowledged before they were used, and then lost with the process."""
    with running(redis_url, tmp_path) as url, SurrogateClient(url) as trainer:
        trainer.create("restarted", config)
        used = feed(redis_url, "restarted", [separable_sample(number) for number in range(4)])
        adapt(trainer, "restarted", "a", used, 1)
        unused = feed(redis_url, "restarted", [separable_sample(number) for number in range(4, 8)])
        with connect(redis_url) as client:
            wait_for(lambda: client.xpending(keys.samples("restarted"), "trainer")["pending"] == len(unused))
    with running(redis_url, tmp_path) as url, SurrogateClient(url) as trainer:
        assert adapt(trainer, "restarted", "b", unused, 1).version == 2
        with connect(redis_url) as client:
            wait_for(lambda: client.xlen(keys.samples("restarted")) == 0)
        trainer.delete("restarted")


def test_a_call_outlives_a_restart_of_the_trainer(redis_url, config, tmp_path):
    """Guards against a run that ends because its trainer was restarted, or trains on from steps nobody published."""
    replies = []

    def call(address: str) -> None:
        with SurrogateClient(address) as other:
            replies.append(adapt(other, "rolling", "a", groups, 60))

    with running(redis_url, tmp_path) as url, SurrogateClient(url) as trainer:
        trainer.create("rolling", config)
        groups = feed(redis_url, "rolling", [separable_sample(number) for number in range(4)])
        thread = threading.Thread(target=call, args=(url,))
        thread.start()
        wait_for(lambda: trainer.status("rolling").replay_groups + trainer.status("rolling").held_out_groups == 4)
    with running(redis_url, tmp_path, port=int(url.rpartition(":")[2])):
        thread.join(120)
        with SurrogateClient(url) as trainer:
            assert (trainer.status("rolling").version, trainer.status("rolling").steps) == (1, 60)
            trainer.delete("rolling")
    assert [reply.version for reply in replies] == [1]


def test_two_trainers_do_not_share_a_folder(redis_url, tmp_path, monkeypatch):
    """Guards against a second trainer on the same folder writing over the first one's commits."""
    monkeypatch.setattr(trainer_app, "LOCK_WAIT_S", 0)
    values = {"redis_url": redis_url, "data_dir": tmp_path}
    second = create_app(TrainerEnvironment.model_validate(values))

    async def start() -> None:
        async with second.router.lifespan_context(second):
            raise AssertionError("both hold it")

    with (
        running(redis_url, tmp_path),
        pytest.raises(ConflictError, match=rf"another trainer works in this folder \(process {os.getpid()} on"),
    ):
        asyncio.run(start())


def test_a_full_disk_leaves_the_last_version_and_the_request_can_be_repeated(trainer, config, redis_url, monkeypatch):
    """Guards against weights written half, and training that goes on from weights nobody can fetch."""
    groups: list[str] = []
    for run in ("full-disk", "roomy-disk"):
        trainer.create(run, config)
        groups = feed(redis_url, run, [separable_sample(number) for number in range(4)])

    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_room)
        with pytest.raises(StorageError, match="No space left on device"):
            adapt(trainer, "full-disk", "a", groups, 2)
    assert trainer.status("full-disk").version == 0
    versions = [adapt(trainer, run, "a", groups, 2).version for run in ("full-disk", "roomy-disk")]
    assert versions == [1, 1]
    tensors_of = [wire.unpack_tensors((trainer.weights(run) or (0, b""))[1])[0] for run in ("full-disk", "roomy-disk")]
    assert all(np.array_equal(tensors_of[0][name], array) for name, array in tensors_of[1].items())


def test_deleting_a_run_leaves_nothing(trainer, http, config, redis_url):
    """Guards against runs that cannot be made anew because something of the old one is left."""
    trainer.create("gone", config)
    groups = feed(redis_url, "gone", [separable_sample(number) for number in range(4)])
    adapt(trainer, "gone", "a", groups, 1)
    assert 'lasro_surrogate_version{run="gone"} 1.0' in http.get("/metrics").text
    trainer.delete("gone")
    with pytest.raises(NotFoundError):
        trainer.status("gone")
    assert 'run="gone"' not in http.get("/metrics").text
    with connect(redis_url) as client:
        assert client.keys("*run:gone:*") == []
    assert trainer.create("gone", config).version == 0
    trainer.delete("gone")


def test_the_contract_is_described(http):
    """Guards against a schema that does not say which bodies are binary."""
    paths = http.get("/openapi.json").json()["paths"]
    gradient = paths["/v1/runs/{run}/gradient"]["post"]
    for content in (gradient["requestBody"]["content"], gradient["responses"]["200"]["content"]):
        assert content[wire.SAFETENSORS_TYPE]["schema"] == {"type": "string", "format": "binary"}
    assert set(paths["/v1/runs/{run}/score"]["post"]["requestBody"]["content"]) >= {
        "application/json",
        wire.SAFETENSORS_TYPE,
    }
    assert {"/v1/runs", "/v1/runs/{run}", "/v1/runs/{run}/adapt", "/v1/runs/{run}/weights"} <= paths.keys()


def test_not_ready_without_redis(config, tmp_path, redis_url):
    """Guards against traffic sent to a trainer that can receive no samples."""
    with running("redis://127.0.0.1:1/0", tmp_path) as url, SurrogateClient(url) as trainer:
        assert not trainer.ready()
        answer = httpx.get(f"{url}/health/ready")
        assert answer.status_code == 503
        assert "Redis cannot be reached" in answer.json()["detail"]


def test_a_folder_that_cannot_be_written_is_reported_before_the_service_starts(tmp_path: Path) -> None:
    """Bug: a trainer on a read-only volume is up, and fails at its first group."""
    check_folder(tmp_path / "made")
    assert list((tmp_path / "made").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="expected a writable folder with room, see LASRO_DATA_DIR"):
        check_folder(tmp_path / "file" / "folder")
