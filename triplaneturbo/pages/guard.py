"""What a gradio page answers, and to whom.

Gradio serves more than a page needs: it takes uploads, fetches addresses that visitors name, and answers any site that
is open in a visitor's browser. `Guard` stands before it and passes on what the page is made of, asked for by visitors.
"""

import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

BODY_LIMIT = 1 << 16
"""Bytes of a request's body; the longest prompt takes a fifth."""
API = "/gradio_api"
FILE = f"{API}/file="
READ = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"} | {
    f"{API}/{name}" for name in ("info", "openapi.json", "startup-events", "queue/data", "queue/status", "app_id")
}
READ_BELOW = ("/assets/", "/static/", f"{API}/heartbeat/", f"{API}/call/")
# All go through the queue but run/predict, where gradio lets pass what needs none, such as a click on an example.
SENT = ("queue/join", "call/generate", "call/v2/generate", "run/predict", "cancel", "reset")


class Refusal(Exception):
    """A request that is not answered: the HTTP status, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Visitors:
    """The host names under which a server is meant to be visited.

    A foreign site can give its own name the address of this machine, and its scripts are then of the same origin as our
    page (DNS rebinding). The name remains its own, though: it is in the header Host.
    """

    def __init__(self, listen: str, named: Iterable[str] = ()) -> None:
        """listen: address that the server listens on. named: further names, such as that of a proxy before it."""
        listen = listen.strip("[]").lower()
        self.everywhere = listen in ("0.0.0.0", "::")
        self.own = {"localhost", "127.0.0.1", "::1", socket.gethostname().lower() if self.everywhere else listen}
        self.named = {name.lower() for name in named}

    def check(self, host: str, origin: str | None) -> None:
        """Make sure that the headers Host and Origin are those of a visitor; programs send no Origin.

        Raises:
            Refusal: the request is for another host, or a page of another site makes it.
        """
        name = host_name(f"//{host}")
        if not (name in self.own | self.named or (self.everywhere and is_address(name))):
            raise Refusal(403, f"This page is not served as {name!r}; if it should be, start it with --allowed-host.")
        if origin is None or origin.partition("//")[2].lower() == host.lower():
            return
        if host_name(origin) not in self.named:
            raise Refusal(403, f"A page of {origin} asked for this; only this server's own page may.")


def host_name(url: str) -> str:
    """Host of an address in lower case, without port; empty if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_address(name: str) -> bool:
    """Whether a host is named by its address, which no site can take for its own."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """ASGI middleware: what is no part of the page, or not asked for by a visitor, is refused and changes nothing."""

    def __init__(self, app: Callable, visitors: Visitors, files: Path) -> None:
        """files: the folder whose files are served."""
        self.app, self.visitors, self.files = app, visitors, files.resolve()

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # closes a web socket, of which the page has none
            return await send({"type": "websocket.close"})
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self.visitors.check(headers.get("host", ""), headers.get("origin"))
            if scope["method"] == "POST":
                check_sent(scope["path"])
                receive = await check_body(receive)
            else:
                self.check_read(scope["method"], scope["path"])
        except Refusal as refusal:
            return await refuse(send, refusal)
        await self.app(scope, receive, send)

    def check_read(self, method: str, path: str) -> None:
        """Raises Refusal: the page does not have `path`, or it is a file that is not a result."""
        if path.startswith(FILE):
            try:
                allowed = Path(path.removeprefix(FILE)).resolve().is_relative_to(self.files)
            except ValueError:  # a NUL byte
                allowed = False
        else:
            allowed = path in READ or path.startswith(READ_BELOW)
        if not allowed or method not in ("GET", "HEAD"):
            raise Refusal(403, f"{method} {path} is not part of this page.")


def check_sent(path: str) -> None:
    """Raises Refusal: nothing may be sent to `path`."""
    if path not in {f"{API}/{name}" for name in SENT}:
        raise Refusal(403, f"POST {path} is not part of this page.")


async def check_body(receive: Callable) -> Callable[[], Awaitable[dict]]:
    """Read a body of JSON; returns a `receive` that gives it again.

    Raises:
        Refusal: it is too large, no JSON, or an input is an object. Gradio takes one for a file, and fetches what it
            names; the inputs of the page are texts and numbers.
    """
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_LIMIT:
            raise Refusal(413, f"The request is too large; at most {BODY_LIMIT} bytes are taken.")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "The request is no JSON that could be read.") from None
    values = list(content.values()) if isinstance(content, dict) else [{}]
    for value in values:
        if any(isinstance(part, (dict, list)) for part in (value if isinstance(value, list) else [value])):
            raise Refusal(400, "The request must be a JSON object whose inputs are texts and numbers.")
    again = iter([{"type": "http.request", "body": body}])

    async def replay() -> dict:
        return next(again, None) or await receive()

    return replay


async def refuse(send: Callable, refusal: Refusal) -> None:
    """Answer in gradio's form, which its page and its client show."""
    body = json.dumps({"detail": str(refusal)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
