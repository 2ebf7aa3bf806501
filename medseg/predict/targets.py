"""Where results go: never over an input, over each other, or out of the folder that was named."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import UserError
from ..inference import stem
from .writers import KINDS


class Targets:
    """Gives each image its files, OUT/<kind>/<name>.

    Args:
        out: the folder for results; it is made with the first of them.
        kinds: what is written of each image.
        overwrite: whether earlier results may be replaced.
        inputs: the files that are read.

    Raises:
        UserError: two inputs have one name, results would lie among the inputs, or are there.
    """

    def __init__(
        self, out: Path, kinds: Sequence[str], overwrite: bool, inputs: Sequence[Path]
    ) -> None:
        self.out, self.kinds, self.overwrite = out, tuple(kinds), overwrite
        self._taken: dict[str, Path] = {}
        self._made = False
        self._inputs = {os.path.realpath(path) for path in inputs}
        self._homes = {os.path.dirname(path) for path in self._inputs}
        self._refuse_same_names(inputs)
        for kind in self.kinds:
            self._check_folder(kind)
            self._refuse_drawn(kind, inputs)
        for path in inputs:
            self._refuse_present(stem(path))

    def of(self, path: Path, name: str) -> dict[str, Path]:
        """The files of an image, by kind; their folders are made.

        Args:
            path: the image's file.
            name: of the image.

        Raises:
            UserError: another image has the name, or results of it are there.
        """
        other = self._taken.setdefault(_folded(name), path)
        if other != path:
            raise UserError(
                f"{path} and {other} would both be written as {name}: predict them into two "
                "folders, or rename one.",
                code=3,
            )
        self._refuse_present(name)
        self._make_folders()
        return self._files(name)

    def _make_folders(self) -> None:
        for kind in () if self._made else self.kinds:
            self._check_folder(kind)
            try:
                (self.out / kind).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                words = f"--out {self.out}: cannot be written to ({error.strerror})."
                raise UserError(words) from None
        self._made = True

    def _files(self, name: str) -> dict[str, Path]:
        return {kind: self.out / kind / f"{name}{KINDS[kind][1]}" for kind in self.kinds}

    def _refuse_same_names(self, inputs: Iterable[Path]) -> None:
        names: dict[str, Path] = {}
        for path in inputs:
            other = names.setdefault(_folded(stem(path)), path)
            if other != path:
                raise UserError(
                    f"{other} and {path.name} would both be written as {stem(path)}: predict them "
                    "into two folders, or rename one.",
                    code=3,
                )

    def _check_folder(self, kind: str) -> None:
        folder, home = os.path.realpath(self.out / kind), os.path.realpath(self.out)
        if folder in self._homes:
            raise UserError(
                f"--out {self.out}: {self.out / kind} holds the images that are read; name another "
                "folder."
            )
        if os.path.commonpath((folder, home)) != home:
            raise UserError(f"--out {self.out}: {self.out / kind} is a link to elsewhere.")

    def _refuse_drawn(self, kind: str, inputs: Iterable[Path]) -> None:
        """Refuses masks/ beside images/, which is for masks that somebody draws."""
        folder = self.out / kind
        homes = {Path(path).parent for path in (*map(os.path.abspath, inputs), *self._inputs)}
        beside = [home.parent / "masks" for home in homes if home.name == "images"]
        if os.path.realpath(folder) in map(os.path.realpath, beside):
            raise UserError(
                f"--out {self.out}: {folder} is the place of the masks of the images that are "
                "read; name another folder."
            )

    def _refuse_present(self, name: str) -> None:
        if self.overwrite:
            return
        for file in self._files(name).values():
            if os.path.lexists(file):
                raise UserError(
                    f"--out {self.out}: {file} is there already; name another folder, or take "
                    "--overwrite."
                )


def _folded(name: str) -> str:
    """Names that are one on a file system that does not tell large letters from small."""
    return name.casefold()
