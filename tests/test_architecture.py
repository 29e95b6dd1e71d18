"""Keep the house rules by reading the source: who may import whom, who may touch disk, clock and processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import certctrl

ROOT = Path(certctrl.__file__).parent
MODULES = {
    ".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
PARAMETERS = [pytest.param(name, id=name) for name in MODULES]

# Package or module -> what it may import besides itself; the longest matching name counts. `agent` allows all of
# `agent`, `net.tls` that module alone. The order is docs/architecture.md's; left never imports right.
GROUND = ("errors", "text", "backoff")
BELOW_INSTALL = (*GROUND, "model", "protocol")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "text": (),
    "backoff": (),
    "model": GROUND,
    "protocol": (*GROUND, "model"),
    "store": BELOW_INSTALL,
    "store.disk": ("errors", "text", "store.layout"),
    "store.decode": GROUND,
    "store.structure": (*GROUND, "model"),
    "store.config": (*BELOW_INSTALL, "store.disk", "store.layout", "store.structure"),
    "store.state": (*BELOW_INSTALL, "store.disk", "store.layout", "store.decode", "store.structure"),
    "store.deployments": (*BELOW_INSTALL, "store.disk", "store.layout", "store.decode", "store.structure"),
    "net": BELOW_INSTALL,
    "net.transport": (*GROUND, "model", "net.explain", "net.http", "net.origin", "net.pools", "net.tls"),
    "net.tls": ("errors", "text", "model"),
    "logs": ("errors", "text", "model", "store"),
    "install": (),
    "install.material": ("errors", "text", "model"),
    "install.process": ("errors", "text"),
    "install.probe": ("errors", "text", "model"),
    "install.plan": (*GROUND, "model", "install.material"),
    "install.deploy": (
        *BELOW_INSTALL,
        "store",
        "install.material",
        "install.process",
        "install.probe",
        "install.plan",
    ),
    "install.installer": (*BELOW_INSTALL, "store", "install"),
    "agent": (*BELOW_INSTALL, "store", "net", "install", "logs"),
    "cli": (*BELOW_INSTALL, "store", "net", "logs", "install", "agent"),
    "sandbox": (*BELOW_INSTALL, "store", "net", "logs", "install", "agent", "plane"),
    "plane": (*GROUND, "model", "protocol.wire", "net.transport", "net.tls"),
    "__main__": ("errors", "cli"),
    "": (),
}
# `cli` reaches these only inside a function: a command that is not run costs nothing.
LAZY_FOR_CLI = ("plane", "sandbox")

# Foreign library -> the only places that may import it.
ONLY_IN = {
    "httpx": ("certctrl.net.transport",),
    "httpcore": ("certctrl.net.transport",),
    "typer": ("certctrl.cli",),
    "rich": ("certctrl.cli",),
    "hypercorn": ("certctrl.plane",),
    "starlette": ("certctrl.plane",),
    "sqlite3": ("certctrl.plane",),
    "prometheus_client": ("certctrl.agent",),
    "subprocess": ("certctrl.install.process", "certctrl.plane", "certctrl.sandbox"),
}
# Pure rooms: no waiting, no disk, no clock, no chance, no log.
PURE = (
    "certctrl.errors", "certctrl.text", "certctrl.backoff", "certctrl.model", "certctrl.protocol",
    "certctrl.install.plan",
)  # fmt: skip
IMPURE_MODULES = {
    "trio",
    "os",
    "time",
    "random",
    "secrets",
    "logging",
    "socket",
    "ssl",
    "shutil",
    "tempfile",
    "threading",
}
WAITS_NOT = ("certctrl.errors", "certctrl.model", "certctrl.protocol", "certctrl.store")

# Disk, clock and processes each have one door. The plane is a program of its own, the sandbox a stage.
FREE_OF_SEAMS = ("certctrl.plane", "certctrl.sandbox")
DISK_DOOR = ("certctrl.store.disk.fs",)
PROCESS_DOOR = ("certctrl.install.process",)
CLOCK_DOOR = ("certctrl.agent.clock", "certctrl.plane.clock")

MUTATING_OS = {
    "rename", "renames", "replace", "unlink", "remove", "removedirs", "rmdir", "mkdir", "makedirs", "symlink", "link",
    "chmod", "fchmod", "lchmod", "chown", "fchown", "lchown", "truncate", "ftruncate", "write", "pwrite", "writev",
    "fsync", "fdatasync", "sync", "posix_fallocate", "mknod", "mkfifo", "setxattr", "removexattr", "utime",
}  # fmt: skip
MUTATING_METHODS = {"write_text", "write_bytes", "symlink_to", "hardlink_to", "touch"}
# Names that `Fs` has too: allowed on a receiver called fs.
MUTATING_ON_PATHS = {"unlink", "rename", "mkdir", "rmdir", "chmod", "lchmod"}
PROCESS_OS = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"}
CLOCKS = {
    "time.time", "time.time_ns", "time.gmtime", "time.localtime", "time.ctime", "datetime.now", "datetime.utcnow",
    "datetime.today", "date.today", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today",
    "datetime.date.today", "dt.datetime.now", "dt.datetime.utcnow", "dt.date.today",
}  # fmt: skip

REPORTED_MODULE = 300
LONGEST_MODULE = 450
LONGEST_FUNCTION = 40


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"), filename=str(MODULES[module]))


def within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(module: str) -> Iterator[tuple[str, int, bool, bool]]:
    """Yield (imported dotted name, line, only inside a function?, only for type annotations?)."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[tuple[str, int, bool, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for other in child.body:
                    yield from walk(ast.Module([other], []), lazy, True)
                for other in child.orelse:
                    yield from walk(ast.Module([other], []), lazy, typing)
            elif isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child.lineno, lazy, typing
            elif isinstance(child, ast.ImportFrom):
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - child.level + 1]) if child.level else ""
                source = ".".join(part for part in (base, child.module or "") if part)
                for alias in child.names:
                    full = f"{source}.{alias.name}"
                    yield (full if full in MODULES or source == "certctrl" else source), child.lineno, lazy, typing
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, lazy or inside, typing)

    yield from walk(tree_of(module), False, False)


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` of a name or attribute chain; a call or subscript in it becomes ``?``."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def calls_and_names(module: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield every dotted name used in a module; ``from os import rename`` is seen as ``os.rename``."""
    tree = tree_of(module)
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            head, dot, rest = dotted(node).partition(".")
            yield aliases.get(head, head) + dot + rest, node


def rule_for(target: str) -> str | None:
    """Return the key of MAY_IMPORT that covers a name below ``certctrl``; the longest wins."""
    covering = [key for key in MAY_IMPORT if target == key or (key and target.startswith(key + "."))]
    return max(covering, key=len, default=None)


@pytest.mark.parametrize("module", PARAMETERS)
def test_imports_go_left_only(module: str) -> None:
    own = rule_for(module.partition(".")[2])
    assert own is not None, f"{module}: a new package needs its row in MAY_IMPORT"
    wrong = []
    for name, line, lazy, _ in imports_of(module):
        target = name.partition(".")[2]
        if name.partition(".")[0] != "certctrl" or target.partition(".")[0] in ("", "__version__"):
            continue
        if own == "cli" and target.partition(".")[0] in LAZY_FOR_CLI and lazy:
            continue
        if not within(target, (own, *MAY_IMPORT[own])):
            wrong.append(f"line {line}: {name}")
    assert not wrong, f"{own} may import only from {MAY_IMPORT[own]}"


def test_no_module_cycles() -> None:
    """No module imports itself through others, not even for its type annotations."""
    arrows = {
        module: {name for name, _, _, _ in imports_of(module) if name in MODULES and name != module}
        for module in MODULES
    }
    order = {module: number for number, group in enumerate(components(arrows)) for module in group}
    cycles = [sorted(group) for group in components(arrows) if len(group) > 1]
    assert not cycles
    assert len(order) == len(MODULES)


def components(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Return the strongly connected components of a graph (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in arrows[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(set(stack[at:]))
            del stack[at:]

    for node in arrows:
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("module", PARAMETERS)
def test_foreign_libraries_stay_in_their_rooms(module: str) -> None:
    wrong = []
    for name, line, _, typing in imports_of(module):
        if typing:
            continue
        library = name.partition(".")[0]
        if library in ONLY_IN and not within(module, ONLY_IN[library]):
            wrong.append(f"line {line}: {library} belongs to {ONLY_IN[library]}")
        if within(module, PURE) and library in IMPURE_MODULES:
            wrong.append(f"line {line}: {library} in a pure module")
        if within(module, WAITS_NOT) and library in ("trio", "trio_util"):
            wrong.append(f"line {line}: {library} where nothing waits")
    assert not wrong


@pytest.mark.parametrize("module", PARAMETERS)
def test_disk_is_changed_through_one_door(module: str) -> None:
    if within(module, FREE_OF_SEAMS + DISK_DOOR):
        return
    wrong = [f"line {node.lineno}: {name}" for name, node in calls_and_names(module) if changes_disk(name, node)]
    wrong += [f"line {node.lineno}: open for writing" for node in ast.walk(tree_of(module)) if opens_to_write(node)]
    assert not wrong, "use certctrl.store.disk.fs"


def changes_disk(name: str, node: ast.AST) -> bool:
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
    """Return whether a call of ``open``, ``….open`` or ``os.open`` opens for writing."""
    if not isinstance(node, ast.Call) or dotted(node.func).rpartition(".")[2] != "open":
        return False
    if dotted(node.func) == "os.open":
        return any(name in ast.dump(node) for name in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"))
    if dotted(node.func).split(".")[-2:-1] in (["fs"], ["_fs"]):
        return False
    position = 1 if dotted(node.func) in ("open", "io.open", "trio.open_file") else 0
    modes = [keyword.value for keyword in node.keywords if keyword.arg == "mode"] + node.args[position : position + 1]
    return any(isinstance(m, ast.Constant) and isinstance(m.value, str) and set(m.value) & set("wax+") for m in modes)


@pytest.mark.parametrize("module", PARAMETERS)
def test_commands_run_through_one_door(module: str) -> None:
    if within(module, FREE_OF_SEAMS + PROCESS_DOOR):
        return
    wrong = []
    for name, node in calls_and_names(module):
        head, _, rest = name.partition(".")
        starts = head == "os" and (rest in PROCESS_OS or rest.startswith(("exec", "spawn")))
        if starts or name in ("trio.run_process", "trio.lowlevel.open_process", "pty.spawn"):
            wrong.append(f"line {node.lineno}: {name}")
    assert not wrong, "use certctrl.install.process"


@pytest.mark.parametrize("module", PARAMETERS)
def test_wall_time_is_an_argument(module: str) -> None:
    if within(module, CLOCK_DOOR):
        return
    wrong = [f"line {node.lineno}: {name}" for name, node in calls_and_names(module) if name in CLOCKS]
    assert not wrong, "take `now: float` or `wall_now`"


def docstring_of(node: ast.AST) -> ast.Expr | None:
    """Return the docstring statement of a module, class or function."""
    body = getattr(node, "body", None)
    if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
        return None
    value = body[0].value
    return body[0] if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def height(node: ast.stmt | ast.expr) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def is_table(node: ast.AST) -> bool:
    """Return whether a statement assigns one literal display (a table)."""
    displays = ast.Dict | ast.List | ast.Set | ast.Tuple
    return isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, displays)


def code_lines(module: str) -> int:
    """Return the length of a module without docstrings and tables."""
    tree = tree_of(module)
    left_out = [found for node in ast.walk(tree) if (found := docstring_of(node)) is not None]
    strings = [one for one in ast.walk(tree) if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)]
    tables = [node for node in tree.body if is_table(node)]
    counted = {id(one): height(one) for one in (*left_out, *strings, *tables)}
    return len(MODULES[module].read_text(encoding="utf-8").splitlines()) - sum(counted.values())


@pytest.mark.parametrize("module", PARAMETERS)
def test_modules_and_functions_stay_small(module: str, record_property: Callable[[str, object], None]) -> None:
    """A module over 300 lines of code is reported in the summary, one over 450 fails; functions have 40 at most."""
    if (lines := code_lines(module)) > REPORTED_MODULE:
        record_property("long_module", f"{module}: {lines} lines")
    assert lines <= LONGEST_MODULE
    long = []
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = docstring_of(node)
            length = height(node) - (height(docstring) if docstring is not None else 0)
            table = all(isinstance(statement, ast.Assign) for statement in node.body)
            if length > LONGEST_FUNCTION and not table:
                long.append(f"{node.name} (line {node.lineno}): {length} lines")
    assert not long


@pytest.mark.parametrize("module", PARAMETERS)
def test_formatting_is_skipped_for_tables_only(module: str) -> None:
    lines = MODULES[module].read_text(encoding="utf-8").splitlines()
    tables = [node for node in ast.walk(tree_of(module)) if is_table(node)]
    table_ends = {node.end_lineno for node in tables if isinstance(node, ast.stmt)}
    wrong = [number for number, line in enumerate(lines, 1) if "fmt: skip" in line and number not in table_ends]
    assert not wrong, "lines that skip the formatter only to be fewer"


@pytest.mark.parametrize("module", PARAMETERS)
def test_public_things_say_what_they_are(module: str) -> None:
    tree = tree_of(module)
    silent = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        defines = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if defines and not node.name.startswith("_") and not ast.get_docstring(node):
            silent.append(f"{node.name} (line {node.lineno})")
    assert not silent, f"{module}: no docstring"


def test_the_rules_have_teeth() -> None:
    """Each rule's detector fires on the thing it forbids and stays quiet on its neighbour."""

    def expression(text: str) -> ast.expr:
        return ast.parse(text, mode="eval").body

    def disk(text: str) -> bool:
        call = expression(text)
        assert isinstance(call, ast.Call)
        return changes_disk(dotted(call.func), call.func) or opens_to_write(call)

    assert all(map(disk, ("os.replace(a, b)", "p.write_text('x')", "p.unlink()", "shutil.rmtree(p)", "open(p, 'w')")))
    assert all(map(disk, ("p.open('ab')", "open(p, mode='r+')", "tempfile.mkstemp()", "os.open(p, os.O_RDWR)")))
    assert not any(
        map(disk, ("fs.unlink(p)", "self._fs.rename(a, b)", "text.replace('a', 'b')", "open(p)", "p.open('rb')"))
    )
    assert dotted(expression("a.b().c")) == "?.c"


# --- start-up time is a feature ----------------------------------------------------------------------------

HEAVY = (
    "httpx",
    "httpcore",
    "trio",
    "cryptography",
    "nacl",
    "jwt",
    "hypercorn",
    "starlette",
    "pydantic",
    "prometheus_client",
)
LOADED = """
import sys
sys.argv = ["cert-ctrl", *sys.argv[1:]]
from certctrl.__main__ import main
status = 0
try:
    status = main() or 0
except SystemExit as end:
    status = end.code or 0
print("loaded:", *sorted(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
raise SystemExit(status)
"""


def loaded_by(*argv: str) -> tuple[int, str, list[str]]:
    """Run `cert-ctrl` in a fresh interpreter: (exit status, standard output, heavy modules it imported)."""
    code = LOADED.format(heavy=(*HEAVY, "rich"))
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.splitlines()[-1] if done.stderr else ""
    assert last.startswith("loaded:"), done.stderr
    return done.returncode, done.stdout, last.split()[1:]


def test_version_is_fast() -> None:
    status, out, loaded = loaded_by("--version")
    assert (status, loaded) == (0, [])
    assert certctrl.__version__ in out


def test_help_imports_nothing_heavy() -> None:
    status, out, loaded = loaded_by("--help")
    assert status == 0
    assert "status" in out
    assert not set(loaded) & set(HEAVY)


@pytest.mark.parametrize("command", ["status", "list-certs"])
def test_looking_imports_nothing_heavy(command: str, tmp_path: Path) -> None:
    from certctrl.store.config.files import init_config_dir
    from certctrl.store.disk.fs import RealFs
    from certctrl.store.layout import ConfigDir

    root = tmp_path / "agent"
    init_config_dir(RealFs(), ConfigDir(root), server_url="https://plane.example", ca_pem=None)
    _, _, loaded = loaded_by("-c", str(root), command)
    assert not loaded, "not even rich: standard output is no terminal here"
