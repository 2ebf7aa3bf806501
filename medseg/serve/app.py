"""The addresses of a server and what they answer."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ..errors import UserError
from ..inference import FileImage, Trained, stem
from ..predict.write import write_files
from ..predict.writers import KINDS, check_kinds
from .config import ServeConfig
from .gate import Gate
from .measures import CONTENT_TYPE, Measures
from .network import Network
from .page import Page
from .uploads import Upload, receive
from .view import ViewWriter

_PREDICT = "/predict"
_PAGES = ("/", "/style.css", "/page.js", "/health", "/metrics")
_WRITES = {**KINDS, "view": (ViewWriter, ".json")}
_TYPES = {
    ".png": "image/png",
    ".geojson": "application/geo+json",
    ".json": "application/json",
    ".zip": "application/zip",
}
_CHUNK = 1 << 18
_WORDS = {
    404: "there is nothing at this address: / is the page, /predict takes images.",
    405: "this address takes no such method: images come to /predict by POST.",
}


def make_app(
    config: ServeConfig, network: Network, home: Path, hosts: Collection[str] | None
) -> Gate:
    """The server's application.

    Args:
        config: its settings.
        network: does the work.
        home: a folder for what comes and goes.
        hosts: names by which it may be called; None for any.
    """
    measures = Measures((*_PAGES, _PREDICT), lambda: network.taken)
    app = FastAPI(title="medseg", openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    _add_pages(app, network.predictor.trained, config, measures)
    predict = _Predict(config, network, home, measures)
    app.add_api_route(_PREDICT, predict.answer, methods=["POST"], response_model=None)
    return Gate(app, hosts, config.max_mb * 1_000_000, measures)


def _add_pages(app: FastAPI, trained: Trained, config: ServeConfig, measures: Measures) -> None:
    page = Page(trained, config)
    classes = dict(zip(trained.names, trained.values, strict=True))
    health = {"status": "ok", "model": trained.model, "classes": classes}
    answers: tuple[Callable[[], Response], ...] = (
        lambda: Response(page.html, media_type="text/html"),
        lambda: Response(page.style, media_type="text/css"),
        lambda: Response(page.script, media_type="text/javascript"),
        lambda: JSONResponse(health),
        lambda: Response(measures.text(), media_type=CONTENT_TYPE),
    )
    for path, answer in zip(_PAGES, answers, strict=True):
        app.add_api_route(path, answer, methods=["GET", "HEAD"], response_model=None)


class _Predict:
    """Answers an image with what the network saw in it."""

    def __init__(
        self, config: ServeConfig, network: Network, home: Path, measures: Measures
    ) -> None:
        self._config, self._network, self._home = config, network, home
        self._measures = measures

    async def answer(self, request: Request, write: str = "masks") -> Response:
        """The file that `medseg predict --write` would write, or the document of the page."""
        if write not in _WRITES:
            raise HTTPException(400, f"write={write[:80]}: unknown; known: {', '.join(_WRITES)}.")
        most = self._config.max_megapixels * 1e6
        with self._network.place(), TemporaryDirectory(dir=self._home) as folder:
            upload = await receive(request, Path(folder), self._config.timeout, most)
            try:
                work = self._measures.predicting.time()(lambda: self._write(upload, write))
                file, size = await self._network.run(work, _left(request))
            except UserError as error:
                status = 422 if error.code == 3 else 400
                raise HTTPException(status, self._sentence(error, upload)) from None
        ending = _WRITES[write][1]
        name = quote(f"{stem(Path(upload.name))}{ending}")
        headers = {
            "Content-Length": str(size),
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        }
        kind = _TYPES.get(ending, "application/octet-stream")
        return StreamingResponse(_parts(file), headers=headers, media_type=kind)

    def _write(self, upload: Upload, write: str) -> tuple[BinaryIO, int]:
        """The result, opened, since its folder goes before it is sent; and its size."""
        check_kinds([write])
        predictor = self._network.predictor
        path = upload.path.with_name("result")
        image = FileImage(upload.path, predictor.trained.channels)
        image.rows(0, 1)  # decoded by this thread, whose memory is used again for the next
        slabs = predictor.slabs(image)  # the way that `medseg predict` takes
        write_files(image, slabs, {path: _WRITES[write][0]}, predictor.trained)
        return path.open("rb"), path.stat().st_size

    def _sentence(self, error: UserError, upload: Upload) -> str:
        """What is wrong, in the sender's name of the file and without ours."""
        words = str(error).replace(str(upload.path), upload.name)
        if str(self._home) in words:
            raise error
        return words


def _parts(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while part := file.read(_CHUNK):
            yield part


async def _left(request: Request) -> None:
    """Ends when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: Request, error: Any) -> Response:
    words = _WORDS.get(error.status_code, error.detail)
    return JSONResponse({"error": words}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """The traceback goes to the terminal, by uvicorn."""
    words = "the server failed at this request; what happened stands on its terminal."
    return JSONResponse({"error": words}, 500)
