"""What stands before every answer: who is asked for, how, and what the browser may do with it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: nothing but what this server sends; no script, style or frame of any other origin, none inline
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)
#: characters of a query
LONGEST = 4096


class Guard:
    """Refuses what does not belong here, and adds the headers to whatever is answered.

    Args:
        app: what is guarded.
        hosts: names under which this server may be asked, without port; others are refused, since
            any web page can make its own name point to this machine.
        addresses: whether every IP address is such a name: a server that listens to the network
            does not know all its own, and no page can make an address point elsewhere.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], *, addresses: bool = False) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)
        self.addresses = addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(k, v) for k, v in message.get("headers", []) if k.lower() != b"server"]
                message["headers"] = [*headers, *HEADERS]
            await send(message)

        why = self._refused(scope)
        if why is not None:
            status, sentence = why
            headers = {"allow": "GET, HEAD"} if status == 405 else None
            response = PlainTextResponse(sentence + "\n", status, headers)
            await response(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        given: dict[bytes, list[bytes]] = {}
        for key, value in scope["headers"]:
            given.setdefault(key.lower(), []).append(value)
        hosts = given.get(b"host", [])
        if len(hosts) != 1 or not self._ours(hosts[0].decode("latin-1")):
            return 421, "This server does not answer under that name."
        if scope["method"] not in ("GET", "HEAD"):
            return 405, "This server only shows; it takes nothing."
        if len(scope.get("query_string", b"")) > LONGEST:
            return 414, "The question is too long."
        site = given.get(b"sec-fetch-site", [b"none"])[0]
        mode = given.get(b"sec-fetch-mode", [b"navigate"])[0]
        if site not in (b"none", b"same-origin") and mode != b"navigate":
            return 403, "Other pages may not ask this server."
        return None

    def _ours(self, host: str) -> bool:
        name, _, port = host.rpartition(":") if _has_port(host) else (host, "", "")
        if port and not (port.isascii() and port.isdigit()):
            return False
        name = name.lower().removeprefix("[").removesuffix("]")
        return name in self.hosts or (self.addresses and _is_address(name))


def names(host: str) -> tuple[frozenset[str], bool]:
    """Under which names a server may be asked that listens at this one.

    Args:
        host: where it listens.

    Returns:
        The names, and whether every IP address is one.
    """
    known = {"localhost", "127.0.0.1", "::1", host.strip("[]").lower()}
    if loopback(host):
        return frozenset(known), False
    machine = socket.gethostname().lower()
    return frozenset(known | {machine, machine.partition(".")[0]}), True


def loopback(host: str) -> bool:
    """Whether only this machine itself can reach a server that listens there."""
    host = host.strip("[]")
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else host == "localhost"


def _has_port(host: str) -> bool:
    return host.rpartition("]")[2].startswith(":") if host.startswith("[") else host.count(":") == 1


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
