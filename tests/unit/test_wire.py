"""The messages between processes."""

from __future__ import annotations

import subprocess
import sys

from lasro import wire
from lasro.wire import codec, groups, problem, rewards, surrogate, tensors


def test_every_message_is_found_in_the_package():
    """A message that is left out of `lasro.wire` breaks `from lasro.wire import X`."""
    for name in wire.__all__:
        assert hasattr(wire, name), name
    for module in (codec, groups, problem, rewards, surrogate, tensors):
        for name, value in vars(module).items():
            if callable(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                assert name in wire.__all__, name


def test_messages_and_what_services_share_import_no_torch():
    """A service that loads no model would take seconds and hundreds of megabytes more to start."""
    modules = "lasro.wire, lasro.config, lasro.errors, lasro.reward_sdk, lasro_reward_api.app"
    code = f"import sys, {modules}; print(sorted({{'torch', 'diffusers', 'transformers'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
