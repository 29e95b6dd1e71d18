"""Join the places that read the same files into certificates in use, and judge whether their files fit together."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from certctrl import lean
from certctrl.install.adopt.certbot import Lineage
from certctrl.install.adopt.pem import Leaf, PemFile, chosen_leaf, read_pem
from certctrl.install.adopt.sources import HostFiles, Kind
from certctrl.install.adopt.uses import AS_THEY_ARE, Use
from certctrl.model.paths import path_fault
from certctrl.text import is_name, one_line

_SNAKEOIL = "ssl-cert-snakeoil"
"""Name of the certificate of Debian's package ssl-cert."""
_CHAIN, _KEY = "chain.pem", "private.key"


@lean.frozen(kw_only=True)
class InUse:
    """A certificate in use: its files, and the places that read them."""

    files: tuple[tuple[str, str], ...]
    """Pairs of a virtual file and a real path, without links on the way."""
    uses: tuple[Use, ...] = ()
    """Empty: a certificate of certbot that nothing else was found to read."""
    leaf: Leaf | None = None
    lineage: Lineage | None = None
    fault: str = ""
    """Why it cannot be taken over in place; empty: its files allow it."""
    fix: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the certificate."""
        return self.leaf.names if self.leaf is not None else ()


def certificates_in_use(files: HostFiles, uses: Iterable[Use], lineages: Sequence[Lineage]) -> list[InUse]:
    """Return the certificates in use: places that share a file share a certificate."""
    reader = _Reader(files)
    groups: list[tuple[set[str], list[Use]]] = []
    by_path: dict[str, int] = {}
    for real in (one for use in uses for one in reader.resolved(use)):
        paths = {path for _, path in real.files}
        joined = {by_path[path] for path in paths if path in by_path}
        target = min(joined) if joined else len(groups)
        if not joined:
            groups.append((set(), []))
        for other in sorted(joined - {target}):
            groups[target][0].update(groups[other][0])
            groups[target][1].extend(groups[other][1])
            groups[other] = (set(), [])
        groups[target][0].update(paths)
        groups[target][1].append(real)
        by_path |= dict.fromkeys(groups[target][0], target)
    of_path = {reader.real(path): lineage for lineage in lineages for _, path in lineage.files}
    found, seen = [], set()
    for paths, members in groups:
        lineage = next((of_path[path] for path in sorted(paths) if path in of_path), None)
        if members:
            found.append(reader.judged(members, lineage))
        if lineage is not None:
            seen.add(lineage.name)
    return found + [reader.unread(lineage) for lineage in lineages if lineage.name not in seen]


class _Reader:
    def __init__(self, files: HostFiles) -> None:
        self._files = files
        self._pem: dict[str, PemFile] = {}

    def real(self, path: str) -> str:
        return self._files.real(path)

    def pem(self, path: str) -> PemFile:
        if path not in self._pem:
            self._pem[path] = read_pem(self._files, path)
        return self._pem[path]

    def resolved(self, use: Use) -> list[Use]:
        """Return a use with real paths, one for each certificate; for files as they are, with what they contain."""
        if any(virtual == AS_THEY_ARE for virtual, _ in use.files):
            return [attrs.evolve(use, files=files) for files in self._as_they_are([path for _, path in use.files])]
        files = tuple(dict.fromkeys((virtual, self.real(path)) for virtual, path in use.files))
        if len(files) == 1 and files[0][0] == "combined.pem":
            files = self._with_key_beside(use.files[0][1])
        return [attrs.evolve(use, files=files)]

    def _with_key_beside(self, path: str) -> tuple[tuple[str, str], ...]:
        """Return the files of a certificate that may have its key in a file next to it, as for HAProxy."""
        certificate = self.pem(self.real(path))
        for key in (f"{path}.key", f"{posixpath.splitext(path)[0]}.key"):
            if certificate.leaf is not None and not certificate.has_key and self._files.kind(key) is Kind.FILE:
                return (("fullchain.pem", certificate.path), (_KEY, self.real(key)))
        return (("combined.pem", certificate.path),)

    def _as_they_are(self, paths: Iterable[str]) -> Iterator[tuple[tuple[str, str], ...]]:
        """Yield the files of each certificate of a list in which a key comes before its certificate."""
        key = ""
        for path in map(self.real, paths):
            file = self.pem(path)
            if file.has_key and file.leaf is None:
                key = path
            elif key and file.leaf is not None and not file.has_key:
                yield (("fullchain.pem", path), (_KEY, key))
                key = ""
            else:
                yield (("combined.pem", path),)

    def judged(self, uses: Sequence[Use], lineage: Lineage | None) -> InUse:
        """Return the certificate of places that share files."""
        wanted: dict[str, set[str]] = {}
        for use in uses:
            for virtual, path in use.files:
                wanted.setdefault(path, set()).add(virtual)
        for virtual, path in lineage.files if lineage is not None else ():
            wanted.setdefault(self.real(path), set()).add(virtual)  # all or none: they would no longer match
        files = tuple((_one_virtual(virtuals), path) for path, virtuals in wanted.items())
        found = InUse(files=files, uses=tuple(uses), lineage=lineage)
        if why := self._fault(files):
            return attrs.evolve(found, leaf=self._leaf(files), fault=why[0], fix=why[1])
        return attrs.evolve(found, leaf=self._leaf(files))

    def unread(self, lineage: Lineage) -> InUse:
        """Return a certificate of certbot that no configuration uses, as far as it was read."""
        files = tuple((virtual, self.real(path)) for virtual, path in lineage.files)
        link = next(path for virtual, path in lineage.files if virtual == "fullchain.pem")
        return InUse(
            files=files,
            leaf=self._leaf(files),
            lineage=lineage,
            fault="no configuration that was read uses it, so what to reload is not known",
            fix=f"to take it over without a reload: cert-ctrl -c DIR adopt {link}",
        )

    def _leaf(self, files: Iterable[tuple[str, str]]) -> Leaf | None:
        return chosen_leaf([self.pem(path) for virtual, path in files if virtual not in (_CHAIN, _KEY)])

    def _fault(self, files: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        """Return why files cannot be taken over, and a fix."""
        for _, path in files:
            if why := path_fault(path):
                return f"{one_line(path)}: {why}", "rename the file"
            if _SNAKEOIL in path:
                what = "it is the placeholder of the package ssl-cert, which several services share"
                return what, "give the service files of its own"
        for virtual, path in files:
            if why := self._file_fault(virtual, path):
                return f"{one_line(path)} {why}", "correct the configuration, or run as root if only root may read it"
        certificates = [self.pem(path) for virtual, path in files if virtual not in (_CHAIN, _KEY)]
        leaves = {file.leaf.fingerprint: file for file in certificates if file.leaf is not None}
        if len(leaves) > 1:
            paths = " and ".join(one_line(file.path) for file in leaves.values())
            return f"{paths} share a key, or a file, but differ", "give each certificate its own files"
        leaf = chosen_leaf(certificates)
        if leaf is None or not any(map(_is_host, leaf.names)):
            return "its certificate has no DNS name and no address", "order one with names"
        keys = {file.public_key for file in self._keys(files)}
        if keys != {leaf.public_key}:
            return "key and certificate do not belong together", "correct the configuration first"
        return None

    def _keys(self, files: Iterable[tuple[str, str]]) -> list[PemFile]:
        return [self.pem(path) for virtual, path in files if virtual == _KEY or virtual.startswith("combined")]

    def _file_fault(self, virtual: str, path: str) -> str:
        file = self.pem(path)
        if file.is_encrypted:
            return "has an encrypted key; the agent writes keys that are not"
        if file.fault and not (virtual == _CHAIN and self._files.kind(path) is Kind.FILE):
            return file.fault
        if (virtual == _KEY or virtual.startswith("combined")) and not file.has_key:
            return "has no private key"
        if virtual not in (_KEY, _CHAIN) and file.leaf is None:
            return "has no certificate"
        return ""


def _is_host(name: str) -> bool:
    return is_name(name.removeprefix("*.")) if ":" not in name else True


def _one_virtual(virtuals: set[str]) -> str:
    """Return what a file has to contain that serves several purposes."""
    if len(virtuals) == 1:
        return next(iter(virtuals))
    if any(one.startswith("combined") for one in virtuals) or _KEY in virtuals:
        return "combined-key-last.pem" if virtuals <= {"combined-key-last.pem", "fullchain.pem"} else "combined.pem"
    return "fullchain.pem"


def groups_by_service(uses: Iterable[Use]) -> Mapping[str, list[Use]]:
    """Return the uses of each service, in their order; those of given paths under an empty name."""
    found: dict[str, list[Use]] = {}
    for use in uses:
        found.setdefault(use.service.value if use.service is not None else "", []).append(use)
    return found
