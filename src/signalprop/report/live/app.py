"""The server: a handful of addresses, all of them known beforehand."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from signalprop.errors import SignalpropError
from signalprop.report.live import page
from signalprop.report.live.answers import Answers
from signalprop.report.live.guard import Guard, names
from signalprop.report.live.hub import MOST, Hub
from signalprop.report.live.query import Query, parse

_FRESH = {"cache-control": "no-store"}


class Live:
    """The live page of some runs.

    Args:
        paths: of the run files; need not exist.
        host: where the server will listen.

    Attributes:
        app: the ASGI application.
        answers: what it knows of the runs.
        hub: who follows.
    """

    def __init__(self, paths: Sequence[Path], host: str = "127.0.0.1") -> None:
        self.answers = Answers(paths)
        self.hub = Hub(self.answers)
        self.assets = page.assets()
        self.html = page.html(self.answers.names)
        asked = {
            "overview": self.answers.overview,
            "timeline": self.answers.timeline,
            "scalars": self.answers.scalars,
            "sites": self.answers.sites,
            "window": self.answers.window,
        }
        inner = Starlette(
            routes=[
                Route("/", self._page),
                Route("/events", self._events),
                *(Route(f"/assets/{name}", self._asset) for name in self.assets),
                *(Route(f"/api/{name}", self._answer(call)) for name, call in asked.items()),
            ],
            lifespan=self._alive,
            exception_handlers={404: _nothing, 405: _nothing, 500: _wrong},
        )
        inner.router.redirect_slashes = False
        hosts, addresses = names(host)
        self.app = Guard(inner, hosts, addresses=addresses)

    @contextlib.asynccontextmanager
    async def _alive(self, app: Starlette) -> AsyncIterator[None]:
        self.hub.start()
        try:
            yield
        finally:
            await self.hub.stop()
            self.answers.close()

    async def _page(self, request: Request) -> Response:
        return Response(self.html, media_type="text/html", headers=_FRESH)

    async def _asset(self, request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        body, kind, tag = self.assets[name]
        headers = {"cache-control": "no-cache", "etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=kind, headers=headers)

    async def _events(self, request: Request) -> Response:
        if self.hub.readers >= MOST:
            return PlainTextResponse(f"{MOST} pages follow already.\n", 503)
        return StreamingResponse(self.hub.follow(), media_type="text/event-stream", headers=_FRESH)

    def _answer(self, call: Callable[[Query], bytes]) -> Callable[[Request], Response]:
        # not async: Starlette calls it in a thread, and others are answered meanwhile
        def answer(request: Request) -> Response:
            try:
                if len(request.query_params.multi_items()) != len(request.query_params):
                    raise SignalpropError("a parameter is given twice")
                query = parse(dict(request.query_params), len(self.answers.runs))
                body = call(query)
            except SignalpropError as error:
                return JSONResponse({"error": str(error)}, 400, _FRESH)
            return Response(body, media_type="application/json", headers=_FRESH)

        return answer


def _nothing(request: Request, error: Exception) -> Response:
    return PlainTextResponse("There is nothing here.\n", 404)


def _wrong(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "This is a bug in signalprop; the terminal says more."}, 500)
