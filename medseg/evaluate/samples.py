"""Which images are scored: those of a folder, divided as the network's training did."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import Sample, Table
from ..data.clusters import Clusters
from ..data.rows import find_csv, pair_by_stem, read_rows
from ..errors import UserError
from ..flags import read_yaml
from ..inference import Trained

SPLITS = ("train", "val", "test", "all")
_CLUSTER = "cluster"  # the column in a run's split.csv


@dataclass(frozen=True)
class Chosen:
    """Images to score; the classes of their masks are the network's."""

    table: Table  # of the chosen samples alone
    split: str
    model: str


def choose(
    trained: Trained, data: str | None, csv: str | None, split: str | None, group_by: str | None
) -> Chosen:
    """Finds the images; nothing is read of them yet.

    Args:
        trained: the network; the run it lies in says which images it saw.
        data: folder with images/ and masks/; None takes the run's.
        csv: table of the images; None takes the run's split.csv where the data is the run's, else
            the folder's.
        split: "train", "val", "test", "all"; None takes val, or all where no table says.
        group_by: as `load_table`'s.

    Raises:
        UserError: no data, no such split, or what `load_table` refuses of rows and names.
    """
    run = trained.path.parent
    facts = read_yaml(str(run / "config.yaml")) if (run / "config.yaml").is_file() else {}
    home = facts.get("data")
    if data is None and not isinstance(home, str):
        raise UserError("--data: name the folder with images/ and masks/.")
    root = Path(data if data is not None else str(home))
    if not root.is_dir():
        raise UserError(f"--data {root}: is no folder; name one with images/ and masks/.", 3)
    table = Path(csv) if csv is not None else None
    own = isinstance(home, str) and Path(home).resolve() == root.resolve()
    if table is None and own and (run / "split.csv").is_file():
        table = (run / "split.csv").resolve()
        group_by = group_by or _cluster_column(table)
    table = find_csv(root, table)
    clusters = Clusters(group_by)
    samples = read_rows(root, table, clusters) if table else pair_by_stem(root, clusters)
    split = split or ("val" if table else "all")
    if split != "all" and table is None:
        raise UserError(f"--split {split}: {root} has no split.csv that says; take --split all.")
    chosen = [sample for sample in samples if split in ("all", sample.split)]
    if not chosen:
        raise UserError(f"--split {split}: {table or root} has no such image.", 3)
    return Chosen(_table(root, chosen, trained, facts), split, trained.model)


def _cluster_column(path: Path) -> str | None:
    with path.open(encoding="utf-8-sig") as file:
        return _CLUSTER if _CLUSTER in file.readline().strip().split(",") else None


def _table(root: Path, samples: list[Sample], trained: Trained, facts: dict[str, Any]) -> Table:
    ignore = facts.get("ignore_index")
    return Table(
        root=root,
        samples=tuple(samples),
        values=trained.values,
        names=trained.names,
        channels=trained.channels,
        ignore=ignore if isinstance(ignore, int) else None,
    )
