"""`python -m medseg.train`: from a folder of images and masks to weights, scores and a report."""

import math
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .startup import describe_huge_pages, settle

if TYPE_CHECKING:  # the rest is imported after settle()
    from rich.table import Table as RichTable

    from .config import TrainConfig
    from .console import Journal
    from .engine import Engine, Scored
    from .prepare import Job
    from .report import Picture, Report
    from .runs import RunFolder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a training.

    Args:
        argv: the flags; None takes those of the process.

    Returns:
        The exit code: 0, 2 for a wrong flag, 3 for wrong data or a failed run, 130 after Ctrl-C
        or SIGTERM, 1 for anything else.
    """
    settle()
    from .config import parse_flags
    from .console import guarded

    flags = sys.argv[1:] if argv is None else argv
    return guarded(lambda journal: train(parse_flags(flags), journal))


def train(config: "TrainConfig", journal: "Journal") -> Path:
    """Trains as `config` says; what can be refused is refused before the run folder is made.

    Args:
        config: the settings.
        journal: hears what happens.

    Returns:
        The path of the run folder.
    """
    huge_pages = describe_huge_pages()
    from .engine import Engine
    from .kernels import use_backend
    from .prepare import deterministic, prepare

    started = time.perf_counter()
    asked = config.backend != "auto"  # else MEDSEG_BACKEND counts
    with use_backend(config.backend) if asked else nullcontext(), deterministic():
        job = prepare(config, journal)
        config = job.config
        engine = Engine(config, job.table, job.fabric, job.network)
        if job.state is not None:
            engine.load_state(job.state, job.best_weights)
        run = _folder(job)
        try:
            facts = _begin(job, run, journal, huge_pages)
            stopped = _fit(job, engine, run, journal)
        except UserError:
            if run is not None and not config.resume:
                run.remove()  # no epoch was finished
            raise
        facts["seconds"] = round(time.perf_counter() - started, 1)
        _finish(job, engine, run, journal, facts, stopped)
        if stopped is not None:
            raise stopped
    return run.path if run else Path(config.out)


def _folder(job: "Job") -> "RunFolder | None":
    """A new folder, or that of the run to go on with; None but in the first process."""
    from .runs import RunFolder, create_run

    config = job.config
    if job.fabric.global_rank != 0:
        return None
    if config.resume:
        return RunFolder(Path(config.resume))
    return create_run(config.out, config.name, [config.model, job.data_name])


def _begin(
    job: "Job", run: "RunFolder | None", journal: "Journal", huge_pages: str
) -> dict[str, Any]:
    """Writes and says what is known before the first step."""
    from .config import write_yaml
    from .runs import environment

    facts = environment()
    facts |= {"device": job.device_name, "huge_pages": huge_pages, "ops": job.ops}
    if run is None:
        return facts
    journal.open(run.path / "train.log")
    run.write_text("config.yaml", write_yaml(job.config))
    run.write_json("environment.json", facts)
    run.write_rows("split.csv", job.split_rows())
    config, table = job.config, job.table
    weights = sum(p.numel() for p in job.network.parameters())
    parts = f"{len(table.part('train'))} train, {len(table.part('val'))} val"
    journal.say(f"run      {run.path}")
    journal.say(f"data     {table.root}: {parts}; {', '.join(table.names)}")
    journal.say(
        f"model    {config.model}, {weights / 1e6:.2f} M weights, {config.size}x{config.size}"
    )
    journal.say(f"device   {job.device_name}, {config.precision}, {facts['threads']} threads")
    for op, words in job.ops.items():
        journal.say(f"op       {op}: {words}")
    journal.say(f"pages    huge pages {huge_pages}")
    return facts


def _fit(
    job: "Job", engine: "Engine", run: "RunFolder | None", journal: "Journal"
) -> UserError | None:
    """Trains epoch by epoch; returns the error that ended it after a finished epoch, if one did."""
    from .engine import memory_guard

    total = engine.epochs * engine.steps
    saved = engine.epoch
    with journal.progress(total, saved * engine.steps) as advance:
        try:
            if run is not None and saved == 0:  # else a first epoch cut short could not be repeated
                run.write_checkpoint("last.ckpt", engine.state())
            while saved < engine.epochs:
                with memory_guard(job.config):
                    _one_epoch(job, engine, run, journal, advance)
                saved = engine.epoch
        except KeyboardInterrupt:
            if run is None:
                raise
            raise KeyboardInterrupt(
                f"stopped in epoch {saved + 1}; {run.path / 'last.ckpt'} has the state "
                f"after epoch {saved}, and --resume {run.path} goes on from it."
            ) from None
        except UserError as error:
            if saved == 0:
                raise
            return error
    return None


def _one_epoch(
    job: "Job", engine: "Engine", run: "RunFolder | None", journal: "Journal", advance: Any
) -> None:
    from .metrics import summarise

    name = f"epoch {engine.epoch + 1}/{engine.epochs}"
    numbers = engine.train_epoch(lambda step: advance(name))
    start = time.perf_counter()
    rows, val_loss = engine.score()
    if not math.isfinite(val_loss):
        raise engine.diverged(val_loss, f"on the val part after epoch {engine.epoch}")
    summary = summarise([row.dice for row in rows])
    line = {"epoch": engine.epoch, "loss": numbers["loss"], "val_loss": val_loss}
    line |= {"dice": summary.dice}
    line |= dict(zip(job.dice_columns, summary.class_dice, strict=True))
    line |= {"lr": numbers["lr"], "seconds": numbers["seconds"]}
    line |= {"seconds_val": time.perf_counter() - start}
    engine.history.append(line)
    better = engine.keep_if_best(summary.dice)
    if run is None:
        return
    run.write_rows("metrics.csv", engine.history)
    if better:
        run.write_weights("best.safetensors", engine.best_weights, job.weights_metadata(engine))
    run.write_checkpoint("last.ckpt", engine.state())
    journal.say(
        f"{name:<13} loss {line['loss']:.4f}  val {val_loss:.4f}  dice {summary.dice:.4f}"
        f"{' *' if better else '  '}  lr {line['lr']:.1e}  {line['seconds']:.1f} s"
    )


def _finish(
    job: "Job",
    engine: "Engine",
    run: "RunFolder | None",
    journal: "Journal",
    facts: dict[str, Any],
    stopped: UserError | None,
) -> None:
    """Scores the best weights and writes scores, curves and report."""
    engine.use_best()
    rows, _ = engine.score()
    if run is None:
        return
    from .report import Report, best_and_worst, curves_file, render

    scores = [row.dice for row in rows]
    names = job.table.names[1:]
    columns = dict(zip(names, job.dice_columns, strict=True))
    best, worst = best_and_worst(scores)
    report = Report(
        title=run.path.name,
        config=job.config.portable(),
        facts=facts,
        data={"name": job.data_name, **{p: len(job.table.part(p)) for p in ("train", "val")}},
        names=names,
        columns=columns,
        history=engine.history,
        scores=scores,
        best_epoch=engine.best_epoch,
        best=_pictures(engine, rows, best),
        worst=_pictures(engine, rows, worst),
        stopped=str(stopped) if stopped else None,
    )
    run.write_rows("scores.csv", job.score_rows(rows))
    run.write_text("curves.svg", curves_file(engine.history, columns))
    page = run.write_text("report/index.html", render(report))
    journal.show(_score_table(report))
    journal.say(f"best weights of epoch {engine.best_epoch}: {run.path / 'best.safetensors'}")
    journal.say(f"{facts['seconds']:.0f} s in all; report: {page}", style="bold")


def _pictures(engine: "Engine", rows: "list[Scored]", places: list[int]) -> "list[Picture]":
    from .data import read_image, read_mask
    from .report import Picture

    samples = [engine.val_set.samples[place] for place in places]
    return [
        Picture(
            sample.image.name,
            read_image(sample.image, engine.table.channels),
            read_mask(sample.mask, engine.table),
            predicted,
            rows[place].dice,
        )
        for sample, predicted, place in zip(samples, engine.predict(places), places, strict=True)
    ]


def _score_table(report: "Report") -> "RichTable":
    from rich import box
    from rich.table import Table

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


if __name__ == "__main__":
    sys.exit(main())
