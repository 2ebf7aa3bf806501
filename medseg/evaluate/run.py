"""What `medseg evaluate` does: scores, a table of images, a comparison."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..document import print_document, without_nan
from ..errors import UserError
from ..evaluation import (
    DEFINITION,
    STYLES,
    ImageScore,
    StyledScores,
    Values,
    compare,
    read_table,
    summarise_all,
    table_rows,
    values_of,
)
from ..flags import check_choice, flag, parse, require, require_least
from ..inference import PredictorConfig, load_trained, naming_flags
from ..runs import RunFolder
from .samples import SPLITS, Chosen, choose
from .score import score_images

if TYPE_CHECKING:
    from ..console import Journal


@dataclass
class EvaluateConfig(PredictorConfig):
    """Every setting of an evaluation."""

    data: str | None = flag(None, "folder with images/ and masks/; none: that of the run")
    compare: list[str] = flag(
        list, "A and B: two runs, weights or tables of evaluate, paired by image"
    )
    csv: str | None = flag(None, "table image,mask,split,group; none: the run's, or the folder's")
    split: str | None = flag(None, "train, val, test or all; none: val, or all where none is drawn")
    group_by: str | None = flag(
        None, "what intervals draw whole: column of the CSV, or regular expression on file names"
    )
    ignore_index: int | None = flag(None, "mask value of pixels nobody knows; none: the run's")
    metric_style: str | None = flag(
        None, f"also as a published program: {', '.join(STYLES)}", "metric-style"
    )
    tolerance: float = flag(2.0, "of the NSD, in units of --spacing")
    spacing: float = flag(1.0, "side of a pixel, for HD95 and the tolerance")
    batch: int = flag(8, "images a forward pass")
    out: str | None = flag(None, "folder for evaluation.csv and evaluation.json; none: no files")
    json: bool = flag(False, "print one JSON document and nothing else")

    def __post_init__(self) -> None:
        """Refuses values that no evaluation can have."""
        super().__post_init__()
        require_least(self, 1, "batch")
        require_least(self, 0, "tolerance")
        require(0 < self.spacing < math.inf, "spacing", self.spacing, "must be a number above 0")
        if self.split is not None:
            check_choice("split", self.split, SPLITS)
        if self.metric_style is not None:
            check_choice("metric-style", self.metric_style, STYLES)
        given = len(self.compare)
        require(given in (0, 2), "compare", " ".join(self.compare), "takes two runs or tables")
        if (self.weights is None) == (given == 0):
            raise UserError("--weights: name the run to score, or with --compare two of them.")


def parse_flags(argv: Sequence[str]) -> EvaluateConfig:
    """Parses the flags of an evaluation."""
    text = "Scores a trained network on images with masks, or compares two."
    return parse(EvaluateConfig, argv, "medseg evaluate", text)


def evaluate(config: EvaluateConfig, journal: "Journal") -> dict[str, Any]:
    """Scores as `config` says.

    Args:
        config: the settings.
        journal: hears what is found.

    Returns:
        The document that --json prints.

    Raises:
        UserError: weights, data or the output folder cannot be used.
    """
    out = _out_folder(config)
    if config.compare:
        document = _compare(config)
    else:
        document, rows = _score(config, str(config.weights))
        if out is not None:
            out.write_rows("evaluation.csv", rows)
    document = without_nan(document)
    if out is not None:
        name = "comparison.json" if config.compare else "evaluation.json"
        out.write_json(name, document)
    if config.json:
        print_document(document)
    else:
        from .show import show

        show(document, journal, out.path if out else None)
    return document


def _score(config: EvaluateConfig, weights: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The document of one network, and the rows of its table."""
    chosen, scores, style = _scored(config, weights)
    names = chosen.table.names[1:]
    document: dict[str, Any] = {
        "weights": weights,
        "model": chosen.model,
        "data": str(chosen.table.root),
        "split": chosen.split,
        "definition": DEFINITION,
        "tolerance": config.tolerance,
        "spacing": config.spacing,
    }
    document |= summarise_all(scores, names)
    if style is not None:
        document["published"] = {
            "style": style.name,
            "source": style.source,
            "figures": style.figures(),
        }
    return document, table_rows(scores, names)


def _scored(
    config: EvaluateConfig, weights: str
) -> tuple[Chosen, list[ImageScore], StyledScores | None]:
    trained = load_trained(weights, config.device)
    chosen = choose(trained, config.data, config.csv, config.split, config.group_by)
    if config.ignore_index is not None:
        chosen = replace(chosen, table=replace(chosen.table, ignore=config.ignore_index))
    predictor = config.predictor(trained, config.batch)
    classes = len(trained.names)
    style = StyledScores(config.metric_style, classes) if config.metric_style else None
    with naming_flags(batch=config.batch, window=config.window):
        scores = score_images(predictor, chosen, config.tolerance, config.spacing, style)
    return chosen, scores, style


def _compare(config: EvaluateConfig) -> dict[str, Any]:
    if config.metric_style is not None:
        raise UserError("--metric-style: is for one network; leave it out beside --compare.")
    first, second = (_values(config, name) for name in config.compare)
    return {"a": config.compare[0], "b": config.compare[1], "definition": DEFINITION} | compare(
        first, second
    )


def _values(config: EvaluateConfig, name: str) -> Values:
    if name.lower().endswith(".csv"):
        return read_table(Path(name))
    chosen, scores, _ = _scored(config, name)
    return values_of(scores, chosen.table.names[1:])


def _out_folder(config: EvaluateConfig) -> RunFolder | None:
    if config.out is None:
        return None
    try:
        Path(config.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {config.out}: cannot be written to ({error.strerror}).") from None
    return RunFolder(Path(config.out))
