"""A browser of the approval page, without sockets."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

FORM = {"content-type": "application/x-www-form-urlencoded", "sec-fetch-site": "same-origin"}


class Browser:
    """Keeps cookies and fills in forms, as a browser does."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.cookies: dict[str, str] = {}
        self.page: Any = None

    async def get(self, path: str) -> Any:
        return await self._ask("GET", path)

    async def post(self, path: str, *, headers: dict[str, str] | None = None, **fields: str) -> Any:
        fields = fields if "csrf" in fields else {"csrf": self.csrf, **fields}
        body = urlencode(fields).encode()
        return await self._ask("POST", path, body, FORM | (headers or {}))

    @property
    def csrf(self) -> str:
        found = re.search(rb'name="csrf" value="([0-9a-f]+)"', self.page.body)
        assert found is not None
        return found[1].decode()

    async def sign_in(self, key: str, path: str = "/device") -> Any:
        await self.get(path)
        code = re.search(rb'name="user_code" value="([^"]*)"', self.page.body)
        assert code is not None
        return await self.post("/device/sign-in", key=key, user_code=code[1].decode())

    async def _ask(self, method: str, path: str, body: bytes | None = None, headers: Any = None) -> Any:
        cookies = {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        reply = await self.client(method, path, body=body, headers={**cookies, **(headers or {})})
        for line in reply.headers.get("set-cookie", "").splitlines():
            name, _, value = line.partition(";")[0].partition("=")
            assert re.search(r"; HttpOnly; .*Path=/; SameSite=strict; Secure$", line), line
            self.cookies[name] = value.strip('"')
            if "Max-Age=0" in line:
                del self.cookies[name]
        if reply.headers.get("content-type", "").startswith("text/html"):
            self.page = reply
        return reply
