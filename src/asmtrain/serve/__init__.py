"""A local page and a JSON API over a vector index: assembly or a binary in, the nearest functions out.

`run` serves `app.create_app` with uvicorn. Whoever reaches the port may search and read what the index holds,
so it listens on loopback unless told otherwise; `guards` keeps other sites' pages out. Uploads are read by
`untrusted` in a sandboxed child. Everything a page needs lies in this package: no other server is asked.
"""

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from asmtrain.errors import ServeError
from asmtrain.serve.app import create_app
from asmtrain.serve.service import Service
from asmtrain.store import its_encoder, load

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(
    index: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allowed_hosts: Sequence[str] = (),
    max_upload_mb: int = 32,
    model: Path | None = None,
) -> int:
    """Serve an index until interrupted.

    Args:
        index: its folder.
        host: address to listen on.
        port: 0 takes a free one; the address is printed.
        allowed_hosts: names, besides loopback's and `host`, that a request may call this server by.
        max_upload_mb: largest request, in 10^6 bytes.
        model: the embedding folder, if it no longer lies where it was when the index was built.

    Raises:
        VectorIndexError: the index is damaged, or another model made it.
        ServeError: the address cannot be listened on.
    """
    opened = load(index)
    service = Service(opened, its_encoder(index, opened.meta, model))
    names = (*_LOOPBACK, host, *allowed_hosts)
    app = create_app(service, hosts=names, max_upload_bytes=max_upload_mb * 10**6)
    with contextlib.closing(opened), _listening(host, port) as listener:
        if not _is_loopback(host):
            print(
                f"warning: everyone who can reach {host} may search this index and upload files",
                file=sys.stderr,
            )
        bound = listener.getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        held = f"{opened.meta.num_functions:,} functions"
        print(f"http://{shown}:{bound[1]}  {held}; Ctrl-C ends it", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    return 0


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServeError(
            f"cannot listen on {host}, port {port}: {reason}", remedy="choose others with --host and --port"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
