"""Sampling mathematics, in float64, against hand-computed numbers and diffusers' own scheduler."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from lasro.functional import consistency as two_step
from lasro.functional.consistency import lcm_timesteps, sample


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
    c_skip, c_out = two_step.boundary_scalings(torch.tensor([0.0, 0.1], dtype=torch.float64))
    torch.testing.assert_close(c_skip, torch.tensor([1.0, 0.2], dtype=torch.float64))
    torch.testing.assert_close(c_out, torch.tensor([0.0, 0.8**0.5], dtype=torch.float64))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_network_outputs_give_back_latent_and_noise(prediction_type: str) -> None:
    """Guards against mixing up the three parameterisations: each must recover the z and eps it was made from."""
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64, generator=generator)
    abar = torch.tensor(0.36, dtype=torch.float64)
    x_t = two_step.add_noise(z, noise, abar)
    outputs = {"epsilon": noise, "v_prediction": 0.6 * noise - 0.8 * z, "sample": z}
    output = outputs[prediction_type]
    torch.testing.assert_close(two_step.clean_from_output(output, x_t, abar, prediction_type), z)
    torch.testing.assert_close(two_step.noise_from_output(output, x_t, abar, prediction_type), noise)


def test_unknown_parameterisation_is_refused() -> None:
    """Guards against treating an unknown prediction type as epsilon."""
    with pytest.raises(ValueError, match="expected epsilon, v_prediction or sample"):
        two_step.clean_from_output(torch.zeros(1), torch.zeros(1), torch.tensor(0.5), "flow")


def test_two_steps_by_hand() -> None:
    """Guards against noising the last latent, or noising with the wrong step's alpha.

    f(x, t) = x / 2; x_999 = 4 gives z1 = 2; abar_499 = 0.36 gives x_499 = 0.6 * 2 + 0.8 * 5 = 5.2, z2 = 2.6.
    """
    alphas = torch.full((1000,), 0.0, dtype=torch.float64)
    alphas[499] = 0.36
    noises = [torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (4.0, 5.0)]
    z1, z2 = sample(lambda x_t, t: x_t / 2, noises, [999, 499], alphas)
    assert z1.item() == pytest.approx(2.0)
    assert z2.item() == pytest.approx(2.6)


def test_no_gradient_through_the_second_step_into_the_first() -> None:
    """Guards against backpropagating through the chain: z2 = theta (0.6 z1 + ...) must see z1 as a constant.

    theta = 0.5, z1 = 2: d z2 / d theta = x_499 = 5.2, not 5.2 + theta * 0.6 * d z1 / d theta.
    """
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    alphas = torch.zeros(1000, dtype=torch.float64)
    alphas[499] = 0.36
    noises = [torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (4.0, 5.0)]
    _, z2 = sample(lambda x_t, t: theta * x_t, noises, [999, 499], alphas)
    z2.sum().backward()
    assert theta.grad is not None
    assert theta.grad.item() == pytest.approx(5.2)


def test_count_of_noises_must_match_the_steps() -> None:
    """Guards against zip cutting a sampling short in silence."""
    with pytest.raises(ValueError, match="got 1, expected one per timestep"):
        sample(lambda x_t, t: x_t, [torch.zeros(1, 1, 1, 1)], [999, 499], torch.zeros(1000))


def test_sampler_formulas_pass_gradcheck() -> None:
    """Guards against a formula whose gradient is not that of its value."""
    generator = torch.Generator().manual_seed(0)
    output, x_t = (torch.randn(1, 2, 2, 2, dtype=torch.float64, generator=generator).requires_grad_() for _ in "ab")
    abar = torch.tensor(0.3, dtype=torch.float64)
    scalings = two_step.boundary_scalings(torch.tensor(0.05, dtype=torch.float64))

    def f(output: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        return two_step.consistency(two_step.clean_from_output(output, x_t, abar), x_t, *scalings)

    assert torch.autograd.gradcheck(f, (output, x_t))
    assert torch.autograd.gradcheck(lambda z, n: two_step.add_noise(z, n, abar), (output, x_t))


def test_guidance_embedding_is_that_of_diffusers() -> None:
    """Guards against embedding w instead of w - 1, which the UNet was never trained on."""
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    w = torch.tensor([1.0, 4.0, 7.5])
    expected = StableDiffusionXLPipeline.get_guidance_scale_embedding(None, w - 1, embedding_dim=256)  # type: ignore[arg-type]
    torch.testing.assert_close(two_step.guidance_embedding(w, 256), expected, atol=2e-4, rtol=0)
