"""Write the manual pages and the completion files of packages: ``python docs/manual.py DIRECTORY``.

Commands come from the parser, as in docs/cli.md, and cert-ctrl.conf(5) is docs/configuration.md in another notation.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from generate import EXIT_MEANINGS, configuration

from certctrl import __version__
from certctrl.cli.app import COMMANDS, load, root_command
from certctrl.errors import ExitStatus

# Below the root of a package, except for those that have another place or type in each kind of package.
MANUAL = "man"
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/cert-ctrl",
    "zsh": "zsh/_cert-ctrl",
    "fish": "usr/share/fish/vendor_completions.d/cert-ctrl.fish",
}
SHORT_LINES = "\b"
"""First line of a paragraph of a help text whose line breaks stay."""


# --- roff -------------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Return text that roff prints unchanged."""
    text = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha").replace("`", "\\(ga")
    )
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def header(name: str, section: int, about: str) -> str:
    """Return the title and the first section of a page."""
    day = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    title = f'.TH {name.upper().replace("-", chr(92) + "-")} {section} {day} "certctrl {__version__}" "certctrl"\n'
    return f"{title}.SH NAME\n{escaped(name)} \\- {escaped(about.rstrip('.'))}\n"


def entry(term: str, text: str) -> str:
    """Return a term in bold with its explanation."""
    return f".TP\n.B {escaped(term)}\n{escaped(text)}\n"


# --- commands ---------------------------------------------------------------------------------------------------------


def help_text(text: str) -> str:
    """Return the paragraphs of a help text."""
    page = ""
    for paragraph in text.strip().split("\n\n"):
        if paragraph.startswith(SHORT_LINES):
            page += f".PP\n.RS 4\n.nf\n{escaped(paragraph.removeprefix(SHORT_LINES).strip(chr(10)))}\n.fi\n.RE\n"
        else:
            page += f".PP\n{escaped(paragraph)}\n"
    return page


def options_of(command: Any, name: str) -> str:
    """Return the arguments and options of a command that ``--help`` shows."""
    context = command.make_context(name, [], resilient_parsing=True)
    records = [param.get_help_record(context) for param in command.get_params(context)]
    return "".join(entry(*record) for record in records if record is not None)


def synopsis(command: Any, name: str) -> str:
    """Return the line that shows how a command is called."""
    context = command.make_context(name, [], resilient_parsing=True)
    return f".PP\n.B {escaped(name)}\n{escaped(' '.join(command.collect_usage_pieces(context)))}\n"


def command_page(name: str) -> str:
    """Return the page of a command, with a part for each of its subcommands."""
    about, command, full = COMMANDS[name].about, load(name, COMMANDS[name]), f"cert-ctrl {name}"
    inner = subcommands(command, full)
    page = header(f"cert-ctrl-{name}", 1, about) + ".SH SYNOPSIS\n"
    page += "".join(synopsis(one, words) for words, one in inner) if inner else synopsis(command, full)
    page += ".SH DESCRIPTION\n" + help_text(command.help or about)
    if not inner:
        page += ".SH OPTIONS\n" + options_of(command, full)
    else:
        page += ".SH COMMANDS\n"
        for words, one in inner:
            page += f".SS {escaped(words)}\n" + help_text(one.help or "") + options_of(one, words)
    return page + exit_statuses() + ".SH SEE ALSO\n.BR cert\\-ctrl (1),\n.BR cert\\-ctrl.conf (5)\n"


def subcommands(command: Any, name: str) -> list[tuple[str, Any]]:
    """Return the commands below a command with their words, those of the same group together."""
    found: list[tuple[str, Any]] = []
    for word, one in getattr(command, "commands", {}).items():
        found += subcommands(one, f"{name} {word}") or [(f"{name} {word}", one)]
    return found


def root_page(pages: list[str]) -> str:
    """Return cert-ctrl(1); ``pages`` are the commands that have a page in the same package."""
    root, about = root_command([]), "keep the certificates of this host current, and verify what is served"
    page = header("cert-ctrl", 1, about) + ".SH SYNOPSIS\n" + synopsis(root, "cert-ctrl")
    page += ".SH DESCRIPTION\n" + help_text(root.help) + ".SH OPTIONS\n" + options_of(root, "cert-ctrl")
    page += ".SH COMMANDS\n" + "".join(entry(name, one.about) for name, one in COMMANDS.items())
    page += (
        exit_statuses()
        + ".SH FILES\n"
        + entry("/etc/cert-ctrl", "The default config directory; see cert-ctrl.conf(5).")
    )
    others = ",\n".join(f".BR cert\\-ctrl\\-{escaped(name)} (1)" for name in pages)
    return f"{page}.SH SEE ALSO\n.BR cert\\-ctrl.conf (5),\n{others}\n"


def exit_statuses() -> str:
    """Return the section with the meanings of docs/exit-statuses.md."""
    meanings = (entry(str(int(status)), markup(EXIT_MEANINGS[status][0])) for status in ExitStatus)
    return ".SH EXIT STATUS\n" + "".join(meanings)


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markup(text: str) -> str:
    """Return Markdown text without its marks; links keep their words."""
    return re.sub(r"[`*]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text.replace("\\|", "|")))


def from_markdown(text: str) -> str:
    """Return what docs/configuration.md consists of as roff: headings, paragraphs, lists, and tables as terms."""
    page, heads = "", list[str]()
    for line in text.splitlines():
        if line.startswith("### "):
            page += f".SS {escaped(markup(line[4:]))}\n"
        elif line.startswith("## "):
            page += f".SH {escaped(markup(line[3:]))}\n"
        elif line.startswith("- "):
            page += f".IP \\(bu 2\n{escaped(markup(line[2:]))}\n"
        elif line.startswith("|"):
            cells = [markup(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if heads and not line.startswith("| ---"):
                page += row(heads, cells)
            heads = heads or cells
        elif line.strip():
            page += f"{escaped(markup(line.strip()))}\n"
        else:
            page += ".PP\n" if page and not page.endswith(".PP\n") else ""
        heads = heads if line.startswith("|") else []
    return page


def row(heads: list[str], cells: list[str]) -> str:
    """Return a table's row as a term: its last column, then the others with their heads."""
    details = [f"{head} {cell}" for head, cell in zip(heads[1:-1], cells[1:-1], strict=True) if cell]
    return entry(cells[0], cells[-1] + (f" ({'; '.join(details)})" if details else ""))


def configuration_page() -> str:
    """Return cert-ctrl.conf(5)."""
    text = configuration().partition("# Configuration\n")[2].strip()
    about = "configuration of the certificate agent"
    return header("cert-ctrl.conf", 5, about) + ".SH DESCRIPTION\n" + from_markdown(text)


# --- files ------------------------------------------------------------------------------------------------------------


def write_page(root: Path, name: str, section: int, text: str) -> None:
    """Write one compressed manual page, without paragraph marks where other macros begin a paragraph; the same bytes each time."""
    text = re.sub(r"(\.PP\n)+(?=\.S[HS] |\.[TIP]P|$)", "", re.sub(r"(\.S[HS] .*\n)(\.PP\n)+", r"\1", text))
    path = root / f"{MANUAL}/man{section}" / f"{name}.{section}.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def completion(shell: str) -> str:
    """Return the completion file of a shell, as ``--show-completion`` prints it."""
    environment = {**os.environ, "_CERT_CTRL_COMPLETE": f"source_{shell}"}
    argv = [sys.executable, "-m", "certctrl"]
    done = subprocess.run(argv, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    # zsh loads the file at the first use, which defines the function but completes nothing.
    return done.stdout.strip() + ('\n_cert_ctrl_completion "$@"\n' if shell == "zsh" else "\n")


def write(agent: Path, plane: Path) -> None:
    """Write the files of both packages below their roots."""
    own = [name for name in COMMANDS if name != "plane"]
    write_page(agent, "cert-ctrl", 1, root_page(own))
    for name in own:
        write_page(agent, f"cert-ctrl-{name}", 1, command_page(name))
    write_page(agent, "cert-ctrl.conf", 5, configuration_page())
    write_page(plane, "cert-ctrl-plane", 1, command_page("plane"))
    for shell, path in COMPLETIONS.items():
        (agent / path).parent.mkdir(parents=True, exist_ok=True)
        (agent / path).write_text(completion(shell), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
