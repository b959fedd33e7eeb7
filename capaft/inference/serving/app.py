"""The HTTP side of a server: what may come in, and what goes out."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from capaft.inference.serving.api import MOST_TOP, openapi, page
from capaft.inference.serving.batching import Full, Request, Value
from capaft.inference.serving.metrics import Metrics
from capaft.inference.serving.service import Service
from capaft.support import strict_json
from capaft.support.errors import CapaftError, UsageError
from capaft.support.printable import printable

# Seconds that a client may take to send a request.
PATIENCE = 30.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


class App:
    """The routes over a service.

    Args:
        service: what answers.
        metrics: what is counted.
        token: the bearer token that requests have to carry; None for none.
        most_bytes: bytes of a request at most.
        most_inputs: inputs of a request at most.
    """

    def __init__(
        self, service: Service, metrics: Metrics, token: str | None, most_bytes: int, most_inputs: int
    ) -> None:
        self._service, self._metrics = service, metrics
        self._token = None if token is None else token.encode()
        self._most_bytes, self._most_inputs = most_bytes, most_inputs
        self._document = openapi(has_token=token is not None)

    def build(self, *, only_local: bool) -> Starlette:
        """The application.

        Args:
            only_local: refuse requests to other names than those of this machine, as a page from elsewhere makes them.
        """
        routes = [
            Route("/predict", self._guarded(self.predict), methods=["POST"]),
            Route("/adapters", self._guarded(self.adapters)),
            Route("/health", self._guarded(self.health, is_open=True)),
            Route("/metrics", self._guarded(self.measured)),
            Route("/openapi.json", self._guarded(self.described)),
            Route("/", self._guarded(self.shown)),
        ]
        hosts = ["localhost", "127.0.0.1", "[::1]", "testserver"] if only_local else ["*"]
        return Starlette(
            routes=routes,
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
            exception_handlers={HTTPException: _refused},
        )

    def _guarded(
        self, answer: Callable[[HttpRequest], Awaitable[Response]], *, is_open: bool = False
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        """A route that wants the token, counts its requests, and turns errors into a line."""

        async def route(request: HttpRequest) -> Response:
            started = time.perf_counter()
            status = 500
            try:
                if not is_open and not self._is_allowed(request):
                    raise HTTPException(
                        401, "give the server's token as a bearer token", {"WWW-Authenticate": "Bearer"}
                    )
                response = await answer(request)
                status = response.status_code
                return response
            except HTTPException as error:
                status = error.status_code
                raise
            finally:
                self._metrics.requested(request.url.path, status, time.perf_counter() - started)

        return route

    def _is_allowed(self, request: HttpRequest) -> bool:
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)

    async def predict(self, request: HttpRequest) -> Response:
        """`POST /predict`."""
        wanted = self._parsed(await self._body(request))
        if wanted.adapter not in self._service.open.bank:
            raise HTTPException(404, f"there is no adapter {printable(wanted.adapter[:200])}")
        try:
            self._service.batcher.submit(wanted)
        except Full:
            raise HTTPException(503, "too many inputs are waiting; try again", {"Retry-After": "1"}) from None
        try:
            records = await asyncio.wrap_future(wanted.records)
        except UsageError as error:
            raise HTTPException(422, str(error)) from None
        except CapaftError as error:
            raise HTTPException(500, str(error)) from None
        return _json({"adapter": wanted.adapter, "predictions": records})

    async def adapters(self, request: HttpRequest) -> Response:
        """`GET /adapters`."""
        return _json(self._service.adapters())

    async def health(self, request: HttpRequest) -> Response:
        """`GET /health`."""
        return _json({"status": "ok", "adapters": len(self._service.open.bank)})

    async def measured(self, request: HttpRequest) -> Response:
        """`GET /metrics`."""
        content, kind = self._metrics.text(self._service.batcher.waiting, len(self._service.open.bank))
        return Response(content, media_type=kind)

    async def described(self, request: HttpRequest) -> Response:
        """`GET /openapi.json`."""
        return JSONResponse(self._document)

    async def shown(self, request: HttpRequest) -> Response:
        """`GET /`."""
        return HTMLResponse(page(self._document), headers=_HEADERS)

    async def _body(self, request: HttpRequest) -> bytes:
        """The content of a request, no more of it than is allowed."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "send JSON, with Content-Type: application/json")
        too_large = HTTPException(413, f"a request may have {self._most_bytes:,} bytes")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._most_bytes):
            raise too_large
        content = bytearray()
        try:
            async with asyncio.timeout(PATIENCE):
                async for part in request.stream():
                    content += part
                    if len(content) > self._most_bytes:
                        raise too_large
        except TimeoutError:
            raise HTTPException(408, "the request did not arrive in time") from None
        return bytes(content)

    def _parsed(self, content: bytes) -> Request:
        """The request in a body of JSON."""
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise HTTPException(422, "the request is not JSON") from None
        if not isinstance(body, dict):
            raise HTTPException(422, "the request is no object with adapter and inputs")
        if unknown := sorted(body.keys() - {"adapter", "inputs", "top"}):
            raise HTTPException(
                422, f"there is no field {printable(unknown[0][:100])}; there are adapter, inputs and top"
            )
        name, inputs, top = body.get("adapter"), body.get("inputs"), body.get("top")
        if not isinstance(name, str):
            raise HTTPException(422, "adapter must be the name of one")
        if not isinstance(inputs, list) or not inputs:
            raise HTTPException(422, "inputs must be a list of texts, or of pairs of texts")
        if len(inputs) > self._most_inputs:
            raise HTTPException(413, f"a request may have {self._most_inputs:,} inputs")
        if top is not None and (type(top) is not int or not 1 <= top <= MOST_TOP):
            raise HTTPException(422, f"top must be a whole number from 1 to {MOST_TOP}")
        values = tuple(_value(at, value) for at, value in enumerate(inputs))
        if len({isinstance(value, tuple) for value in values}) > 1:
            raise HTTPException(422, "inputs must be all texts, or all pairs of texts")
        return Request(name, values, top)


def _value(at: int, value: Any) -> Value:
    texts = value if isinstance(value, list) and len(value) == 2 else [value]
    if not all(isinstance(text, str) and _is_text(text) for text in texts):
        raise HTTPException(422, f"inputs[{at}] is no text, and no list of two texts")
    return tuple(texts) if isinstance(value, list) else value


def _is_text(text: str) -> bool:
    """True if a text has no half of a surrogate pair, which JSON can spell and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def _refused(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _json(value: Any) -> Response:
    return Response(strict_json.document(value), media_type="application/json")
