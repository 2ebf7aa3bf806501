"""All that a training needs, checked and built before its folder is made."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_fabric import seed_everything
from torch import nn

from ..config import TrainConfig
from ..data import Table, load_table, patches_to_cover, write_blood_smear
from ..engine import accidents
from ..errors import UserError
from ..flags import check_choice
from ..losses import LOSSES
from ..models import create_model, list_models, load_weights
from ..runs import read_checkpoint
from .batch import choose_batch
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
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard true: needs a package; pip install 'medseg[tensorboard]'.")
    with fabric.rank_zero_first():
        table = _open_data(config, journal)
    if config.patches == "auto":
        count = patches_to_cover(table.part("train"), config.size)
        config = dataclasses.replace(config, patches=count)
    seed_everything(config.seed, verbose=False)
    network = _build_network(config, table, journal)
    if config.sync_norm and fabric.world_size > 1 and fabric.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network.to(fabric.device)
    with accidents(config):
        if config.batch == "auto":
            batch = choose_batch(config, fabric, network, table)
            config = dataclasses.replace(config, batch=batch)
        ops = run_once(config, fabric, network, table)
        check_single(config, fabric, network, table)
    state = None if config.resume is None else read_checkpoint(Path(config.resume))
    return Job(config, table, fabric, network, ops, state)


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


def _build_network(config: TrainConfig, table: Table, journal: "Journal") -> nn.Module:
    options = dict(config.model_options)
    if config.deep_supervision:
        options["deep_supervision"] = True
    own = ("name", "in_channels", "classes", "weights", "unsafe", "reset_head")
    for key in set(own).intersection(options):
        raise UserError(f"--model_options.{key}: other flags and the data say it; leave it out.")
    try:
        network = create_model(
            config.model, in_channels=table.channels, classes=len(table.names), **options
        )
    except UserError as error:
        flag = "--model_options" if config.model_options else "--deep_supervision"
        raise UserError(f"{flag}: {error}.") from None
    if config.weights is not None:
        anew = load_weights(
            network, config.weights, unsafe=config.unsafe, reset_head=config.reset_head
        )
        if anew:
            journal.say(f"--weights {config.weights}: {', '.join(anew)} start anew")
    return network
