"""The cases of `hostile.py`: answers that are as large, as many or as deep as the limits in bytes allow."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
from material import DAY, Material

from certctrl.plane.ca import sealing, x509

BODY = 1_048_576
BUNDLE = 262_144
UPDATES = "/updates"
CERTIFICATES = "/certificates"
DETAIL = "/certificates/1"
MATERIALS = "/deploy-materials"
BATCH = "/self/deploy-materials"
BATCH_BODY = 3 * BODY
CONFIG = "/install-config"
CAS = "/cas"
NOTIFY = "/notify"
STREAM = "/stream"

SWITCH = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: @ACCEPT@"
    "\r\nSec-WebSocket-Protocol: certctrl.v1"
)
OK = 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nETag: "1-@N@"'
RENEWED = ("cert.renewed", {"cert_id": 1})
UPDATED = ("install.updated", {})
RESYNC = ("state.resync_required", {})
Signals = tuple[tuple[str, dict[str, Any]], ...]


@attrs.frozen
class Reply:
    """One answer of the plane, given ``times`` times."""

    path: str
    """End of the path that gets it."""
    body: Callable[[], str | bytes]
    times: int = 1
    head: str = OK

    def raw(self) -> bytes:
        """Return head and body."""
        body = self.body()
        body = body.encode() if isinstance(body, str) else body
        length = "" if self.head == SWITCH else "\r\nContent-Length: @LENGTH@"
        return f"{self.head}{length}\r\n\r\n".encode() + body


@attrs.frozen
class Case:
    """Hostile answers, and the signals that make the daemon ask for them."""

    name: str
    answers: tuple[Reply, ...]
    signals: Signals = ()
    on_socket: bool = False
    """Whether the daemon uses push; it long-polls until a socket is offered."""


def filled(part: str, *, start: str = "[", end: str = "]", size: int = BODY - 200) -> str:
    """Return JSON with as many copies of ``part`` as fit; ``#`` becomes a number that grows."""
    parts, left, number = list[str](), size - len(start) - len(end), 0
    while left > 0:
        parts.append(part.replace("#", str(number)))
        left -= len(parts[-1].replace("@N@", "12345678").encode()) + 1
        number += 1
    return start + ",".join(parts[:-1]) + end


def many(part: str, count: int, *, start: str = "[", end: str = "]") -> str:
    """Return JSON with ``count`` copies of ``part``."""
    return start + ",".join(part.replace("#", str(number)) for number in range(count)) + end


PAGE = '{"data":{"cursor":"1-@N@","signals":['
SIGNAL = '{"type":"cert.renewed","ts_ms":@N@,"ref":{"cert_id":1#}}'
UNKNOWN = '{"type":"kind.#","ts_ms":@N@,"ref":{"cert_id":1#}}'
WIDE = '{"type":"kind.#","ts_ms":@N@,"ref":{' + ",".join(f'"k{n}":{n}' for n in range(100)) + "}}"
DATA = '{"data":['


def polls(material: Material) -> Iterator[Case]:
    """Yield the cases of a poll."""

    def page(name: str, body: Callable[[], str | bytes], times: int = 2, head: str = OK) -> Case:
        return Case(name, (Reply(UPDATES, body, times, head),))

    yield page("1 000 renewals in a page", lambda: many(SIGNAL, 1000, start=PAGE, end="]}}"))
    yield page("1 000 unknown types in a page", lambda: many(UNKNOWN, 1000, start=PAGE, end="]}}"))
    yield page("1 000 signals with 100 fields", lambda: many(WIDE, 1000, start=PAGE, end="]}}"))
    yield page("more than 1 000 signals, 1 MiB", lambda: filled(SIGNAL, start=PAGE, end="]}}"))
    yield page("1 000 signals of text, 1 MiB", lambda: many(
        '{"type":"kind.#","ts_ms":@N@,"ref":{"a":"' + "x" * 980 + '"}}', 1000, start=PAGE, end="]}}"))  # fmt: skip
    yield page("1 MiB of empty lists", lambda: filled("[]"))
    yield page("1 MiB of small objects", lambda: filled('{"a":0}', start=DATA, end="]}"))
    yield page("1 MiB of nested objects", lambda: filled('{"a":{"b":{"c":{"d":[]}}}}', start=DATA, end="]}"))
    yield page("1 MiB of keys", lambda: filled('"#":0', start="{", end="}"))
    yield page("100 000 values in small objects", lambda: many('{"a":0}', 49_000, start=DATA, end="]}"))
    yield page(
        "100 000 values in nested objects", lambda: many('{"a":{"b":{"c":{"d":[]}}}}', 16_000, start=DATA, end="]}")
    )
    yield page("1 MiB of brackets", lambda: "[" * (BODY - 200))
    yield page(
        "1 MiB of wide characters", lambda: json.dumps({"data": "\U0001f600" * (BODY // 4 - 100)}, ensure_ascii=False)
    )
    yield page("1 000 signals with infinite numbers", lambda: many(
        '{"type":"kind.#","ts_ms":@N@,"ref":{"a":1e999}}', 1000, start=PAGE, end="]}}"))  # fmt: skip
    yield page("1 MiB of escapes", lambda: '{"data":"' + "\\ud800" * (BODY // 6 - 100) + '"}')
    yield page("1 MiB of long numbers", lambda: filled("9" * 4299, start=DATA, end="]}"))
    yield page("1 MiB of exponents", lambda: filled("1e9999", start=DATA, end="]}"))
    yield page("one number of 1 MiB", lambda: '{"data":' + "9" * (BODY - 300) + "}")
    yield page("a body of 64 MiB", lambda: b" " * (64 * BODY), head=OK)
    zipped = OK + "\r\nContent-Encoding: gzip"
    yield page("64 MiB in a compressed body", lambda: gzip.compress(b" " * (64 * BODY)), head=zipped)
    yield page("an error of 1 MiB", lambda: '{"error":{"what":"' + "x" * (BODY - 300) + '"}}',
               head="HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json")  # fmt: skip
    yield page("16 MiB of headers", lambda: b"{}", head="HTTP/1.1 200 OK" + "\r\nX-A: bc" * (2 * BODY))
    yield page("redirects", lambda: b"", times=5, head="HTTP/1.1 302 Found\r\nLocation: /" + "x" * 30_000)


def lists(material: Material) -> Iterator[Case]:
    """Yield the cases of the lists of certificates and CAs."""
    row = '{"id":@N@%03d,"domain_name":"h%d.example","status":"active","serial_number":"%d"'
    rows = [row % (n, n, n) for n in range(500)]
    plain = DATA + "},".join(rows) + "}]}"
    sans = ',"sans":["' + '","'.join(["h.example"] * 150) + '"]}'
    wide = DATA + ",".join(one + sans for one in rows) + "]}"
    long = DATA + ",".join(one + ',"certificate_pem":"' + "x" * 1900 + '"}' for one in rows) + "]}"
    one = '{"id":1#,"domain_name":"h#.example","status":"active","serial_number":"#"}'

    def endless(name: str, body: str) -> Case:
        return Case(name, (Reply(CERTIFICATES, lambda: body, 1000),), (RESYNC,))

    yield endless("a list of certificates without an end", plain)
    yield endless("the same, 1 MiB of names a page", wide)
    yield endless("the same, 1 MiB of PEM a page", long)
    lines = many(one, 100_000, start=DATA, end="]}")
    yield Case("100 000 certificates in one answer", (Reply(CERTIFICATES, lambda: lines),), (RESYNC,))
    lines_fit = filled(one, start=DATA, end="]}")
    yield Case("1 MiB of certificates in one answer", (Reply(CERTIFICATES, lambda: lines_fit),), (RESYNC,))
    yield Case(
        "10 000 CAs", (Reply(CAS, lambda: many('{"id":1#,"name":"ca #"}', 10_000, start=DATA, end="]}")),), (RESYNC,)
    )
    small = filled('{"a":0}', start=DATA, end="]}")
    yield Case("1 MiB of small objects as CAs", (Reply(CAS, lambda: small),), (RESYNC,))
    most = many('{"a":0}', 49_000, start=DATA, end="]}")
    everything = [Reply(path, lambda: most, 2) for path in (UPDATES, CERTIFICATES, CAS, CONFIG)]
    yield Case("100 000 values from each path", tuple(everything), (RESYNC, UPDATED, RENEWED))


def changes(material: Material) -> Iterator[Case]:
    """Yield the cases of the list of certificates by revision."""
    row = '{"id":@N@%03d,"domain_name":"h%d.example","status":"active","serial_number":"%d"}'
    endless = DATA + ",".join([row % (n, n, n) for n in range(500)]) + '],"complete":true}'
    one = '{"id":1#,"domain_name":"h#.example","status":"active","serial_number":"#"}'
    everything = '],"complete":false,"replaced":{"of":1,"parts":[0]}}'
    parts = '{"data":[],"complete":false,"replaced":{"of":4096,"parts":['

    def listed(name: str, body: Callable[[], str], times: int = 1) -> Case:
        return Case(name, (Reply(CERTIFICATES, body, times),), (RESYNC,))

    def grown(part: int) -> Reply:
        rows = (f'{{"id":{part + 4096 * n},"domain_name":"h.example","status":"active"}}' for n in range(1, 14_000))
        text = "".join((DATA, ",".join(rows), f'],"complete":false,"replaced":{{"of":4096,"parts":[{part}]}}}}'))
        return Reply(CERTIFICATES, lambda: text)

    first = Reply(CERTIFICATES, lambda: DATA + '],"complete":true}')
    yield Case("a list that grows by 14 000 certificates each time", (first, *map(grown, range(1, 11))), (RESYNC,))
    yield listed("a list by revision without an end", lambda: endless, 1000)
    yield listed("1 MiB of changed certificates", lambda: filled(one, start=DATA, end=everything))
    yield listed("1 MiB of changed parts", lambda: filled("0", start=parts, end="]}}"))
    yield listed("changed parts of small objects", lambda: many('{"a":0}', 49_000, start=parts, end="]}}"))


def install_config(items: list[dict[str, Any]]) -> Callable[[], str]:
    """Return an install config with these items."""
    text = json.dumps(items, separators=(",", ":"))
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    data = {"id": 1, "user_device_id": 1, "version": 0, "installs_json": text, "installs_hash_b64": digest}
    return lambda: json.dumps({"data": data}).replace('"version": 0', '"version": @N@')


def item(number: int, *needs: int, **more: Any) -> dict[str, Any]:
    """Return one copy item."""
    fields = {"id": f"i{number}", "type": "copy", "ob_type": "cert", "ob_id": 1, "from": ["fullchain.pem"]}
    return fields | ({"depends_on": [f"i{n}" for n in needs]} if needs else {}) | more


def command(number: int, *needs: int, **more: Any) -> dict[str, Any]:
    """Return one command."""
    fields = {"id": f"i{number}", "type": "exec", "cmd_argv": ["/bin/true"]}
    return fields | ({"depends_on": [f"i{n}" for n in needs]} if needs else {}) | more


def layered(number: int, width: int) -> list[int]:
    """Return the numbers of all items of the layer below."""
    first = number // width * width
    return list(range(first - width, first)) if first else []


def configs(material: Material) -> Iterator[Case]:
    """Yield the cases of the install config."""

    def config(name: str, body: Callable[[], str]) -> Case:
        return Case(name, (Reply(CONFIG, body, 2),), (UPDATED,))

    yield config("10 000 items", install_config([command(n) for n in range(10_000)]))
    yield config("1 000 items", install_config([item(n) for n in range(1000)]))
    yield config("1 000 items in one chain", install_config([item(n, *([n - 1] if n else [])) for n in range(1000)]))
    wide = [(item if n < 500 else command)(n, *layered(n, 32)) for n in range(1000)]
    yield config("1 000 items in 32 connected layers", install_config(wide))
    hub = [item(n) if n < 500 else command(n, *range(0, 500, 4)) for n in range(1000)]
    yield config("500 commands on 125 copies each", install_config(hub))
    targets = [f"/srv/tls/{n}.pem" for n in range(40)]
    files = [item(n, **{"from": ["fullchain.pem"] * 40, "to": [f"{n}{one}" for one in targets]}) for n in range(560)]
    yield config("560 items with 40 files each", install_config(files))
    env = [command(n, env={f"V{n}": "x" for n in range(80)}) for n in range(850)]
    yield config("850 commands with 80 variables each", install_config(env))
    tags = [item(n, tags=["t"] * 200) for n in range(780)]
    yield config("780 items with 200 tags each", install_config(tags))
    yield config("1 MiB of small objects as items", lambda: filled('{"a":0}', start='{"data":{"installs":[', end="]}}"))
    text = '{"data":{"version":1,"installs_hash_b64":"x","installs_json":"[' + "[]," * (BODY // 3 - 200) + '[]]"}}'
    yield config("1 MiB of lists in the text of items", lambda: text)


def materials(material: Material) -> Iterator[Case]:
    """Yield the cases of one certificate: detail and material."""
    made = json.loads(material.wire(1, 2))
    summary = json.loads((material.directory / "1.2.json").read_text())["summary"]

    def renewal(name: str, *answers: Reply) -> Case:
        return Case(name, answers, (RENEWED,))

    def changed(**more: Any) -> Callable[[], str]:
        return lambda: json.dumps({"data": made["data"] | more})

    chain = made["data"]["chain_pem"]
    yield renewal("a chain of 300 equal certificates", Reply(MATERIALS, changed(chain_pem=chain * 300)))
    others = "".join(authorities(300))
    yield renewal("a chain of 300 certificates", Reply(MATERIALS, changed(chain_pem=others)))
    yield renewal("a chain of 1 000 certificates", Reply(MATERIALS, changed(chain_pem=chain * 1000)))
    yield renewal("256 KiB of small objects as material", Reply(
        MATERIALS, lambda: filled('{"a":0}', start=DATA, end="]}", size=BUNDLE - 200)))  # fmt: skip
    names = [f"h{n}.bench.example" for n in range(8000)]
    detail = json.dumps({"data": summary | {"sans": names}})
    yield renewal("a certificate for one of 8 000 assigned names",
                  Reply(MATERIALS, changed()), Reply(DETAIL, lambda: detail))  # fmt: skip
    leaf = wide_leaf(material, names)
    yield renewal("a certificate with 8 000 names, all assigned",
                  Reply(MATERIALS, lambda: json.dumps({"data": leaf})), Reply(DETAIL, lambda: detail))  # fmt: skip


def batches(material: Material) -> Iterator[Case]:
    """Yield the cases of materials that are fetched together: those of a hundred certificates that a list announces."""
    row = '{"id":1#,"domain_name":"h#.example","status":"active","serial_number":"#"}'
    announced = Reply(CERTIFICATES, lambda: many(row, 100, start=DATA, end='],"complete":true}'), 2)
    pem, room = "A" * 1000, BATCH_BODY - 2000
    item = '{"cert_id":1#,"status":200,"data":{"certificate_pem":"' + "A" * 30_000 + '","chain_pem":""}}'

    def batch(name: str, body: Callable[[], str]) -> Case:
        return Case(name, (announced, Reply(BATCH, body, 3)), (RESYNC,))

    wide = '{"data":[{"cert_id":10,"status":200,"data":{"certificate_pem":"\U0001f600' + pem * (room // 1000) + '"}}]}'
    yield batch("3 MiB of wide text as materials", lambda: wide)
    yield batch("3 MiB of small objects as materials", lambda: filled('{"a":0}', start=DATA, end="]}", size=room))
    yield batch("100 000 values as materials", lambda: many('{"a":0}', 49_000, start=DATA, end="]}"))
    yield batch("100 large materials", lambda: many(item, 100, start=DATA, end="]}"))


def authorities(count: int) -> Iterator[str]:
    """Yield the PEM of roots that have nothing to do with each other."""
    now = time.time()
    for number in range(count):
        yield x509.new_root(f"r{number}", not_before=now - DAY, not_after=now + DAY).pem


def wide_leaf(material: Material, names: list[str]) -> dict[str, Any]:
    """Return the material of a certificate with many names."""
    now = time.time()
    life: dict[str, Any] = {"not_before": now - DAY / 4, "not_after": now + DAY}
    issuer, key = x509.new_root("wide", **life), x509.new_key("ecdsa-p256")
    leaf = x509.sign_leaf(issuer, key.public_key(), names, **life)
    sealed = sealing.seal_private_key(x509.key_der(key), material.device.public)
    return {**sealed, "certificate_pem": x509.pem_of(leaf), "chain_pem": issuer.pem, "serial_number": ""}


def frame(text: str | bytes, *, opcode: int = 1, last: bool = True, size: int | None = None) -> bytes:
    """Return a WebSocket frame of a plane; ``size``: the length that its head announces."""
    body = text.encode() if isinstance(text, str) else text
    length = len(body) if size is None else size
    wide = 8 if length > 0xFFFF else 2 if length > 125 else 0  # a length in more bytes than it needs is refused
    head = bytes([(0x80 if last else 0) | opcode, {8: 127, 2: 126}.get(wide, length)])
    return head + (length.to_bytes(wide, "big") if wide else b"") + body


def sockets(material: Material) -> Iterator[Case]:
    """Yield the cases of a push socket: what follows its greeting."""
    greeting = frame('{"type":"lifecycle.hello_ack","data":{"resume_token":"1-1","ping_seconds":25}}')
    page = '{"type":"updates.signal","id":"1-7","data":{"cursor":"1-7","more":true,"signals":['
    renewal = '{"type":"cert.renewed","ts_ms":1790000000#,"ref":{"cert_id":1#}}'
    unknown = '{"type":"kind.#","ts_ms":1790000000#,"ref":{"a":"' + "x" * 900 + '"}}'
    wide = '{"type":"new","data":"\U0001f600' + "x" * (BODY - 300) + '"}'

    def socket(name: str, body: Callable[[], bytes], times: int = 2) -> Case:
        replies = (Reply(STREAM, lambda: greeting + body(), times, SWITCH),)
        return Case(f"{name} on a socket", replies, on_socket=True)

    yield socket("1 000 renewals in a page", lambda: frame(many(renewal, 1000, start=page, end="]}}")))
    yield socket("1 000 signals of text in a page", lambda: frame(many(unknown, 1000, start=page, end="]}}")))
    yield socket("more than 1 000 signals in a page", lambda: frame(filled(renewal, start=page, end="]}}")))
    yield socket("1 MiB of small objects", lambda: frame(filled('{"a":0}', start='{"type":"new","data":[', end="]}")))
    yield socket("100 000 values in small objects",
                 lambda: frame(many('{"a":0}', 49_000, start='{"type":"new","data":[', end="]}")))  # fmt: skip
    yield socket("1 MiB of wide text", lambda: frame(wide) * 3)
    yield socket("1 MiB of wide text in 900 fragments", lambda: b"".join(
        frame(wide.encode()[at : at + 1200], opcode=0 if at else 1, last=at + 1200 >= len(wide.encode()))
        for at in range(0, len(wide.encode()), 1200)))  # fmt: skip
    yield socket("a message of 64 MiB", lambda: frame("x" * (64 * BODY)))
    yield socket("a message that is 1 TiB by its head", lambda: frame("x" * BODY, size=2**40))
    yield socket("900 questions of 1 KiB", lambda: b"".join(
        frame(f'{{"type":"ask.question","id":"{n}","data":{{"question":"{"x" * 1000}"}}}}') for n in range(900)))  # fmt: skip


def acks(material: Material) -> Iterator[Case]:
    """Yield the cases of the answers to outcomes."""
    body = filled('{"a":0}', start=DATA, end="]}")
    yield Case("1 MiB of small objects for outcomes", (Reply(NOTIFY, lambda: body, 2),), (RENEWED,))


def cases(material: Material) -> Iterator[Case]:
    """Yield all cases."""
    for part in (polls, lists, changes, configs, materials, batches, sockets, acks):
        yield from part(material)
