"""All that a training needs, checked and built before its folder is made."""

import contextlib
import copy
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn

from .config import PRECISIONS, TrainConfig, check_choice
from .data import Table, load_table, write_blood_smear
from .engine import Engine, OpWatch, Scored, memory_guard
from .errors import UserError
from .kernels import backend_report
from .losses import LOSSES
from .metrics import iou_from_dice
from .models import Network, create_model, list_models, load_weights
from .runs import read_best, read_checkpoint

if TYPE_CHECKING:
    from .console import Journal

SYNTHETIC = "synthetic_blood_smear"
_LAYERS = {  # the layer that calls an op
    "eca": "ECA",
    "gate": "AttentionGate",
    "mde": "MDEFilter",
    "position": "PositionAttention",
    "triplet": "TripletAttention",
    "split": "SplitAttention",
}


@dataclass
class Job:
    """A training that can start."""

    config: TrainConfig
    table: Table
    fabric: Fabric
    network: nn.Module
    ops: dict[str, str]  # op -> the backend it uses, in words
    state: dict[str, Any] | None  # of the run to go on with
    best_weights: dict[str, Tensor]

    @property
    def data_name(self) -> str:
        """The name of the data set's folder."""
        return self.table.root.resolve().name

    @property
    def device_name(self) -> str:
        """The device, and how many processes use one like it."""
        device = self.fabric.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        return f"{name} x {self.fabric.world_size}" if self.fabric.world_size > 1 else name

    @property
    def dice_columns(self) -> list[str]:
        """The columns of class 1, 2, ... in metrics.csv and scores.csv; no two are alike."""
        columns: list[str] = []
        for k, name in enumerate(self.table.names[1:], 1):
            column = "dice_" + re.sub(r"\W+", "_", name).strip("_")
            columns.append(f"{column}_{k}" if column in columns else column)
        return columns

    def split_rows(self) -> list[dict[str, str]]:
        """The rows of split.csv, for `--csv` with the same data folder."""
        return [
            {
                "image": _relative(sample.image, self.table.root, "images"),
                "mask": _relative(sample.mask, self.table.root, "masks"),
                "split": sample.split,
                "group": sample.group,
            }
            for sample in self.table.samples
        ]

    def score_rows(self, scored: Sequence[Scored]) -> list[dict[str, Any]]:
        """The rows of scores.csv; an empty cell is a value left out."""
        return [
            {"image": row.image, "group": sample.group}
            | dict(zip(self.dice_columns, row.dice, strict=True))
            | {
                "iou" + column[4:]: None if value is None else iou_from_dice(value)
                for column, value in zip(self.dice_columns, row.dice, strict=True)
            }
            for row, sample in zip(scored, self.table.part("val"), strict=True)
        ]

    def weights_metadata(self, engine: Engine) -> dict[str, Any]:
        """What best.safetensors says of itself: enough to rebuild the network and use it."""
        return {
            "format": "pt",
            "medseg": "1",
            "model": self.config.model,
            "in_channels": self.table.channels,
            "classes": len(self.table.names),
            "size": self.config.size,
            "class_names": list(self.table.names),
            "mask_values": list(self.table.values),
            "epoch": engine.epoch,
            "dice": engine.best,
        }


def prepare(config: TrainConfig, journal: "Journal") -> Job:
    """Checks every setting and file, builds the network, and runs it once.

    Args:
        config: the settings.
        journal: hears what is done.

    Raises:
        UserError: a setting, a file, or the backend cannot be used; nothing was written.
    """
    check_choice("model", config.model, list_models())
    check_choice("loss", config.loss, LOSSES)
    fabric = open_fabric(config)
    config = config.resolved(fabric.device.type)
    fabric.launch()
    with fabric.rank_zero_first():
        table = _open_data(config, journal)
    seed_everything(config.seed, verbose=False)
    network = create_model(config.model, in_channels=table.channels, classes=len(table.names))
    if config.weights is not None:
        _load(network, config, journal)
    network.to(fabric.device)
    with memory_guard(config):
        ops = _run_once(config, fabric, network, table)
        _check_single(config, fabric, network, table)
    state, best = _state_to_resume(config)
    return Job(config, table, fabric, network, ops, state, best)


def open_fabric(config: TrainConfig) -> Fabric:
    """Opens Fabric on the devices and precision asked for; under torchrun, on its processes.

    Raises:
        UserError: the machine has no such device, or the device no such precision.
    """
    kind, count = config.accelerator_and_count()
    gpus = torch.cuda.device_count()
    if kind == "auto":
        kind = "cuda" if gpus else "cpu"
    if kind == "cuda" and gpus < (count or 1):
        found = f"finds {gpus} GPUs" if gpus else "finds no GPU"
        raise UserError(f"--devices {config.devices}: PyTorch {found} here; take --devices cpu.")
    if kind == "cpu" and config.precision == "fp16":
        raise UserError("--precision fp16: needs a GPU; take bf16 or fp32 on the CPU.")
    nodes = 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        count = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // count
    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return Fabric(
        accelerator=kind,
        devices=count or 1,
        num_nodes=nodes,
        precision=PRECISIONS[config.precision],  # pyright: ignore[reportArgumentType]
    )


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Same seed, same numbers inside the block, as far as PyTorch has such kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    switches: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), switches.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    switches.fill_uninitialized_memory = False  # it would cost a write of every output
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        switches.fill_uninitialized_memory = before[1]


def _open_data(config: TrainConfig, journal: "Journal") -> Table:
    root = Path(config.data) if config.data is not None else Path(config.out, SYNTHETIC)
    if config.data is None:
        if config.csv is not None:
            raise UserError("--csv: needs --data with the folder that its rows are about.")
        if not root.is_dir():
            journal.say(f"drawing the synthetic blood smear into {root}")
        root = write_blood_smear(root)
    csv = Path(config.csv) if config.csv is not None else None
    return load_table(root, csv, classes=config.classes, seed=config.seed)


def _load(network: Network, config: TrainConfig, journal: "Journal") -> None:
    anew = load_weights(
        network, str(config.weights), unsafe=config.unsafe, reset_head=config.reset_head
    )
    if anew:
        journal.say(f"--weights {config.weights}: {', '.join(anew)} start anew")


def _run_once(
    config: TrainConfig, fabric: Fabric, network: nn.Module, table: Table
) -> dict[str, str]:
    """Runs one blank image through the network and says which backend each op took."""
    network.eval()
    blank = torch.zeros(1, table.channels, config.size, config.size, device=fabric.device)
    try:
        with torch.no_grad(), fabric.autocast(), OpWatch() as watch:
            network(blank)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        if not reason.startswith("backend "):
            raise
        asked = config.backend != "auto"
        flag = f"--backend {config.backend}" if asked else "the variable MEDSEG_BACKEND"
        raise UserError(f"{flag}: {reason}.") from None
    layers = {type(module).__name__ for module in network.modules()}
    return {
        op: _describe(op, watch.seen.get(op, {}), reasons, config.backend)
        for op, reasons in backend_report(fabric.device.type).items()
        if op in watch.seen or _LAYERS.get(op) in layers
    }


def _check_single(config: TrainConfig, fabric: Fabric, network: nn.Module, table: Table) -> None:
    """Refuses steps of one image where a batch norm would see a single number of each channel."""
    images = -(-len(table.part("train")) // fabric.world_size)
    if min(images, config.batch) > 1:
        return
    blank = torch.zeros(1, table.channels, config.size, config.size, device=fabric.device)
    try:
        with torch.no_grad(), fabric.autocast():
            copy.deepcopy(network).train()(blank)
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        flag = f"--batch {config.batch}, " if images > 1 else ""
        other = " or --batch" if images > 1 else ""
        raise UserError(
            f"{flag}--size {config.size}: batch norm cannot train on one image this small a step; "
            f"take a larger --size{other}."
        ) from None


def _describe(op: str, seen: dict[str, int], reasons: dict[str, str | None], wanted: str) -> str:
    if seen:
        return ", ".join(f"{name} (fused, {n} x a forward pass)" for name, n in seen.items())
    if wanted == "reference" or os.environ.get("MEDSEG_BACKEND") == "reference":
        return "reference (plain PyTorch, as asked for)"
    if None in (reason for name, reason in reasons.items() if name != "reference"):
        return "reference (plain PyTorch, the fastest on maps this small)"
    why = "; ".join(reason for reason in reasons.values() if reason)
    return f"reference (plain PyTorch, since {why})"


def _relative(path: Path, root: Path, folder: str) -> str:
    for base in (root / folder, root):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return str(path)


def _state_to_resume(config: TrainConfig) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    if config.resume is None:
        return None, {}
    state = read_checkpoint(Path(config.resume, "last.ckpt"))
    reported = Path(config.resume, "report", "index.html").is_file()
    if reported and state["epoch"] >= (config.epochs or 0):
        raise UserError(
            f"--resume {config.resume}: {state['epoch']} epochs are done; ask for more --epochs."
        )
    return state, read_best(Path(config.resume, "best.safetensors")) if state["epoch"] else {}
