"""ChosenSolver: prove each name through the first entry of ``challenges`` whose domains cover it."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from certctrl import lean
from certctrl.errors import CertctrlError
from certctrl.plane.ca.domains import is_address
from certctrl.plane.challenges.solver import DNS_01, Failures, Proof, Solver
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.text import one_line


def matches(pattern: str, identifier: str) -> bool:
    """Return whether a pattern covers a name or IP address.

    ``example.com`` covers the domain and all names below it, ``*.example.com`` only those below it, ``192.0.2.0/24``
    addresses, and ``*`` everything.
    """
    if pattern == "*":
        return True
    address = _address(identifier)
    if address is not None:
        try:
            return address in ip_network(pattern, strict=False)
        except ValueError:
            return False
    if pattern.startswith("*."):
        return identifier.endswith(pattern[1:])
    return identifier == pattern or identifier.endswith(f".{pattern}")


def _address(identifier: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(identifier)
    except ValueError:
        return None


def choose_kind(solver: Solver, identifier: str, wildcard: bool, offered: Sequence[str]) -> str:
    """Return the type of challenge to answer among those that a CA offers. Raises a permanent IssuerError."""
    chosen = solver if isinstance(solver, ChosenSolver) else ChosenSolver([Rule("", (), solver)])
    return chosen.require(identifier, wildcard, offered)


@lean.frozen
class Rule:
    """One solver, with the names that it proves."""

    type: str
    """Type of the solver, for messages."""
    domains: tuple[str, ...]
    """Patterns as in ``matches``; empty: all names."""
    solver: Solver

    def covers(self, identifier: str) -> bool:
        """Return whether the rule applies to a name."""
        return not self.domains or any(matches(pattern, identifier) for pattern in self.domains)

    def solves(self, kind: str, identifier: str, wildcard: bool) -> bool:
        """Return whether it answers this type of challenge for this name."""
        possible = can_prove(kind, identifier, wildcard) and kind in self.solver.kinds
        return possible and self.covers(identifier) and self.solver.solves(kind, identifier, wildcard)


def can_prove(kind: str, identifier: str, wildcard: bool) -> bool:
    """Return whether a challenge can prove a name at all: wildcards need dns-01, IP addresses have no DNS records."""
    if wildcard:
        return kind == DNS_01
    return kind != DNS_01 or not is_address(identifier)


class ChosenSolver:
    """Passes each proof to the first rule that answers it."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self.kinds = tuple(dict.fromkeys(kind for rule in rules for kind in rule.solver.kinds))

    def solves(self, kind: str, identifier: str, wildcard: bool) -> bool:
        """Return whether the first rule that answers for this name answers this type of challenge."""
        rule = self._rule_for_name(identifier, wildcard)
        return rule is not None and rule.solves(kind, identifier, wildcard)

    def require(self, identifier: str, wildcard: bool, offered: Sequence[str]) -> str:
        """Return the type of challenge to answer among those that a CA offers. Raises a permanent IssuerError."""
        for rule in self._rules:
            for kind in rule.solver.kinds:
                if kind in offered and rule.solves(kind, identifier, wildcard):
                    return kind
        raise self._unsolved(identifier, wildcard, offered)

    async def present(self, proofs: Sequence[Proof]) -> None:
        """Publish all answers, one solver after the other. Raises IssuerError."""
        for rule, mine in self._parts(proofs):
            await rule.solver.present(mine)

    async def clean_up(self, proofs: Sequence[Proof]) -> Failures:
        """Withdraw all answers, even if a solver fails; return the failures."""
        unknown = IssuerError("no entry of challenges is for it any longer", fix="remove it by hand, or add the entry")
        failures: dict[Proof, CertctrlError] = dict.fromkeys(proofs, unknown)
        for rule, mine in self._parts(proofs):
            for proof in mine:
                failures.pop(proof, None)
            try:
                failures |= await rule.solver.clean_up(mine)
            except CertctrlError as error:
                failures |= dict.fromkeys(mine, error)
        return failures

    async def explain(self, proof: Proof) -> str:
        """Return what the solver of a proof finds; empty if no rule applies any longer."""
        for rule, mine in self._parts([proof]):
            return await rule.solver.explain(mine[0])
        return ""

    def _parts(self, proofs: Sequence[Proof]) -> list[tuple[Rule, list[Proof]]]:
        """Return the proofs of each rule, in the order of the rules; proofs without a rule are left out."""
        found: dict[int, list[Proof]] = {}
        for proof in proofs:
            for index, rule in enumerate(self._rules):
                if rule.solves(proof.kind, proof.identifier, wildcard=False):
                    found.setdefault(index, []).append(proof)
                    break
        return [(self._rules[index], found[index]) for index in sorted(found)]

    def _rule_for_name(self, identifier: str, wildcard: bool) -> Rule | None:
        for rule in self._rules:
            if any(rule.solves(kind, identifier, wildcard) for kind in rule.solver.kinds):
                return rule
        return None

    def _unsolved(self, identifier: str, wildcard: bool, offered: Sequence[str]) -> IssuerError:
        name = f"*.{identifier}" if wildcard else identifier
        covering = [rule for rule in self._rules if rule.covers(identifier)]
        types = ", ".join(dict.fromkeys(rule.type for rule in covering)) or "nothing"
        if not covering:
            what, fix = f"no entry of challenges is for {name}", f'add {name} to "domains" of an entry'
        elif wildcard:
            what = f"{name} is a wildcard, which only dns-01 proves; configured for it: {types}"
            fix = f'add an entry of type rfc2136 or command with "domains": ["{identifier}"] to challenges'
        elif is_address(identifier):
            what = f"{name} is an IP address, which dns-01 cannot prove; configured for it: {types}"
            fix = "add an entry of type plane-http, agent-http or agent-tls-alpn to challenges"
        else:
            listed = one_line(", ".join(offered), 100) or "nothing"
            what = f"nothing can prove {name} to the CA, which offers {listed}; configured for it: {types}"
            fix = "add an entry to challenges that answers one of these"
        return IssuerError(what, fix=fix, is_permanent=True)
