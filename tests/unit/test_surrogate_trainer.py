"""Training steps of the surrogate trainer, on a tiny random model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from lasro import wire
from lasro.config import ModelSettings, SurrogateSettings
from lasro.errors import BusyError, DeviceMemoryError, NonFiniteError, WireError
from lasro.functional.reward_totals import RewardObjective
from lasro.models.frozen import FrozenModel, ModelCache
from lasro.training.adaptation import adapt
from lasro.training.ranking import Ranker
from lasro.training.replay_buffer import ReplayBuffer, ReplayGroup, origins_of
from lasro.training.surrogate_trainer import SurrogateTrainer

SHAPE = (4, 8, 8)
SETTINGS = SurrogateSettings(head_channels=16, learning_rate=3e-3, groups_per_step=4, held_out_share=0, device="cpu")
OBJECTIVE = RewardObjective({"mean": 1.0})
RANKER = Ranker(SETTINGS, OBJECTIVE, {}, margin=0.02)


@pytest.fixture(scope="module")
def frozen(one_level_model_path) -> FrozenModel:
    model = ModelSettings(path=str(one_level_model_path))
    return ModelCache().get(model, SETTINGS.device)


def changed(**settings: object) -> SurrogateSettings:
    return SETTINGS.model_copy(update=settings)


def replay_of(count: int) -> ReplayBuffer:
    replay = ReplayBuffer(buffer_groups=100, recent_groups=10, held_out_share=0)
    for number in range(count):
        rng = np.random.default_rng(number)
        latents = rng.normal(size=(8, *SHAPE)) + rng.normal(size=(8, 1, 1, 1))
        replay.add(
            ReplayGroup(
                group_id=f"g{number}",
                round=number,
                index=0,
                prompt="a red star",
                num_steps_N=np.array([1, 2] * 4),
                rewards={"mean": latents.mean(axis=(1, 2, 3))},
                latents_NCHW=latents.astype(np.float16),
            )
        )
    replay.activate([])
    return replay


def request(steps: int, new_groups: list[str] | None = None) -> wire.AdaptRequest:
    return wire.AdaptRequest(request_id="r", new_groups=new_groups or [], steps=steps)


def test_same_groups_give_the_same_weights(frozen):
    """Guards against randomness that does not come from the run's seed and the number of the step."""
    replay, states = replay_of(6), []
    for split in ((6,), (2, 4)):
        trainer = SurrogateTrainer(frozen, SETTINGS, OBJECTIVE)
        for steps in split:
            adapt(trainer, replay, request(steps), lambda: False)
            torch.rand(3)
        states.append(trainer.state())
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    other = SurrogateTrainer(frozen, changed(seed=1), OBJECTIVE)
    other.load(SurrogateTrainer(frozen, SETTINGS, OBJECTIVE).state(), 0)
    adapt(other, replay, request(6), lambda: False)
    assert not all(np.array_equal(states[0][name], array) for name, array in other.state().items())


def test_samples_of_a_group_are_ranked_under_one_noise(frozen):
    """Bug: each sample had a timestep and noise of its own, which drowned what two samples of the same z1 differ by."""
    trainer, replay = SurrogateTrainer(frozen, SETTINGS, OBJECTIVE), ReplayBuffer(100, 10, 0)
    for group in replay_of(4).draw(4, np.random.default_rng(0)):
        copies = np.repeat(group.latents_NCHW[:1], 8, axis=0)
        replay.add(dataclasses.replace(group, latents_NCHW=copies))
    replay.activate([])
    seen = []
    trainer.surrogate.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1:3]))
    statistics = adapt(trainer, replay, request(1), lambda: False)
    assert statistics.loss == pytest.approx(np.log(2), abs=1e-5)  # of equal scores
    timesteps_GN, noise_GN = (values.reshape(4, 8, -1) for values in seen[0])
    assert (timesteps_GN == timesteps_GN[:, :1]).all()
    assert (noise_GN == noise_GN[:, :1]).all()
    assert len(timesteps_GN[:, 0].unique()) == 4
    assert len(noise_GN[:, 0, 0].unique()) == 4


def test_only_the_surrogate_is_trained(frozen):
    """Guards against training that leaks into the frozen model, which other runs share."""
    before = {name: tensor.clone() for name, tensor in frozen.model.unet.state_dict().items()}
    start = SurrogateTrainer(frozen, SETTINGS, OBJECTIVE).state()
    trainer = SurrogateTrainer(frozen, SETTINGS, OBJECTIVE)
    adapt(trainer, replay_of(4), request(2), lambda: False)
    assert all(torch.equal(before[name], tensor) for name, tensor in frozen.model.unet.state_dict().items())
    moved = [name for name, array in trainer.state().items() if not np.array_equal(array, start[name])]
    assert any(name.startswith("head") for name in moved)
    assert any("down_blocks" in name for name in moved)


@pytest.mark.parametrize("settings", [{"autocast": "bfloat16"}, {"trunk": "adapter", "adapter_rank": 4}])
def test_learns_in_bfloat16_and_through_adapters(frozen, settings):
    """Guards against settings that run but do not learn."""
    trainer, replay = SurrogateTrainer(frozen, changed(**settings), OBJECTIVE), replay_of(12)
    before = trainer.rank(replay_of(12).draw(12, np.random.default_rng(0)), RANKER).accuracy
    statistics = adapt(trainer, replay, request(40), lambda: False)
    after = trainer.rank(replay.draw(12, np.random.default_rng(0)), RANKER)
    assert before is not None
    assert after.accuracy is not None
    assert after.accuracy > max(0.85, before)
    assert after.gap is not None
    assert after.gap < 0.3
    assert statistics.loss is not None
    assert statistics.loss < 0.65


def test_a_step_that_is_not_finite_is_not_applied(frozen):
    """Guards against NaN entering the optimiser, from which no run recovers."""
    trainer = SurrogateTrainer(frozen, SETTINGS, OBJECTIVE)
    state = trainer.state()
    head = next(name for name in state if name.startswith("head") and state[name].ndim == 2)
    state[head] = np.full_like(state[head], 3e38)
    trainer.load(state, 0)
    with pytest.raises(NonFiniteError, match="surrogate step 1: got loss"):
        adapt(trainer, replay_of(4), request(3), lambda: False)
    assert all(np.array_equal(array, state[name]) for name, array in trainer.state().items())


def test_a_full_gpu_is_reported_with_what_to_lower(frozen, monkeypatch):
    """Bug: a traceback of torch's in the service's log, and 500 for the client."""

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    trainer = SurrogateTrainer(frozen, SETTINGS, OBJECTIVE)
    monkeypatch.setattr(trainer, "_augmented_scores", full)
    with pytest.raises(
        DeviceMemoryError, match=r"step 1 of 32 samples: CUDA out of memory; lower surrogate\.groups_per"
    ):
        adapt(trainer, replay_of(4), request(3), lambda: False)


def test_an_adaptation_can_be_ended(frozen):
    """Guards against a service that cannot stop while it trains."""
    trainer, asked = SurrogateTrainer(frozen, SETTINGS, OBJECTIVE), iter([False, False, True])
    with pytest.raises(BusyError):
        adapt(trainer, replay_of(4), request(1000), lambda: next(asked))
    assert trainer.steps == 2


def test_statistics_of_new_groups(frozen):
    """Guards against pair accuracy of new groups measured after training on them, or on other groups."""
    trainer, replay = SurrogateTrainer(frozen, SETTINGS, OBJECTIVE), replay_of(8)
    untrained = trainer.rank(replay.named(["g3", "g5"]), RANKER)
    statistics = adapt(trainer, replay, request(30, ["g3", "g5"]), lambda: False)
    assert statistics.fresh_pair_accuracy == untrained.accuracy
    assert trainer.metrics.reward_gap == statistics.reward_gap == untrained.gap
    again = adapt(trainer, replay, request(0, ["g3", "g5"]), lambda: False)
    assert again.fresh_pair_accuracy is not None
    assert again.fresh_pair_accuracy > (untrained.accuracy or 0)
    assert (again.loss, again.pairs) == (None, 0)
    assert statistics.pairs >= 30
    assert statistics.held_out_pair_accuracy is None


def test_pairs_are_counted_by_kind_over_groups(frozen):
    """Bug: an accuracy of kinds averaged over groups in place of pairs, or measured after training on them."""
    replay, trainer = replay_of(0), SurrogateTrainer(frozen, SETTINGS, OBJECTIVE)
    origins = origins_of([0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0], [False] * 6 + [True] * 2)
    for group in replay_of(4).draw(4, np.random.default_rng(0)):
        known = dataclasses.replace(group, num_steps_N=np.array([1, 2, 2, 2, 1, 2, 1, 2]))
        replay.add(dataclasses.replace(known, origins=None if group.group_id == "g0" else origins))
    names = replay.activate()
    untrained = trainer.rank(replay.named(names), trainer.ranker(replay)).by_kind
    statistics = adapt(trainer, replay, request(20, names), lambda: False)
    assert statistics.accuracy_by_kind == untrained
    assert list(untrained) == [kind for kind in wire.PAIR_KINDS if kind in untrained]
    assert {"across_seeds", "reference_one_step", "reference_two_step"} <= untrained.keys()
    assert untrained["reference_one_step"].pairs == 3
    of_each = [trainer.rank([group], trainer.ranker(replay)).by_kind for group in replay.named(names)]
    assert of_each[0] == {}
    after = trainer.rank(replay.named(names), trainer.ranker(replay)).by_kind
    for kind, found in after.items():
        groups = [each[kind] for each in of_each[1:]]
        assert found.pairs == sum(each.pairs for each in groups)
        assert found.accuracy == pytest.approx(sum(each.accuracy * each.pairs for each in groups) / found.pairs)


def pairs(
    group: ReplayGroup, margin: float, objective: RewardObjective = OBJECTIVE, **settings: object
) -> set[tuple[int, int]]:
    winners_P, losers_P = Ranker(changed(**settings), objective, {}, margin).pairs(group)
    return set(zip(winners_P.tolist(), losers_P.tolist(), strict=True))


def test_stale_groups_are_trained_on_but_are_not_fresh(frozen):
    """Guards against the accuracy on samples of an old generator passing for that on the present one's."""
    replay, trainer = replay_of(4), SurrogateTrainer(frozen, changed(max_policy_lag=3), OBJECTIVE)
    for number, version in ((10, 1), (11, 4), (12, 7)):
        made = dataclasses.replace(replay_of(1).named(["g0"])[0], group_id=f"p{version}", round=number)
        replay.add(dataclasses.replace(made, policy_version=version))
    names = replay.activate([])
    statistics = adapt(trainer, replay, request(3, names), lambda: False)
    assert statistics.stale_groups == 1
    untrained = SurrogateTrainer(frozen, SETTINGS, OBJECTIVE).rank(replay.named(["p4", "p7"]), RANKER)
    assert statistics.fresh_pair_accuracy == untrained.accuracy
    assert statistics.pairs > 0
    assert replay.training_groups == 7


def test_optimiser_state_brings_back_the_very_next_step(frozen):
    """Guards against a restart with a fresh optimiser, which shakes weights that were settling."""
    replay = replay_of(6)
    trainer, copy, fresh = (SurrogateTrainer(frozen, SETTINGS, OBJECTIVE) for _ in range(3))
    adapt(trainer, replay, request(3), lambda: False)
    copy.load(trainer.state(), trainer.steps)
    copy.load_optimiser(trainer.optimiser_state())
    fresh.load(trainer.state(), trainer.steps)
    for each in (trainer, copy, fresh):
        adapt(each, replay, request(2), lambda: False)
    expected = trainer.state()
    assert all(np.array_equal(array, expected[name]) for name, array in copy.state().items())
    assert not all(np.array_equal(array, expected[name]) for name, array in fresh.state().items())


def test_pairs_follow_margin_and_number_of_steps():
    """Guards against ties ranked by rounding, and one-step samples paired with two-step ones where they must not be."""
    group = replay_of(1).draw(1, np.random.default_rng(0))[0]
    assert len(pairs(group, 0.0, rank_within_num_steps=False)) == 8 * 7 // 2
    assert len(pairs(group, 0.0, rank_within_num_steps=True)) == 2 * (4 * 3 // 2)
    assert pairs(group, 10.0) == set()


def test_pairs_of_vetoed_and_failed_samples():
    """Guards against a guard that is outbid by the margin or the total, and a failed guard that ranks either way."""
    group = dataclasses.replace(
        replay_of(1).draw(1, np.random.default_rng(0))[0],
        num_steps_N=np.array([1, 1, 2, 2, 2]),
        rewards={"a": np.array([0.1, 0.2, 5.0, 9.0, 9.0]), "guard": np.array([0.5, 0.7, 0.4, 0.1, np.nan])},
    )
    guarded = RewardObjective({"a": 1.0, "guard": 0.0}, floors={"guard": 0.5})
    above = {(i, j) for i in (0, 1) for j in (2, 3)}
    assert pairs(group, 0.02, guarded) == above | {(1, 0), (2, 3)}
    assert pairs(group, 100.0, guarded) == above
    assert pairs(group, 0.02, guarded, rank_within_num_steps=True) == {(1, 0), (2, 3)}


def scaled(replay: ReplayBuffer, shift: float, factor: float) -> ReplayBuffer:
    """The same groups with other rewards."""
    made = ReplayBuffer(buffer_groups=100, recent_groups=10, held_out_share=0)
    for group in replay.named(f"g{number}" for number in range(replay.training_groups)):
        made.add(dataclasses.replace(group, rewards={"mean": shift + factor * group.rewards["mean"]}))
    made.activate([])
    return made


def test_a_share_of_the_spread_ranks_a_reward_of_any_scale(frozen):
    """Bug: a reward of 0.28 ± 0.005 lay within the margin of 0.02, and no round of a whole run had a ranked pair."""
    wide, names = replay_of(6), [f"g{number}" for number in range(6)]
    narrow = scaled(wide, 0.28, 0.001)
    found = {
        (unit, replay is narrow): adapt(
            SurrogateTrainer(frozen, changed(tie_margin=0.05, tie_margin_unit=unit), OBJECTIVE),
            replay,
            request(1, names),
            lambda: False,
        )
        for unit in ("spread", "absolute")
        for replay in (wide, narrow)
    }
    pairs_in_all = 6 * 8 * 7 // 2
    for statistics in found.values():
        assert statistics.ranked_pairs + statistics.tied_pairs == pairs_in_all
    ranked = {key: statistics.ranked_pairs for key, statistics in found.items()}
    assert ranked["spread", False] == ranked["spread", True] > 0.9 * pairs_in_all
    assert ranked["absolute", True] == 0
    assert found["absolute", True].constant_groups == 6
    spread, narrow_spread = found["spread", False].spread, found["spread", True].spread
    assert spread is not None
    assert narrow_spread == pytest.approx(0.001 * spread)
    assert found["spread", True].tie_margin == pytest.approx(0.05 * 0.001 * spread)
    assert found["absolute", True].tie_margin == 0.05


def test_a_constant_reward_ranks_nothing_whatever_the_rounding(frozen):
    """Guards against an order made of the last digit of a reward that is the same for every image."""
    constant = scaled(replay_of(4), 0.3, 1e-16)
    statistics = adapt(
        SurrogateTrainer(frozen, SETTINGS, OBJECTIVE), constant, request(2, ["g0", "g1", "g2", "g3"]), lambda: False
    )
    assert (statistics.ranked_pairs, statistics.constant_groups, statistics.pairs) == (0, 4, 0)
    assert statistics.spread == 0


def test_weights_of_another_shape_are_refused(frozen):
    """Guards against a surrogate loaded in part."""
    trainer = SurrogateTrainer(frozen, SETTINGS, OBJECTIVE)
    with pytest.raises(WireError, match="surrogate weights"):
        trainer.load(SurrogateTrainer(frozen, changed(head_channels=32), OBJECTIVE).state(), 0)
