"""All that a training needs, checked and built before its folder is made."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_fabric import seed_everything
from torch import Tensor

from ..config import TrainConfig
from ..data import Table, load_table, write_blood_smear
from ..engine import memory_guard
from ..errors import UserError
from ..flags import check_choice
from ..losses import LOSSES
from ..models import Network, create_model, list_models, load_weights
from ..runs import read_best, read_checkpoint
from .devices import open_fabric
from .job import Job
from .trial import check_single, run_once

if TYPE_CHECKING:
    from ..console import Journal

SYNTHETIC = "synthetic_blood_smear"


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
        ops = run_once(config, fabric, network, table)
        check_single(config, fabric, network, table)
    state, best = _state_to_resume(config)
    return Job(config, table, fabric, network, ops, state, best)


def _open_data(config: TrainConfig, journal: "Journal") -> Table:
    root = Path(config.data) if config.data is not None else Path(config.out, SYNTHETIC)
    if config.data is None:
        if config.csv is not None:
            raise UserError("--csv: needs --data with the folder that its rows are about.")
        if not root.is_dir():
            journal.say(f"drawing the synthetic blood smear into {root}")
        root = write_blood_smear(root)
    csv = Path(config.csv) if config.csv is not None else None
    return load_table(
        root,
        csv,
        classes=config.classes,
        seed=config.seed,
        ignore=config.ignore_index,
        group_by=config.group_by,
        folds=config.folds,
        fold=config.fold,
    )


def _load(network: Network, config: TrainConfig, journal: "Journal") -> None:
    anew = load_weights(
        network, str(config.weights), unsafe=config.unsafe, reset_head=config.reset_head
    )
    if anew:
        journal.say(f"--weights {config.weights}: {', '.join(anew)} start anew")


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
