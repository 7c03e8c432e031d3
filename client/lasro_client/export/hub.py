"""An exported folder on the hub, by its own client: whose token it takes is between that and the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  (of the library by which this version speaks HTTP)
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from lasro.errors import AuthError, ConfigError, LasroError, UnreachableError
from lasro.validation import one_line

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def check_repo(repo: str) -> None:
    """Refuse a name that none can have, and a user whom the hub does not know, before anything is loaded.

    Raises ConfigError, AuthError, UnreachableError.
    """
    with _hub_errors(repo):
        validate_repo_id(repo)
        HfApi().whoami()


def push(folder: Path, repo: str) -> str:
    """Upload all files of `folder` to the model repository, made where there is none; returns its URL.

    Raises AuthError, UnreachableError; the folder stays as it is.
    """
    api = HfApi()
    try:
        with _hub_errors(repo):
            created = api.create_repo(repo, exist_ok=True)
            api.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message="Upload by lasro export")
    except LasroError as error:
        raise type(error)(f"{error}; {folder} is written, and `hf upload {repo} {folder}` sends it again") from error
    return str(created)


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    where = f"--push-to-hub {one_line(repo)}"
    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"{where}: no name of a repository, expected USER/NAME or NAME") from error
    except LocalTokenNotFoundError as error:
        raise AuthError(f"{where}: no token; {LOG_IN}") from error
    except HfHubHTTPError as error:
        status, reason = error.response.status_code, one_line(error.server_message or str(error))[:200]
        if status in (401, 403):
            raise AuthError(f"{where}: the hub refuses ({reason}); {LOG_IN}") from error
        raise UnreachableError(f"{where}: the hub answers HTTP {status} ({reason}); try again later") from error
    except (OfflineModeIsEnabled, HTTPError) as error:
        raise UnreachableError(f"{where}: the hub cannot be reached ({one_line(str(error))[:200]})") from error
