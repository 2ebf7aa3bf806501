"""The rows of split.csv, or pairs of files of one name, become samples."""

from __future__ import annotations

import csv as csv_format
import os
from pathlib import Path

from ..errors import Refuse, UserError, stop
from .clusters import Clusters
from .files import EXTENSIONS, first_of
from .paths import refuse_odd_file
from .table import Sample

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
COLUMNS = ("image", "mask", "split")


def find_csv(root: Path, csv: Path | None) -> Path | None:
    """The table of the pairs: ``csv`` from here or from ``root``, else root's split.csv, or None.

    Raises:
        UserError: ``csv`` is not there.
    """
    if csv is None:
        default = root / "split.csv"
        return default if default.exists() else None
    for candidate in (Path(csv), root / csv):
        if candidate.is_file():
            return candidate
    raise UserError(f"--csv {csv}: there is no such file, here or in {root}; name a CSV file.", 3)


def pair_by_stem(root: Path, clusters: Clusters, refuse: Refuse = stop) -> list[Sample]:
    """The files of one stem in ``root/images`` and ``root/masks``, all to train on.

    ``refuse`` hears of each file that has no partner or cannot be used, and by default raises.

    Raises:
        UserError: a file has no partner, or is none that can be used.
    """
    images, masks = (_files_by_stem(root, name, refuse) for name in ("images", "masks"))
    for missing, kind, other in (
        (sorted(images.keys() - masks.keys()), "mask", images),
        (sorted(masks.keys() - images.keys()), "image", masks),
    ):
        for stem in missing:
            words = (
                f"{other[stem]}{first_of(len(missing))} has no {kind} of the same name in "
                f"{root / kind}s: add it, take the file out, or list pairs in split.csv."
            )
            refuse(UserError(words, 3))
    clusters.refuse_missing_column(root, None)
    return [
        Sample(images[stem], masks[stem], "train", "", clusters.of(images[stem], {}, ""))
        for stem in sorted(images.keys() & masks.keys())
    ]


def _files_by_stem(root: Path, part: str, refuse: Refuse) -> dict[str, Path]:
    folder = root / part
    if not folder.is_dir():
        words = f"{folder} does not exist: put images/ and masks/ into the data folder."
        refuse(UserError(words, 3))
        return {}
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
            continue
        try:
            refuse_odd_file(root, path)
        except UserError as error:
            refuse(error)
            continue
        if path.stem in files:
            words = (
                f"{files[path.stem]} and {path.name} have the same name, so their pair is unclear: "
                "keep one or list the pairs in split.csv."
            )
            refuse(UserError(words, 3))
            continue
        files[path.stem] = path
    if not files:
        words = f"{folder} holds no image: add files ending in {' '.join(EXTENSIONS)}."
        refuse(UserError(words, 3))
    return files


def read_rows(root: Path, path: Path, clusters: Clusters, refuse: Refuse = stop) -> list[Sample]:
    """The samples of a CSV file, in its order.

    ``refuse`` hears of each row that cannot be used, and by default raises.

    Raises:
        UserError: it is no such table, or names a file that cannot be used.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv_format.DictReader(file, strict=True, skipinitialspace=True)
            header = reader.fieldnames or ()
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv_format.Error) as error:
        raise UserError(
            f"{path} cannot be read as a CSV file ({error}): save it as UTF-8.", 3
        ) from error
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(
            f'{path} lacks the column "{missing[0]}": its first line must be '
            f"image,mask,split,group (group may be left out), it is {','.join(header) or 'empty'}.",
            code=3,
        )
    clusters.refuse_missing_column(path, header)
    samples: dict[Path, Sample] = {}
    for line, row in rows:
        where = f"{path} line {line}"
        try:
            sample = _sample(root, where, row, clusters)
        except UserError as error:
            refuse(error)
            continue
        if sample.image in samples:
            refuse(UserError(f"{where} lists {row['image']} a second time: keep one.", 3))
            continue
        samples[sample.image] = sample
    return list(samples.values())


def _sample(root: Path, where: str, row: dict[str, str | None], clusters: Clusters) -> Sample:
    cells = {name: (row.get(name) or "").strip() for name in (*COLUMNS, "group")}
    split = SPLITS.get(cells["split"].lower())
    if split is None:
        raise UserError(f'{where} has the split "{cells["split"]}": write train, val or test.', 3)
    image = _listed_file(root, "images", cells["image"], where)
    mask = _listed_file(root, "masks", cells["mask"], where)
    return Sample(image, mask, split, cells["group"], clusters.of(image, row, where))


def _listed_file(root: Path, folder: str, name: str, where: str) -> Path:
    if not name or "\0" in name:
        raise UserError(f"{where} names no file in the {folder[:-1]} column: add it.", 3)
    home, places = os.path.abspath(root), (root / folder / name, root / name)
    inside = [path for path in places if Path(os.path.abspath(path)).is_relative_to(home)]
    if not inside:
        raise UserError(
            f"{where} names {name}, which lies outside {root}: put the file into the data folder.",
            3,
        )
    for path in inside:
        if os.path.lexists(path):
            refuse_odd_file(root, path)
            return Path(os.path.normpath(path))
    raise UserError(
        f"{where} names {name}, which is not in {root / folder}: correct the row or add the file.",
        3,
    )


def refuse_empty_part(path: Path, samples: list[Sample]) -> None:
    """Refuses a table without images to train on, or to validate on.

    Raises:
        UserError: it is one.
    """
    for split in ("train", "val"):
        if not any(sample.split == split for sample in samples):
            raise UserError(
                f'{path} has no "{split}" rows: training needs images in both, train and val.', 3
            )
