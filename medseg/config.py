"""The configuration of a training."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .flags import (
    check_choice,
    flag,
    parse,
    read_yaml,
    require,
    require_least,
    require_text,
    values_of,
)
from .losses import LOSSES, refuse_weights
from .recipes import RECIPES

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}  # Fabric's names
BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "poly", "step", "plateau", "constant")
WEIGHTS = ("none", "median")  # of classes, in the loss
NORMALIZATIONS = ("none", "imagenet")
_EPOCHS, _EPOCHS_SYNTHETIC = 30, 12
_LEAST = 0.01  # of the factors of --rescale, which end at its reciprocal
_CHOICES = {
    "precision": PRECISIONS,
    "backend": BACKENDS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "normalize": NORMALIZATIONS,
}


@dataclass
class TrainConfig:
    """Every setting of a training; the aliases are how the published programs spell a flag."""

    data: str | None = flag(
        None, "folder with images/ and masks/; none: a synthetic blood smear", "dataset"
    )
    csv: str | None = flag(
        None, "table image,mask,split,group; none: split.csv of the folder", "csvfile"
    )
    model: str = flag("dra_net_s", "name of the network; medseg.list_models() has them")
    model_options: dict[str, Any] = flag(dict, "of the network, such as --model_options.width 32")
    deep_supervision: bool = flag(False, "train on auxiliary outputs of the network as well")
    recipe: str | None = flag(None, f"published settings: {', '.join(RECIPES)}; other flags win")
    epochs: int | None = flag(
        None, "passes over the training part; none: 30, synthetic set: 12", "epoch"
    )
    steps: int | None = flag(None, "steps in all, in place of --epochs; rounded up to whole epochs")
    batch: int | str = flag(8, "images a step, on each device; auto: what memory and data allow")
    accumulate: int = flag(1, "steps whose gradients are added up before the weights change")
    loss: str = flag("dice_ce", f"one of {', '.join(LOSSES)}")
    size: int = flag(128, "height and width the network sees; scores are at original size")
    classes: int | None = flag(None, "classes with the background; none: counted in the masks")
    patches: int | str | None = flag(
        None, "patches of --size an epoch cuts from each image unscaled; auto: as many as cover it"
    )
    foreground: float = flag(1 / 3, "part of the --patches that is centred on a foreground class")
    ignore_index: int | None = flag(None, "mask value of pixels that nobody knows; never learned")
    class_weights: str = flag(
        "none", "of the loss: none, median (median frequency balancing), or a number for each class"
    )
    group_by: str | None = flag(
        None, "what no split divides: column of the CSV, or regular expression on file names"
    )
    folds: int | None = flag(None, "divide train and val anew into so many parts")
    fold: int = flag(0, "the part of --folds that validates, from 0")
    cache: float = flag(1.0, "GB of memory for decoded images, on each machine; 0: none")
    augment: bool = flag(True, "flips, turns and colour changes of the training batches")
    rescale: str = flag(
        "none",
        "least and largest factor, such as 0.5,2, by which training images are scaled at random "
        "before their square is cut; none: not at all",
    )
    normalize: str = flag("none", f"of the images, which are 0..1: {', '.join(NORMALIZATIONS)}")
    optimizer: str = flag("adamw", f"one of {', '.join(OPTIMIZERS)}")
    lr: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(0.01, "of the optimizer")
    momentum: float = flag(0.9, "of sgd")
    clip: float = flag(1.0, "largest norm of the gradient; 0: any")
    schedule: str = flag("cosine", f"of the learning rate: {', '.join(SCHEDULES)}")
    warmup: float = flag(0.05, "part of all steps in which the rate rises to its peak")
    lr_end: float = flag(0.01, "least rate, as part of the peak: of cosine, poly and plateau")
    power: float = flag(0.9, "of poly")
    step_size: int = flag(
        100, "epochs between drops of step, or without lower val loss before one of plateau"
    )
    gamma: float = flag(0.5, "factor of each drop of step and plateau")
    ema: float = flag(0.0, "decay of averaged weights, which are then scored and kept; 0: none")
    early_stop: int = flag(0, "end after so many epochs without better val Dice; 0: never")
    freeze_norm: bool = flag(False, "batch norms keep the statistics that they start with")
    sync_norm: bool = flag(True, "on several GPUs, batch norms share their statistics")
    precision: str = flag("fp32", "fp32, bf16 or fp16; parameters and losses stay fp32")
    compile: bool = flag(False, "torch.compile the network")
    devices: str = flag("auto", "auto, cpu, cuda, or how many: 2, cpu:2, cuda:2")
    workers: int | None = flag(None, "processes reading images; none: 0 on the CPU, else up to 4")
    seed: int = flag(0, "same seed, same numbers")
    out: str = flag("runs", "folder for the run folders")
    name: str | None = flag(None, "name of the run folder; none: model-data-time")
    tensorboard: bool = flag(False, "write the numbers of every epoch for TensorBoard as well")
    save_minutes: float = flag(10, "save within an epoch too, so often; 0: after epochs alone")
    backend: str = flag("auto", "of the fused ops: auto, cpu, cuda, triton or reference")
    weights: str | None = flag(None, "checkpoint to start from, medseg's or the authors'")
    reset_head: bool = flag(False, "take --weights of another number of classes, without the head")
    unsafe: bool = flag(False, "take --weights out of a whole pickled model, which can carry code")
    resume: str | None = flag(None, "run folder to go on with, from its last.ckpt")
    json: bool = flag(False, "print one JSON document at the end, and all else to stderr")

    def __post_init__(self) -> None:
        """Refuses values that no training can have."""
        require_least(self, 1, "epochs", "steps", "size", "accumulate", "step_size")
        require_least(self, 0, "workers", "early_stop", "weight_decay", "clip", "save_minutes")
        require(0 < self.lr < math.inf, "lr", self.lr, "must be a number above 0")
        for name in ("power", "gamma"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "must be a number above 0")
        for name in ("momentum", "warmup", "lr_end", "ema"):
            value = getattr(self, name)
            require(0 <= value < 1, name, value, "must lie in 0..1, 1 left out")
        require(0 <= self.seed < 2**32, "seed", self.seed, "must lie in 0..4294967295")
        fine = self.classes is None or self.classes >= 2
        require(fine, "classes", self.classes, "must be 2 or more, as the background counts")
        fine = self.name is None or re.fullmatch(r"\w[\w.+-]*", self.name) is not None
        require(fine, "name", self.name, "may hold letters, digits, '.', '_', '+' and '-'")
        require_text(self)
        for name, known in _CHOICES.items():
            check_choice(name, getattr(self, name), known)
        self._check_data()
        self.accelerator_and_count()

    def _check_data(self) -> None:
        """Refuses values of the flags about data that no data can have."""
        numbers = self.class_numbers
        if numbers is None:
            check_choice("class_weights", self.class_weights, WEIGHTS)
        else:
            fine = all(0 < number < math.inf for number in numbers)
            require(fine, "class_weights", self.class_weights, "must be numbers above 0")
        if self.class_weights != "none" and self.loss in LOSSES:
            refuse_weights(self.loss)
        if self.rescale != "none":
            factors = self.rescale_range or ()
            fine = len(factors) == 2 and _LEAST <= factors[0] <= factors[1] <= 1 / _LEAST
            words = f"must be none, or two numbers from {_LEAST} to {1 / _LEAST:g}, as in 0.5,2"
            require(fine, "rescale", self.rescale, words)
        require_least(self, 0, "cache")
        for name in ("batch", "patches"):
            value = getattr(self, name)
            fine = value >= 1 if isinstance(value, int) else value in (None, "auto")
            require(fine, name, value, "must be auto, or 1 or more")
        require(0 <= self.foreground <= 1, "foreground", self.foreground, "must lie in 0..1")
        fine = self.ignore_index is None or 0 <= self.ignore_index <= 65535
        require(fine, "ignore_index", self.ignore_index, "must be a mask value, 0..65535")
        require(self.folds is None or self.folds >= 2, "folds", self.folds, "must be 2 or more")
        if self.folds is None:
            require(self.fold == 0, "fold", self.fold, "needs --folds with their number")
        else:
            fine = 0 <= self.fold < self.folds
            require(fine, "fold", self.fold, f"must lie in 0..{self.folds - 1}, as --folds says")

    @property
    def class_numbers(self) -> tuple[float, ...] | None:
        """The numbers of `class_weights`, "1,2.5,3"; None where it is a word."""
        return _numbers(self.class_weights)

    @property
    def rescale_range(self) -> tuple[float, float] | None:
        """The numbers of `rescale`, "0.5,2"; None where it is a word."""
        return _numbers(self.rescale)  # pyright: ignore[reportReturnType] - two, as is checked

    @property
    def images(self) -> int:
        """Images a step, on each device: `batch`, after `prepare` has settled "auto"."""
        assert isinstance(self.batch, int)
        return self.batch

    def accelerator_and_count(self) -> tuple[str, int | None]:
        """Returns ("auto" | "cpu" | "cuda", how many or None) as `devices` says."""
        match = re.fullmatch(r"(auto|cpu|cuda)(?::([1-9]\d*))?|([1-9]\d*)", self.devices)
        if match is None:
            require(False, "devices", self.devices, "must be auto, cpu, cuda, a number or cuda:2")
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
        return values | {"name": None, "resume": None, "json": False}


def _numbers(text: str) -> tuple[float, ...] | None:
    """The numbers of "1,2.5,3"; None where it is something else."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        return None


def parse_flags(argv: Sequence[str], prog: str = "medseg train") -> TrainConfig:
    """Parses the flags of a training over its recipe; a resumed run's are read before all others.

    Args:
        argv: the arguments after the program's name.
        prog: how the program was called, for its help.

    Raises:
        UserError: as `flags.parse`; or the run to go on with is none.
    """
    argv = list(argv)
    for folder in values_of(argv, "--resume")[-1:]:
        path = Path(folder, "config.yaml")
        if not path.is_file():
            raise UserError(f"--resume {folder}: has no config.yaml, so it is not a run folder.")
        argv = ["--config", str(path), *argv]
    files = [read_yaml(path) for path in values_of(argv, "--config")]
    recipes = [*(file.get("recipe") for file in files), *values_of(argv, "--recipe")]
    chosen = next((name for name in reversed(recipes) if name is not None), None)
    if chosen is not None:
        check_choice("recipe", str(chosen), RECIPES)
    text = "Trains a network on a folder of images and masks, and writes a report."
    return parse(TrainConfig, argv, prog, text, RECIPES.get(str(chosen)))


def write_yaml(config: TrainConfig) -> str:
    """Returns the text of config.yaml: `--config` with it repeats the run."""
    head = "# repeat with: python -m medseg.train --config <this file>\n"
    return head + yaml.safe_dump(config.portable(), sort_keys=False)
