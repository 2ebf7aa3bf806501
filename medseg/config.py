"""The configuration of a training: one dataclass, its flags, the words said about bad values."""

import dataclasses
import math
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from .errors import UserError, did_you_mean
from .losses import LOSSES

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}  # Fabric's names
BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")
_EPOCHS, _EPOCHS_SYNTHETIC = 30, 12
# the published programs spell these flags so
ALIASES = {"data": "dataset", "csv": "csvfile", "epochs": "epoch"}


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class TrainConfig:
    """Every setting of a training; `--<name>` on the command line, `<name>:` in a YAML file."""

    data: str | None = _flag(None, "folder with images/ and masks/; none: a synthetic blood smear")
    csv: str | None = _flag(None, "table image,mask,split,group; none: split.csv of the folder")
    model: str = _flag("dra_net_s", "name of the network; medseg.list_models() has them")
    epochs: int | None = _flag(None, "passes over the training part; none: 30, synthetic set: 12")
    batch: int = _flag(8, "images a step, on each device")
    lr: float = _flag(2e-3, "peak learning rate of AdamW: warm-up, then half a cosine")
    loss: str = _flag("dice_ce", f"one of {', '.join(LOSSES)}")
    size: int = _flag(128, "height and width the network sees; scores are at original size")
    classes: int | None = _flag(None, "classes with the background; none: counted in the masks")
    augment: bool = _flag(True, "flips, turns and colour changes of the training batches")
    precision: str = _flag("fp32", "fp32, bf16 or fp16; parameters stay fp32")
    devices: str = _flag("auto", "auto, cpu, cuda, or how many: 2, cpu:2, cuda:2")
    workers: int | None = _flag(None, "processes reading images; none: 0 on the CPU, else up to 4")
    seed: int = _flag(0, "same seed, same numbers")
    out: str = _flag("runs", "folder for the run folders")
    name: str | None = _flag(None, "name of the run folder; none: model-data-time")
    backend: str = _flag("auto", "of the fused ops: auto, cpu, cuda, triton or reference")
    weights: str | None = _flag(None, "checkpoint to start from, medseg's or the authors'")
    reset_head: bool = _flag(False, "take --weights of another number of classes, without the head")
    unsafe: bool = _flag(False, "take --weights out of a whole pickled model, which can carry code")
    resume: str | None = _flag(None, "run folder to go on with, from its last.ckpt")

    def __post_init__(self) -> None:
        """Refuses values that no training can have."""
        for flag in ("epochs", "batch", "size"):
            value = getattr(self, flag)
            _require(value is None or value >= 1, flag, value, "must be 1 or more")
        _require(0 < self.lr < math.inf, "lr", self.lr, "must be a number above 0")
        _require((self.workers or 0) >= 0, "workers", self.workers, "must be 0 or more")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "must lie in 0..4294967295")
        fine = self.classes is None or self.classes >= 2
        _require(fine, "classes", self.classes, "must be 2 or more, as the background counts")
        fine = self.name is None or re.fullmatch(r"\w[\w.+-]*", self.name) is not None
        _require(fine, "name", self.name, "may hold letters, digits, '.', '_', '+' and '-'")
        for flag, value in dataclasses.asdict(self).items():
            odd = re.search("[\ud800-\udfff]", value) if isinstance(value, str) else None
            _require(odd is None, flag, value, "must be text in UTF-8")
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("backend", self.backend, BACKENDS)
        self.accelerator_and_count()

    def accelerator_and_count(self) -> tuple[str, int | None]:
        """Returns ("auto" | "cpu" | "cuda", how many or None) as `devices` says."""
        match = re.fullmatch(r"(auto|cpu|cuda)(?::([1-9]\d*))?|([1-9]\d*)", self.devices)
        if match is None:
            _require(False, "devices", self.devices, "must be auto, cpu, cuda, a number or cuda:2")
            raise AssertionError
        count = match[2] or match[3]
        return match[1] or "auto", int(count) if count else None

    def resolved(self, device: str) -> "TrainConfig":
        """Returns the config with numbers where "none" leaves them to data and device."""
        epochs = self.epochs or (_EPOCHS_SYNTHETIC if self.data is None else _EPOCHS)
        readers = 0 if device == "cpu" else min(4, os.cpu_count() or 1)
        workers = readers if self.workers is None else self.workers
        return dataclasses.replace(self, epochs=epochs, workers=workers)

    def portable(self) -> dict[str, Any]:
        """Returns the fields that repeat this run from any folder, under a new name."""
        values = dataclasses.asdict(self)
        for key in ("data", "csv", "weights"):
            if values[key] is not None and os.path.exists(values[key]):
                values[key] = os.path.abspath(values[key])
        return values | {"name": None, "resume": None}


def _require(fine: bool, flag: str, value: object, rule: str) -> None:
    if not fine:
        raise UserError(f"--{flag} {value}: {rule}.")


def check_choice(flag: str, value: str, known: Collection[str]) -> None:
    """Raises UserError with the known values, the nearest first, unless `value` is one of them."""
    if value not in known:
        hint = did_you_mean(value, known)
        raise UserError(f"--{flag} {value}: unknown{hint}; known: {', '.join(known)}.")


def parse_flags(argv: Sequence[str], prog: str = "medseg train") -> TrainConfig:
    """Parses flags and `--config` files into a TrainConfig.

    Args:
        argv: the arguments after the program's name; flags win over files, later over earlier.
        prog: how the program was called, for its help.

    Raises:
        UserError: an unknown flag or key, a value of the wrong type or out of range, or no such
            file.
    """
    from argparse import ArgumentError

    parser = _parser(prog)
    try:
        parsed = parser.parse_args(_files_first(list(argv)))
    except ArgumentError as error:
        raise UserError(_sentence(str(error))) from None
    except UnicodeDecodeError:
        raise UserError("--config: the file is not text in UTF-8; save it as such.") from None
    return TrainConfig(**{f.name: parsed[f.name] for f in dataclasses.fields(TrainConfig)})


def _parser(prog: str) -> Any:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description="Trains a network on a folder of images and masks, and writes a report.",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    reader = jsonargparse.ActionConfigFile  # pyright: ignore[reportPrivateImportUsage]
    parser.add_argument("--config", action=reader, help="YAML file of flags: any run's config.yaml")
    hints = get_type_hints(TrainConfig)
    for item in dataclasses.fields(TrainConfig):
        names = [f"--{name}" for name in (item.name, ALIASES.get(item.name)) if name]
        help_text = item.metadata["help"]
        parser.add_argument(*names, type=hints[item.name], default=item.default, help=help_text)
    return parser


def _files_first(argv: list[str]) -> list[str]:
    """Puts config files before the flags, which so override them; a resumed run's comes first."""
    files: list[str] = []
    flags: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("--config", "--resume"):
            flags.append(word)
            continue
        value = value if equals else next(words, None)
        if value is None:  # nothing after it: the parser says so
            flags.append(word)
            continue
        pair = [name, value]
        if name == "--config":
            files += pair
            continue
        path = Path(pair[1], "config.yaml")
        if not path.is_file():
            raise UserError(f"--resume {pair[1]}: has no config.yaml, so it is not a run folder.")
        files = ["--config", str(path), *files]
        flags += pair
    return files + flags


_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text, in a file with quotes",
}


def _sentence(text: str) -> str:
    """Turns what jsonargparse says into one sentence that names the flag and the remedy."""
    known = [f.name for f in dataclasses.fields(TrainConfig)]
    stray = re.match(r"unrecognized arguments: ((?:-?[^-\s])\S*)", text)
    if stray:
        return f"{stray[1]}: unexpected word; settings are flags, e.g. --data {stray[1]}."
    flag = re.match(r"unrecognized arguments: --?([^\s=]+)", text)
    if flag:
        hint = did_you_mean(flag[1], [*known, *ALIASES.values(), "config"], "--")
        return f"--{flag[1]}: unknown flag{hint}; --help lists them."
    key = re.match(r"Option '([^']+)' is not accepted", text)
    if key:
        hint = did_you_mean(key[1], known)
        return f"{key[1]}: unknown key in the --config file{hint}; --help lists them."
    value = re.match(r'Parser key "(\w+)":\s*(.*)(?:Got|Given) value: (.*)', text, re.S)
    if value and value[1] in known:
        return f"--{value[1]} {value[3].strip()}: must be {_WANTED[_type_name(value[1])]}."
    lone = re.match(r"argument (--\w+)\S*: expected one argument", text)
    if lone:
        return f"{lone[1]}: needs a value after it."
    if "Unexpected config:" in text:
        return "--config: the file must hold lines of `flag: value`, as a run's config.yaml does."
    rest = re.sub(r'^Parser key "config":\s*', "", text)
    rest = re.sub(r"\s+", " ", rest).strip().rstrip(".")
    return f"--config: {rest}." if "config" in text.splitlines()[0] else f"{rest}."


def _type_name(flag: str) -> str:
    hint = get_type_hints(TrainConfig)[flag]
    return next(a for a in getattr(hint, "__args__", (hint,)) if a is not type(None)).__name__


def write_yaml(config: TrainConfig) -> str:
    """Returns the text of config.yaml: `--config` with it repeats the run."""
    head = "# repeat with: python -m medseg.train --config <this file>\n"
    return head + yaml.safe_dump(config.portable(), sort_keys=False)
