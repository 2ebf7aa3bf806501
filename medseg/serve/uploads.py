"""What a stranger sends becomes an image file in a folder of its own, or is refused in time."""

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from ..data.header import open_picture, read_header
from .network import GONE

_LONGEST = 80  # characters of a name
_REDUCED = 254  # tag of TIFF; bit 0: the page is a smaller copy of another


@dataclass(frozen=True)
class Upload:
    """An image that came, whole and of bearable size, not yet decoded."""

    path: Path
    name: str  # what the sender calls it, fit to be said again


async def receive(request: Request, folder: Path, timeout: float, most: float) -> Upload:
    """Writes the body of a request, or the one file of its form, into a folder.

    Args:
        request: whose body is bounded by `Gate`.
        folder: of this request alone.
        timeout: seconds until all must be in.
        most: pixels of an image.

    Raises:
        HTTPException: 4xx with a sentence.
    """
    path = folder / "image"
    try:
        name = await asyncio.wait_for(_save(request, path), timeout)
    except asyncio.TimeoutError:
        raise HTTPException(
            408, f"the upload was not in after {timeout:g} seconds: send a smaller file."
        ) from None
    except ClientDisconnect:
        raise HTTPException(GONE, "the client left.") from None
    upload = Upload(path, name)
    await run_in_threadpool(_check, upload, most)
    return upload


async def _save(request: Request, path: Path) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        with path.open("wb") as file:
            async for part in request.stream():
                file.write(part)
        return "the image"
    async with request.form(max_files=1, max_fields=8) as form:
        files = [one for one in form.values() if isinstance(one, UploadFile)]
        if not files:
            raise HTTPException(400, "the form has no file: send one, curl -F image=@FILE.")
        await run_in_threadpool(_copy, files[0].file, path)
        return plain_name(files[0].filename)


def _copy(source: Any, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(source, file)


def plain_name(name: str | None) -> str:
    """A file's name as it may be printed: without folders and odd characters, not too long."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    shown = "".join(c for c in last if c.isprintable()).strip()
    return shown[-_LONGEST:] or "the image"


def _check(upload: Upload, most: float) -> None:
    """Refuses what is no image, or too large a one, by its header.

    Raises:
        HTTPException: it is refused.
    """
    if not upload.path.stat().st_size:
        raise HTTPException(400, "no image came: send it as the body, or as the file of a form.")
    header = read_header(upload.path)
    if header is None:
        raise HTTPException(
            415, f"{upload.name} is no PNG, JPEG, TIFF or BMP image: save it as one of these."
        )
    if not header.height or not header.width:
        raise HTTPException(
            422, f"{upload.name} is damaged, it does not say its size: send it anew."
        )
    if header.height * header.width > most:
        raise HTTPException(
            413,
            f"{upload.name} has {header.width}x{header.height} pixels, and {most / 1e6:g} million "
            "are the most here: cut it, or use medseg predict.",
        )
    if _has_pages(upload.path):
        raise HTTPException(
            422, f"{upload.name} holds several images: send them one by one, or use medseg predict."
        )


def _has_pages(path: Path) -> bool:
    """Whether a second page is there that is no smaller copy of the first."""
    try:
        with open_picture(path) as picture:
            picture.seek(1)
            return not int(getattr(picture, "tag_v2", {}).get(_REDUCED, 0)) & 1
    except Exception:  # there is none; whether the first is an image, OpenCV says
        return False
