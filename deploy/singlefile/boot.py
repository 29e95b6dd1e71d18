"""Run cert-ctrl from the directory that this file unpacks itself to, once: Python cannot load extension modules from a zip.

Code in that directory runs as the caller. It is used only if the caller and root alone can change it and the
directories above it.
"""

# Any Python 3 must be able to read this file, in order to report its version.
import os
import stat
import sys

NAME, DIGEST, PYTHON, MACHINE = "$NAME", "$DIGEST", "$PYTHON", "$MACHINE"
SYSTEM = "/var/lib/cert-ctrl-program"
"""Root's copy, which all users run. Not below /usr/local: on some systems, a group may write there."""
PLUGINS = "/usr/local/lib/cert-ctrl/python"
DISK, CONFIG, INTERRUPTED = 74, 78, 130
"""Exit statuses, see docs/exit-statuses.md."""


def main():  # type: ignore[no-untyped-def]
    """Find or make the unpacked program, and run it."""
    this = os.path.abspath(sys.argv[0])
    if not (sys.flags.isolated and sys.flags.no_site):  # started as `python3 FILE`: without the caller's modules
        os.execv(sys.executable, [sys.executable, "-IS", this, *sys.argv[1:]])
    here = "{}.{}".format(*sys.version_info[:2])
    if (here, sys.implementation.name, os.uname().machine) != (PYTHON, "cpython", MACHINE):
        found = f"{sys.implementation.name} {here} on {os.uname().machine}"
        stop(
            f"this file is for Python {PYTHON} on {MACHINE}, and {sys.executable} is {found}", f"install python{PYTHON}"
        )
    try:
        program = unpacked(f"{SYSTEM}/{NAME}") or own(this)
    except OSError as error:
        at = f"{error.filename}: " if error.filename else ""
        stop(
            f"cannot unpack the program: {at}{error.strerror}",
            "make room, or run `cert-ctrl --version` as root once",
            DISK,
        )
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    sys.path[0:1] = []  # this file
    sys.path += [program + "/python", PLUGINS]
    try:
        from certctrl.__main__ import program as run
    except ImportError as error:
        stop(f"the unpacked program is damaged: {error}", f"rm -r {program}")
    run()


def own(this):  # type: ignore[no-untyped-def]
    """Return the caller's own directory with the program, which is made if there is none."""
    if os.geteuid() == 0:
        base = SYSTEM
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", ""), ".cache")
        base = os.path.join(cache, "cert-ctrl")
        if not os.path.isabs(base):
            stop("no directory to unpack the program into", "run `cert-ctrl --version` as root once, or set HOME")
    found = unpacked(f"{base}/{NAME}")
    if found is None:
        from unpack import unpack

        unpack(this, base, NAME, DIGEST, trusted, stop)
        found = unpacked(f"{base}/{NAME}")
    return found


def unpacked(path):  # type: ignore[no-untyped-def]
    """Return the real path of a directory with the program that is safe to use; None if there is none."""
    return trusted(path) if os.path.isdir(path) else None


def trusted(path):  # type: ignore[no-untyped-def]
    """Return the real path of a directory; stops if another user can change it or a directory above it."""
    part = real = os.path.realpath(path)
    below = False
    while True:
        found = os.lstat(part)
        shared = found.st_mode & 0o022 and not (below and found.st_mode & stat.S_ISVTX)
        if found.st_uid not in (0, os.geteuid()):
            stop(
                f"user id {found.st_uid}, the owner of {part}, could replace the program",
                repair(path, part, "chown root"),
            )
        if shared:
            stop(f"other users may write to {part} and could replace the program", repair(path, part, "chmod go-w"))
        if part == "/":
            return real
        part, below = os.path.dirname(part), True


def repair(path, part, command):  # type: ignore[no-untyped-def]
    """Return what makes a directory safe: nothing that others could have written before may run afterwards."""
    base = os.path.dirname(path) if os.path.basename(path) == NAME else path
    links = os.path.islink(path) or os.path.islink(base)
    if links or (part + "/").startswith(os.path.realpath(base) + "/"):
        return f"rm -r {base}"
    if base == SYSTEM:
        return f"{command} {part}"
    return "set XDG_CACHE_HOME to a directory of your own, or run `cert-ctrl --version` as root once"


def stop(what, fix, status=CONFIG):  # type: ignore[no-untyped-def]
    """Report why the program cannot run here, and end."""
    if sys.stderr is not None:
        sys.stderr.write(f"cert-ctrl: {what}\n  fix: {fix}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
