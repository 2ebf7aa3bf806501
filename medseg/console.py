"""What a run says: lines on the terminal and in train.log, a progress bar, and how it ends."""

import contextlib
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .errors import UserError


class Journal:
    """Says lines to the terminal and keeps them, with the time, for train.log.

    Args:
        quiet: say nothing, as every process but the first.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.path: Path | None = None
        self._waiting: list[str] = []

    def open(self, path: Path) -> None:
        """Writes to `path` from now on, first what was said before."""
        self.path = path
        with path.open("a", encoding="utf-8") as file:
            file.writelines(self._waiting)
        self._waiting.clear()

    def say(self, text: str, style: str | None = None) -> None:
        """Prints a line and logs it."""
        self.console.print(text, style=style, markup=False)
        self.log(text)

    def log(self, text: str) -> None:
        """Logs text without printing it."""
        if self.console.quiet:
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = [f"{stamp}  {line}\n" for line in text.splitlines()]
        if self.path is None:
            self._waiting.extend(lines)
        else:
            # a full disk is said by the files that matter, not by the log
            with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def show(self, table: Table) -> None:
        """Prints a table, and logs it as plain text."""
        self.console.print(table)
        plain = Console(width=100, color_system=None, force_terminal=False)
        with plain.capture() as captured:
            plain.print(table)
        self.log(captured.get())

    @contextlib.contextmanager
    def progress(self, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
        """Yields a function that moves the bar by one step; without a terminal it does nothing."""
        if not self.console.is_terminal or self.console.quiet:
            yield lambda text: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=total, completed=done)
            yield lambda text: bar.update(task, advance=1, description=text)


def guarded(main: Callable[[Journal], Any]) -> int:
    """Runs a command and turns what stops it into one sentence and an exit code.

    Returns:
        0; a UserError's code; 3 for a file that the system refuses; 130 after Ctrl-C or SIGTERM; 1
        for anything else, whose traceback goes to the log of the run, or to a temporary file where
        there is none.
    """
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "0")  # torchrun sets both
    journal = Journal(quiet=rank != "0")
    try:
        with _term_like_interrupt(journal):
            main(journal)
    except UserError as error:
        _complain(journal, str(error))
        return error.code
    except KeyboardInterrupt as stop:
        _complain(journal, str(stop) or "stopped.")
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            name = os.fspath(error.filename)
            _complain(journal, f"{name} cannot be used ({error.strerror}): check name and rights.")
            return 3
        path = _keep_traceback(journal)
        kind, first = type(error).__name__, (str(error).splitlines() or [""])[0]
        _complain(journal, f"{kind}: {first} (the traceback is in {path})")
        return 1
    return 0


@contextlib.contextmanager
def _term_like_interrupt(journal: Journal) -> Iterator[None]:
    """A job scheduler's SIGTERM ends a run as Ctrl-C does.

    Only in the first process: the others must die at once, even inside a collective call.
    """
    if journal.console.quiet or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        if hasattr(signal, "SIGCHLD"):  # what PyTorch says of readers that were stopped as well
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    of_children = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if of_children is not None:
            signal.signal(signal.SIGCHLD, of_children)


def _complain(journal: Journal, sentence: str) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=journal.console.quiet)
    sentence = sentence.encode(errors="backslashreplace").decode()  # names that are no text
    console.print("error:", style="bold red", end=" ")
    console.print(sentence, markup=False)
    if journal.path is not None and journal.path.parent.is_dir():
        journal.log(f"error: {sentence}")


def _keep_traceback(journal: Journal) -> Path:
    if journal.path is not None and journal.path.parent.is_dir():
        journal.log(traceback.format_exc())
        return journal.path
    handle, name = tempfile.mkstemp(prefix="medseg-", suffix=".log", text=True)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(traceback.format_exc())
    return Path(name)
