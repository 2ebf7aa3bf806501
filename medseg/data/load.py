"""A folder of images and masks becomes a checked ``Table``, or one sentence says what to mend."""

from __future__ import annotations

import csv as csv_format
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError
from .classes import class_table
from .files import (
    EXTENSIONS,
    first_of,
    parallel,
    present_values,
    quote,
    read_image,
    read_mask_values,
    refuse_turned,
)
from .table import Sample, Table

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
COLUMNS = ("image", "mask", "split")


def load_table(
    root: Path,
    csv: Path | None = None,
    classes: int | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> Table:
    """Finds, pairs, splits and checks the files of ``root/images`` and ``root/masks``.

    Files are paired by stem, or by the rows of ``csv``, or of ``root/split.csv`` (columns image,
    mask, split, and group if known; names count from ``images`` and ``masks``, else from ``root``).
    Without a CSV, a hash of seed and stem draws ``val_fraction`` of the pairs for validation. Mask
    values become classes in ascending order: those of ``root/classes.json`` (value -> name), else
    those that occur; the lowest is the background. Every image and mask is read once, so that
    nothing is left to fail during training.

    Args:
        root: the data folder.
        csv: another CSV, from the working directory or from ``root``.
        classes: how many classes there must be, background included; None takes what is found.
        val_fraction: part for validation where no CSV says, between 0 and 1.
        seed: of that draw.

    Raises:
        UserError: anything in the folder that cannot be trained on; code 3, or 2 for a wrong flag.
    """
    root = Path(root)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"the data folder {root} {what}: name a folder with images/ and masks/.", 3)
    table_file = _find_csv(root, csv)
    if table_file is None:
        samples = _draw_split(_pair_by_stem(root), val_fraction, seed)
    else:
        samples = _read_rows(root, table_file)
    channels, found = _inspect(samples)
    _refuse_single_class(root, samples, found)
    values, names = class_table(root, samples, found, classes)
    _refuse_blank_val(root, samples, found, values[0])
    return Table(root, tuple(samples), values, names, channels)


def _find_csv(root: Path, csv: Path | None) -> Path | None:
    if csv is None:
        default = root / "split.csv"
        return default if default.exists() else None
    for candidate in (Path(csv), root / csv):
        if candidate.is_file():
            return candidate
    raise UserError(f"--csv {csv}: there is no such file, here or in {root}; name a CSV file.", 3)


def _pair_by_stem(root: Path) -> list[tuple[Path, Path]]:
    images, masks = (_files_by_stem(root / name) for name in ("images", "masks"))
    for missing, kind, other in (
        (sorted(images.keys() - masks.keys()), "mask", images),
        (sorted(masks.keys() - images.keys()), "image", masks),
    ):
        if missing:
            raise UserError(
                f"{other[missing[0]]}{first_of(len(missing))} has no {kind} of the same name in "
                f"{root / kind}s: add it, take the file out, or list pairs in split.csv.",
                code=3,
            )
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _files_by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: put images/ and masks/ into the data folder.", 3)
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
            continue
        _refuse_odd_name(path)
        if path.stem in files:
            raise UserError(
                f"{files[path.stem]} and {path.name} have the same name, so their pair is unclear: "
                "keep one or list the pairs in split.csv.",
                code=3,
            )
        files[path.stem] = path
    if not files:
        raise UserError(f"{folder} holds no image: add files ending in {' '.join(EXTENSIONS)}.", 3)
    return files


def _refuse_odd_name(path: Path) -> None:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path.parent} holds {path.name!r}, whose name is no text in UTF-8: rename the file.",
            code=3,
        ) from None


def _draw_split(pairs: list[tuple[Path, Path]], val_fraction: float, seed: int) -> list[Sample]:
    """The pairs in order of a hash of (seed, stem): the first ones validate."""
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
    if len(pairs) < 2:
        raise UserError(
            f"{pairs[0][0].parent} holds a single image: add one at least, to validate on.",
            code=3,
        )
    order = sorted(
        pairs, key=lambda pair: hashlib.sha256(f"{seed}:{pair[0].stem}".encode()).digest()
    )
    count = min(max(1, round(len(pairs) * val_fraction)), len(pairs) - 1)
    chosen = set(order[:count])
    return [
        Sample(image, mask, "val" if (image, mask) in chosen else "train", "")
        for image, mask in pairs
    ]


def _read_rows(root: Path, path: Path) -> list[Sample]:
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
    samples: dict[Path, Sample] = {}
    for line, row in rows:
        sample = _sample(root, f"{path} line {line}", row)
        if sample.image in samples:
            raise UserError(f"{path} line {line} lists {row['image']} a second time: keep one.", 3)
        samples[sample.image] = sample
    _refuse_empty_part(path, list(samples.values()))
    return list(samples.values())


def _sample(root: Path, where: str, row: dict[str, str | None]) -> Sample:
    cells = {name: (row.get(name) or "").strip() for name in (*COLUMNS, "group")}
    split = SPLITS.get(cells["split"].lower())
    if split is None:
        raise UserError(f'{where} has the split "{cells["split"]}": write train, val or test.', 3)
    image = _listed_file(root, "images", cells["image"], where)
    mask = _listed_file(root, "masks", cells["mask"], where)
    return Sample(image, mask, split, cells["group"])


def _listed_file(root: Path, folder: str, name: str, where: str) -> Path:
    if not name:
        raise UserError(f"{where} names no file in the {folder[:-1]} column: add it.", 3)
    home, places = os.path.abspath(root), (root / folder / name, root / name)
    inside = [path for path in places if Path(os.path.abspath(path)).is_relative_to(home)]
    if not inside:
        raise UserError(
            f"{where} names {name}, which lies outside {root}: put the file into the data folder.",
            3,
        )
    for path in inside:
        if path.is_file():
            return Path(os.path.normpath(path))
    raise UserError(
        f"{where} names {name}, which is not in {root / folder}: correct the row or add the file.",
        3,
    )


def _refuse_empty_part(path: Path, samples: list[Sample]) -> None:
    for split in ("train", "val"):
        if not any(sample.split == split for sample in samples):
            raise UserError(
                f'{path} has no "{split}" rows: training needs images in both, train and val.', 3
            )


def _inspect(samples: list[Sample]) -> tuple[int, list[list[int]]]:
    """Reads every file; the channels of the set and the values of each mask."""

    def look(sample: Sample) -> tuple[int, list[int]] | UserError:
        try:
            refuse_turned(sample.image)
            image, mask = read_image(sample.image), read_mask_values(sample.mask)
        except UserError as error:
            return error
        if image.shape[:2] != mask.shape:
            return UserError(
                f"{sample.image} is {image.shape[1]}x{image.shape[0]} pixels, but its mask "
                f"{sample.mask} is {mask.shape[1]}x{mask.shape[0]}: make them the same size.",
                code=3,
            )
        return image.shape[2], present_values(mask)

    seen = parallel(look, samples)
    errors = [item for item in seen if isinstance(item, UserError)]
    if errors:
        sentence = str(errors[0]).removesuffix(".")
        raise UserError(f"{sentence}{first_of(len(errors))}.", code=3)
    good = [item for item in seen if not isinstance(item, UserError)]
    return max(channels for channels, _ in good), [values for _, values in good]


def _refuse_single_class(root: Path, samples: list[Sample], found: list[list[int]]) -> None:
    pairs = zip(samples, found, strict=True)
    values = sorted(_union(present for sample, present in pairs if sample.split == "train"))
    if len(values) < 2:
        raise UserError(
            f"every training mask in {root / 'masks'} holds {quote(values)} and nothing else: "
            "check that they are the right files, there is nothing to learn.",
            code=3,
        )


def _refuse_blank_val(
    root: Path, samples: list[Sample], found: list[list[int]], background: int
) -> None:
    pairs = zip(samples, found, strict=True)
    if not _union(present for sample, present in pairs if sample.split == "val") - {background}:
        raise UserError(
            f"every val mask in {root / 'masks'} holds background and nothing else: there is "
            "nothing to score; take other images as val in split.csv, or another --seed.",
            code=3,
        )


def _union(lists: Iterable[list[int]]) -> set[int]:
    return {value for values in lists for value in values}
