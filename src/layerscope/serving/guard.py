"""Who may ask: pure ASGI in front of everything else.

The server listens on this machine, but any page in its owner's browser can send requests here, and any program of any
user of the machine. So a request has to be for a name that is ours (against DNS rebinding), must not come from another
site (`Origin`, `Sec-Fetch-Site`), and has to bring the token, or the cookie that a browser was given for it.
"""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Collection
from ipaddress import ip_address
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from layerscope.serving.errors import RequestError
from layerscope.serving.options import Limits

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Names under which a server of this machine alone is reached."""
_SAFE = ("GET", "HEAD")
_STRICT_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Of answers that bring no policy of their own, and are no pages."""
_HEADERS = {
    "Content-Security-Policy": _STRICT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Lets through what its owner asks for, with a body that is whole and not too large."""

    def __init__(self, app: ASGIApp, *, token: str, names: Collection[str], limits: Limits) -> None:
        """Guard an app.

        Args:
            app: what is guarded.
            token: what whoever asks has to bring.
            names: host names under which the server may be reached, without a port; an address of the machine is
                always one where the connection came to that very address.
            limits: on bodies.
        """
        self._app, self._token, self._limits = app, token, limits
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it in a sentence."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a socket of another protocol is closed unanswered
        send = _with_headers(send)
        try:
            self._check_origin(scope)
            if await self._exchanged(scope, send):
                return
            self._check_token(scope)
            body = await self._body(scope, receive)
        except RequestError as error:
            await _refuse(error, send)
            return
        await self._app(scope, _replaying(body, receive), send)

    def _check_origin(self, scope: Scope) -> None:
        """Refuse other names and other sites.

        Raises:
            RequestError: the host is not ours, or the request comes from elsewhere.
        """
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0].lower(), scope["server"]):
            raise RequestError(
                "This server is not reached under that name; use the address that it printed when it was started.",
                status=421,
            )
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "none")
        if (origin is not None and origin.lower() != f"http://{hosts[0].lower()}") or site not in (
            "none",
            "same-origin",
        ):
            raise RequestError(
                "Another site may not ask this server; open its address in the browser's address line.", status=403
            )

    def _is_ours(self, host: str, server: tuple[str, int]) -> bool:
        address, port = server
        name, _, stated = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "80")
        return stated == str(port) and (name in self._names or _same_address(name, address))

    async def _exchanged(self, scope: Scope, send: Send) -> bool:
        """Give a browser its cookie for the token in the address, and send it on to the address without.

        Raises:
            RequestError: it is another token.
        """
        if scope["path"] != "/" or scope["method"] not in _SAFE:
            return False
        tokens = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if not tokens:
            return False
        if len(tokens) != 1 or not _equal(tokens[0], self._token):
            raise _unknown()
        port = scope["server"][1]
        cookie = f"{_cookie_name(port)}={self._cookie(port)}; Path=/; HttpOnly; SameSite=Strict"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return True

    def _cookie(self, port: int) -> str:
        """What the cookie holds: not the token itself, and no other server's."""
        return hmac.new(self._token.encode(), f"cookie of port {port}".encode(), hashlib.sha256).hexdigest()

    def _check_token(self, scope: Scope) -> None:
        """Refuse whoever has neither token nor cookie.

        Raises:
            RequestError: neither was brought.
        """
        headers, port = Headers(scope=scope), scope["server"][1]
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(given.strip(), self._token):
            return
        if any(_equal(value, self._cookie(port)) for value in _cookies_of(headers, _cookie_name(port))):
            return
        raise _unknown()

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body.

        Raises:
            RequestError: it is no JSON by its header, too large, or too slow.
        """
        headers = Headers(scope=scope)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] not in _SAFE and kind != "application/json":
            raise RequestError(
                "A request that changes something should have Content-Type: application/json.", status=415
            )
        stated = headers.get("content-length", "0")
        if stated.isdecimal() and int(stated[:20]) > self._limits.body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.body_s):
                return await self._read(receive)
        except TimeoutError:
            raise RequestError(
                f"The body should be here within {self._limits.body_s:g} s, but it was not; send it at once.",
                status=408,
            ) from None

    async def _read(self, receive: Receive) -> bytes:
        """What comes, counted as it comes: a length that is stated may be wrong, or missing."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError("The client went away.", status=400)
            part = message.get("body", b"")
            parts.append(part)
            size, more = size + len(part), message.get("more_body", False)
            if size > self._limits.body_bytes:
                raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> RequestError:
        return RequestError(
            f"A request's body should have at most {self._limits.body_bytes:,} bytes, but more came.", status=413
        )


def _same_address(name: str, address: str) -> bool:
    """Whether a host is the very address that the connection came to: only a name can be made to point elsewhere."""
    try:
        return ip_address(name.removeprefix("[").removesuffix("]")) == ip_address(address)
    except ValueError:
        return False


def _equal(given: str, expected: str) -> bool:
    """In a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


def _unknown() -> RequestError:
    return RequestError(
        "This server answers its owner alone; open the address with the token that it printed when it was started, or "
        "send the header Authorization: Bearer TOKEN.",
        status=401,
    )


def _cookie_name(port: int) -> str:
    """Cookies are shared by all ports of a host."""
    return f"layerscope-{port}"


def _cookies_of(headers: Headers, name: str) -> list[str]:
    """Values of a cookie. Those of other servers of this host come along, whatever they are made of."""
    pairs = [pair.partition("=") for given in headers.getlist("cookie") for pair in given.split(";")]
    return [value.strip() for key, _, value in pairs if key.strip() == name]


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending


def _replaying(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """What the app receives: the body in one piece, then whatever comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received


async def _refuse(error: RequestError, send: Send) -> None:
    body = json.dumps({"error": str(error)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # a body that was not read is not taken for the next request
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
