"""Where the emoji come from: four published packages, versions and checksums pinned.

Fetching needs `npm` on the PATH and a network; nothing of a package is run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasro.errors import ConfigError, UnreachableError

FETCH_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Source:
    """A package of emoji in one drawing style."""

    package: str
    version: str
    sha512: str
    """Of the packed archive, base64, as the package's own record gives it."""
    style: str
    """As captions call it."""
    author: str
    licence: str


SOURCES = (
    Source(
        "@iconify-json/noto", "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "noto", "Google Inc, Noto Emoji", "Apache-2.0",
    ),
    Source(
        "@iconify-json/noto-v1", "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "noto classic", "Google Inc, Noto Emoji (v1)", "Apache-2.0",
    ),
    Source(
        "@iconify-json/fluent-emoji-flat", "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "fluent flat", "Microsoft Corporation, Fluent Emoji Flat", "MIT",
    ),
    Source(
        "@iconify-json/fluent-emoji", "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        "fluent", "Microsoft Corporation, Fluent Emoji", "MIT",
    ),
)  # fmt: skip
STYLES = tuple(source.style for source in SOURCES)

# Left out: what differs from another emoji only by skin, sex or company, what is lettering, and unnamed code points.
_LEFT_OUT = re.compile(
    r"skin-tone|-(light|medium-light|medium|medium-dark|dark)$|^(man|woman|men|women)-|-(man|woman|men|women)$"
    r"|family|^(kiss|couple)-|(people|men|women)-holding|^flag|keycap|regional|^[0-9]$|^[eu][0-9a-f]{4,5}$"
    r"|^input-|button|clock-|oclock|thirty|^japanese-|^tag-"
)


def is_wanted(name: str) -> bool:
    """Whether an emoji of that name in a package, such as `dog-face`, is learned."""
    return _LEFT_OUT.search(name) is None


def fetch(source: Source, folder: Path) -> Path:
    """The package's archive in `folder`, fetched unless it is there; raises UnreachableError or ConfigError."""
    archive = folder / f"{source.package.removeprefix('@').replace('/', '-')}-{source.version}.tgz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{source.package}@{source.version}"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S)
        except FileNotFoundError as error:
            raise ConfigError("npm: not found on the PATH, expected Node's package manager; install it") from error
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            detail = str(error.stderr or error).strip().splitlines()[-1:]
            raise UnreachableError(f"{source.package}@{source.version}: npm could not fetch it {detail}") from error
    check(source, archive)
    return archive


def check(source: Source, archive: Path) -> None:
    """Raises ConfigError unless the archive is the pinned one."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != source.sha512:
        raise ConfigError(
            f"{archive}: got sha512 {found[:16]}..., expected {source.sha512[:16]}...; delete it and fetch again"
        )


def drawings(archive: Path) -> Iterator[tuple[str, str]]:
    """Name and SVG of each wanted emoji in a package's archive."""
    with tarfile.open(archive) as files:
        member = files.extractfile("package/icons.json")
        if member is None:
            raise ConfigError(f"{archive}: package/icons.json is no file, expected the icon set; fetch it again")
        icons: dict[str, Any] = json.load(member)
    for name, icon in icons["icons"].items():
        if is_wanted(name):
            yield name.removesuffix("-default").replace("-", " "), svg(icon, icons)


def svg(icon: dict[str, Any], icons: dict[str, Any]) -> str:
    """A whole SVG of one icon; sizes it does not give itself are the set's."""
    box = {key: icon.get(key, icons.get(key, default)) for key, default in _BOX.items()}
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}">{icon["body"]}</svg>'
    )


_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}
