"""Sampling mathematics, in float64, against hand-computed numbers and diffusers' own scheduler."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lasro.functional import consistency, noise_schedule
from lasro.functional.consistency import sample
from lasro.functional.noise_schedule import lcm_timesteps


def test_timesteps_are_those_of_diffusers() -> None:
    """Guards against an off-by-one in the schedule, which still draws plausible but different images."""
    scheduler = LCMScheduler(original_inference_steps=50)
    for steps in (1, 2, 3, 4, 7, 8):
        scheduler.set_timesteps(steps)
        assert lcm_timesteps(steps) == scheduler.timesteps.tolist()
    assert lcm_timesteps(1) == [999]
    assert lcm_timesteps(2) == [999, 499]
    assert lcm_timesteps(4) == [999, 759, 499, 259]


@pytest.mark.parametrize("steps", [0, 51])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    """Guards against an empty or repeated schedule being sampled in silence."""
    with pytest.raises(ValueError, match="expected 1 to 50"):
        lcm_timesteps(steps)


def test_boundary_scalings_by_hand() -> None:
    """Guards against scaling t by 1 instead of 10: s = 10 * 0.1 = 1 gives 0.25/1.25 and 1/sqrt(1.25)."""
    c_skip, c_out = consistency.boundary_scalings(torch.tensor([0.0, 0.1], dtype=torch.float64))
    torch.testing.assert_close(c_skip, torch.tensor([1.0, 0.2], dtype=torch.float64))
    torch.testing.assert_close(c_out, torch.tensor([0.0, 0.8**0.5], dtype=torch.float64))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_network_outputs_give_back_latent_and_noise(prediction_type: str) -> None:
    """Guards against mixing up the three parameterisations: each must recover the z and eps it was made from."""
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64, generator=generator)
    abar = torch.tensor(0.36, dtype=torch.float64)
    x_t = noise_schedule.add_noise(z, noise, abar)
    outputs = {"epsilon": noise, "v_prediction": 0.6 * noise - 0.8 * z, "sample": z}
    output = outputs[prediction_type]
    torch.testing.assert_close(noise_schedule.clean_from_output(output, x_t, abar, prediction_type), z)
    torch.testing.assert_close(noise_schedule.noise_from_output(output, x_t, abar, prediction_type), noise)


def test_unknown_parameterisation_is_refused() -> None:
    """Guards against treating an unknown prediction type as epsilon."""
    with pytest.raises(ValueError, match="expected epsilon, v_prediction or sample"):
        noise_schedule.clean_from_output(torch.zeros(1), torch.zeros(1), torch.tensor(0.5), "flow")


ABAR = torch.tensor(0.36, dtype=torch.float64)


def as_it_is(noise: Tensor, step: int) -> Tensor:
    return noise


def renoise(x_t: Tensor, z: Tensor, noise: Tensor, step: int, next_step: int) -> Tensor:
    """With abar = 0.36, and never for the first step."""
    assert next_step > 0
    return noise_schedule.add_noise(z, noise, ABAR)


def full(*values: float) -> list[Tensor]:
    return [torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in values]


def test_two_steps_by_hand() -> None:
    """Guards against noising the last latent, or noising with the wrong step's alpha.

    f(x, t) = x / 2; x_999 = 4 gives z1 = 2; abar_499 = 0.36 gives x_499 = 0.6 * 2 + 0.8 * 5 = 5.2, z2 = 2.6.
    """
    [[first, second]] = sample(lambda x_t, step: x_t / 2, as_it_is, renoise, full(4.0, 5.0), [(0, 1)])
    assert first.z_BCHW.item() == pytest.approx(2.0)
    assert second.x_t_BCHW.item() == pytest.approx(5.2)
    assert second.z_BCHW.item() == pytest.approx(2.6)


@pytest.mark.parametrize(
    ("gradient_steps", "expected"), [(1, 6.36), (2, 6.36 + 0.3 * 5.2), (3, 6.36 + 0.3 * (5.2 + 0.3 * 4))]
)
def test_the_gradient_goes_back_so_many_steps(gradient_steps: int, expected: float) -> None:
    """Guards against a chain that is cut one step early or late, or not at all, as in a one-step-at-a-time run.

    f(x) = theta x with theta = 0.5: x_0 = 4, x_1 = 0.6 * 2 + 0.8 * 5 = 5.2, x_2 = 0.6 * 2.6 + 0.8 * 6 = 6.36.
    d z_3 / d theta = x_2 + 0.6 theta (x_1 + 0.6 theta x_0), the terms of the steps before the last as far as it goes.
    """
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    noises = full(4.0, 5.0, 6.0)
    [steps] = sample(lambda x_t, step: theta * x_t, as_it_is, renoise, noises, [(0, 1, 2)], gradient_steps)
    assert [step.z_BCHW.requires_grad for step in steps] == [i >= 3 - gradient_steps for i in range(3)]
    (found,) = torch.autograd.grad(steps[-1].z_BCHW.sum(), theta)
    assert found.item() == pytest.approx(expected)


def test_truncated_sampling_passes_gradcheck() -> None:
    """Guards against a next input that no gradient, or half of one, goes through: all steps are differentiated."""
    noises = [
        torch.randn(1, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3)
    ]

    def last(theta: Tensor) -> Tensor:
        [steps] = sample(
            lambda x_t, step: torch.tanh(theta[step] * x_t), as_it_is, renoise, noises, [(0, 1, 2)], gradient_steps=3
        )
        return steps[-1].z_BCHW

    assert torch.autograd.gradcheck(last, torch.tensor([0.3, 0.7, 1.1], dtype=torch.float64, requires_grad=True))


def alone(theta: Tensor, noises: list[Tensor], path: tuple[int, ...], gradient_steps: int) -> Tensor:
    """The last z of one schedule, step by step: what a longer chain is a constant of is detached."""
    x_t, z = noises[0], torch.zeros(())
    for i, step in enumerate(path):
        if i > 0:
            before = z.detach() if i == len(path) - gradient_steps else z
            x_t = renoise(x_t, before, noises[i], path[i - 1], step)
        z = torch.sin((1 + theta) * (step + 1) * x_t)
    return z


SCHEDULES = st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=4).map(
    lambda found: sorted({(0, *rest) for rest in found}, key=len)
)


@given(SCHEDULES, st.integers(1, 5))
def test_schedules_that_share_steps_are_what_they_are_alone(
    schedules: list[tuple[int, ...]], gradient_steps: int
) -> None:
    """Guards against a shared step that is taken twice, or whose gradient for one schedule reaches through to another.

    Values and the gradient of their sum are those of each schedule by itself, and a step is predicted once where no
    two schedules want its gradient from another step on.
    """
    theta, calls = torch.tensor(0.2, dtype=torch.float64, requires_grad=True), []
    noises = full(0.9, -0.4, 0.7, 0.3, -0.8)

    def predict(x_t: Tensor, step: int) -> Tensor:
        calls.append(step)
        return torch.sin((1 + theta) * (step + 1) * x_t)

    taken = sample(predict, as_it_is, renoise, noises, schedules, gradient_steps)
    expected = [alone(theta, noises, path, gradient_steps) for path in schedules]
    assert [steps[-1].z_BCHW.item() for steps in taken] == [z.item() for z in expected]
    assert [len(steps) for steps in taken] == [len(path) for path in schedules]
    both = ([steps[-1].z_BCHW for steps in taken], expected)
    (found,), (wanted,) = (torch.autograd.grad(torch.cat(each).sum(), theta) for each in both)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-9, abs=1e-12)
    if gradient_steps == 1:
        assert len(calls) <= len({path[:i] for path in schedules for i in range(1, len(path) + 1)})


def test_one_and_two_steps_take_two_predictions() -> None:
    """Guards against a run of one and two steps that pays for its one-step samples."""
    calls = []
    sample(lambda x_t, step: calls.append(step) or x_t, as_it_is, renoise, full(1.0, 2.0), [(0,), (0, 1)])
    assert calls == [0, 1]


def test_only_the_named_rows_go_on_to_the_second_step() -> None:
    """Guards against a row that meets another row's noise: of z1 = 1, 2, 3 the last one goes on, with its own noise.

    x = 0.6 * 3 + 0.8 * 5 = 5.8, z2 = 2.9. A third step takes all that are left: x = 0.6 * 2.9 + 0.8 * 5, z3 = 2.87.
    """
    first = torch.tensor([2.0, 4.0, 6.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    noises, rows = [first, *full(5.0, 5.0)], torch.tensor([2])
    [taken] = sample(lambda x_t, step: x_t / 2, as_it_is, renoise, noises, [(0, 1, 2)], rows=rows)
    assert [len(step.z_BCHW) for step in taken] == [3, 1, 1]
    assert taken[1].z_BCHW.item() == pytest.approx(2.9)
    assert taken[2].z_BCHW.item() == pytest.approx(2.87)


def test_a_step_may_go_on_from_the_input_before_it() -> None:
    """Guards against a sampler that is given another row's input, or one with a gradient into the first step.

    x_0 = 2, 6 with z = theta x_0 = 1, 3. Half the way from x_0 = 6 to z = 3 is 4.5, so z2 = 2.25, d z2 / d theta = 4.5.
    """
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    first = torch.tensor([2.0, 6.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    noises, rows = [first, torch.zeros(1, 1, 1, 1, dtype=torch.float64)], torch.tensor([1])

    def halfway(x_t: Tensor, z: Tensor, noise: Tensor, step: int, next_step: int) -> Tensor:
        return (x_t + z) / 2 + noise

    [taken] = sample(lambda x_t, step: theta * x_t, as_it_is, halfway, noises, [(0, 1)], rows=rows)
    taken[1].z_BCHW.sum().backward()
    assert taken[1].z_BCHW.item() == pytest.approx(2.25)
    assert theta.grad is not None
    assert theta.grad.item() == pytest.approx(4.5)


def test_sampler_formulas_pass_gradcheck() -> None:
    """Guards against a formula whose gradient is not that of its value."""
    generator = torch.Generator().manual_seed(0)
    output, x_t = (torch.randn(1, 2, 2, 2, dtype=torch.float64, generator=generator).requires_grad_() for _ in "ab")
    abar = torch.tensor(0.3, dtype=torch.float64)
    scalings = consistency.boundary_scalings(torch.tensor(0.05, dtype=torch.float64))

    def f(output: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        return consistency.consistency(noise_schedule.clean_from_output(output, x_t, abar), x_t, *scalings)

    assert torch.autograd.gradcheck(f, (output, x_t))
    assert torch.autograd.gradcheck(lambda z, n: noise_schedule.add_noise(z, n, abar), (output, x_t))


def test_guidance_embedding_is_that_of_diffusers() -> None:
    """Guards against embedding w instead of w - 1, which the UNet was never trained on."""
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    w = torch.tensor([1.0, 4.0, 7.5])
    expected = StableDiffusionXLPipeline.get_guidance_scale_embedding(None, w - 1, embedding_dim=256)  # type: ignore[arg-type]
    torch.testing.assert_close(consistency.guidance_embedding(w, 256), expected, atol=2e-4, rtol=0)
