"""What stands before every request: a name that is ours, a page that is ours, a size that is allowed.

A page of another site must not search through a visitor's browser: its name that now means 127.0.0.1 (DNS
rebinding) fails the check of the Host header (`TrustedHostMiddleware`), its form fails the check of Origin.
What comes out may load nothing from elsewhere and run no script but ours, whatever a function is called.
Invariant: no more than the limit of a request is ever read, whatever length it claimed.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # Stricter still would make a browser send our own forms with `Origin: null`.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guards:
    """ASGI middleware: refuses other sites' posts, limits what is read, adds headers."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if scope["method"] == "POST" and origin and urlsplit(origin).netloc != headers.get("host"):
            answer = PlainTextResponse("a page of another site may not post here", status_code=403)
            await answer(scope, receive, send_with_headers)
            return
        await self.app(scope, self._limited(receive, headers), send_with_headers)

    def _limited(self, receive: Receive, headers: Headers) -> Receive:
        """`receive` that ends with 413 when more than the limit is announced or has come."""
        announced = headers.get("content-length", "")
        expected = int(announced) if announced.isdigit() else 0
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if max(num_bytes, expected) > self.max_bytes:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> HTTPException:
        most = f"{self.max_bytes / 10**6:g} MB"
        return HTTPException(413, f"more than {most} at once; asmtrain serve --max-upload-mb sets the limit")
