"""The flags of a command: one dataclass, its YAML files, the words said about bad values.

A field of the dataclass, made by `flag`, is `--<name>` on the command line and `<name>:` in a file.
"""

import dataclasses
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from .errors import UserError, did_you_mean

Config = TypeVar("Config")

_MOST_YAML, _MOST_DEEP = 1_000_000, 8  # of a config file: characters, levels

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text, in a file with quotes",
    "dict": "lines of `option: value`, on the command line --FLAG.OPTION VALUE",
    "list": "a list such as [a, b]",
}


def flag(default: Any, text: str, alias: str | None = None) -> Any:
    """Makes a field of a config.

    Args:
        default: its value where nothing is said; `dict` or `list` for a new empty one.
        text: its line in --help.
        alias: another spelling of the flag.
    """
    about = {"help": text, "alias": alias}
    if default in (dict, list):
        return field(default_factory=default, metadata=about)
    return field(default=default, metadata=about)


def parse(
    config: type[Config],
    argv: Sequence[str],
    prog: str,
    description: str,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Parses flags and `--config` files into a config dataclass.

    Args:
        config: the dataclass; every field made by `flag`.
        argv: the arguments after the program's name; flags win over files, later over earlier.
        prog: how the program was called, for its help.
        description: what it does, for its help.
        defaults: values for fields in place of those of the dataclass; files and flags win.

    Raises:
        UserError: an unknown flag or key, a value of the wrong type or out of range, or no such
            file.
    """
    from argparse import ArgumentError

    for path in values_of(argv, "--config"):
        _refuse_odd_yaml(path)
    parser = _parser(config, prog, description)
    parser.set_defaults(dict(defaults or {}))
    try:
        parsed = parser.parse_args(_files_first(_spelled_out(config, argv)))
    except ArgumentError as error:
        raise UserError(_sentence(config, str(error))) from None
    except UnicodeDecodeError:
        raise UserError("--config: the file is not text in UTF-8; save it as such.") from None
    except (ValueError, TypeError, RecursionError) as error:  # a number of thousands of digits
        first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"--config: a value cannot be read ({first}); correct it.") from None
    _refuse_empty(config, parsed)
    return config(**{name: _plain(parsed[name]) for name in _names(config)})


def _refuse_empty(config: type, parsed: Any) -> None:
    """A key of a file without a value comes as None, where None may be nothing to take."""
    hints = get_type_hints(config)
    for name in _names(config):
        if parsed[name] is None and type(None) not in get_args(hints[name]):
            raise UserError(f"--{name}: has no value; give it one, or leave it out.")


def values_of(argv: Sequence[str], *flags: str) -> list[str]:
    """The values that flags such as "--config" are given, in their order."""
    values: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name in flags and (given := value if equals else next(words, None)) is not None:
            values.append(given)
    return values


def read_yaml(path: str) -> dict[str, Any]:
    """The keys of a YAML file; none where there are none, since `parse` says what is wrong.

    Raises:
        UserError: the file is no config, but made to take all memory.
    """
    _refuse_odd_yaml(path)
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_odd_yaml(path: str) -> None:
    """Refuses files whose few bytes unfold to any size; what else is wrong, the parser says.

    Raises:
        UserError: the file is too long, too deep, or has aliases.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST_YAML + 1)
        depth = deepest = 0
        odd = len(text) > _MOST_YAML
        for event in () if odd else yaml.parse(text):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            deepest = max(deepest, depth)
            odd = odd or isinstance(event, yaml.AliasEvent) or deepest > _MOST_DEEP
            if odd:
                break
    except (OSError, ValueError, yaml.YAMLError):
        return
    if odd:
        raise UserError(
            f"--config {path}: holds aliases (*), lists in lists in lists, or more than a "
            "megabyte, which no config needs; write plain lines of `flag: value`."
        )


def require(fine: bool, name: str, value: object, rule: str) -> None:
    """Raises UserError with the rule unless the value of a flag is fine."""
    if not fine:
        raise UserError(f"--{name} {value}: {rule}.")


def require_least(config: Any, least: float, *names: str) -> None:
    """Refuses numbers below `least`, infinities and NaN; None is fine."""
    for name in names:
        value = getattr(config, name)
        fine = value is None or least <= value < math.inf
        require(fine, name, value, f"must be {least:g} or more")


def require_text(config: Any) -> None:
    """Refuses text that cannot be written as UTF-8."""
    for name, value in dataclasses.asdict(config).items():
        odd = re.search("[\ud800-\udfff]", value) if isinstance(value, str) else None
        require(odd is None, name, value, "must be text in UTF-8")


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Raises UserError with the known values, the nearest first, unless `value` is one of them."""
    if value not in known:
        hint = did_you_mean(value, known)
        raise UserError(f"--{name} {value}: unknown{hint}; known: {', '.join(known)}.")


def _names(config: Any) -> list[str]:
    return [item.name for item in dataclasses.fields(config)]


def _plain(value: Any) -> Any:
    """A dict of options as a dict, whatever the parser made of it."""
    as_dict = getattr(value, "as_dict", None)
    return as_dict() if as_dict else value


def _parser(config: Any, prog: str, description: str) -> Any:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    reader = jsonargparse.ActionConfigFile  # pyright: ignore[reportPrivateImportUsage]
    parser.add_argument("--config", action=reader, help="YAML file of flags: any run's config.yaml")
    hints = get_type_hints(config)
    for item in dataclasses.fields(config):
        names = [f"--{name}" for name in (item.name, item.metadata["alias"]) if name]
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        parser.add_argument(
            *names, type=hints[item.name], default=default, help=item.metadata["help"]
        )
    return parser


def _spelled_out(config: Any, argv: Sequence[str]) -> list[str]:
    """Gives a switch without a value `true`, and a list its words: `--compare A B`."""
    hints = get_type_hints(config)
    words, found = list(argv), []
    while words:
        word = words.pop(0)
        hint = hints.get(word.removeprefix("--")) if word.startswith("--") else None
        following = next((i for i, w in enumerate(words) if w.startswith("--")), len(words))
        if hint is bool and not following:
            word += "=true"
        elif getattr(hint, "__origin__", None) is list:
            chosen, words = words[:following], words[following:]
            word += "=" + (chosen[0] if chosen[:1] and chosen[0][:1] == "[" else json.dumps(chosen))
        found.append(word)
    return found


def _files_first(argv: list[str]) -> list[str]:
    """Puts config files before the flags, which so override them."""
    files: list[str] = []
    flags: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name != "--config":
            flags.append(word)
            continue
        given = value if equals else next(words, None)
        if given is None:  # nothing after it: the parser says so
            flags.append(word)
        else:
            files += [name, given]
    return files + flags


def _sentence(config: Any, text: str) -> str:
    """Turns what jsonargparse says into one sentence that names the flag and the remedy."""
    known = _names(config)
    aliases = [item.metadata["alias"] for item in dataclasses.fields(config)]
    stray = re.match(r"unrecognized arguments: ((?:-?[^-\s])\S*)", text)
    if stray:
        return f"{stray[1]}: unexpected word; settings are flags, e.g. --{known[0]} {stray[1]}."
    name = re.match(r"unrecognized arguments: --?([^\s=]+)", text)
    if name:
        hint = did_you_mean(name[1], [*known, *filter(None, aliases), "config"], "--")
        return f"--{name[1]}: unknown flag{hint}; --help lists them."
    key = re.match(r"Option '([^']+)' is not accepted", text)
    if key:
        hint = did_you_mean(key[1], known)
        return f"{key[1]}: unknown key in the --config file{hint}; --help lists them."
    value = re.match(r'Parser key "(\w+)":\s*(.*)(?:Got|Given) value: (.*)', text, re.S)
    if value and value[1] in known:
        wanted = _WANTED[_type_name(config, value[1])].replace("FLAG", value[1])
        return f"--{value[1]} {value[3].strip()}: must be {wanted}."
    lone = re.match(r"argument (--\w+)\S*: expected one argument", text)
    if lone:
        return f"{lone[1]}: needs a value after it."
    if "Unexpected config:" in text:
        return "--config: the file must hold lines of `flag: value`, as a run's config.yaml does."
    rest = re.sub(r'^Parser key "config":\s*', "", text)
    rest = re.sub(r"\s+", " ", rest).strip().rstrip(".")
    return f"--config: {rest}." if "config" in text.splitlines()[0] else f"{rest}."


def _type_name(config: Any, name: str) -> str:
    hint = get_type_hints(config)[name]
    if getattr(hint, "__origin__", None) in (dict, list):
        return hint.__origin__.__name__
    return next(a for a in getattr(hint, "__args__", (hint,)) if a is not type(None)).__name__
