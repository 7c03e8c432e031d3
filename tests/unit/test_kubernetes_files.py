"""deploy/kubernetes, as far as that can be judged without a cluster: what its parts call each other, what they may."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import SETTINGS

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
MANIFESTS = [
    manifest
    for path in sorted((FOLDER / "base").glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
WORKLOADS = {
    manifest["metadata"]["name"]: manifest["spec"]["template"]
    for manifest in MANIFESTS
    if manifest["kind"] in ("Deployment", "StatefulSet", "Job")
}


def container(name: str) -> dict[str, Any]:
    return WORKLOADS[name]["spec"]["containers"][0]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in MANIFESTS if manifest["kind"] == kind]


@pytest.mark.parametrize("name", SETTINGS)
def test_pods_are_given_variables_that_they_read(name: str) -> None:
    """Bug: a variable with a typing error is ignored, and the setting is what it was."""
    fields = {f"LASRO_{field.upper()}" for field in SETTINGS[name].model_fields}
    assert {each["name"] for each in container(name)["env"] if each["name"].startswith("LASRO_")} <= fields


def test_everything_selected_is_there() -> None:
    """Bug: a service without pods, a budget or a policy for nothing: labels differ in one of several files."""
    labels = {name: template["metadata"]["labels"] for name, template in WORKLOADS.items()}
    names = {each["app.kubernetes.io/name"] for each in labels.values()}
    assert names == set(WORKLOADS)
    for service in of_kind("Service"):
        assert service["spec"]["selector"] == {"app.kubernetes.io/name": service["metadata"]["name"]}
        ports = {port["name"] for port in container(service["metadata"]["name"])["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for budget in of_kind("PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] in names
    for policy in of_kind("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            for peer in rule["from"]:
                if "podSelector" in peer:
                    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] in names


def test_urls_name_services_at_their_ports() -> None:
    """Bug: a service is renamed and whoever calls it is not told."""
    known = {(each["metadata"]["name"], each["spec"]["ports"][0]["port"]) for each in of_kind("Service")}
    text = "".join(path.read_text(encoding="utf-8") for path in (FOLDER / "base").glob("*.yaml"))
    for name, port in known:
        assert f"{name}:{port}" in text
    assert "redis:6379/0" in text


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_pod_is_confined_and_proves_its_health(name: str) -> None:
    """Bug: a pod that a namespace with restricted pods refuses, or that is ready as long as its process lives."""
    pod = WORKLOADS[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container(name)["resources"].keys() == {"requests", "limits"}
    if name not in ("register", "train"):
        assert container(name).keys() >= {"readinessProbe", "livenessProbe"}
    if name in SETTINGS:
        assert container(name)["readinessProbe"]["httpGet"]["path"] == "/health/ready"


def test_workers_grow_with_a_metric_that_there_is() -> None:
    """Bug: the autoscaler waits for a metric that nobody tells."""
    (scaler,) = of_kind("HorizontalPodAutoscaler")
    metric = scaler["spec"]["metrics"][0]["external"]["metric"]["name"]
    source = FOLDER.parents[1] / "services" / "reward_api" / "lasro_reward_api" / "queue_metrics.py"
    assert f'"{metric}"' in source.read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_overlays_can_be_built(overlay: str) -> None:
    """Bug: a patch for what is not there."""
    command = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = [each for each in yaml.safe_load_all(done.stdout) if each["kind"] in ("StatefulSet", "Job")]
    on_gpu = {
        each["metadata"]["name"]
        for each in built
        if "nvidia.com/gpu" in each["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    }
    assert on_gpu == ({"surrogate-trainer", "train"} if overlay == "gpu" else set())
