"""Images that people bring, to the pixels that every reward and the surrogate see."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms
from png_files import HOSTILE_PNGS, MAGIC, chunk, header, pixels, png_file

from lasro.errors import WireError
from lasro.images import check_image, decode_image
from lasro_reward_api.checks import ImageChecker
from lasro_surrogate_trainer.request_bodies import read_images

MAX_PIXELS = 1 << 16
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
    8: np.rot90,
}
RNG = np.random.default_rng(0)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(body: bytes) -> np.ndarray:
    check_image(body, MAX_PIXELS)
    return np.asarray(decode_image(body, MAX_PIXELS))


@pytest.mark.parametrize("colour", [GREY, RGB, GREY_ALPHA, RGBA])
def test_16_bits_are_scaled_to_8(colour: int) -> None:
    """Bug: every grey over 255 of 65,535 became white, and the white image was scored."""
    channels = {GREY: 1, RGB: 3, GREY_ALPHA: 2, RGBA: 4}[colour]
    values_HWC = RNG.integers(0, 256, (5, 7, channels)) * 257
    if colour in (GREY_ALPHA, RGBA):
        values_HWC[..., -1] = 65535
    body = png_file(values_HWC, 16, colour)
    shown = values_HWC[..., : 3 if channels > 2 else 1] // 257
    assert np.array_equal(decoded(body), np.broadcast_to(shown, (5, 7, 3)))
    assert np.array_equal(read_images([body], (5, 7))[0], decoded(body))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_few_bits_of_grey_are_spread_over_8(depth: int) -> None:
    """Bug: a black and white mask is scored as two shades of black."""
    values_HW1 = RNG.integers(0, 2**depth, (6, 9, 1))
    shades_HW1 = values_HW1 * 255 // (2**depth - 1)
    assert np.array_equal(decoded(png_file(values_HW1, depth, GREY)), np.broadcast_to(shades_HW1, (6, 9, 3)))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_lies_on_white(depth: int) -> None:
    """Bug: Pillow compares the transparent grey of a file of 2 or 4 bits with greys of 8, and finds none."""
    values_HW1 = RNG.integers(0, 2**depth, (6, 9, 1))
    transparent = int(values_HW1[0, 0, 0])
    body = png_file(values_HW1, depth, GREY, [chunk(b"tRNS", struct.pack(">H", transparent))])
    scaled_HW1 = values_HW1 >> 8 if depth == 16 else values_HW1 * 255 // (2**depth - 1)
    expected_HW1 = np.where(values_HW1 == transparent, 255, scaled_HW1)
    assert np.array_equal(decoded(body), np.broadcast_to(expected_HW1, (6, 9, 3)))


def test_alpha_lies_on_white() -> None:
    """Bug: what is transparent was scored in the colour that lay under it, black mostly, which nobody sees."""
    rgba_HW4 = np.array([[[0, 0, 0, 0], [200, 100, 0, 255], [200, 100, 0, 51]]], np.uint8)
    expected = np.array([[[255, 255, 255], [200, 100, 0], [244, 224, 204]]])
    for form in ("PNG", "WEBP"):
        body = encoded(Image.fromarray(rgba_HW4), form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
        assert np.abs(decoded(body).astype(int) - expected).max() <= 1
    grey = png_file(np.array([[[0, 0], [90, 255]]]), 8, GREY_ALPHA)
    assert decoded(grey).tolist() == [[[255] * 3, [90] * 3]]


@pytest.mark.parametrize("alphas", [b"\0", b"\xff\0", b"\x33\xff"])
def test_a_palette_with_transparency_lies_on_white(alphas: bytes) -> None:
    """Bug: a sticker on a transparent background was scored on whatever colour the palette begins with."""
    palette = [chunk(b"PLTE", bytes([0, 0, 0, 0, 100, 0])), chunk(b"tRNS", alphas)]
    body = png_file(np.array([[[0], [1]]]), 1, PALETTE, palette)
    shares = [share / 255 for share in alphas] + [1.0] * (2 - len(alphas))
    colours = [(0, 0, 0), (0, 100, 0)]
    expected = [
        [255 + share * (value - 255) for value in colour] for share, colour in zip(shares, colours, strict=True)
    ]
    assert np.abs(decoded(body)[0] - np.array(expected)).max() <= 1


def test_a_transparent_colour_of_16_bits_is_refused() -> None:
    """Bug: it was looked for among colours of 8 bits, and another one became transparent."""
    transparent = chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0, 0))
    body = png_file(np.zeros((2, 2, 3), int), 16, RGB, [transparent])
    for read in (check_image, decode_image):
        with pytest.raises(WireError, match="16-bit RGB with a transparent colour, expected an alpha channel"):
            read(body, MAX_PIXELS)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_orientation_of_a_camera_is_applied(form: str, orientation: int) -> None:
    """Bug: photographs were scored lying on their side."""
    image_HWC = np.zeros((16, 24, 3), np.uint8)
    image_HWC[:8, :8], image_HWC[:8, 8:16], image_HWC[8:, 16:] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[form]
    body = encoded(Image.fromarray(image_HWC), form, exif=exif, **options)
    upright_HWC = UPRIGHT[orientation](image_HWC)
    assert np.abs(decoded(body).astype(int) - upright_HWC).max() < 16
    assert read_images([body], upright_HWC.shape[:2]).shape[1:] == upright_HWC.shape


def test_cmyk_and_colour_profiles() -> None:
    """Bug: a JPEG for printing was scored as its negative, or one with a profile was refused."""
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decoded(encoded(cmyk, "JPEG", quality=100)).astype(int) - [255, 0, 0]).max() < 16
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red = Image.new("RGB", (4, 4), (250, 0, 0))
    assert decoded(encoded(red, "PNG", icc_profile=profile))[0, 0].tolist() == [250, 0, 0]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animations_are_refused(form: str) -> None:
    """Bug: the first picture of many was scored in place of all."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    body = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    for read in (check_image, decode_image):
        with pytest.raises(WireError, match="animation of 2 frames, expected a still image"):
            read(body, MAX_PIXELS)


def test_the_previews_in_a_cameras_jpeg_are_no_animation() -> None:
    """Bug: JPEGs of phones and cameras, which hold a preview or a gain map besides, were refused as animations."""
    body = encoded(Image.new("RGB", (8, 8), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    check_image(body, MAX_PIXELS)
    assert decode_image(body, MAX_PIXELS).size == (8, 8)


@pytest.mark.parametrize("name", HOSTILE_PNGS)
def test_hostile_pngs_are_refused_by_all_in_the_same_way(name: str) -> None:
    """Bug: ten of these ended the surrogate trainer's request in a 500; rows that were missing were scored as black."""
    body = HOSTILE_PNGS[name]
    for read in (check_image, decode_image):
        with pytest.raises(WireError, match=r"^image: "):
            read(body, MAX_PIXELS)
    with pytest.raises(WireError, match=r"^images\[0\]: image: "):
        read_images([body], (4, 4))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_ends_early_is_refused_wherever_it_ends(form: str) -> None:
    """Bug: the part that is missing is scored as grey or black; what follows an image's end belongs to no image."""
    image = Image.effect_noise((24, 16), 60).convert("RGB")
    body = encoded(image, form, **({"progressive": True} if form == "JPEG" else {}))
    for end in range(1, len(body)):
        for read in (check_image, decode_image):
            with pytest.raises(WireError):
                read(body[:end], MAX_PIXELS)
    if form != "WEBP":
        assert np.array_equal(decoded(body + b"behind"), decoded(body))


def test_interlaced_and_divided_pixels_are_taken() -> None:
    """Bug: the count of pixels that a PNG must hold is that of the plainest form alone."""
    for width, height in ((1, 1), (3, 5), (9, 2), (16, 17)):
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        grid = np.arange(width * height).reshape(height, width)
        parts = [grid[top::down, left::across] for left, top, across, down in passes]
        raw = b"".join(b"\0" + row.astype(np.uint8).tobytes() for part in parts if part.size for row in part)
        compressed = zlib.compress(raw)
        divided = b"".join(chunk(b"IDAT", compressed[at : at + 3]) for at in range(0, len(compressed), 3))
        body = MAGIC + header(width, height, colour=GREY, interlace=1) + divided + chunk(b"IEND")
        assert np.array_equal(decoded(body)[..., 0], grid.astype(np.uint8))
        short = MAGIC + header(width, height, colour=GREY, interlace=1) + pixels(raw[:-1]) + chunk(b"IEND")
        with pytest.raises(WireError, match="ends early"):
            check_image(short, MAX_PIXELS)


def test_an_image_is_checked_once() -> None:
    """Bug: a group was checked when it was posted and again when it was scored; or a broken image passes the second
    time."""
    images = ImageChecker(MAX_PIXELS)
    webp = encoded(Image.effect_noise((255, 255), 60).convert("RGB"), "WEBP", lossless=True)
    taken_s = []
    for _ in range(2):
        started_s = time.thread_time()
        images.check([(0, webp)])
        taken_s.append(time.thread_time() - started_s)
        with pytest.raises(WireError, match=r"^images\[3\]: image: "):
            images.check([(3, webp[:-20])])
    assert taken_s[1] < taken_s[0] / 2
