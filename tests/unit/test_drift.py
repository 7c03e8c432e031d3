"""The drift figure on images whose distances are known."""

from __future__ import annotations

import numpy as np
import pytest

from lasro.errors import WireError
from lasro.files import write_atomically
from lasro.images import png_bytes
from lasro_client.evaluation.drift import StoredImages, drift_figure, mean_absolute_difference


def flat(value):
    return np.full((4, 4, 3), value, dtype=np.uint8)


def test_bytes_do_not_wrap_around():
    """uint8 arithmetic makes 10 - 250 equal 16."""
    assert mean_absolute_difference(flat(10), flat(250)) == 240


def test_unchanged_is_zero_and_another_seed_is_one():
    """The two ends of the scale that the report explains."""
    base, other = [flat(0), flat(100)], [flat(40), flat(20)]
    assert drift_figure(base, base, other).ratio.mean == 0
    assert drift_figure(base, other, other).ratio.mean == 1


def test_figure_by_hand():
    """Moved by 10 and 30, seeds apart by 40 and 40: 40 / 80; residuals -1/4 and +1/4 of mean 40 give error 1/4.

    In changes of prompt: squares 100 and 900 of 50 squared, sqrt(500 / 2500); the error of 500 is 400.
    """
    figure = drift_figure([flat(0), flat(50)], [flat(10), flat(80)], [flat(40), flat(90)])
    assert figure.as_dict() == {
        "distance": {"mean": pytest.approx(0.2**0.5), "sem": pytest.approx(400 / (2 * 2500 * 0.2**0.5))},
        "rms_255": pytest.approx(500**0.5),
        "prompt_to_prompt_255": 50.0,
        "ratio": {"mean": 0.5, "sem": pytest.approx(0.25)},
        "mean_abs_255": 20.0,
        "seed_to_seed_255": 40.0,
        "n": 2,
    }


def test_the_distance_is_none_of_seeds():
    """Bug: a base that draws one prompt alike with any noise has not drifted by a tint."""
    base, tinted = [flat(0), flat(100)], [flat(5), flat(105)]
    figure = drift_figure(base, tinted, tinted)
    assert figure.ratio.mean == 1
    assert figure.distance.mean == pytest.approx(0.05)


def test_one_prompt_is_measured_in_changes_of_seed():
    """Guards against no figure at all for a run about one prompt, or about prompts that the base draws alike."""
    alone = drift_figure([flat(0)], [flat(5)], [flat(10)])
    assert (alone.distance.mean, alone.distance.sem, alone.prompt_to_prompt_255) == (0.5, None, None)
    alike = drift_figure([flat(0)] * 2, [flat(5)] * 2, [flat(10)] * 2)
    assert (alike.distance.mean, alike.prompt_to_prompt_255) == (0.5, 0.0)


def test_stored_images_give_the_same_figure(tmp_path):
    """Guards against images that can be read once only, and a `seeds` over prompts that have no other seed."""
    images = [flat(0), flat(50), flat(20)], [flat(10), flat(80), flat(20)]
    for name, side in zip(("before", "after"), images, strict=True):
        for index, image in enumerate(side):
            write_atomically(tmp_path / name / f"{index:05d}.png", png_bytes(image))
    before, after = (StoredImages(tmp_path / name, 3) for name in ("before", "after"))
    other = [flat(40)]
    assert drift_figure(before, after, other) == drift_figure(images[0], images[1], other)
    both = drift_figure(before, after, other).both()
    assert (both["distance"]["n"], both["seeds"]["n"], both["seeds"]["mean"]) == (3, 1, 0.25)
    with pytest.raises(FileNotFoundError):
        list(StoredImages(tmp_path / "before", 4))


def test_seeds_that_do_not_differ_give_no_ratio():
    """A model that ignores its seed has no yardstick; dividing by zero would write infinity to drift.json."""
    still = drift_figure([flat(0)], [flat(5)], [flat(0)])
    assert still.ratio.mean is None
    assert still.distance.mean is None
    assert drift_figure([], [], []).as_dict()["n"] == 0
    assert drift_figure([], [], []).distance.mean is None


def test_other_sizes_are_refused():
    """numpy would broadcast a 1x1 image over the other."""
    with pytest.raises(WireError, match="same shape"):
        mean_absolute_difference(flat(0), flat(0)[:1, :1])
