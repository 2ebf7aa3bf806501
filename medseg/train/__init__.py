"""`python -m medseg.train`: from a folder of images and masks to weights, scores and a report."""

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..startup import describe_huge_pages, settle

if TYPE_CHECKING:  # the rest is imported after settle()
    from ..config import TrainConfig
    from ..console import Journal
    from ..engine import Engine
    from ..prepare import Job
    from ..runs import RunFolder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a training.

    Args:
        argv: the flags; None takes those of the process.

    Returns:
        The exit code: 0, 2 for a wrong flag, 3 for wrong data or a failed run, 130 after Ctrl-C
        or SIGTERM, 1 for anything else.
    """
    started = time.perf_counter()
    settle()
    from ..config import parse_flags
    from ..console import guarded

    flags = sys.argv[1:] if argv is None else argv
    return guarded(lambda journal: train(parse_flags(flags), journal, started))


def train(config: "TrainConfig", journal: "Journal", started: float) -> Path:
    """Trains as `config` says; what can be refused is refused before the run folder is made.

    Args:
        config: the settings.
        journal: hears what happens.
        started: when the program began, by time.perf_counter.

    Returns:
        The path of the run folder.
    """
    huge_pages = describe_huge_pages()
    from ..document import one_document
    from ..engine import Engine, load_state
    from ..kernels import use_backend
    from ..prepare import deterministic, prepare
    from .loop import fit
    from .results import finish

    asked = config.backend != "auto"  # else MEDSEG_BACKEND counts
    backend = use_backend(config.backend) if asked else nullcontext()
    with one_document(config.json) as tell, backend, deterministic():
        job = prepare(config, journal)
        config = job.config
        engine = Engine(config, job.table, job.fabric, job.network)
        if job.state is not None:
            load_state(engine, job.state)
            _refuse_finished(config, engine)
        run = _folder(job)
        try:
            facts = _begin(job, engine, run, journal, huge_pages)
            stopped = fit(job, engine, run, journal)
        except UserError:
            if run is not None and not (config.resume or (run.path / "last.ckpt").exists()):
                run.remove()  # nothing was reached
            raise
        if engine.first_batch is not None:
            facts["first_batch"] = round(engine.first_batch - started, 1)
        facts["seconds"] = round(time.perf_counter() - started, 1)
        document = finish(job, engine, run, journal, facts, stopped)
        if document is not None:
            tell(document)
        if stopped is not None:
            raise stopped
    return run.path if run else Path(config.out)


def _refuse_finished(config: "TrainConfig", engine: "Engine") -> None:
    if not Path(config.resume or "", "report", "index.html").is_file():
        return
    if engine.stalled:
        raise UserError(
            f"--resume {config.resume}: ended early after {engine.epoch} epochs; ask for a larger "
            "--early_stop."
        )
    if engine.epoch >= engine.epochs:
        raise UserError(
            f"--resume {config.resume}: {engine.epoch} epochs are done; ask for more --epochs."
        )


def _folder(job: "Job") -> "RunFolder | None":
    """A new folder, or that of the run to go on with; None but in the first process."""
    from ..config import write_yaml
    from ..runs import RunFolder, create_run

    config = job.config
    if job.fabric.global_rank != 0:
        return None
    files = {"config.yaml": write_yaml(config)}
    if not config.resume:
        return create_run(config.out, config.name, [config.model, job.data_name], files)
    run = RunFolder(Path(config.resume))
    run.go_on()
    for name, text in files.items():
        run.write_text(name, text)
    return run


def _begin(
    job: "Job", engine: "Engine", run: "RunFolder | None", journal: "Journal", huge_pages: str
) -> dict[str, Any]:
    """Writes and says what is known before the first step."""
    from ..runs import environment

    facts = environment()
    facts |= {"device": job.device_name, "huge_pages": huge_pages, "ops": job.ops}
    if run is None:
        return facts
    journal.open(run.path / "train.log")
    run.write_json("environment.json", facts)
    run.write_rows("split.csv", job.split_rows())
    config, table = job.config, job.table
    weights = sum(p.numel() for p in job.network.parameters())
    parts = f"{len(table.part('train'))} train, {len(table.part('val'))} val"
    journal.say(f"run      {run.path}")
    journal.say(f"data     {table.root}: {parts}; {', '.join(table.names)}")
    for line in engine.notes:
        journal.say(line)
    journal.say(
        f"model    {config.model}, {weights / 1e6:.2f} M weights, {config.size}x{config.size}, "
        f"{config.batch} a step"
    )
    journal.say(f"device   {job.device_name}, {config.precision}, {facts['threads']} threads")
    for op, words in job.ops.items():
        journal.say(f"op       {op}: {words}")
    journal.say(f"pages    huge pages {huge_pages}")
    return facts
