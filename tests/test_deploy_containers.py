"""The examples in deploy/compose and deploy/kubernetes: valid for their schemas, confined, and consistent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import certctrl
from certctrl.plane.installs import check_items
from certctrl.protocol.wire.install_config import items_from_local

ROOT = Path(__file__).parents[1]
COMPOSE, KUBERNETES, IMAGES = (ROOT / "deploy" / name for name in ("compose", "kubernetes", "images"))
VERSIONS = ("1.29", "1.32", "1.36")
"""Of Kubernetes."""


@pytest.fixture(scope="module")
def compose(need_module: Callable[[str], None]) -> dict[str, Any]:
    """Return the Compose file as data."""
    need_module("yaml")
    import yaml

    return dict(yaml.safe_load((COMPOSE / "compose.yaml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def objects(need_module: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the objects of all manifests."""
    need_module("yaml")
    import yaml

    texts = [path.read_text(encoding="utf-8") for path in sorted(KUBERNETES.glob("*.yaml"))]
    return [found for text in texts for found in yaml.safe_load_all(text)]


def containers(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the containers of all manifests, those for the start too."""
    for found in objects:
        if found["kind"] == "StatefulSet":
            spec = found["spec"]["template"]["spec"]
            yield from (*spec["initContainers"], *spec["containers"])


def test_the_compose_file_is_valid(compose: dict[str, Any], need_module: Callable[[str], None]) -> None:
    need_module("jsonschema")
    import jsonschema

    schema = json.loads((ROOT / "tests/schemas/compose-spec.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(compose)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(compose | {"services": {"plane": {"imaeg": "x"}}})


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_valid(
    objects: list[dict[str, Any]], need_module: Callable[[str], None], version: str
) -> None:
    need_module("kubernetes_validate")
    import kubernetes_validate

    for found in objects:
        kubernetes_validate.validate(found, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(objects[0] | {"spce": {}}, version, strict=True)


def test_services_are_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "environment" not in service or set(service["environment"]) == {"CREDENTIALS_DIRECTORY"}, "no secrets"


def test_pods_are_confined(objects: list[dict[str, Any]]) -> None:
    pods = [found["spec"]["template"]["spec"] for found in objects if found["kind"] == "StatefulSet"]
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        assert pod["automountServiceAccountToken"] is False
    for one in containers(objects):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }, one["name"]  # fmt: skip


def test_images_are_those_of_this_version(compose: dict[str, Any], objects: list[dict[str, Any]]) -> None:
    built = set(
        re.findall(r'^    "(cert-ctrl[a-z-]*)": Image\(', (IMAGES / "build.py").read_text(encoding="utf-8"), re.M)
    )
    assert len(built) == 3
    used = {service["image"].removeprefix("localhost/") for service in compose["services"].values()}
    used |= {one["image"] for one in containers(objects)}
    assert used == {f"{name}:{certctrl.__version__}" for name in built}


def test_users_are_those_of_the_images(compose: dict[str, Any], objects: list[dict[str, Any]]) -> None:
    users = dict(re.findall(r'User\("([a-z-]+)", (\d+),', (IMAGES / "build.py").read_text(encoding="utf-8")))
    pods = {
        found["metadata"]["name"]: found["spec"]["template"]["spec"]["securityContext"]
        for found in objects
        if found["kind"] == "StatefulSet"
    }
    assert pods["cert-ctrl-plane"]["runAsUser"] == pods["cert-ctrl-plane"]["fsGroup"] == int(users["cert-ctrl-plane"])
    assert pods["web"]["runAsUser"] == pods["web"]["fsGroup"] == int(users["cert-ctrl"])
    assert compose["services"]["nginx"]["user"] == f"{users['cert-ctrl']}:{users['cert-ctrl']}"


def test_the_files_of_both_examples_are_the_same(objects: list[dict[str, Any]]) -> None:
    (config,) = (found["data"] for found in objects if found["kind"] == "ConfigMap")
    assert set(config) == {"installs.local.json", "nginx.conf", "start-nginx"}
    for name, text in config.items():
        assert text == (COMPOSE / name).read_text(encoding="utf-8"), name


def test_plane_and_host_accept_the_items() -> None:
    items = json.loads((COMPOSE / "installs.local.json").read_text(encoding="utf-8"))
    check_items(items)
    assert len(items_from_local(tuple(items))) == len(items)


@pytest.mark.parametrize("script", [*COMPOSE.glob("start-*"), *IMAGES.glob("start-*")], ids=lambda path: path.name)
def test_shells_accept_the_scripts(script: Path) -> None:
    subprocess.run([str(shutil.which("sh")), "-n", str(script)], check=True, timeout=60)
