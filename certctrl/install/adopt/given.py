"""Find pairs of certificate and key in files and directories that the operator names."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from certctrl.install.adopt.pem import PemFile, read_pem
from certctrl.install.adopt.sources import Kind, Sources
from certctrl.install.adopt.uses import At, Use

_STORES = (".p12", ".pfx", ".jks", ".keystore")
_MOST_FILES = 500


def read_given(sources: Sources, paths: Sequence[str]) -> list[Use]:
    """Return the pairs in some files and directories; a certificate and its key are matched by their public key.

    For a certificate whose key is not among them, the files next to it are searched.
    """
    found = {file.path: file for file in _files(sources, paths)}
    keys = {file.public_key: file.path for file in found.values() if file.public_key}
    uses = []
    for file in found.values():
        if file.leaf is None:
            continue
        if file.leaf.is_ca and not file.has_key:
            sources.remark(At(file.path), "is the certificate of a CA, not of a service")
            continue
        key = file.path if file.has_key else keys.get(file.leaf.public_key) or _beside(sources, file, found)
        if not key:
            what = f"no key of {file.path} is found there"
            sources.remark(At(file.path), what, "give the path of its key as well")
            continue
        uses.append(Use(at=At(file.path), files=_form(file, key), names=()))
    return uses


def _form(file: PemFile, key: str) -> tuple[tuple[str, str], ...]:
    if file.has_key:
        return (("combined-key-last.pem" if file.key_is_last else "combined.pem", file.path),)
    return (("fullchain.pem" if file.certificates > 1 else "certificate.pem", file.path), ("private.key", key))


def _files(sources: Sources, paths: Sequence[str]) -> list[PemFile]:
    found: list[PemFile] = []
    for path in paths:
        at = At(path)
        match sources.files.kind(path):
            case Kind.DIR:
                within = [posixpath.join(path, name) for name in sources.listed(path, at)]
                if len(within) > _MOST_FILES:
                    sources.remark(at, f"only {_MOST_FILES} of its files are read", "give the paths of the files")
                inside = [one for one in within[:_MOST_FILES] if sources.files.kind(one) is Kind.FILE]
                found += [file for one in inside if not (file := read_pem(sources.files, one)).fault]
                for one in filter(_is_store, inside):
                    _refuse_store(sources, one)
            case Kind.MISSING:
                sources.remark(at, "there is no such file")
            case _ if _is_store(path):
                _refuse_store(sources, path)
            case _:
                file = read_pem(sources.files, path)
                if file.fault:
                    sources.remark(at, file.fault)
                found.append(file)
    return found


def _is_store(path: str) -> bool:
    return path.lower().endswith(_STORES)


def _refuse_store(sources: Sources, path: str) -> None:
    what = "a keystore is not taken over in place: the agent gives it another password"
    sources.remark(At(path), what, "see the recipe for Java, and `cert-ctrl keystore-password`")


def _beside(sources: Sources, file: PemFile, known: dict[str, PemFile]) -> str:
    """Return the path of the key of a certificate among the files next to it; empty if there is none."""
    directory = posixpath.dirname(file.path)
    assert file.leaf is not None
    for name in sources.listed(directory, At(file.path))[:_MOST_FILES]:
        path = posixpath.join(directory, name)
        if path not in known and sources.files.kind(path) is Kind.FILE:
            other = read_pem(sources.files, path)
            if other.public_key == file.leaf.public_key:
                return path
    return ""
