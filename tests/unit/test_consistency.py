"""Sampling mathematics, in float64, against hand-computed numbers and diffusers' own scheduler."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler

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


def renoise(x_t: torch.Tensor, z: torch.Tensor, noise: torch.Tensor, i: int) -> torch.Tensor:
    """With abar_499 = 0.36, and never for the first step."""
    assert i == 1
    return noise_schedule.add_noise(z, noise, torch.tensor(0.36, dtype=torch.float64))


def test_two_steps_by_hand() -> None:
    """Guards against noising the last latent, or noising with the wrong step's alpha.

    f(x, t) = x / 2; x_999 = 4 gives z1 = 2; abar_499 = 0.36 gives x_499 = 0.6 * 2 + 0.8 * 5 = 5.2, z2 = 2.6.
    """
    noises = [torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (4.0, 5.0)]
    first, second = sample(lambda x_t, i: x_t / 2, renoise, noises)
    assert first.z_BCHW.item() == pytest.approx(2.0)
    assert second.x_t_BCHW.item() == pytest.approx(5.2)
    assert second.z_BCHW.item() == pytest.approx(2.6)


def test_no_gradient_through_the_second_step_into_the_first() -> None:
    """Guards against backpropagating through the chain: z2 = theta (0.6 z1 + ...) must see z1 as a constant.

    theta = 0.5, z1 = 2: d z2 / d theta = x_499 = 5.2, not 5.2 + theta * 0.6 * d z1 / d theta.
    """
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    noises = [torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (4.0, 5.0)]
    sample(lambda x_t, i: theta * x_t, renoise, noises)[1].z_BCHW.sum().backward()
    assert theta.grad is not None
    assert theta.grad.item() == pytest.approx(5.2)


def test_only_the_named_rows_go_on_to_the_second_step() -> None:
    """Guards against a row that meets another row's noise: of z1 = 1, 2, 3 the last one goes on, with its own noise.

    x = 0.6 * 3 + 0.8 * 5 = 5.8, z2 = 2.9.
    """
    first = torch.tensor([2.0, 4.0, 6.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    noises = [first, torch.full((1, 1, 1, 1), 5.0, dtype=torch.float64)]
    taken = sample(lambda x_t, i: x_t / 2, renoise, noises, rows=[torch.tensor([2])])
    assert [len(step.z_BCHW) for step in taken] == [3, 1]
    assert taken[1].z_BCHW.item() == pytest.approx(2.9)


def test_a_step_may_go_on_from_the_input_before_it() -> None:
    """Guards against a sampler that is given another row's input, or one with a gradient into the first step.

    x_0 = 2, 6 with z = theta x_0 = 1, 3. Half the way from x_0 = 6 to z = 3 is 4.5, so z2 = 2.25, d z2 / d theta = 4.5.
    """
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    first = torch.tensor([2.0, 6.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    noises = [first, torch.zeros(1, 1, 1, 1, dtype=torch.float64)]
    taken = sample(
        lambda x_t, i: theta * x_t, lambda x_t, z, noise, i: (x_t + z) / 2 + noise, noises, rows=[torch.tensor([1])]
    )
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
