"""What a training would take without a word, and would suffer from."""

from collections.abc import Sequence

from ..findings import Finding
from .balance import ClassLine
from .copies import MOST, Copy
from .facts import Facts

_SMALL = 16  # pixels of a side
_FEW = 5  # images of a class
_DARK = 0.25  # of the range: where the brightest pixel lies below it
_SHOWN = 3  # names of files in a sentence
_SAME = 0.999  # share of pixels from which two masks of one image are the same


def doubts(
    facts: Sequence[Facts], classes: Sequence[ClassLine], copies: Sequence[Copy]
) -> list[Finding]:
    """Returns warnings and notes.

    Args:
        facts: of all pairs that can be read.
        classes: empty where the mapping is unknown.
        copies: images that are in the set twice.
    """
    found = [*_depth(facts), *_images(facts)]
    if classes:
        found += [*_masks(facts, classes), *_rare(classes)]
    return [*found, *_masks_used_twice(facts), *_twice(copies)]


def _depth(facts: Sequence[Facts]) -> list[Finding]:
    """8 bit beside 16 bit, and 16-bit files that hold fewer bits."""
    found = []
    deep = [one for one in facts if one.bits == 16]
    if deep and len(deep) < len(facts):
        few, bits = (deep, 16) if len(deep) <= len(facts) / 2 else (_others(facts, deep), 8)
        says = f"{_names(few)}: {bits} bit, the others not; training scales each by its own range"
        found.append(Finding("warning", "depth", says, "save all images in one depth", _files(few)))
    top = max((one.high for one in deep), default=0)
    if deep and top < 1 << 14:
        says = f"16-bit images whose brightest pixel is {top} of 65535: training sees them black"
        mend = f"multiply them by {65535 // max(1, top)}, or save them with 8 bits"
        found.append(Finding("warning", "depth", says, mend, _files(deep)))
    return found


def _images(facts: Sequence[Facts]) -> list[Finding]:
    found = []
    blank = [one for one in facts if one.low == one.high]
    if blank:
        says = f"{_names(blank)}: one colour all over"
        found.append(Finding("warning", "image", says, "take them out", _files(blank)))
    small = [one for one in facts if min(one.height, one.width) < _SMALL]
    if small:
        says = f"{_names(small)}: a side of less than {_SMALL} pixels"
        found.append(Finding("warning", "image", says, "take them out", _files(small)))
    dark = [one for one in facts if one.bits == 8 and one.low < one.high < 256 * _DARK]
    if dark:
        says = f"{_names(dark)}: dark, no pixel reaches a quarter of the range"
        found.append(Finding("note", "image", says, files=_files(dark)))
    return found


def _masks(facts: Sequence[Facts], classes: Sequence[ClassLine]) -> list[Finding]:
    known = {line.value for line in classes}
    background = classes[0].value
    empty = [one for one in facts if known.intersection(one.counts) == {background}]
    full = [
        one
        for one in facts
        if (there := known.intersection(one.counts)) and len(there) == 1 and background not in there
    ]
    unknown = [one for one in facts if not known.intersection(one.counts)]
    found = []
    for group, words, mend in (
        (empty, "masks of background alone", "draw them, unless nothing is there"),
        (full, "masks of one class all over, without background", "draw them anew"),
        (unknown, "masks in which every pixel is ignored", "take them out"),
    ):
        if group:
            says = f"{_names(group)}: {words}"
            found.append(Finding("warning", "mask", says, mend, _files(group)))
    return found


def _rare(classes: Sequence[ClassLine]) -> list[Finding]:
    """Classes that a part of the split lacks, or that too few images teach."""
    found = []
    for line in classes:
        for part, share in line.parts.items():
            if share.images == 0:
                what = {"train": "it is never learned", "val": "it is never scored"}
                says = f"no {part} mask has {line.name} (value {line.value})"
                says += f": {what[part]}" if part in what else ""
                found.append(Finding("warning", "classes", says, "divide the images anew"))
            elif part == "train" and share.images < _FEW and line.index:
                says = f"training images with {line.name} (value {line.value}): only {share.images}"
                found.append(Finding("warning", "classes", says, "add images that show it"))
    return found


def _masks_used_twice(facts: Sequence[Facts]) -> list[Finding]:
    """One mask, and not an empty one, for images that differ: a file was copied in error."""
    first: dict[bytes, Facts] = {}
    found = []
    for one in facts:
        other = first.setdefault(one.mask_digest, one)
        alike = float((one.thumb.astype("f4") * other.thumb.astype("f4")).sum())
        if other is one or len(one.counts) < 2 or one.digest == other.digest or alike > 0.9:
            continue
        says = f"{other.name} and {one.name} differ, but their masks are the same in every pixel"
        mend = f"correct {one.sample.mask.name} or {other.sample.mask.name}"
        found.append(Finding("warning", "mask", says, mend, _files([other, one])))
    return found


def _twice(copies: Sequence[Copy]) -> list[Finding]:
    found = [_copy(copy) for copy in copies]
    if len(copies) == MOST:
        says = f"there are {MOST} pairs of copies or more, and only these are told"
        found.append(Finding("note", "copies", says))
    return found


def _copy(copy: Copy) -> Finding:
    first, second = copy.first.sample, copy.second.sample
    how = "are the same picture" if copy.exact else "are nearly the same picture"
    says = f"{copy.first.name} ({first.split}) and {copy.second.name} ({second.split}) {how}"
    agree = copy.masks_agree
    if agree is not None and agree < _SAME:
        says += f", with two different masks ({100 * agree:.1f} % of their pixels agree)"
    files = _files([copy.first, copy.second])
    if copy.across:
        says += ": what was trained on is scored"
        return Finding("warning", "copies", says, f"take {copy.second.name} out", files)
    differ = agree is not None and agree < _SAME
    mend = "keep the better mask" if differ else f"take {copy.second.name} out"
    return Finding("warning" if differ else "note", "copies", says, mend, files)


def _others(facts: Sequence[Facts], some: Sequence[Facts]) -> list[Facts]:
    left_out = {id(one) for one in some}
    return [one for one in facts if id(one) not in left_out]


def _names(group: Sequence[Facts]) -> str:
    shown = ", ".join(one.name for one in group[:_SHOWN])
    more = len(group) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _files(group: Sequence[Facts]) -> tuple[str, ...]:
    return tuple(one.name for one in group)
