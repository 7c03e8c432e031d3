"""docker-compose.yml and what belongs to it, as far as that can be judged without a container engine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import SETTINGS

ROOT = Path(__file__).parents[2]
COMPOSE_FILES = [ROOT / "docker-compose.yml", *sorted((ROOT / "deploy").glob("compose.*.yaml"))]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
OF_THE_CLIENT = {
    *("LASRO_API_KEY", "LASRO_REDIS_URL", "LASRO_REWARD_API_URL", "LASRO_SURROGATE_TRAINER_URL", "LASRO_REWARD_SECRET"),
    *("LASRO_METRICS_PORT",),
}


def services(path: Path = COMPOSE_FILES[0]) -> dict[str, dict[str, Any]]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["services"]


def variables(text: str) -> set[str]:
    return set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text))


def test_every_variable_is_in_the_example_and_the_other_way_round() -> None:
    """Bug: a setting that nobody can know of, or one in .env.example that changes nothing."""
    used = set().union(*(variables(path.read_text(encoding="utf-8")) for path in COMPOSE_FILES))
    assert used == set(re.findall(r"^#?(LASRO_[A-Z_]+)=", EXAMPLE, re.M))


def test_defaults_in_the_example_are_those_of_the_stack() -> None:
    """Bug: .env.example tells of a default that is another one."""
    told = dict(re.findall(r"^#(LASRO_[A-Z_]+)=(.*)$", EXAMPLE, re.M))
    for path in COMPOSE_FILES:
        for name, default in re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", path.read_text(encoding="utf-8")):
            assert told[name] == default, name


def test_the_one_liner_makes_every_secret_that_is_required(tmp_path: Path) -> None:
    """Bug: the first command that a newcomer copies makes a file with which nothing starts."""
    text = "".join(path.read_text(encoding="utf-8") for path in COMPOSE_FILES)
    required = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    line = next(line.removeprefix("#").strip() for line in EXAMPLE.splitlines() if "> .env" in line)
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    made = dict(row.split("=") for row in (tmp_path / ".env").read_text(encoding="utf-8").splitlines())
    assert made.keys() == required
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in made.values())
    assert line in (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SETTINGS)
def test_services_are_given_variables_that_they_read(name: str) -> None:
    """Bug: a variable with a typing error is ignored, and the setting is what it was."""
    fields = {f"LASRO_{field.upper()}" for field in SETTINGS[name].model_fields}
    for path in COMPOSE_FILES:
        given = services(path).get(name, {}).get("environment", {})
        assert {key for key in given if key.startswith("LASRO_")} <= fields, path.name


def test_the_client_is_given_variables_that_it_reads() -> None:
    """The same bug, where no settings class lists what is read."""
    for name in ("client", "register"):
        given = {key for key in services()[name]["environment"] if key.startswith("LASRO_")}
        assert given <= OF_THE_CLIENT
        source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "client").rglob("*.py"))
        assert all(key in source for key in given)


def test_every_container_of_ours_is_confined() -> None:
    """Bug: a new service is added that may write to its root, has capabilities, or can take all memory."""
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.keys() >= {"mem_limit", "pids_limit", "restart"}, name


def test_only_the_two_services_are_published_and_on_loopback_only() -> None:
    """Bug: Redis or a worker is reachable from outside, or a port is open to the network without anybody asking."""
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert {"reward-api", "surrogate-trainer"} <= published.keys() <= {
        "reward-api", "surrogate-trainer", "prometheus", "grafana",
    }  # fmt: skip
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    networks = yaml.safe_load(COMPOSE_FILES[0].read_text(encoding="utf-8"))["networks"]
    assert services()["redis"]["networks"] == ["redis"]
    assert networks["redis"]["internal"] is True
    assert networks["rewards"]["internal"] is True


def test_every_image_has_a_tag_of_its_own() -> None:
    """Bug: what is built or started tomorrow is something else."""
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.M))
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) - stages - {"torch-${FLAVOUR}"}
    others = {service["image"] for path in COMPOSE_FILES for service in services(path).values()}
    foreign = {image for image in others if not image.startswith("lasro/")}
    assert bases == {"python:3.11-slim"}
    assert all(re.search(r":v?\d", image) for image in bases | foreign), foreign


def test_compose_builds_targets_that_the_dockerfile_has() -> None:
    """Bug: a stage is renamed in one of two files."""
    wanted = {service["build"]["target"] for service in services().values() if "build" in service}
    assert wanted == {"reward-api", "rewards", "surrogate-trainer", "client"}
    assert wanted <= set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.M))


def test_images_do_not_run_as_root_and_prove_their_health() -> None:
    """Bug: an image that is run alone runs as root, or is healthy as long as its process lives."""
    runtime = DOCKERFILE[DOCKERFILE.index(" AS runtime") :]
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.M) == ["10001:10001"]
    for target in ("reward-api", "rewards", "surrogate-trainer"):
        stage = runtime[runtime.index(f" AS {target}\n") :].partition("\nFROM ")[0]
        assert '"-m", "lasro.service.readiness_probe"' in stage, target
        assert re.search(r'^ENTRYPOINT \["', stage, re.M), "in exec form, or signals reach a shell"


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing() -> None:
    """Bug: a Dockerfile that builds, and will not do so tomorrow or elsewhere."""
    found = subprocess.run(
        ["hadolint", str(ROOT / "deploy" / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout
