"""The built-in data set: blood smears drawn by the program, in the layout of a real set."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError
from .files import parallel
from .smear_draw import draw_smear

VERSION = 1  # of the drawing: another version is drawn anew
VALUES = {0: "background", 128: "cytoplasm", 255: "nucleus"}
VAL_EVERY = 5  # each fifth image validates
RECIPE = "smear.json"


def write_blood_smear(folder: Path, count: int = 200, size: int = 128, seed: int = 0) -> Path:
    """Writes the synthetic set into ``folder``, or finds it there, and returns ``folder``.

    Three classes: background (with red cells, platelets and debris), cytoplasm and nucleus of white
    cells. The same arguments give the same files. The set is drawn beside ``folder`` and renamed,
    so that it is never there by half.

    Args:
        folder: where the set is to lie; made anew if it holds a set of other arguments.
        count: images, at least 2; every fifth, or the last, validates.
        size: side of the images, at least 32.
        seed: of the drawing.

    Raises:
        UserError: ``folder`` holds something else, or cannot be written.
        ValueError: ``count`` or ``size`` is too small.
    """
    if count < 2 or size < 32:
        raise ValueError(f"count must be at least 2 and size at least 32, got {count} and {size}")
    folder = Path(folder)
    recipe = {"version": VERSION, "count": count, "size": size, "seed": seed}
    if _holds(folder, recipe):
        return folder
    if folder.exists() and not (folder / RECIPE).exists() and _in_use(folder):
        raise UserError(
            f"{folder} exists and is no synthetic set: name an empty or new folder for it.", code=3
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".smear.", dir=folder.parent) as parent:
            draft = Path(parent, folder.name)
            _draw_all(draft, recipe)
            _put_in_place(draft, folder, recipe)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): name a folder on a disk with room.", 3
        ) from error
    return folder


def _holds(folder: Path, recipe: dict[str, int]) -> bool:
    """Whether the set of that recipe is there, whole."""
    try:
        known = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = [f"{index:04d}.png" for index in range(recipe["count"])]
    files = [folder / part / name for part in ("images", "masks") for name in names]
    files += [folder / "classes.json", folder / "split.csv"]
    return known == recipe and all(path.is_file() for path in files)


def _in_use(folder: Path) -> bool:
    return not folder.is_dir() or any(folder.iterdir())


def _draw_all(draft: Path, recipe: dict[str, int]) -> None:
    count, size, seed = recipe["count"], recipe["size"], recipe["seed"]
    for part in ("images", "masks"):
        (draft / part).mkdir(parents=True)
    grays = np.array(list(VALUES), np.uint8)

    def one(index: int) -> str:
        image, mask, kind = draw_smear(np.random.default_rng([seed, index]), size)
        name = f"{index:04d}.png"
        _write_png(draft / "images" / name, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        _write_png(draft / "masks" / name, grays[mask])
        last = index % VAL_EVERY == VAL_EVERY - 1 or (index == count - 1 < VAL_EVERY)
        return f"{name},{name},{'val' if last else 'train'},{kind}"

    lines = parallel(one, range(count))
    (draft / "split.csv").write_text("\n".join(["image,mask,split,group", *lines, ""]))
    (draft / "classes.json").write_text(
        json.dumps({str(k): v for k, v in VALUES.items()}, indent=1)
    )
    (draft / RECIPE).write_text(json.dumps(recipe))


def _write_png(path: Path, pixels: np.ndarray) -> None:
    done, packed = cv2.imencode(".png", pixels)
    assert done  # every 8-bit picture can be packed
    path.write_bytes(packed.tobytes())


def _put_in_place(draft: Path, folder: Path, recipe: dict[str, int]) -> None:
    """Renames the draft; who comes second, with the same set, leaves the first one's."""
    if folder.is_dir() and _in_use(folder) and not _holds(folder, recipe):
        shutil.rmtree(folder)
    try:
        os.replace(draft, folder)
    except OSError:
        if not _holds(folder, recipe):
            raise
