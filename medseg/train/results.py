"""What a run leaves behind at its end: scores, curves, the report."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table

from ..data import read_image, read_mask
from ..engine import Engine, Scored
from ..errors import UserError
from ..metrics import confusion
from ..prepare import Job
from ..report import Picture, Report, best_and_worst, curves_file, render
from ..runs import RunFolder
from .loop import waiting_share
from .speed import measure

if TYPE_CHECKING:
    from ..console import Journal


def finish(
    job: Job,
    engine: Engine,
    run: RunFolder | None,
    journal: "Journal",
    facts: dict[str, Any],
    stopped: UserError | None,
) -> dict[str, Any] | None:
    """Scores the best weights and writes scores, curves and report.

    Returns:
        The document that --json prints; None but in the first process.
    """
    engine.use_best()
    rows, _ = engine.score()
    if run is None:
        return None
    report = _report(job, engine, run, rows, facts, stopped)
    run.write_rows("scores.csv", job.score_rows(rows))
    run.write_text("curves.svg", curves_file(engine.history, report.columns))
    page = run.write_text("report/index.html", render(report))
    journal.show(score_table(report))
    first = f"first batch after {facts['first_batch']} s; " if "first_batch" in facts else ""
    journal.say(first + waiting_share(job.config, engine.history))
    journal.say(f"best weights of epoch {engine.best_epoch}: {run.path / 'best.safetensors'}")
    journal.say(f"{facts['seconds']:.0f} s in all; report: {page}", style="bold")
    return document_of(report, run)


def _report(
    job: Job,
    engine: Engine,
    run: RunFolder,
    rows: list[Scored],
    facts: dict[str, Any],
    stopped: UserError | None,
) -> Report:
    scores = [row.dice for row in rows]
    names = job.table.names[1:]
    columns = dict(zip(names, job.dice_columns, strict=True))
    best, worst = best_and_worst(scores)
    confusion, predicted = _review(engine, {*best, *worst})
    return Report(
        title=run.path.name,
        config=job.config.portable(),
        facts=facts,
        data={"name": job.data_name, **{p: len(job.table.part(p)) for p in ("train", "val")}},
        names=names,
        columns=columns,
        history=engine.history,
        scores=scores,
        best_epoch=engine.best_epoch,
        best=_pictures(engine, rows, best, predicted),
        worst=_pictures(engine, rows, worst, predicted),
        stopped=str(stopped) if stopped else None,
        images=[(sample.image.name, sample.group) for sample in engine.val_set.samples],
        background=job.table.names[0],
        confusion=confusion,
        speed=measure(job, engine),
    )


def document_of(report: Report, run: RunFolder) -> dict[str, Any]:
    """What --json prints: where everything is, and the figures of the report."""
    by_epoch = {row["epoch"]: row for row in report.history}
    names = {
        "weights": "best.safetensors",
        "checkpoint": "last.ckpt",
        "metrics": "metrics.csv",
        "scores": "scores.csv",
        "report": "report/index.html",
    }
    return {
        "run": str(run.path),
        "model": report.config["model"],
        "data": dict(report.data),
        "device": report.facts["device"],
        "seconds": report.facts["seconds"],
        "stopped": report.stopped,
        "best_epoch": report.best_epoch,
        "best_dice": by_epoch[report.best_epoch]["dice"],
        "best": by_epoch[report.best_epoch],
        "last": report.history[-1],
        "mean": asdict(report.lines[0]),
        "classes": {line.name: asdict(line) for line in report.lines[-len(report.names) :]},
        "speed": None if report.speed is None else asdict(report.speed),
        "files": {key: str(run.path / name) for key, name in names.items()},
    }


def _review(engine: Engine, wanted: set[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Predicts the val part once more: the confusion matrix, and the labels of some images."""
    samples, classes = engine.val_set.samples, len(engine.table.names)
    total = np.zeros((classes, classes), np.int64)
    kept: dict[int, np.ndarray] = {}
    for start in range(0, len(samples), engine.config.images):
        places = range(start, min(start + engine.config.images, len(samples)))
        for place, predicted in zip(places, engine.predict(places), strict=True):
            total += confusion(predicted, read_mask(samples[place].mask, engine.table), classes)
            if place in wanted:
                kept[place] = predicted
    return total, kept


def _pictures(
    engine: Engine, rows: list[Scored], places: list[int], predicted: dict[int, np.ndarray]
) -> list[Picture]:
    samples = engine.val_set.samples
    return [
        Picture(
            samples[place].image.name,
            read_image(samples[place].image, engine.table.channels),
            read_mask(samples[place].mask, engine.table),
            predicted[place],
            rows[place].dice,
        )
        for place in places
    ]


def score_table(report: Report) -> Table:
    title = f"Scores on {report.data['val']} val images, with 95 % intervals"
    table = Table(title=title, box=box.SIMPLE, title_style="bold")
    table.add_column("class")
    for head in ("Dice", "", "IoU", "", "left out"):
        table.add_column(head, justify="right", no_wrap=True)
    for line in report.lines:
        table.add_row(
            line.name,
            *_mean_and_interval(line.dice, line.dice_interval),
            *_mean_and_interval(line.iou, line.iou_interval),
            str(line.left_out),
        )
    return table


def _mean_and_interval(mean: float, ends: tuple[float, float]) -> tuple[str, str]:
    if math.isnan(mean):
        return "-", ""
    return f"{mean:.4f}", f"{ends[0]:.3f}-{ends[1]:.3f}"
