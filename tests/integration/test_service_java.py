"""The recipe for Java: keystores that keytool opens, replaced while others read them.

The application is a stand-in, because each reloads differently: `reload` copies the keystore to ``loaded``, which
keytool reads.
"""

from __future__ import annotations

import contextlib
import datetime
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
    pkcs12,
)
from fleet import Fleet, Plane
from proofs import moved_away, other_key, prove_rollback, prove_the_check_refuses
from recipes import SERVICES, Recipe, Trial, on_trial, open_place
from revocations import prove_placeholder, prove_removal

pytestmark = [pytest.mark.integration, pytest.mark.root]  # the keystore's group is set

JKS_MAGIC = bytes.fromhex("feedfeed")
LOAD = "[ -e {place}/hangs ] || {{ cp {place}/tls/{file} {place}/app/new && mv {place}/app/new {place}/app/loaded; }}"


class KeystoreTrial(Trial):
    """A trial whose endpoint is a file."""

    def __init__(self, fleet: Fleet, plane: Plane, recipe: Recipe) -> None:
        super().__init__(fleet, plane, recipe)
        self._passwords = dict[str, None]()

    def _accepts(self) -> bool:
        return True

    @property
    def password_file(self) -> Path:
        """The agent's file with the keystore's password."""
        kind = "jks" if self.recipe.text("items.json").count("bundle.jks") else "pfx"
        return self.agent.layout.passwords / f"{self.recipe.domain}.{kind}"

    @property
    def password(self) -> str:
        """The keystore's password."""
        return self.password_file.read_text().strip()

    def served(self) -> str:
        """Return the serial of the loaded keystore."""
        return f"{self.shown().serial_number:x}"

    def shown(self) -> x509.Certificate:
        """Return the certificate of the loaded keystore."""
        return self._opened((self.recipe.place / "app" / "loaded").read_bytes())[1]

    def revealed(self, data: bytes) -> bytes:
        """Return key and certificate of a keystore, and other files unchanged."""
        try:
            key, leaf = self._opened(data)
        except ValueError:
            return data
        return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()) + leaf.public_bytes(Encoding.DER)

    def _opened(self, data: bytes) -> tuple[Any, x509.Certificate]:
        """Open a keystore with the current or an earlier password: an application keeps the one it has."""
        with contextlib.suppress(FileNotFoundError):
            self._passwords[self.password] = None
        for password in self._passwords:
            with contextlib.suppress(ValueError):
                return parsed_keystore(data, password)
        raise ValueError("no keystore that these passwords open")


def open_keystore(path: Path, password: str) -> tuple[Any, x509.Certificate]:
    """Return key and certificate of a keystore of either kind."""
    return parsed_keystore(path.read_bytes(), password)


def parsed_keystore(data: bytes, password: str) -> tuple[Any, x509.Certificate]:
    """Return key and certificate. Raises ValueError if it is not a keystore or has another password."""
    if not data.startswith(JKS_MAGIC):
        key, leaf, _ = pkcs12.load_key_and_certificates(data, password.encode())
        assert leaf is not None
        return key, leaf
    import jks

    try:
        (entry,) = jks.KeyStore.loads(data, password).private_keys.values()
    except jks.util.KeystoreException as error:
        raise ValueError(str(error)) from error
    return load_der_private_key(entry.pkey_pkcs8, None), x509.load_der_x509_certificate(entry.cert_chain[0][1])


@contextlib.contextmanager
def java(fleet: Fleet, plane: Plane, need: Callable[[str], str], kind: str) -> Iterator[KeystoreTrial]:
    need("keytool")
    with open_place() as place:
        recipe = Recipe(name="java", place=place, domain="app.example.com")
        file = {"jks": "keystore.jks", "pfx": "keystore.p12"}[kind]
        # as the page says for PKCS#12, with a group that every host has
        recipe.places |= {
            '["/etc/ssl/myapp/keystore.jks"]': f'["{place}/tls/{file}"]',
            '"/etc/ssl/myapp/keystore.jks", "jks"': f'"{place}/app/loaded", "{kind}"',
            "/etc/ssl/myapp": str(place / "tls"),
            "bundle.jks": f"bundle.{kind}",
            '"group": "myapp"': '"group": "nogroup"',
            '"owners": ["myapp"]': '"owners": ["nogroup"]',
        }
        recipe.commands["reload myapp"] = ["/bin/sh", "-c", LOAD.format(place=place, file=file)]
        (place / "tls").mkdir()

        def start(trial: Trial) -> list[str]:
            (place / "app").mkdir(exist_ok=True)
            return ["/bin/sleep", "infinity"]

        with on_trial(fleet, plane, recipe, start, KeystoreTrial) as trial:
            assert isinstance(trial, KeystoreTrial)
            yield trial


@pytest.fixture(scope="module")
def jks(
    shared_fleet: Fleet, plane: Plane, need: Callable[[str], str], need_module: Callable[[str], None]
) -> Iterator[KeystoreTrial]:
    need_module("jks")
    with java(shared_fleet, plane, need, "jks") as trial:
        yield trial


class Reader(threading.Thread):
    """Opens a keystore repeatedly: each time key and certificate must be there and match."""

    def __init__(self, path: Path, password: str) -> None:
        super().__init__()
        self._path, self._password = path, password
        self.stop = threading.Event()
        self.reads, self.serials, self.faults = 0, set[int](), list[str]()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                key, leaf = open_keystore(self._path, self._password)
                assert key.public_key() == leaf.public_key()
                self.serials.add(leaf.serial_number)
            except Exception as error:  # any error means an unusable keystore
                self.faults.append(repr(error))
            self.reads += 1
            self.stop.wait(0.01)


def prove_every_read_succeeds(trial: KeystoreTrial, path: Path, renewals: int) -> None:
    reader = Reader(path, trial.password)
    reader.start()
    try:
        for _ in range(renewals):
            trial.renew_and_serve()
    finally:
        reader.stop.set()
        reader.join()
    print(f"{path.name}: {renewals} renewals, {reader.reads} reads, {len(reader.serials)} serials, {reader.faults[:3]}")
    assert reader.faults == []
    assert len(reader.serials) > renewals // 2  # it was read during changes
    facts = path.stat()
    assert (facts.st_mode & 0o777, path.group()) == (0o640, "nogroup")


@pytest.mark.parametrize("renewals", [2, pytest.param(50, marks=pytest.mark.campaign)])
def test_every_read_of_a_keystore_succeeds(jks: KeystoreTrial, renewals: int) -> None:
    prove_every_read_succeeds(jks, jks.recipe.place / "tls" / "keystore.jks", renewals)


@pytest.mark.campaign
@pytest.mark.parametrize("renewals", [50])
def test_every_read_of_pkcs12_succeeds(
    shared_fleet: Fleet, plane: Plane, need: Callable[[str], str], renewals: int
) -> None:
    with java(shared_fleet, plane, need, "pfx") as trial:
        prove_every_read_succeeds(trial, trial.recipe.place / "tls" / "keystore.p12", renewals)


def test_the_helpers_accept_pkcs12(tmp_path: Path, need: Callable[[str], str]) -> None:
    need("keytool")
    password, key = tmp_path / "password", load_pem_private_key(other_key(), None)
    password.write_text("something long")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "app.example.com")])
    leaf = self_signed(key, name)
    (tmp_path / "bundle.pfx").write_bytes(
        pkcs12.serialize_key_and_certificates(b"app", key, leaf, None, BestAvailableEncryption(b"something long"))
    )
    (tmp_path / "certificate.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    env = {
        "PATH": "/usr/bin:/bin", "CERTCTRL_PFX_PASSWORD_FILE": str(password),
        "CERTCTRL_CERTIFICATE_FILE": str(tmp_path / "certificate.pem"),
    }  # fmt: skip
    for argv in (["check-keystore", tmp_path], ["verify-keystore", tmp_path / "bundle.pfx", "pfx"]):
        helper = [SERVICES / "lib" / argv[0], *argv[1:]]
        done = subprocess.run(helper, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    password.write_text("something else")
    helper = [SERVICES / "lib" / "check-keystore", tmp_path]
    done = subprocess.run(helper, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "bundle.pfx: keytool error" in done.stderr) == (1, True)


def self_signed(key: Any, name: x509.Name) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    return made.sign(key, SHA256())


def test_a_broken_keystore_changes_nothing(jks: KeystoreTrial) -> None:
    good = (jks.recipe.place / "tls" / "keystore.jks").read_bytes()
    why = prove_the_check_refuses(jks, {"bundle.jks": good[: len(good) // 2]})
    assert "bundle.jks: keytool error" in why


def test_a_reload_that_fails_is_rolled_back(jks: KeystoreTrial) -> None:
    app = jks.recipe.place / "app"
    before = jks.on_disk()
    with moved_away(app):
        _, outcome, why = jks.renew()
        assert outcome == "rolled_back" and "item reload myapp" in why, (outcome, why)
        jks.wait_for(lambda: jks.on_disk() == before, "the old keystore to be back")  # the agent tries again meanwhile
    jks.renew_and_serve()


def test_an_application_that_does_not_load_the_keystore_is_rolled_back(jks: KeystoreTrial) -> None:
    @contextlib.contextmanager
    def hangs() -> Iterator[None]:
        flag = jks.recipe.place / "hangs"
        flag.touch()
        try:
            yield
        finally:
            flag.unlink()

    prove_rollback(jks, hangs(), "holds another certificate")


def test_a_placeholder_opens_with_the_same_password(jks: KeystoreTrial) -> None:
    password = jks.password
    prove_placeholder(jks)
    assert jks.password == password


@pytest.mark.campaign
def test_a_removed_keystore_stays_loaded_in_the_application(jks: KeystoreTrial) -> None:
    password = jks.password
    prove_removal(jks, "removed; item reload myapp", starts=True, loaded=[jks.recipe.place / "app" / "loaded"])
    assert jks.password != password, "a new password, as the page says"


@pytest.mark.campaign
def test_a_placeholder_is_made_as_pkcs12(shared_fleet: Fleet, plane: Plane, need: Callable[[str], str]) -> None:
    with java(shared_fleet, plane, need, "pfx") as trial:
        prove_placeholder(trial)
