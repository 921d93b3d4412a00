"""YAML as recipes use it: `2e-6` is a number, `on` and `no` are texts (as in YAML 1.2), a key may stand only once, and
nothing but plain data is ever built."""

from __future__ import annotations

import re
from typing import Any

import yaml

_SCIENTIFIC = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
"""Numbers that YAML 1.1 reads as text: `2e-6`, `1.5e3`."""
_FLOAT = "tag:yaml.org,2002:float"
_TRUTH = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
"""The only truth values; YAML 1.1 also has `yes`, `no`, `on` and `off`."""
_BOOL = "tag:yaml.org,2002:bool"
_LONG = 1_000_000
"""A line width that is never reached: values stay on one line."""


class Loader(yaml.SafeLoader):
    """`yaml.SafeLoader`, but `2e-6` is a number and a key that stands twice is an error, not a silent last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class does; refuses repeated keys."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """`yaml.SafeDumper`, but text that `Loader` reads as a number is quoted, and aliases are not used."""

    def ignore_aliases(self, data: Any) -> bool:
        """Values are written out in full every time."""
        return True


def _represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    """Text with unprintable characters, line breaks included, in double quotes: other styles lose some."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


Dumper.add_representer(str, _represent_text)
for _kind in (Loader, Dumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
        for first, resolvers in _kind.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver(_BOOL, _TRUTH, list("tTfF"))
Loader.add_implicit_resolver(_FLOAT, _SCIENTIFIC, list("-+0123456789"))
Dumper.add_implicit_resolver(_FLOAT, _SCIENTIFIC, list("-+0123456789"))


def parse(text: str) -> Any:
    """A YAML document as plain Python data.

    Raises:
        yaml.YAMLError: the text is not YAML, holds a tag, or repeats a key.
        ValueError: a scalar that looks like a date or a number is none.
    """
    return yaml.load(text, Loader)  # a SafeLoader


def reason(error: yaml.YAMLError | ValueError) -> str:
    """Why `parse` or `parse_value` failed, in a few words and on one line."""
    if isinstance(error, yaml.MarkedYAMLError):
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        return f"{line}{error.problem}"
    return " ".join(str(error).split())


def parse_value(text: str) -> Any:
    """The value of an override: a flow collection, a quoted text, or one plain scalar.

    A plain scalar is taken whole, so that `####` and `Finish with: Answer` are texts here, not a comment and a mapping.
    Nothing at all is the empty text; null is spelled `null`.

    >>> [parse_value(text) for text in ("2e-6", "null", "[boxed, hashes]", "####", "")]
    [2e-06, None, ['boxed', 'hashes'], '####', '']

    Raises:
        yaml.YAMLError, ValueError: as `parse`.
    """
    text = text.strip()
    if text == "":
        return ""
    if text[0] in "[{\"'":
        return parse(text)
    loader = Loader("")
    try:
        return loader.construct_object(yaml.ScalarNode(_tag(loader, text), text))
    finally:
        loader.dispose()


def render(value: Any) -> str:
    """A YAML document in block style, keys in the order given."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=_LONG, default_flow_style=False)


def inline(value: Any) -> str:
    """A value as one would type it after `KEY=`: `parse_value(inline(value)) == value`, on one line.

    >>> [inline(value) for value in (1e-6, None, True, "boxed", "12", "", ("a", "b"))]
    ['1e-06', 'null', 'true', 'boxed', '"12"', '""', '[a, b]']
    """
    if isinstance(value, float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    if isinstance(value, str) and _plain(value):
        return value
    plain = list(value) if isinstance(value, tuple) else value
    style = '"' if isinstance(value, str) else None
    text = yaml.dump(
        plain,
        Dumper=Dumper,
        default_flow_style=True,
        default_style=style,
        allow_unicode=True,
        width=_LONG,
        sort_keys=False,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _tag(loader: Loader, text: str) -> str:
    """The YAML type of a plain scalar."""
    return str(loader.resolve(yaml.ScalarNode, text, (True, False)))  # type: ignore[no-untyped-call]


def _plain(text: str) -> bool:
    """Whether a text, typed without quotes, is read back as itself."""
    if not text.isprintable() or text != text.strip() or text == "" or text[0] in "[{\"'":
        return False
    return _tag(Loader(""), text) == "tag:yaml.org,2002:str"
