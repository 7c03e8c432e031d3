"""What a trainer's disk holds is enough to go on from, whenever the process dies or the disk fails."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lasro import wire
from lasro.config import ModelSettings, SurrogateRun, SurrogateSettings
from lasro.errors import ConflictError, NonFiniteError, StorageError
from lasro.models.frozen import FrozenModel, ModelCache
from lasro_surrogate_trainer import store
from lasro_surrogate_trainer.journaled_training import JournaledTrainer, request_digest
from lasro_surrogate_trainer.sample_feed import GroupBuffer
from lasro_surrogate_trainer.store import RunStore

SHAPE = (4, 8, 8)
PROMPTS = ["a red star", "a blue square and a green ring", "a heart", "two stars", "a pink cross", "a sun", "rings"]
NEVER_S, ALWAYS_S = 1e9, 0.0
Weights = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def config(one_level_model_path: Path) -> SurrogateRun:
    surrogate = SurrogateSettings(
        head_channels=16, learning_rate=3e-3, groups_per_step=3, buffer_groups=6, held_out_share=0.2, device="cpu"
    )
    return SurrogateRun(model=ModelSettings(path=str(one_level_model_path)), surrogate=surrogate, weights={"mean": 1.0})


@pytest.fixture(scope="module")
def frozen(config: SurrogateRun) -> FrozenModel:
    return ModelCache().get(config.model, config.surrogate.device)


def sample(number: int) -> wire.ScoredGroup:
    latents = np.random.default_rng(number).normal(size=(4, *SHAPE)).astype(np.float16)
    return wire.ScoredGroup(
        group_id=f"g{number}",
        round=number // 2,
        index=number % 2,
        prompt=PROMPTS[number % 7],
        policy_version=number // 2,
        stages=[1, 2, 1, 2],
        rewards={"mean": latents.mean(axis=(1, 2, 3)).astype(float).tolist()},
        versions={"mean": 1},
        latents=wire.pack_tensors({"latents": latents}),
    )


class Trainer:
    """A trainer process as far as memory goes: `Trainer(...)` on the same folder is its restart."""

    def __init__(self, frozen: FrozenModel, config: SurrogateRun, folder: Path, redo_s: float = NEVER_S) -> None:
        self.store = RunStore(folder, "run", keep_versions=2, keep_versions_s=0)
        self.buffer = GroupBuffer(config, SHAPE)
        self.training = JournaledTrainer(config, frozen, self.buffer, self.store, redo_s)

    def round(self, round: int, steps: int = 2, **pace: Any) -> wire.AdaptReply:
        """The stream delivers what was not acknowledged, perhaps again; then the client asks."""
        samples = [sample(2 * round), sample(2 * round + 1)]
        for one in samples:
            self.buffer.accept(one)
        names = [one.group_id for one in samples]
        return self.ask(wire.AdaptRequest(request_id=f"r{round}", new_groups=names, steps=steps, **pace))

    def settle(self, name: str, steps: int) -> wire.AdaptReply:
        """Asked for after a round, without a new group."""
        return self.ask(wire.AdaptRequest(request_id=name, new_groups=[], steps=steps, settle=True))

    def ask(self, request: wire.AdaptRequest) -> wire.AdaptReply:
        reply = self.training.adapt(request, lambda: False)
        self.training.tidy()
        return reply

    def weights(self) -> Weights:
        return wire.unpack_tensors(self.store.read(self.training.head.version))[0]


def without_time(reply: wire.AdaptReply) -> wire.AdaptReply:
    return reply.model_copy(update={"statistics": reply.statistics.model_copy(update={"duration_s": 0.0})})


@pytest.fixture(scope="module")
def undisturbed(frozen: FrozenModel, config: SurrogateRun, tmp_path_factory) -> tuple[list[wire.AdaptReply], Weights]:
    trainer = Trainer(frozen, config, tmp_path_factory.mktemp("undisturbed"))
    replies = [without_time(trainer.round(number)) for number in range(6)]
    return replies, trainer.weights()


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("redo_s", [NEVER_S, ALWAYS_S])
def test_a_restart_after_every_round_changes_nothing(frozen, config, tmp_path, undisturbed, redo_s):
    """Guards against a restart that empties the replay, resets the optimiser or forgets what it measured."""
    replies = []
    for number in range(6):
        trainer = Trainer(frozen, config, tmp_path, redo_s)
        replies.append(without_time(trainer.round(number)))
        assert trainer.buffer.unsaved([f"g{2 * number}"]) == []
    assert replies == undisturbed[0]
    again = Trainer(frozen, config, tmp_path, redo_s)
    assert same(again.weights(), undisturbed[1])
    assert [without_time(again.round(number)) for number in range(6)] == replies, "each is answered, none trained again"
    assert same(again.weights(), undisturbed[1])


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Counts writes to disk; the one asked for raises instead, before or after the file is there."""
    whole, state = store.write_file, {"count": 0}

    def arm(number: int, error: BaseException, after: bool) -> None:
        state["count"] = -number

        def write(path: Path, body: bytes) -> None:
            state["count"] += 1
            if state["count"] == 1 and not after:
                raise error
            whole(path, body)
            if state["count"] == 1:
                raise error

        for module in ("store", "journal"):
            monkeypatch.setattr(f"lasro_surrogate_trainer.{module}.write_file", write)

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("redo_s", "after"),
    [
        (NEVER_S, True),
        (ALWAYS_S, False),
        pytest.param(NEVER_S, False, marks=pytest.mark.proof),
        pytest.param(ALWAYS_S, True, marks=pytest.mark.proof),
    ],
)
def test_a_crash_at_any_write_changes_nothing(frozen, config, tmp_path, undisturbed, fail_at, redo_s, after):
    """Guards against files of a step that was never finished, or steps without files."""
    crashes = 0
    for write in range(30):
        folder = tmp_path / str(write)
        fail_at(write, Crash(), after)
        replies, number, died = [], 0, False
        while number < 2:
            try:
                trainer = Trainer(frozen, config, folder, redo_s)
                while number < 2:
                    replies.append(without_time(trainer.round(number)))
                    number += 1
            except Crash:
                assert not died
                died = True
        crashes += died
        assert replies == undisturbed[0][:2]
        history = Trainer(frozen, config, folder, redo_s).training.history
        assert [commit.number for commit in history] == list(range(3))
        if not died:
            break
    assert crashes >= 9


@pytest.mark.parametrize("write", [0, 1, 2], ids=["groups", "weights", "commit"])
@pytest.mark.parametrize("after", [False, True])
def test_a_failing_disk_is_reported_and_the_round_can_be_repeated(
    frozen, config, tmp_path, undisturbed, fail_at, write, after
):
    """Guards against training further from weights that nobody can fetch, in the same process, with room again."""
    trainer = Trainer(frozen, config, tmp_path)
    fail_at(write, StorageError("no room"), after)
    with pytest.raises(StorageError):
        trainer.round(0)
    assert [without_time(trainer.round(number)) for number in range(6)] == undisturbed[0]
    assert same(trainer.weights(), undisturbed[1])


def test_a_step_that_fails_leaves_no_trace(frozen, config, tmp_path, undisturbed, monkeypatch):
    """Guards against groups of a failed request staying in the replay, where a restart would not find them."""
    trainer = Trainer(frozen, config, tmp_path)
    trainer.round(0)
    with monkeypatch.context() as patch:
        patch.setattr("lasro.training.surrogate_trainer.SurrogateTrainer._apply", _explode)
        with pytest.raises(NonFiniteError):
            trainer.round(1)
    assert [without_time(trainer.round(number)) for number in range(6)] == undisturbed[0]


def _explode(*_: object) -> None:
    raise NonFiniteError("a gradient of NaN")


def test_disk_holds_no_more_than_memory(frozen, config, tmp_path):
    """Guards against folders that grow for ever, and a replay that is rewritten each round."""
    surrogate = config.surrogate.model_copy(update={"held_out_share": 0.0})
    trainer = Trainer(frozen, config.model_copy(update={"surrogate": surrogate}), tmp_path, ALWAYS_S)
    folder, seen = trainer.store.folder, {}
    for number in range(9):
        trainer.round(number)
        for path in (folder / "groups").iterdir():
            assert seen.setdefault(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, "written once"
    assert sorted(path.stem for path in (folder / "groups").iterdir()) == ["00000007", "00000008", "00000009"]
    assert len(list((folder / "optimiser").iterdir())) == 1
    assert trainer.store.versions() == [8, 9]
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def test_uploaded_weights_survive_and_are_taken_once(frozen, config, tmp_path):
    """Guards against a resumed client's second upload making a version that an undisturbed run never had."""
    donor = Trainer(frozen, config, tmp_path / "donor")
    donor.round(0)
    trainer = Trainer(frozen, config, tmp_path / "run")
    for _ in range(2):
        trainer.training.upload(donor.weights(), "digest")
        trainer.round(0, steps=0)
        trainer = Trainer(frozen, config, tmp_path / "run")
    assert (trainer.training.head.version, trainer.training.head.steps) == (1, 0)
    assert same(trainer.weights(), donor.weights())
    trainer.round(1)
    with pytest.raises(ConflictError, match="already trained for 2 steps"):
        trainer.training.upload(donor.weights(), "other")


def test_replies_of_leased_versions_are_kept(frozen, config, tmp_path, monkeypatch):
    """Guards against a repeated round being trained on a second time because its answer was forgotten."""
    monkeypatch.setattr("lasro_surrogate_trainer.journaled_training.KEPT_COMMITS", 2)
    trainer = Trainer(frozen, config, tmp_path, ALWAYS_S)
    first = [without_time(trainer.round(number)) for number in range(2)]
    trainer.store.lease(1)
    for number in range(2, 6):
        trainer.round(number)
    trainer = Trainer(frozen, config, tmp_path, ALWAYS_S)
    assert [without_time(trainer.round(number)) for number in range(2)] == first
    trainer.store.lease(6)
    trainer.round(6)
    assert [commit.version for commit in trainer.training.history] == [6, 7]


def slow_and_settled(trainer: Trainer, restart: Callable[[], Trainer]) -> tuple[list[wire.AdaptReply], Weights]:
    """A round at a tenth of the rate, a settling, and a round after it, with what `restart` does before each."""
    replies = [without_time(trainer.round(0, rate=0.1))]
    replies.append(without_time(restart().settle("s1", 4)))
    trainer = restart()
    replies.append(without_time(trainer.round(1)))
    return replies, trainer.weights()


@pytest.mark.parametrize("redo_s", [NEVER_S, ALWAYS_S])
def test_a_crash_after_slow_steps_and_settling_repeats_them_exactly(frozen, config, tmp_path, redo_s):
    """Bug: steps that are made again after a crash take the whole rate, or their groups from the newest half."""
    whole = Trainer(frozen, config, tmp_path / "whole", redo_s)
    expected = slow_and_settled(whole, lambda: whole)
    path = tmp_path / "crashed"
    replies, weights = slow_and_settled(
        Trainer(frozen, config, path, redo_s), lambda: Trainer(frozen, config, path, redo_s)
    )
    assert replies == expected[0]
    assert same(weights, expected[1])
    again = Trainer(frozen, config, path, redo_s)
    assert without_time(again.settle("s1", 4)) == replies[1], "answered, not trained again"
    assert same(again.weights(), weights)


def test_rate_and_settling_change_what_is_learned(frozen, config, tmp_path):
    """Guards against fields that are kept and obeyed by nobody."""
    asked: list[dict[str, Any]] = [{}, {"rate": 0.1}, {"settle": True}]
    moved = []
    for number, pace in enumerate(asked):
        trainer = Trainer(frozen, config, tmp_path / str(number))
        trainer.round(0, steps=0)
        before = trainer.weights()
        trainer.round(1, steps=3, **pace)
        after = trainer.weights()
        moved.append(sum(float(np.abs(after[name] - before[name]).sum()) for name in before))
    assert moved[1] < 0.3 * moved[0]
    assert moved[2] < moved[0]


def test_a_request_of_the_last_release_keeps_its_digest():
    """Bug: a client that was upgraded in the middle of a round repeats its request and is refused for another one.

    The digest is that of the fields that there were: sha256 of their JSON.
    """
    older = wire.AdaptRequest(request_id="r000001-0-ab", new_groups=["g1", "g2"], steps=4)
    body = b'{"request_id":"r000001-0-ab","new_groups":["g1","g2"],"steps":4}'
    assert request_digest(older) == hashlib.sha256(body).hexdigest()
    others = [older.model_copy(update=each) for each in ({"rate": 0.5}, {"settle": True})]
    assert len({request_digest(request) for request in (older, *others)}) == 3
    patient = older.model_copy(update={"timeout_s": 5.0, "drift": 0.2})
    assert request_digest(patient) == request_digest(older)
