"""Check the architecture in the source: import rules, one door for disk, clock and processes, lengths."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from source_code import (
    MODULES,
    code_lines,
    cycles,
    dotted,
    imports_of,
    long_functions,
    names_in,
    nodes_of,
    skipped_outside_tables,
    text_of,
    tree_of,
    within,
)

# --- who may import whom --------------------------------------------------------------------------------------------
#
# Package or module -> what it may import besides itself; the longest matching key counts. A name allows everything
# below it. The order is docs/architecture.md's: errors, text, lean, backoff <- model <- protocol <- store, net, logs,
# install <- agent <- cli <- sandbox. Left never imports right. The modules of `plane` itself may import all of it; so only
# they import `plane.http`.

GROUND = ("errors", "text", "lean", "backoff")
BELOW_STORE = (*GROUND, "model", "protocol")
BELOW_PLANE = (
    *GROUND, "model", "protocol.wire", "net.connections", "net.transport", "net.tls", "net.tls_stream", "net.explain",
    "net.metrics_listener", "net.prometheus", "net.challenge_listener",
)  # fmt: skip
IN_PLANE = (*BELOW_PLANE, "plane.clock", "plane.errors", "plane.settings", "plane.storage")
ISSUING = (
    *IN_PLANE, "plane.jobs", "plane.reserved_names", "plane.shared_limits", "plane.ca", "plane.devices", "plane.health",
    "plane.issuers", "plane.certificates", "plane.orders", "plane.revocation",
)  # fmt: skip
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "": (),
    "errors": (),
    "text": (),
    "lean": (),
    "backoff": (),
    "model": GROUND,
    "protocol": (*GROUND, "model"),
    "store": (),
    "store.layout": ("model.paths",),
    "store.decode": GROUND,
    "store.structure": (*GROUND, "model"),
    "store.disk": ("errors", "text", "lean", "model.paths", "store.layout"),
    "store.config": (*BELOW_STORE, "store.disk", "store.layout", "store.structure"),
    "store.state": (*BELOW_STORE, "store.disk", "store.layout", "store.decode", "store.structure"),
    "store.deployments": (*BELOW_STORE, "store.disk", "store.layout", "store.decode", "store.structure"),
    "net": BELOW_STORE,
    "net.transport": (
        *GROUND, "model", "net.connections", "net.explain", "net.http", "net.pools", "net.stream", "net.tls",
        "net.websocket",
    ),
    "net.connections": ("net.reused", "net.tls_stream"),
    "net.reused": ("net.usual",),
    "net.usual": (),
    "net.tls_stream": (),
    "net.metrics_listener": (),
    "net.admission": (),
    "net.challenge_listener": ("model.challenges", "net.admission"),
    "net.prometheus": ("model.duration",),
    "net.tls": ("errors", "text", "lean", "model"),
    "logs": ("errors", "text", "lean", "model", "store"),
    "helper": ("errors", "text", "lean", "model.paths", "store.config", "store.deployments", "store.disk", "store.structure"),
    "install": (),
    "install.material": ("errors", "text", "lean", "model"),
    "install.process": ("errors", "text", "lean", "model.commands", "store.disk.path_walk"),
    "install.probe": ("errors", "text", "lean", "model"),
    "install.adopt": ("errors", "text", "lean", "model", "store.layout", "install.material"),
    "install.plan": (*GROUND, "model", "install.material"),
    "install.deploy": (
        *BELOW_STORE, "store", "install.material", "install.process", "install.probe", "install.plan",
    ),
    "install.installed_certs": (*BELOW_STORE, "store", "install.deploy", "install.plan"),
    "install.installer": (*BELOW_STORE, "store", "install"),
    "agent": (*BELOW_STORE, "store", "helper.client", "net", "logs", "install"),
    "cli": (*BELOW_STORE, "store", "helper.client", "helper.messages", "net", "logs", "install", "agent"),
    "plane": BELOW_PLANE,
    "plane.storage": (*BELOW_PLANE, "plane.errors", "plane.devices.features", "plane.health.counters"),
    "plane.ca": IN_PLANE,
    "plane.access": (*IN_PLANE, "plane.audit", "plane.limits"),
    "plane.sign_in": (*IN_PLANE, "plane.access.roles", "plane.setting_hooks"),
    "plane.audit": (*IN_PLANE, "plane.access.roles", "plane.devices.grants", "plane.rollouts.plan"),
    "plane.acme": (*BELOW_PLANE, "plane.issuers.issuer"),
    "plane.devices": (*IN_PLANE, "plane.ca", "plane.installs", "plane.limits", "plane.shared_limits"),
    "plane.profiles": (*IN_PLANE, "plane.audit", "plane.devices", "plane.installs"),
    "plane.rollouts": (
        *IN_PLANE, "plane.access.roles", "plane.audit", "plane.certificates", "plane.devices", "plane.health.problems",
        "plane.installs", "plane.orders", "plane.profiles", "plane.reserved_names",
    ),
    "plane.fleet": (*IN_PLANE, "plane.devices"),
    "plane.alerts": (
        *IN_PLANE, "plane.devices", "plane.fleet", "plane.health.problems", "plane.jobs", "plane.orders", "plane.planes",
        "plane.rollouts.plan", "plane.setting_hooks",
    ),
    "plane.push": (*IN_PLANE, "plane.devices", "plane.health.counters", "plane.planes"),
    "plane.challenges": (
        *IN_PLANE, "plane.commands", "plane.ca", "plane.devices.features", "plane.health.problems",
        "plane.issuers.issuer", "plane.setting_hooks",
    ),
    "plane.issuers": (
        *IN_PLANE, "plane.commands", "plane.setting_hooks", "plane.acme", "plane.ca", "plane.challenges", "plane.certificates.chains",
    ),
    "plane.certificates": ISSUING,
    "plane.orders": ISSUING,
    "plane.revocation": ISSUING,
    "plane.health": (*IN_PLANE, "plane.core", "plane.planes"),
    "plane.http": (*BELOW_PLANE, "plane"),
    "sandbox": (*BELOW_STORE, "store", "net", "logs", "install", "agent", "plane"),
    "__main__": ("errors", "cli", "agent.early_signals", "helper.serve"),
}  # fmt: skip
LAZY_FOR_CLI = ("plane", "sandbox")
"""What `cli` may import inside functions only: a command that is not run costs nothing."""

ONLY_IN: dict[str, tuple[str, ...]] = {
    "httpx": ("certctrl.plane.acme.http",),
    "httpcore": (
        "certctrl.net.connections", "certctrl.net.reused", "certctrl.net.transport", "certctrl.plane.acme.http",
        "certctrl.plane.alerts.webhook", "certctrl.plane.sign_in.http",
    ),
    "typer": ("certctrl.cli",),
    "rich": ("certctrl.cli", "certctrl.sandbox.live_table"),
    "h11": (
        "certctrl.net.challenge_listener", "certctrl.net.metrics_listener", "certctrl.net.reused",
        "certctrl.plane.challenges.explain_http",
    ),
    "httptools": ("certctrl.plane.http.parsing",),
    "wsproto": ("certctrl.net.websocket", "certctrl.plane.http.upgrade", "certctrl.plane.http.websocket"),
    "starlette": ("certctrl.plane",),
    "sqlite3": ("certctrl.plane",),
    "dns": ("certctrl.plane.challenges",),
    "prometheus_client": ("certctrl.agent", "certctrl.net.prometheus", "certctrl.plane"),
    "subprocess": ("certctrl.helper.units", "certctrl.install.process", "certctrl.plane", "certctrl.sandbox"),
}  # fmt: skip
"""Library -> the only places that may import it."""

PURE = (
    "certctrl.errors", "certctrl.text", "certctrl.lean", "certctrl.backoff", "certctrl.model",
    "certctrl.protocol", "certctrl.install.plan",
)  # fmt: skip
"""Code without waiting, disk, clock, randomness and logging."""
IMPURE = {
    "trio", "os", "time", "random", "secrets", "logging", "socket", "ssl", "shutil", "tempfile", "threading",
}  # fmt: skip
SYNCHRONOUS = (*PURE, "certctrl.helper", "certctrl.store", "certctrl.logs", "certctrl.install.material")
"""Code that never waits: Trio is not imported."""

# --- one door each --------------------------------------------------------------------------------------------------

WITHOUT_DOORS = ("certctrl.plane", "certctrl.sandbox")
"""Separate programs; tests give them real directories and processes."""
DISK_DOOR = ("certctrl.store.disk.fs",)
STREAM_DOOR = ("certctrl.logs.stderr",)
"""Writes to the descriptor of standard error, not to the disk."""
PROCESS_DOOR = ("certctrl.install.process",)
CLOCK_DOOR = ("certctrl.agent.clock", "certctrl.plane.clock")

MUTATING_OS = {
    "rename", "renames", "replace", "unlink", "remove", "removedirs", "rmdir", "mkdir", "makedirs", "symlink", "link",
    "chmod", "fchmod", "lchmod", "chown", "fchown", "lchown", "truncate", "ftruncate", "write", "pwrite", "writev",
    "fsync", "fdatasync", "sync", "posix_fallocate", "mknod", "mkfifo", "setxattr", "removexattr", "utime",
}  # fmt: skip
MUTATING_METHODS = {"write_text", "write_bytes", "symlink_to", "hardlink_to", "touch"}
MUTATING_ON_PATHS = {"unlink", "rename", "mkdir", "rmdir", "chmod", "lchmod"}
"""Names that `Fs` has as well: allowed on a receiver called fs."""
PROCESS_OS = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"}
CLOCKS = {
    "time.time", "time.time_ns", "time.gmtime", "time.localtime", "time.ctime", "datetime.now", "datetime.utcnow",
    "datetime.today", "date.today", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today",
    "datetime.date.today", "dt.datetime.now", "dt.datetime.utcnow", "dt.date.today",
}  # fmt: skip

REPORTED_MODULE = 300
LONGEST_MODULE = 450
LONGEST_FUNCTION = 40

EACH_MODULE = pytest.mark.parametrize("module", [pytest.param(name, id=name) for name in MODULES])


def rule_for(target: str) -> str | None:
    """Return the key of MAY_IMPORT that covers a name below ``certctrl``."""
    covering = [key for key in MAY_IMPORT if within(target, (key,))]
    return max(covering, key=len, default=None)


@EACH_MODULE
def test_imports_point_to_the_left(module: str) -> None:
    own = rule_for(module.partition(".")[2])
    assert own is not None, f"{module}: a new package needs its row in MAY_IMPORT"
    wrong = []
    for found in imports_of(module):
        target = found.target.partition(".")[2]
        if found.target.partition(".")[0] != "certctrl" or target in ("", "__version__"):
            continue
        if own == "cli" and found.lazy and within(target, LAZY_FOR_CLI):
            continue
        if not within(target, (own, *MAY_IMPORT[own])) or (own == "" and target):
            wrong.append(f"line {found.line}: {found.target}")
    assert not wrong, f"{own} may import only from {MAY_IMPORT[own]}"


def test_no_module_imports_itself_through_others() -> None:
    """Type annotations count: a cycle of types is a cycle of concepts."""
    arrows = {
        module: {found.target for found in imports_of(module) if found.target in MODULES and found.target != module}
        for module in MODULES
    }
    assert not cycles(arrows)


@EACH_MODULE
def test_libraries_are_imported_where_they_belong(module: str) -> None:
    wrong = []
    for found in imports_of(module):
        library = found.target.partition(".")[0]
        if found.typing:
            continue
        if library in ONLY_IN and not within(module, ONLY_IN[library]):
            wrong.append(f"line {found.line}: {library} belongs to {ONLY_IN[library]}")
        if library in IMPURE and within(module, PURE):
            wrong.append(f"line {found.line}: {library} in a pure module")
        if library in ("trio", "trio_util") and within(module, SYNCHRONOUS):
            wrong.append(f"line {found.line}: {library} where nothing waits")
    assert not wrong


@EACH_MODULE
def test_the_disk_is_changed_through_one_door(module: str) -> None:
    if within(module, WITHOUT_DOORS + DISK_DOOR + STREAM_DOOR):
        return
    wrong = [f"line {node.lineno}: {name}" for name, node in names_in(module) if changes_disk(name, node)]
    wrong += [f"line {node.lineno}: open for writing" for node in nodes_of(module) if opens_to_write(node)]
    assert not wrong, "use certctrl.store.disk.fs"


def changes_disk(name: str, node: ast.expr) -> bool:
    """Return whether a dotted name is a function that changes the disk."""
    head, _, rest = name.partition(".")
    if head == "os" and rest in MUTATING_OS:
        return True
    if head in ("shutil", "tempfile"):
        return "." in name and rest not in ("which", "get_terminal_size", "disk_usage")
    method = name.rpartition(".")[2]
    if not isinstance(node, ast.Attribute) or head == "os":
        return False
    receiver = dotted(node.value).rpartition(".")[2].lstrip("_")
    return method in MUTATING_METHODS or (method in MUTATING_ON_PATHS and receiver != "fs")


def opens_to_write(node: ast.AST) -> bool:
    """Return whether a node calls ``open``, ``….open`` or ``os.open`` for writing."""
    if not isinstance(node, ast.Call) or dotted(node.func).rpartition(".")[2] != "open":
        return False
    if node.args and dotted(node.args[0]) == "os.devnull":  # it is not on a disk
        return False
    if dotted(node.func) == "os.open":
        return any(name in ast.dump(node) for name in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"))
    if dotted(node.func).split(".")[-2:-1] in (["fs"], ["_fs"]):
        return False
    position = 1 if dotted(node.func) in ("open", "io.open", "trio.open_file") else 0
    modes = [keyword.value for keyword in node.keywords if keyword.arg == "mode"] + node.args[position : position + 1]
    return any(isinstance(m, ast.Constant) and isinstance(m.value, str) and set(m.value) & set("wax+") for m in modes)


@EACH_MODULE
def test_commands_run_through_one_door(module: str) -> None:
    if within(module, WITHOUT_DOORS + PROCESS_DOOR):
        return
    wrong = [f"line {node.lineno}: {name}" for name, node in names_in(module) if starts_process(name)]
    assert not wrong, "use certctrl.install.process"


def starts_process(name: str) -> bool:
    """Return whether a dotted name is a function that starts a process."""
    head, _, rest = name.partition(".")
    if head == "os" and (rest in PROCESS_OS or rest.startswith(("exec", "spawn"))):
        return True
    return name in ("trio.run_process", "trio.lowlevel.open_process", "pty.spawn")


@EACH_MODULE
def test_wall_time_is_an_argument(module: str) -> None:
    if within(module, CLOCK_DOOR):
        return
    wrong = [f"line {node.lineno}: {name}" for name, node in names_in(module) if name in CLOCKS]
    assert not wrong, "take `now: float` or `wall_now`"


TEXTS_FOR_PEOPLE = frozenset({"detail", "last_error", "what", "why", "fix"})
"""Attributes with text for people; only the difference of two texts may mean something."""


@EACH_MODULE
def test_no_text_for_people_decides(module: str) -> None:
    wrong = [f"line {node.lineno}: {ast.unparse(node)}" for node in ast.walk(tree_of(module)) if reads_text(node)]
    assert not wrong, "use a field, an enum or an exception type"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("'waits for' in outcome.detail", True),
        ("outcome.detail.startswith('staged')", True),
        ("retry.last_error.partition(': ')", True),
        ("'refused' not in str(error)", True),
        ("str(error).endswith('full')", True),
        ("outcome.detail == 'removed'", True),
        ("outcome.detail != entry.retry.reported", False),
        ("one_line(outcome.detail)", False),
        ("'x' in item.name", False),
    ],
)
def test_a_text_that_decides_is_found(text: str, found: bool) -> None:
    assert reads_text(expression(text)) is found


def reads_text(node: ast.AST) -> bool:
    """Return whether an expression searches a text for people, or compares it with a literal."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        searches = node.func.attr in (
            "startswith",
            "endswith",
            "partition",
            "rpartition",
            "find",
            "split",
            "removeprefix",
        )
        return searches and is_text(node.func.value)
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return any(isinstance(one, ast.Constant) and one.value for one in sides) and any(map(is_text, sides))
    return False


def is_text(node: ast.AST) -> bool:
    """Return whether an expression is a text for people: ``x.detail``, ``str(error)``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str" and node.args:
        return isinstance(node.args[0], ast.Name) and node.args[0].id in ("error", "exc", "refused")
    return isinstance(node, ast.Attribute) and node.attr in TEXTS_FOR_PEOPLE


# --- lengths and docstrings -----------------------------------------------------------------------------------------


@EACH_MODULE
def test_modules_and_functions_are_short(module: str, record_property: Callable[[str, object], None]) -> None:
    """Modules over 300 lines of code are listed in the summary (``conftest.py``), over 450 fail."""
    lines = code_lines(tree_of(module), text_of(module))
    if lines > REPORTED_MODULE:
        record_property("long_module", f"{module}: {lines} lines")
    assert lines <= LONGEST_MODULE
    assert not long_functions(tree_of(module), LONGEST_FUNCTION)


@EACH_MODULE
def test_only_tables_skip_the_formatter(module: str) -> None:
    assert not skipped_outside_tables(tree_of(module), text_of(module)), "`fmt: skip` only to save lines"


@EACH_MODULE
def test_public_names_have_docstrings(module: str) -> None:
    tree = tree_of(module)
    silent = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        defines = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if defines and not node.name.startswith("_") and not ast.get_docstring(node):
            silent.append(f"{node.name} (line {node.lineno})")
    assert not silent, f"{module}: no docstring"


# --- each detector fires on what it forbids and stays quiet on its neighbour ----------------------------------------


def expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


@pytest.mark.parametrize(
    "text",
    [
        "os.replace(a, b)", "p.write_text('x')", "p.unlink()", "shutil.rmtree(p)", "open(p, 'w')", "p.open('ab')",
        "open(p, mode='r+')", "tempfile.mkstemp()", "os.open(p, os.O_RDWR)",
    ],
)  # fmt: skip
def test_a_change_of_the_disk_is_found(text: str) -> None:
    assert touches_disk(text)


@pytest.mark.parametrize(
    "text", ["fs.unlink(p)", "self._fs.rename(a, b)", "text.replace('a', 'b')", "open(p)", "p.open('rb')"]
)
def test_what_leaves_the_disk_alone_is_not_found(text: str) -> None:
    assert not touches_disk(text)


def touches_disk(text: str) -> bool:
    call = expression(text)
    assert isinstance(call, ast.Call)
    return changes_disk(dotted(call.func), call.func) or opens_to_write(call)


def test_a_start_of_a_process_is_found() -> None:
    assert all(map(starts_process, ("os.execv", "os.fork", "os.posix_spawn", "trio.run_process")))
    assert not any(map(starts_process, ("os.getpid", "proc.run", "trio.run")))


def test_every_import_is_of_a_declared_dependency() -> None:
    """Found in a package: the tests' own dependencies bring modules, such as click, that an installation lacks."""
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [one for name, each in project["optional-dependencies"].items() if name != "dev" for one in each]
    declared = {re.split(r"[^\w.-]", one)[0].lower() for one in (*project["dependencies"], *extras)}
    other_names = {"dns": "dnspython", "jks": "pyjks", "jwt": "pyjwt", "nacl": "pynacl"}
    undeclared = set[str]()
    for path in sorted((root / "certctrl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            tops = {module.partition(".")[0] for module in modules} - {"certctrl"} - sys.stdlib_module_names
            used = {other_names.get(top, top.replace("_", "-")) for top in tops}
            undeclared |= {
                f"{path.relative_to(root)}: {name}" for name in used - declared - {"rich"}
            }  # typer needs rich
    assert not undeclared
