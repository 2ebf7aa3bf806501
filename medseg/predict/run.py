"""What `medseg predict` does: images in, files out."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..document import print_document
from ..errors import OutputError, UserError
from ..flags import check_choice, flag, parse, require_least
from ..inference import (
    FileImage,
    Predictor,
    PredictorConfig,
    RowImage,
    Slab,
    Trained,
    find_files,
    load_trained,
    naming_flags,
    open_images,
)
from .targets import Targets
from .write import write_files
from .writers import KINDS, check_kinds

if TYPE_CHECKING:
    from ..console import Journal

_WORTH_A_LINE = 1 << 24  # pixels of an image that takes seconds


@dataclass
class PredictConfig(PredictorConfig):
    """Every setting of a prediction."""

    images: str | None = flag(None, "an image, or a folder of images")
    out: str | None = flag(None, "folder for the results, each kind in a folder of its own")
    write: list[str] = flag(list, f"of {', '.join(KINDS)}; none: masks and overlays")
    overwrite: bool = flag(False, "replace earlier results")
    batch: int = flag(8, "images a forward pass")
    json: bool = flag(False, "print one JSON document and nothing else")

    def __post_init__(self) -> None:
        """Refuses values that no prediction can have."""
        super().__post_init__()
        for name, what in (
            ("images", "a file or folder"),
            ("weights", "a run"),
            ("out", "a folder"),
        ):
            if getattr(self, name) is None:
                raise UserError(f"--{name}: name {what}.")
        require_least(self, 1, "batch")
        self.write = list(dict.fromkeys(self.write)) or ["masks", "overlays"]
        for kind in self.write:
            check_choice("write", kind, KINDS)


@dataclass
class Done:
    """What was done so far."""

    images: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


def parse_flags(argv: Sequence[str]) -> PredictConfig:
    """Parses the flags of a prediction."""
    text = "Writes what a trained network sees in images."
    return parse(PredictConfig, argv, "medseg predict", text)


def predict(config: PredictConfig, journal: "Journal") -> dict[str, Any]:
    """Predicts as `config` says; a file that cannot be read does not keep the others from it.

    Args:
        config: the settings.
        journal: hears what is done.

    Returns:
        The document that --json prints.

    Raises:
        UserError: nothing can be predicted; or, once all others are written, a file was not.
    """
    check_kinds(config.write)
    files = find_files(Path(str(config.images)))
    targets = Targets(Path(str(config.out)), config.write, config.overwrite, files)
    trained = load_trained(str(config.weights), config.device)
    predictor = config.predictor(trained, config.batch)
    done = Done()
    start = time.perf_counter()
    with naming_flags(batch=config.batch, window=config.window):
        _predict_all(predictor, files, targets, done, journal.log if config.json else journal.say)
    done.seconds = round(time.perf_counter() - start, 3)
    document = _document(trained, done)
    if config.json:
        print_document(document)
    else:
        _tell(config, done, journal)
    if done.failed:
        first = done.failed[0]["error"].removesuffix(".")
        raise UserError(f"{first} ({len(done.failed)} of {len(files)} files were left out).", 3)
    return document


def _document(trained: Trained, done: Done) -> dict[str, Any]:
    return {
        "weights": str(trained.path),
        "model": trained.model,
        "classes": dict(zip(trained.names, trained.values, strict=True)),
        "images": done.images,
        "failed": done.failed,
        "seconds": done.seconds,
    }


def _tell(config: PredictConfig, done: Done, journal: "Journal") -> None:
    rate = len(done.images) / max(done.seconds, 1e-9)
    journal.say(
        f"{len(done.images)} images in {done.seconds:.1f} s ({rate:.1f} a second): "
        f"{', '.join(config.write)} in {config.out}"
    )
    for failed in done.failed[1:]:  # the first is in the error
        journal.say(f"left out: {failed['error']}")


def _predict_all(
    predictor: Predictor, files: list[Path], targets: Targets, done: Done, say: Callable[[str], Any]
) -> None:
    def write(image: FileImage | RowImage, slabs: Iterator[Slab]) -> dict[str, Any]:
        if image.height * image.width > _WORTH_A_LINE:
            say(f"{image.path}: {image.width}x{image.height}")
        return _write(image, slabs, targets, predictor.trained)

    images = _open_all(files, predictor.trained.channels, done)
    with closing(predictor.stream(images, write)) as found:
        for image, written in found:
            try:
                done.images.append(written.result())
            except UserError as error:
                _leave_out(done, image.path, error)


def _open_all(files: list[Path], channels: int, done: Done) -> Iterator[FileImage | RowImage]:
    for path in files:
        try:
            for image in open_images(path, channels):
                if image.height and image.width:  # looked at here, where one file can be left out
                    yield image
        except UserError as error:
            _leave_out(done, path, error)


def _leave_out(done: Done, path: Path, error: UserError) -> None:
    if error.code != 3 or isinstance(error, OutputError):  # it is wrong for all others too
        raise error
    done.failed.append({"image": str(path), "error": str(error)})


def _write(
    image: FileImage | RowImage, slabs: Iterator[Slab], targets: Targets, trained: Trained
) -> dict[str, Any]:
    """Writes all files of one image; returns what the document says of it."""
    first = next(slabs)  # raises what is wrong with the image, before any file is begun
    files = targets.of(image.path, image.name)
    writers = {path: KINDS[kind][0] for kind, path in files.items()}
    counts = write_files(image, chain([first], slabs), writers, trained)
    return {
        "image": str(image.path),
        "name": image.name,
        "height": image.height,
        "width": image.width,
        "files": {kind: str(path) for kind, path in files.items()},
        "pixels": dict(zip(trained.names, counts.tolist(), strict=True)),
    }
