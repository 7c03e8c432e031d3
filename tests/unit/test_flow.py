"""Flow matching and TrigFlow, in float64, against hand-computed numbers and each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lasro.functional.flow import add_flow_noise, clean_from_velocity, euler_step
from lasro.functional.trigflow import (
    add_trigflow_noise,
    clean_from_trigflow,
    flow_input,
    flow_level,
    trigflow_output,
)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def drawn(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=generator) for _ in range(count)]


def test_flow_by_hand() -> None:
    """Guards against signal and noise exchanged, and a velocity of the other sign: z 2, eps 6, sigma 0.25."""
    x = add_flow_noise(number(2.0), number(6.0), number(0.25))
    torch.testing.assert_close(x, number(3.0))
    torch.testing.assert_close(clean_from_velocity(number(4.0), x, number(0.25)), number(2.0))
    torch.testing.assert_close(euler_step(number(5.0), number(2.0), number(0.75), number(0.25)), number(3.0))


def test_a_step_of_the_true_velocity_stays_on_its_line() -> None:
    """Guards against a step that goes by the clean latents alone and loses the noise that its input has."""
    z, noise = drawn(2)
    x = add_flow_noise(z, noise, number(0.9))
    torch.testing.assert_close(euler_step(x, z, number(0.9), number(0.4)), add_flow_noise(z, noise, number(0.4)))
    torch.testing.assert_close(euler_step(x, z, number(0.9), number(0.0)), z)


def test_trigflow_by_hand() -> None:
    """Guards against sine and cosine exchanged: at tan t = 3/4, cos t = 0.8 and sin t = 0.6; sigma = 3/7."""
    t = number(math.atan(0.75))
    x = add_trigflow_noise(number(2.0), number(1.0), t)
    torch.testing.assert_close(x, number(2.2))
    torch.testing.assert_close(clean_from_trigflow(number(-0.4), x, t), number(2.0))
    torch.testing.assert_close(flow_level(t), number(3 / 7))
    torch.testing.assert_close(flow_input(x, number(3 / 7)), number(2.2 * 5 / 7))


def test_the_velocity_of_flow_matching_becomes_that_of_trigflow() -> None:
    """Guards against SANA-Sprint's change of output: the true velocity must give back z, at every level."""
    z, noise = drawn(2)
    for angle in (0.01, 0.6, 1.3, 1.57080):
        t = number(angle)
        sigma, x_t = flow_level(t), add_trigflow_noise(z, noise, t)
        x_sigma = flow_input(x_t, sigma)
        torch.testing.assert_close(x_sigma, add_flow_noise(z, noise, sigma))
        F = trigflow_output(noise - z, x_sigma, sigma)
        torch.testing.assert_close(F, t.cos() * noise - t.sin() * z)
        torch.testing.assert_close(clean_from_trigflow(F, x_t, t), z)


def test_gradients() -> None:
    """Guards against a gradient that is lost in an operation in place."""
    tensors = [part[:1, :1, :2, :2].clone().requires_grad_() for part in drawn(2)]
    sigma = number(0.3)
    assert torch.autograd.gradcheck(lambda a, b: euler_step(a, b, sigma, number(0.1)), tensors)
    assert torch.autograd.gradcheck(lambda a, b: clean_from_velocity(a, b, sigma), tensors)
    assert torch.autograd.gradcheck(lambda a, b: clean_from_trigflow(trigflow_output(a, b, sigma), b, sigma), tensors)
