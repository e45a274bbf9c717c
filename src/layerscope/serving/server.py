"""The explorer behind a socket: uvicorn, set so that no client can hold it up for long."""

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from layerscope.errors import LayerscopeError
from layerscope.model.causal_lm import CausalLM
from layerscope.serving.app import Explorer, make_app
from layerscope.serving.guard import LOOPBACK
from layerscope.serving.options import Limits, ServeOptions

MOST_CONNECTIONS = 512
"""Connections at once; whoever comes later is told to come again."""
BACKLOG = 256
"""Connections that wait to be taken."""
KEEP_ALIVE_S = 10
EVERYWHERE = ("0.0.0.0", "::")
"""Addresses that stand for all of the machine's."""
LONGEST_HEADER = 32 << 10
"""Bytes of a request's line and headers."""
PATIENCE_S = 5
"""How long the end of what is under way is waited for."""


class Server(uvicorn.Server):
    """A server that ends at once what it would otherwise wait for when it is stopped."""

    def __init__(self, explorer: Explorer) -> None:
        super().__init__(
            uvicorn.Config(
                explorer,
                http="h11",
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,  # it would write down the token of the first address
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=PATIENCE_S,
                h11_max_incomplete_event_size=LONGEST_HEADER,
            )
        )
        self._explorer = explorer

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End looks and streams of events, then connections."""
        self._explorer.close()
        await super().shutdown(sockets)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; of port 0 on one that is free.

    Raises:
        LayerscopeError: the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LayerscopeError(
            f"Port {port} of '{host}' cannot be listened on ({reason}); give another --port, or 0 for any."
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_of(host: str) -> tuple[str, ...]:
    """Names under which a server there may be reached, beside the address that a connection comes to."""
    if is_loopback(host):
        return LOOPBACK
    return (*LOOPBACK, socket.gethostname(), *(() if host in EVERYWHERE else (host,)))


def address_of(listener: socket.socket, host: str, token: str) -> str:
    """The address that lets a browser in."""
    port = listener.getsockname()[1]
    shown = "localhost" if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/?token={token}"


def explorer_of(
    models: Sequence[str | Path | CausalLM], host: str, options: ServeOptions, limits: Limits | None = None
) -> Explorer:
    """The explorer as it is served at a host.

    Raises:
        LayerscopeError: a model cannot be opened.
    """
    return make_app(models, options, names=names_of(host), limits=limits)
