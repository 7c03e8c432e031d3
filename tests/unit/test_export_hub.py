"""`--push-to-hub`, against a hub of our own: what is uploaded, and what is said where that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub
from huggingface_hub import constants
from starlette.types import ASGIApp

from lasro.errors import AuthError, ConfigError, LasroError, UnreachableError
from lasro_client.export.hub import check_repo, push


@pytest.fixture
def hub(serve: Callable[[ASGIApp], str], monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub()
    hub.url = serve(hub.app)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As an export leaves it."""
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (tmp_path / "mine" / "README.md").write_text("---\ntags: [lora]\n---\n# mine\n")
    (tmp_path / "mine" / "images" / "after.webp").write_bytes(b"RIFF")
    (tmp_path / "mine" / "mine.safetensors").write_bytes(b"\0" * 100)
    return tmp_path / "mine"


def test_a_folder_is_uploaded_whole(hub: FakeHub, folder: Path) -> None:
    """Guards against files that stay here, such as pictures in a folder, and against a repository that must exist."""
    check_repo("somebody/mine")
    assert push(folder, "somebody/mine") == f"{hub.url}/somebody/mine"
    expected = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.files == {"somebody/mine": expected}
    (folder / "README.md").write_text("---\ntags: [lora]\n---\n# again\n")
    push(folder, "mine")  # of the user's own, which is there by now
    assert b"again" in hub.files["somebody/mine"]["README.md"]


def test_a_refused_upload_says_how_to_repeat_it(hub: FakeHub, folder: Path) -> None:
    """Guards against a traceback after the work is done, and against a command that cannot be given again."""
    hub.refuses = 507
    with pytest.raises(UnreachableError, match=r"HTTP 507 .*no room left.*`hf upload somebody/mine .*mine` sends it"):
        push(folder, "somebody/mine")
    hub.refuses = 403
    with pytest.raises(AuthError, match=r"the hub refuses .*log in with `hf auth login`"):
        push(folder, "somebody/mine")


@pytest.mark.parametrize(
    ("repo", "change", "error", "message"),
    [
        ("a b/c", None, ConfigError, "no name of a repository, expected USER/NAME or NAME"),
        ("a/b/c", None, ConfigError, "no name of a repository"),
        ("somebody/mine", "token", AuthError, r"the hub refuses .*HF_TOKEN"),
        ("somebody/mine", "no token", AuthError, r"no token; log in with `hf auth login`"),
        ("somebody/mine", "offline", UnreachableError, "the hub cannot be reached"),
        ("somebody/mine", "nobody there", UnreachableError, "the hub cannot be reached"),
    ],
)
def test_who_may_not_upload_hears_it_before_anything_is_loaded(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    repo: str,
    change: str | None,
    error: type[LasroError],
    message: str,
) -> None:
    """Guards against an export of minutes whose upload could never have been taken, and against a stack of lines."""
    if change == "token":
        monkeypatch.setenv("HF_TOKEN", "hf_another")
    elif change == "no token":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    elif change == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif change == "nobody there":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(error, match=message) as refusal:
        check_repo(repo)
    assert "\n" not in str(refusal.value)
    assert hub.files == {}
