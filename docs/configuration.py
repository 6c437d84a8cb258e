"""The reference of the configuration, made from its schema and from the comments of config.yaml, which is the manual."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TYPES = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "a mapping",
}
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def reference(schema: Path, manual: Path) -> str:
    """Markdown with a section for every setting: what it may be, its default, and what `manual` says above it.

    A setting without a comment, as those in a list of mappings, is told in the words of the schema.
    """
    text = manual.read_text(encoding="utf-8")
    settings = yaml.safe_load(schema.read_text(encoding="utf-8"))["properties"]
    said = comments(text)
    return "\n".join(line for name, default in yaml.safe_load(text).items() for line in section(name, settings[name], default, said))


def comments(text: str) -> dict[str, list[str]]:
    """The lines of the comment above each key of a YAML file, by the key's dotted path."""
    lines = text.splitlines()
    said = {}
    for path, line in keys(yaml.compose(text)):
        first = line
        while first > 0 and lines[first - 1].lstrip().startswith("#"):
            first -= 1
        said[path] = [found.lstrip()[2:] for found in lines[first:line]]
    return said


def keys(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(dotted path, line) of the keys of nested mappings, but of those that are written on one line with their parent."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield prefix + key.value, key.start_mark.line
            if value.start_mark.line > key.start_mark.line:
                yield from keys(value, f"{prefix}{key.value}.")


def section(path: str, schema: dict[str, Any], default: Any, said: dict[str, list[str]]) -> Iterator[str]:
    """Lines of Markdown on a setting and all below it."""
    below = [name for name in schema.get("properties", {}) if f"{path}.{name}" in said]
    yield f"\n{'###' if '.' in path else '##'} {path}\n"
    if not below:
        yield f"*{values(schema)}*; default {shown(default)}\n"
    yield from prose(said[path], names(schema)) if said[path] else [sentence(schema)]
    if below:
        for name in default:
            yield from section(f"{path}.{name}", schema["properties"][name], default[name], said)
    else:
        yield from table((schema | schema.get("items", {}) | schema.get("then", {})).get("properties", {}))


def values(schema: dict[str, Any]) -> str:
    """What the schema allows, in words."""
    if "enum" in schema:
        return "one of " + ", ".join(f"`{in_yaml(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "type" not in schema:
        return ", or ".join(values(option) for option in schema["oneOf"])
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = [" or ".join(TYPES[name] for name in types)]
    words += [f"{word} {schema[name]}" for name, word in BOUNDS.items() if name in schema]
    words += [f"each {values(schema['items'])}"] if "items" in schema else []
    return ", ".join(words)


def names(schema: Any) -> set[str]:
    """The keys and values that a schema knows by name."""
    if isinstance(schema, list):
        return {name for inner in schema for name in names(inner)}
    if not isinstance(schema, dict):
        return set()
    here = {*schema.get("properties", {}), *schema.get("enum", ())}
    return here.union(*(names(inner) for inner in schema.values()))


def sentence(schema: dict[str, Any]) -> str:
    return escaped(schema["description"][0].upper() + schema["description"][1:] + ".")


def in_yaml(value: Any) -> str:
    """A value as it is written in a configuration, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("\n").removesuffix("\n...")


def shown(default: Any) -> str:
    """A default, of which a text of several lines or a list of mappings takes a block of its own."""
    if isinstance(default, str) and "\n" in default:
        return f"\n\n```text\n{default}\n```"
    if isinstance(default, list) and default and isinstance(default[0], dict):
        return f"\n\n```yaml\n{yaml.safe_dump(default, sort_keys=False)}```"
    return f"`{in_yaml(default)}`"


def table(settings: dict[str, Any]) -> Iterator[str]:
    """The keys of a mapping, one a line."""
    if settings:
        yield "\n| key | may be | default | what it is |\n|---|---|---|---|"
    for name, schema in settings.items():
        inner = ", ".join(f"`{key}`" for key in schema.get("properties", {}))
        may_be = values(schema) + (f" with any of {inner}" if inner else "")
        yield f"| `{name}` | {may_be} | {shown(schema['default']) if 'default' in schema else ''} | {sentence(schema)} |"


def prose(lines: list[str], known: set[str]) -> Iterator[str]:
    """A comment as Markdown. Lines that begin with known names and a colon are a list, and deeper ones belong to it."""
    depth = None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        item = re.match(r"\s*([\w, ]+): +", line)
        if item and known.issuperset(item[1].split(", ")):
            depth = indent
            listed = ", ".join(f"`{name}`" for name in item[1].split(", "))
            yield f"- {listed}: {escaped(line[item.end() :])}"
        elif depth is not None and indent > depth:
            yield f"  {escaped(line.strip())}"
        else:
            # A blank line ends the list.
            yield from [""] if depth is not None else []
            depth = None
            yield escaped(line.strip())


def escaped(text: str) -> str:
    """Text that Markdown takes as it is, but for `code`; pages of the documentation become links."""
    parts = re.split(r"(`[^`]+`)", text)
    parts[::2] = [re.sub(r"([\\*_<>\[\]|])", r"\\\1", part) for part in parts[::2]]
    return re.sub(r"docs/(\w+)\.md", r"[\1](../\1.md)", "".join(parts))
