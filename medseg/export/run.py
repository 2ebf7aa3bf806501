"""What `medseg export` does: a trained network in, a file out that has been run."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..document import print_document
from ..errors import UserError
from ..flags import check_choice, flag, parse, require_text
from ..inference import Trained, full_memory, load_trained
from ..runs import installed_version
from .capture import capture
from .formats import FORMATS, INPUT, OUTPUT, Format
from .verify import check, first_line, parse_sizes, sizes_of

if TYPE_CHECKING:
    from ..console import Journal


@dataclass
class ExportConfig:
    """Every setting of an export."""

    weights: str | None = flag(None, "a run folder, or its best.safetensors")
    format: str = flag("onnx", f"{', '.join(FORMATS)}; aoti is compiled for this machine")
    out: str | None = flag(None, "file to write; none: beside the weights, with their name")
    overwrite: bool = flag(False, "replace an earlier file")
    sizes: list[str] = flag(
        list, "HEIGHTxWIDTH of images that the file is tried on; none: three, odd ones too"
    )
    device: str = flag("cpu", "cpu, cuda or cuda:1, where a torch or aoti file will run")
    json: bool = flag(False, "print one JSON document and nothing else")

    def __post_init__(self) -> None:
        """Refuses values that no export can have."""
        require_text(self)
        if self.weights is None:
            raise UserError("--weights: name a run.")
        check_choice("format", self.format, FORMATS)
        parse_sizes(self.sizes)
        if self.format == "onnx" and self.device != "cpu":
            raise UserError(
                f"--device {self.device}: an ONNX file runs wherever its runtime does; leave the "
                "flag out."
            )


def parse_flags(argv: Sequence[str]) -> ExportConfig:
    """Parses the flags of an export."""
    text = "Writes a trained network as a file that runs without medseg, and checks the file."
    return parse(ExportConfig, argv, "medseg export", text)


def export(config: ExportConfig, journal: "Journal") -> dict[str, Any]:
    """Exports as `config` says.

    Args:
        config: the settings.
        journal: hears what is done.

    Returns:
        The document that --json prints.

    Raises:
        UserError: the weights, the file's place or this machine will not do, or the file does not
            give what the network gives; nothing is left of it then.
    """
    kind = FORMATS[config.format]
    kind.check()
    trained = load_trained(str(config.weights), config.device)
    path = _target(config, trained, kind)
    facts = facts_of(trained)
    with _beside(path) as file:
        with _naming_exporter(config.format):
            kind.write(capture(trained), file, facts)
        read = partial(kind.read, file, trained.device)
        checks = check(read, trained, sizes_of(trained, config.sizes))
    document = {"file": str(path), "format": config.format, "bytes": path.stat().st_size}
    document |= {"weights": str(trained.path), "facts": facts, "checks": checks}
    if config.json:
        print_document(document)
    else:
        from .show import show

        show(document, journal)
    return document


def facts_of(trained: Trained) -> dict[str, Any]:
    """What travels with the file: what to feed, what comes out, what the classes are."""
    kind = "grey" if trained.channels == 1 else "red, green, blue"
    view = trained.view
    return {
        "medseg": installed_version("medseg") or "checkout",
        "model": trained.model,
        "input": f"{INPUT}: float32 (batch, {trained.channels}, height, width) in 0..1, {kind}; "
        "any batch, height and width of at least 1",
        "output": f"{OUTPUT}: float32 (batch, {len(trained.names)}, height, width); softmax over "
        "axis 1 gives probabilities, argmax the class",
        "in_channels": trained.channels,
        "classes": len(trained.names),
        "class_names": list(trained.names),
        "mask_values": list(trained.values),
        "normalize": trained.normalize,
        "size": view.size,
        "window": view.window,
        "patches": view.patches,
        "size_multiple": getattr(trained.network, "size_multiple", 1),  # others are padded inside
        "epoch": trained.epoch,
        "dice": trained.dice,
    }


def _target(config: ExportConfig, trained: Trained, kind: Format) -> Path:
    """The file to write, in a folder that is there.

    Raises:
        UserError: there is no such folder, the file is one or is there already, or its name does
            not end as the format wants.
    """
    path = Path(config.out) if config.out else trained.path.with_suffix(kind.suffix)
    ending = kind.suffix[kind.suffix.rindex(".") :]
    if path.is_dir():
        raise UserError(
            f"--out {path}: is a folder; name a file in it, as {path / 'model'}{ending}."
        )
    if path.suffix != ending:
        raise UserError(f"--out {path}: the name of such a file must end in {ending}.")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}; make it first.")
    if os.path.lexists(path) and not config.overwrite:
        raise UserError(f"--out {path}: is there already; name another file, or take --overwrite.")
    return path


@contextmanager
def _naming_exporter(kind: str) -> Iterator[None]:
    """Turns what PyTorch's exporters and compilers raise into a sentence.

    Raises:
        UserError: they failed.
    """
    try:
        yield
    except (UserError, OSError):  # of a full disk `_beside` tells
        raise
    except Exception as error:
        where = full_memory(error)
        if where is not None:
            why = f"needs more memory than {where} has free: free some, or export elsewhere."
        else:
            why = (
                f"PyTorch's exporter failed ({type(error).__name__}: {first_line(error)}): try "
                "another --format, and please report it with the versions that medseg doctor "
                "prints."
            )
        raise UserError(f"--format {kind}: {why}", code=3) from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yields a path of the same name in a folder beside; it is moved where the block ends well.

    Raises:
        UserError: the disk is full or read-only.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            file = Path(folder, path.name)
            yield file
            os.replace(file, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"--out {path}: cannot be written ({reason}): make room there or name another file.", 3
        ) from None
