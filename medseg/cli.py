"""`medseg VERB ...`: the commands of the package, each also `python -m medseg.VERB`."""

import importlib
import sys
from collections.abc import Sequence

from .errors import did_you_mean
from .startup import settle

VERBS = {
    "train": "train a network on a folder of images and masks, and write a report",
    "evaluate": "score a trained network on images with masks, or compare two",
    "predict": "write masks, pictures and polygons of images",
    "serve": "open a page in the browser that shows images to a trained network",
    "export": "write a trained network as ONNX, torch.export or AOTInductor file",
    "doctor": "say what this machine has, what each op takes and why, and what to mend",
    "data": "check a folder of images and masks: `medseg data check DIR`",
    "models": "list the networks with their size, cost and origin",
}
_MODULES = {"data": "data_check.__main__", "doctor": "doctor.__main__", "models": "models.__main__"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb that comes first.

    Args:
        argv: verb and flags; None takes those of the process.

    Returns:
        The verb's exit code; 2 for an unknown verb.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        from .runs import installed_version

        print(f"medseg {installed_version('medseg') or 'checkout'}")
        return 0
    verb = words[0]
    if verb not in VERBS:
        hint = did_you_mean(verb, VERBS)
        print(
            f"error: medseg {verb}: unknown command{hint}; medseg --help lists them.",
            file=sys.stderr,
        )
        return 2
    settle()
    return importlib.import_module(f".{_MODULES.get(verb, verb)}", __package__).main(words[1:])


def _usage() -> str:
    lines = [f"  {verb:<10} {text}" for verb, text in VERBS.items()]
    return "\n".join(
        ["usage: medseg COMMAND [flags]", "", *lines, "", "medseg COMMAND --help lists its flags."]
    )
