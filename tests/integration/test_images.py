"""The container images and the single file, as users run them: ``nox -s images``.

``CERTCTRL_TEST_IMAGES`` may name a directory with images that were built before.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from podman import Podman

from certctrl import __version__

PROJECT = Path(__file__).parents[2]
BUILD = PROJECT / "deploy" / "images" / "build.py"
AGENT, PLANE, SERVICES = "cert-ctrl", "cert-ctrl-plane", "cert-ctrl-example-services"
DATA, SITE = "/var/lib/cert-ctrl-plane", "www.example.com"
pytestmark = [pytest.mark.integration, pytest.mark.root, pytest.mark.campaign]


def say(text: str) -> None:
    """Add a line to the transcript."""
    print(text, flush=True)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.5)
    say(f"  {what}")


def built(out: Path, *images: str) -> Path:
    """Build images into a directory."""
    words = [word for image in images for word in ("--image", image)]
    subprocess.run([sys.executable, str(BUILD), str(out), *words], check=True, timeout=3600)
    return out


def archive_of(folder: Path, image: str) -> Path:
    """Return the archive of an image."""
    (found,) = folder.glob(f"{image}-{__version__}-*.tar")
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, need: Callable[[str], str]) -> Path:
    """Return the directory of all images."""
    for program in ("mmdebstrap", "buildah"):
        need(program)
    given = os.environ.get("CERTCTRL_TEST_IMAGES")
    return Path(given) if given else built(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def podman(images: Path, need: Callable[[str], str]) -> Iterator[Podman]:
    """Yield a podman that has the images."""
    for program in ("podman", "nsenter"):
        need(program)
    made = Podman(Path(tempfile.mkdtemp(prefix="cert-ctrl-podman-")))
    try:
        for image in (AGENT, PLANE, SERVICES):
            say(made.run("load", "--quiet", "--input", str(archive_of(images, image))).strip())
        yield made
    finally:
        made.close()


def served(address: tuple[str, int]) -> str:
    """Return the serial number of the certificate at an address; empty if nothing answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=5) as sock:
        with context.wrap_socket(sock, server_hostname=SITE) as tls:
            found = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
            return f"{found.serial_number:x}"
    return ""


def issued(said: str) -> str:
    """Return the serial number in the line of `plane issue` and `plane renew`."""
    return said.partition("serial ")[2].split()[0].rstrip(",").replace(":", "").lstrip("0")


def healthy(podman: Podman, container: str) -> bool:
    """Run the health check of a container and return whether it passes."""
    podman.run("healthcheck", "run", container, check=False)
    return podman.run("inspect", "--format={{.State.Health.Status}}", container).strip() == "healthy"


# --- the archives ------------------------------------------------------------------------------------------------


def test_two_builds_of_one_commit_have_the_same_bytes(images: Path, tmp_path: Path) -> None:
    again = built(tmp_path, AGENT, PLANE, SERVICES)
    for image in (AGENT, PLANE, SERVICES):
        assert archive_of(again, image).read_bytes() == archive_of(images, image).read_bytes(), image


@pytest.mark.parametrize(("image", "user"), [(AGENT, "988:988"), (PLANE, "987:987")])
def test_an_image_has_a_user_a_volume_a_health_check_and_labels(podman: Podman, image: str, user: str) -> None:
    (found,) = json.loads(podman.run("image", "inspect", f"localhost/{image}:{__version__}"))
    config, labels = found["Config"], found["Labels"]
    assert (config["User"], config["StopSignal"], config["Entrypoint"]) == (user, "SIGTERM", ["/usr/bin/cert-ctrl"])
    assert list(config["Volumes"]) in ([DATA], ["/etc/cert-ctrl"])
    kind, line = found["Healthcheck"]["Test"]
    assert kind == "CMD-SHELL" and line.startswith(("cert-ctrl status --daemon", "python3"))
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.base.name"].startswith("Debian "), "the snapshot"
    say(f"  {image}: {found['Size'] / 1e6:.0f} MB, {labels['org.opencontainers.image.base.name']}")


@pytest.mark.parametrize("image", [AGENT, PLANE])
def test_nothing_in_an_image_gives_rights_or_names_this_machine(podman: Podman, image: str) -> None:
    run = ("run", "--rm", "--no-healthcheck", "--network=none", "--user=0", "--entrypoint=/bin/sh")
    script = "find / -xdev -perm /6000; ls -A /etc/apt /var/lib/apt /etc/hostname 2>/dev/null | grep -v :; find / -xdev -name '*.key'"
    assert podman.run(*run, f"localhost/{image}:{__version__}", "-c", script).split() in ([], ["/etc/hostname"])
    writable = "find / -xdev -user 988 -o -xdev -user 987 -o -xdev -perm -2 -type d"
    own = {"/etc/cert-ctrl", DATA, "/srv/tls", "/tmp", "/var/tmp", "/run/lock", "/dev/shm"}
    assert set(podman.run(*run, f"localhost/{image}:{__version__}", "-c", writable).split()) <= own


def test_the_program_runs_with_a_read_only_root_and_ends_by_signal(podman: Podman) -> None:
    podman.run(
        "run",
        "--detach",
        "--name=alone",
        "--read-only",
        "--cap-drop=ALL",
        "--network=none",
        f"localhost/{PLANE}:{__version__}",
    )
    try:
        wait_for(lambda: healthy(podman, "alone"), "the control plane is healthy")
        before = time.monotonic()
        podman.run("stop", "--time=30", "alone")
        assert time.monotonic() - before < 25
        assert podman.run("inspect", "--format={{.State.ExitCode}}", "alone").strip() == "0"
    finally:
        podman.run("rm", "--force", "--volumes", "alone", check=False)


def test_an_agent_that_is_not_set_up_ends_with_words(podman: Podman) -> None:
    argv = (
        "run",
        "--rm",
        "--read-only",
        "--network=none",
        "--no-healthcheck",
        f"localhost/{AGENT}:{__version__}",
        "-c",
        "/etc/cert-ctrl",
        "status",
    )
    assert "status 78\n" in podman.command(
        ["sh", "-c", '"$@"; echo "status $?"', "sh", "podman", "--log-level=error", *argv]
    )


# --- the Compose example -------------------------------------------------------------------------------------------


def test_the_compose_example_serves_and_renews(podman: Podman, tmp_path: Path) -> None:
    """The commands of docs/containers.md."""
    folder = tmp_path / "compose"
    shutil.copytree(PROJECT / "deploy/compose", folder)
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "database").write_text("a-password-of-the-test\n")
    plane, web, nginx = "cert-ctrl_plane_1", "cert-ctrl_web-1_1", ("127.0.0.1", 8443)

    def operate(*words: str, check: bool = True) -> str:
        return podman.inside(plane, "cert-ctrl", "plane", *words, "--data", DATA, check=check)

    try:
        podman.compose(folder, "up", "-d", "postgresql", "plane")
        wait_for(lambda: operate("enrolment-token", check=False), "the control plane runs on PostgreSQL")
        (secrets / "enrolment-token").write_text(operate("enrolment-token", "--uses", "2"))
        (secrets / "ca.pem").write_text(podman.inside(plane, "cat", f"{DATA}/ca.pem"))
        podman.compose(folder, "up", "-d")
        wait_for(lambda: operate("devices").count("web-") == 2, "both agents are registered")
        first = issued(operate("issue", SITE, "--device", "web-1"))
        wait_for(lambda: served(nginx) == first, "nginx serves the certificate")
        podman.run("kill", "--signal=KILL", web)
        podman.run("start", web)
        second = issued(operate("renew", SITE, "--yes"))
        wait_for(lambda: served(nginx) == second, "nginx serves the renewed one, after the agent was killed")
        assert "Health: healthy" in podman.inside(web, "cert-ctrl", "status")
    except BaseException:
        for name in (plane, web, "cert-ctrl_postgresql_1", "cert-ctrl-nginx"):
            say(f"--- {name}: {podman.command(['sh', '-c', f'podman logs {name} 2>&1 | tail -30'], check=False)}")
        raise
    finally:
        podman.compose(folder, "down", "--volumes")


# --- the manifests -------------------------------------------------------------------------------------------------


class Pod:
    """A pod of a manifest, run as a kubelet would run it: its mounts, user, capabilities, and names."""

    def __init__(self, podman: Podman, folder: Path, kind: dict[str, Any], configs: dict[str, dict[str, str]]) -> None:
        self.podman, self.folder = podman, folder
        self.name = f"{kind['metadata']['name']}-0"
        self.spec = kind["spec"]["template"]["spec"]
        self.group = self.spec["securityContext"]["fsGroup"]
        volumes = [*self.spec["volumes"], *kind["spec"]["volumeClaimTemplates"]]
        for volume in volumes:
            self._make_volume(volume, configs)

    def _make_volume(self, volume: dict[str, Any], configs: dict[str, dict[str, str]]) -> None:
        """Make a directory with the owner and mode that a kubelet gives it."""
        path = self.folder / (volume.get("name") or volume["metadata"]["name"])
        path.mkdir(parents=True)
        source = volume.get("configMap") or volume.get("secret") or {}
        name = source.get("name") or source.get("secretName")
        for file, text in configs.get(name, {}).items():
            (path / file).write_text(text)
            (path / file).chmod(source["defaultMode"] | 0o040)
            shutil.chown(path / file, 0, self.group)
        shutil.chown(path, 0, self.group)
        path.chmod(0o2777 if "emptyDir" in volume else 0o2775)

    def start(self, *options: str) -> None:
        """Run the containers for the start to their ends, then the others, which share network and processes."""
        for one in self.spec["initContainers"]:
            self.podman.run("run", "--rm", *self._options(one), "--network=none", *self._argv(one))
        first, *others = self.spec["containers"]
        self.podman.run(
            "run", "--detach", f"--name={self.container(first)}", *options, *self._options(first), *self._argv(first)
        )
        with_first = [f"--{what}=container:{self.container(first)}" for what in ("network", "pid")]
        for one in others:
            name = f"--name={self.container(one)}"
            self.podman.run("run", "--detach", name, *with_first, *self._options(one), *self._argv(one))

    def replace(self, *options: str) -> None:
        """Start the containers again, with new volumes except the claimed ones."""
        for one in reversed(self.spec["containers"]):
            self.podman.run("rm", "--force", "--volumes", self.container(one))
        for volume in self.spec["volumes"]:
            if "emptyDir" in volume:
                shutil.rmtree(self.folder / volume["name"])
                self._make_volume(volume, {})
        self.start(*options)

    def container(self, one: dict[str, Any]) -> str:
        """Return the name of a container."""
        return f"{self.name}-{one['name']}"

    def _argv(self, one: dict[str, Any]) -> list[str]:
        command = [word.replace("$(POD)", self.name) for word in one.get("command", [])]
        entry = [f"--entrypoint={json.dumps(command)}"] if command else []
        return [*entry, f"localhost/{one['image']}", *one.get("args", [])]

    def _options(self, one: dict[str, Any]) -> Iterator[str]:
        context = self.spec["securityContext"]
        yield from ("--no-healthcheck", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only")
        yield from (
            "--read-only-tmpfs=false",
            f"--user={context['runAsUser']}:{context['runAsGroup']}",
            f"--group-add={self.group}",
        )
        for variable in one.get("env", []):
            if "value" in variable:
                yield f"--env={variable['name']}={variable['value']}"
        for mount in one["volumeMounts"]:
            source = self.folder / mount["name"] / mount.get("subPath", "")
            assert source.exists(), "a container for the start makes it"
            yield f"--volume={source}:{mount['mountPath']}{':ro' if source.is_file() or mount.get('readOnly') else ''}"


def test_the_manifests_serve_and_renew(podman: Podman, tmp_path: Path, need_module: Callable[[str], None]) -> None:
    """Not on Kubernetes, but with what matters of it here: volumes of root, other modes, shared processes, names."""
    need_module("yaml")
    import yaml

    found = [
        one
        for name in ("plane", "web")
        for one in yaml.safe_load_all((PROJECT / f"deploy/kubernetes/{name}.yaml").read_text())
    ]
    configs = {one["metadata"]["name"]: one["data"] for one in found if one["kind"] == "ConfigMap"}
    plane_kind, web_kind = (one for one in found if one["kind"] == "StatefulSet")
    podman.run("network", "create", "cluster")
    try:
        plane = Pod(podman, tmp_path / "plane", plane_kind, configs)
        plane.start("--network=cluster", "--network-alias=cert-ctrl-plane")
        container = plane.container(plane.spec["containers"][0])

        def operate(*words: str, check: bool = True) -> str:
            return podman.inside(container, "cert-ctrl", "plane", *words, "--data", DATA, check=check)

        wait_for(lambda: operate("enrolment-token", check=False), "the control plane runs")
        token, ca = operate("enrolment-token"), podman.inside(container, "cat", f"{DATA}/ca.pem")
        configs["cert-ctrl-enrolment"] = {"certctrl.enrolment-token": token, "ca.pem": ca}
        web = Pod(podman, tmp_path / "web", web_kind, configs)
        web.start("--network=cluster", "--add-host=nginx:127.0.0.1", "--publish=127.0.0.1:18443:8443")
        nginx = ("127.0.0.1", 18443)
        wait_for(lambda: "web-0" in operate("devices"), "the pod is registered")
        first = issued(operate("issue", SITE, "--device", "web-0"))
        wait_for(lambda: served(nginx) == first, "nginx serves the certificate")
        second = issued(operate("renew", SITE, "--yes"))
        wait_for(lambda: served(nginx) == second, "nginx serves the renewed one")
        assert "Health: healthy" in podman.inside("web-0-cert-ctrl", "cert-ctrl", "status")
        probe = web.spec["containers"][1]["livenessProbe"]["exec"]["command"]
        podman.inside("web-0-cert-ctrl", *probe)
        web.replace("--network=cluster", "--add-host=nginx:127.0.0.1", "--publish=127.0.0.1:18443:8443")
        wait_for(lambda: served(nginx) == second, "the replaced pod serves it, too")
    except BaseException:
        for name in ("web-0-cert-ctrl", "web-0-nginx", "cert-ctrl-plane-0-plane"):
            say(f"--- {name}: {podman.command(['sh', '-c', f'podman logs {name} 2>&1 | tail -15'], check=False)}")
        raise
    finally:
        for name in ("web-0-cert-ctrl", "web-0-nginx", "cert-ctrl-plane-0-plane"):
            podman.run("rm", "--force", "--volumes", name, check=False)
        podman.run("network", "rm", "cluster", check=False)


# --- the single file -----------------------------------------------------------------------------------------------


def processor_time(*argv: str) -> float:
    """Return the milliseconds of processor time that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of the whole file."""
    build = PROJECT / "deploy/singlefile/build.py"
    argv = [sys.executable, str(build), str(tmp_path_factory.mktemp("file"))]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, timeout=1800).stdout.strip()


@pytest.fixture
def unpacking(tmp_path: Path) -> list[str]:
    """Return the words before a command that give it an empty /var/lib."""
    (tmp_path / "varlib").mkdir(mode=0o755)
    return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /var/lib && exec "$@"', str(tmp_path / "varlib")]


def test_the_sandbox_passes_with_the_single_file(single_file: str, unpacking: list[str]) -> None:
    say(f"  {Path(single_file).name}: {Path(single_file).stat().st_size / 1e6:.0f} MB")
    subprocess.run(
        [*unpacking, single_file, "sandbox", "--duration", "10", "--service", "builtin"], check=True, timeout=300
    )


def test_the_single_file_starts_like_a_wheel(
    single_file: str, tmp_path: Path, need: Callable[[str], str], unpacking: list[str]
) -> None:
    python = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    subprocess.run([need(python), "-m", "venv", str(tmp_path / "wheel")], check=True, timeout=300)
    subprocess.run(
        [str(tmp_path / "wheel/bin/pip"), "install", "--quiet", f"{PROJECT}[metrics]"], check=True, timeout=900
    )
    status = ("-c", str(tmp_path / "agent"), "status")
    subprocess.run(
        [*unpacking, single_file, *status[:2], "init", "--server", "https://plane.example.com"], check=True, timeout=60
    )
    programs = (single_file, str(tmp_path / "wheel/bin/cert-ctrl"))
    pairs = [[processor_time(*unpacking, program, *status) for program in programs] for _ in range(30)]
    file, wheel = (statistics.median(column) for column in zip(*pairs, strict=True))
    say(f"  status: single file {file:.1f} ms, wheel {wheel:.1f} ms")
    assert file <= 1.5 * wheel
