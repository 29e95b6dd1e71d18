"""Sort names by their dependencies."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def levels_of(needs: Mapping[str, Collection[str]]) -> tuple[list[list[str]], list[str]]:
    """Return names in levels, each of which needs only names of earlier levels, and the names caught in a cycle.

    ``needs``: name -> different names that it needs, all of them keys. Each level is in the order of ``needs``. Takes
    time in proportion to the number of needs, however deep they are.
    """
    place = {name: number for number, name in enumerate(needs)}
    missing = {name: len(needed) for name, needed in needs.items()}
    users: dict[str, list[str]] = {}
    for name, needed in needs.items():
        for one in needed:
            users.setdefault(one, []).append(name)
    levels = []
    ready = [name for name, count in missing.items() if not count]
    while ready:
        levels.append(ready)
        following = []
        for done in ready:
            del missing[done]
            for user in users.get(done, ()):
                missing[user] -= 1
                if not missing[user]:
                    following.append(user)
        ready = sorted(following, key=place.__getitem__)
    return levels, list(missing)
