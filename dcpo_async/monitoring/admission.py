"""Who may ask over HTTP, and what every answer says of how it may be used."""

import hashlib
import hmac
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dcpo_async.transport.security import is_loopback

COOKIE, COOKIE_SECONDS = "dcpo_page", 30 * 86400
OPEN = frozenset({"/healthz", "/readyz"})
"""What everybody may ask."""
MAX_FORM_BYTES = 4096
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # No script or style but the files that come with the page, and none that makes a document of a text.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
}
LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>dcpo: token</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="/static/page.css">
<main class="login"><form method="post" action="/login"><h1>dcpo</h1>
<p>This page is for those who have the token of <code>--http-token</code>.</p><p role="alert">{said}</p>
<label>Token <input name="token" type="password" autocomplete="current-password" required autofocus></label>
<button>Open</button></form></main></html>
"""


class Admission:
    """Knows whom to let in.

    Args:
        token: that requests bear, as a header or by the cookie of somebody who has typed it in; None admits all who
            name this machine.
    """

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else token.encode()
        self._cookie = hmac.new(self._token or b"", b"dcpo page", hashlib.sha256).hexdigest()

    @property
    def is_needed(self) -> bool:
        """Whether a token is asked for."""
        return self._token is not None

    def admits(self, request: Request) -> bool:
        """Whether a request bears the token."""
        if self._token is None:
            return True
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.is_token(given) or hmac.compare_digest(
            request.cookies.get(COOKIE, "").encode(), self._cookie.encode()
        )

    def is_token(self, given: str) -> bool:
        """Whether it is the token."""
        return self._token is not None and hmac.compare_digest(given.encode(), self._token)

    def is_foreign(self, request: Request) -> bool:
        """Whether a browser was led here under another name than this machine's, where all who name it are admitted."""
        host = urlsplit(f"//{request.headers.get('Host', '')}").hostname
        return self._token is None and not (host and is_loopback(host))

    def let_in(self, response: Response) -> Response:
        """The answer to somebody who has typed in the token."""
        response.set_cookie(COOKIE, self._cookie, max_age=COOKIE_SECONDS, httponly=True, samesite="strict")
        return response


class Guard:
    """Answers requests that are not admitted itself, and gives every answer its headers."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app, self._admission = app, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = await self._own_answer(Request(scope, receive))
        await (answer or self._app)(scope, receive, send_with_headers)

    async def _own_answer(self, request: Request) -> Response | None:
        path, admission = request.url.path, self._admission
        if path not in OPEN and admission.is_foreign(request):
            return PlainTextResponse("ask for 127.0.0.1 or localhost\n", HTTPStatus.MISDIRECTED_REQUEST)
        if path == "/login" and admission.is_needed and request.method == "POST":
            return await self._login(request)
        # The style of the question for the token says nothing of a run.
        if path in OPEN or path == "/static/page.css" or admission.admits(request):
            return None
        if path == "/":
            return HTMLResponse(LOGIN.format(said=""), HTTPStatus.UNAUTHORIZED)
        return PlainTextResponse("a token is needed\n", HTTPStatus.UNAUTHORIZED)

    async def _login(self, request: Request) -> Response:
        body = b""
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_FORM_BYTES:
                    return PlainTextResponse("too long\n", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        except ClientDisconnect:
            # Or it took so long that its connection was closed.
            return PlainTextResponse("not whole\n", HTTPStatus.BAD_REQUEST)
        given = parse_qs(body.decode(errors="replace")).get("token", [""])[0]
        if not self._admission.is_token(given.strip()):
            return HTMLResponse(LOGIN.format(said="That is not the token."), HTTPStatus.UNAUTHORIZED)
        return self._admission.let_in(RedirectResponse("/", HTTPStatus.SEE_OTHER))
