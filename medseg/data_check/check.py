"""Looks at a data folder as a training would, and goes on where a training stops."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..data import Sample, load_table
from ..data.classes import class_table
from ..data.clusters import Clusters
from ..data.files import EXTENSIONS, parallel
from ..data.load import refuse_blank_val, refuse_single_class
from ..data.rows import find_csv, pair_by_stem, read_rows, refuse_empty_part
from ..data.splits import draw_split, refuse_divided
from ..errors import Refuse, UserError
from ..findings import Finding, by_level, fits
from .balance import ClassLine, class_lines, suggest_loss
from .copies import Copy, find_copies
from .doubts import doubts
from .facts import Facts, facts_of

_VAL_FRACTION = 0.2  # as in a training without a split.csv


@dataclass(frozen=True)
class Options:
    """What a training would be told of the folder, by the flags of the same names."""

    root: Path
    csv: Path | None = None
    classes: int | None = None
    seed: int = 0
    ignore: int | None = None
    group_by: str | None = None


@dataclass
class Checked:
    """What there is, and what is wrong with it."""

    options: Options
    findings: list[Finding] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)  # of the pairs that can be read
    classes: list[ClassLine] = field(default_factory=list)  # none where the mapping is unknown
    copies: list[Copy] = field(default_factory=list)
    loss: dict[str, str] = field(default_factory=dict)  # flags of the training that are suggested
    because: str | None = None

    @property
    def fits(self) -> bool:
        """Whether a training would start."""
        return fits(self.findings)

    @property
    def parts(self) -> dict[str, int]:
        """How many pairs each part of the split has."""
        counts = Counter(sample.split for sample in self.samples)
        return {part: counts[part] for part in ("train", "val", "test") if part in counts}

    @property
    def sizes(self) -> dict[str, int]:
        """Width x height of the images, and how many have it; the most frequent first."""
        return dict(Counter(f"{one.width}x{one.height}" for one in self.facts).most_common())

    @property
    def kinds(self) -> dict[str, int]:
        """Colour and bit depth of the images, and how many have it."""
        words = {1: "gray", 3: "RGB"}
        counts = Counter(f"{words[one.channels]}, {one.bits} bit" for one in self.facts)
        return dict(counts.most_common())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "data": str(self.options.root),
            "fits": self.fits,
            "parts": self.parts,
            "sizes": self.sizes,
            "kinds": self.kinds,
            "classes": [asdict(line) for line in self.classes],
            "suggested": self.loss,
            "because": self.because,
            "findings": [asdict(finding) for finding in by_level(self.findings)],
        }


Watch = Callable[[int], AbstractContextManager[Callable[[str], None]]]  # as Journal.progress


def unseen(total: int) -> AbstractContextManager[Callable[[str], None]]:
    """No progress bar."""
    return contextlib.nullcontext(lambda text: None)


def check(options: Options, watch: Watch = unseen) -> Checked:
    """Finds, pairs, splits and reads as `load_table` does, and collects all that it would refuse.

    Args:
        options: the folder, and what a training would be told of it.
        watch: shows how far the reading is.

    Raises:
        UserError: there is no such folder or CSV, or a flag is wrong.
    """
    done = Checked(options)
    if not options.root.is_dir():
        load_table(options.root)  # which says so
    done.samples = _find(options, done.findings)

    def look(sample: Sample) -> Facts | UserError:
        try:
            return facts_of(sample)
        except UserError as error:
            return error
        finally:
            tick("reading")

    with watch(len(done.samples)) as tick:
        seen = parallel(look, done.samples)
    for sample, one in zip(done.samples, seen, strict=True):
        if isinstance(one, Facts):
            done.facts.append(one)
        else:
            files = (sample.image.name, sample.mask.name)
            done.findings.append(Finding("error", "file", _without_count(one), files=files))
    if done.facts:
        _judge(done)
    return done


def _find(options: Options, found: list[Finding]) -> list[Sample]:
    """The pairs, each in its part of the split."""
    root, clusters = options.root, Clusters(options.group_by)
    path = find_csv(root, options.csv)
    samples: list[Sample] = []
    with _collected(found, "pairs"):
        if path is None:
            samples = pair_by_stem(root, clusters, _hears(found, "pairs"))
            return draw_split(samples, _VAL_FRACTION, options.seed) if samples else []
        samples = read_rows(root, path, clusters, _hears(found, "pairs"))
    if path is not None:
        with _collected(found, "split"):
            refuse_empty_part(path, samples)
        with _collected(found, "split"):
            refuse_divided(path, samples)
        found += _left_over(root, samples)
    return samples


def _left_over(root: Path, samples: Sequence[Sample]) -> list[Finding]:
    """Files in images/ that no row names."""
    named = {sample.image for sample in samples}
    folder = root / "images"
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    lost = [f for f in files if f.suffix.lower() in EXTENSIONS and f not in named]
    if not lost:
        return []
    says = f"{lost[0].name} and all in all {len(lost)} files in {folder} are in no row of the table"
    return [Finding("note", "pairs", says, files=tuple(path.name for path in lost))]


def _judge(done: Checked) -> None:
    """Adds what the pairs that can be read show together."""
    options, facts, found = done.options, done.facts, done.findings
    samples = [one.sample for one in facts]
    values = [[v for v in one.counts if v != options.ignore] for one in facts]
    with _collected(found, "classes"):
        refuse_single_class(options.root, samples, values)
    mapping = None
    with _collected(found, "classes"):
        hears = _hears(found, "classes")
        mapping = class_table(options.root, samples, values, options.classes, options.ignore, hears)
    if mapping is not None:
        with _collected(found, "classes"):
            refuse_blank_val(options.root, samples, values, mapping[0][0])
        done.classes = class_lines(facts, *mapping)
        if any(line.parts["train"].pixels for line in done.classes if "train" in line.parts):
            done.loss, done.because = suggest_loss(done.classes)
    done.copies = find_copies(facts)
    found += doubts(facts, done.classes, done.copies)


@contextlib.contextmanager
def _collected(found: list[Finding], topic: str) -> Iterator[None]:
    """Turns a UserError about the data into a finding; one about a flag goes on its way."""
    try:
        yield
    except UserError as error:
        if error.code == 2:
            raise
        found.append(Finding("error", topic, _without_count(error)))


def _hears(found: list[Finding], topic: str) -> Refuse:
    def refuse(error: UserError) -> None:
        found.append(Finding("error", topic, _without_count(error)))

    return refuse


def _without_count(error: UserError) -> str:
    """The sentence about one file alone: the others have findings of their own."""
    return re.sub(r" \(the first of \d+ such files\)", "", str(error))
