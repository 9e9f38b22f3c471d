"""Options of a command line out of a dataclass: one table for the parser, its help and the job.

A field's type says what is read: `Literal` offers choices, `tuple[X, ...]` takes several values,
`X | None` may be left out, `bool` is a switch, and a dataclass is a group of options. A field
without a text is none.
"""

import json
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Iterable
from dataclasses import MISSING as REQUIRED
from dataclasses import Field, field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints


def option(default: Any, text: str, flag: str = "", **settings: Any) -> Any:
    """A field given as `--its-name` or as `flag`; settings are those of `add_argument`."""
    return field(default=default, metadata={"flag": flag, "help": text, **settings})


def argument(text: str, default: Any = REQUIRED, **settings: Any) -> Any:
    """A field given by its place."""
    return field(default=default, metadata={"help": text, **settings})


def key_values(text: str, nargs: str = "+") -> Any:
    """The field of `--set KEY=VALUE ...`; a second one adds to the first."""
    return option((), text, "--set", nargs=nargs, action="extend", metavar="KEY=VALUE")


def add_commands(place: Any, commands: dict[str, type]) -> None:
    """Add commands by name; one that has commands of its own gets a parser for each."""
    for name, command in commands.items():
        purpose = command.__doc__.splitlines()[0].rstrip(".")
        parser = place.add_parser(name, help=purpose, description=command.__doc__)
        if hasattr(command, "commands"):
            text = "what to do; STEP --help lists its options"
            steps = parser.add_subparsers(required=True, metavar="STEP", help=text)
            add_commands(steps, command.commands)
        else:
            add_options(parser, command)
            if getattr(command, "computes", False):
                text = "auto: CUDA where there is a GPU, else the CPU; mps: a Mac's GPU, never "
                text += "tried on a real one (default: the variable FINER1_DEVICE, else auto)"
                parser.add_argument("--device", metavar="{auto,cuda,mps,cpu}", help=text)
            parser.set_defaults(command=command)


def add_options(parser: ArgumentParser, options: type) -> None:
    """Add every field of a dataclass to a parser, in order."""
    hints = get_type_hints(options)
    for one in fields(options):
        if is_dataclass(hints[one.name]):
            add_options(parser, hints[one.name])
        if not one.metadata:
            continue
        settings = _settings(one, hints[one.name])
        flag = settings.pop("flag", None)
        if flag is None:
            parser.add_argument(one.name, **settings)
        else:
            flag = flag or "--" + one.name.replace("_", "-")
            parser.add_argument(flag, dest=one.name, required=one.default is REQUIRED, **settings)


def _settings(one: Field, hint: Any) -> dict[str, Any]:
    """What a field says to `add_argument`."""
    default = None if one.default is REQUIRED else one.default
    settings = {"default": default, **one.metadata}
    if hint is bool:
        return {"action": BooleanOptionalAction if default else "store_true", **settings}
    if type(None) in get_args(hint):
        hint = get_args(hint)[0]
    if get_origin(hint) is tuple:
        hint, *rest = get_args(hint)
        settings["default"] = None if default is None else list(default)
        settings.setdefault("nargs", "+" if rest == [Ellipsis] else 1 + len(rest))
    if default not in (None, "", ()):
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        settings["help"] += f" (default: {shown})"
    kind = {"choices": get_args(hint)} if get_origin(hint) is Literal else {"type": hint}
    return settings | kind


def from_options(options: type, args: Namespace) -> Any:
    """The dataclass, filled with what was given."""
    values = {}
    for name, hint in get_type_hints(options).items():
        value = from_options(hint, args) if is_dataclass(hint) else getattr(args, name)
        values[name] = tuple(value) if isinstance(value, list) else value
    return options(**values)


def given(options: Any, *names: str, **renamed: str) -> dict[str, Any]:
    """The fields that are not None, under their own names or under others."""
    pairs = dict(zip(names, names, strict=True)) | renamed
    found = {new: getattr(options, name) for name, new in pairs.items()}
    return {name: value for name, value in found.items() if value is not None}


def read_key_values(items: Iterable[str], flag: str = "--set") -> dict[str, Any]:
    """What `Preset.with_` wants; a value is JSON, or else a word. ValueError without a "="."""
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{flag} {item}: write KEY=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
