"""Checking a configuration against its schema, with messages for people."""

from pathlib import Path
from typing import Any

import jsonschema
import yaml


class SettingsError(ValueError):
    """The configuration is wrong; the message names the key and what was expected."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's would take the last and drop the first without a word."""

    # Before merge keys (<<) are filled in, whose settings may well stand beside them again.
    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                at = key.start_mark.line + 1
                if key.value in lines:
                    raise SettingsError(f"{key.start_mark.name}: line {at}: the key {key.value!r} stands in line {lines[key.value]} already")
                lines[key.value] = at
        return node


def _fill_defaults(value: Any, schema: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, inner in schema.get("properties", {}).items():
            if "default" in inner:
                value.setdefault(key, inner["default"])
            if key in value:
                _fill_defaults(value[key], inner)
    elif isinstance(value, list):
        for item in value:
            _fill_defaults(item, schema.get("items", {}))


def _sort_keys(value: Any) -> None:
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _sort_keys(item)
    if isinstance(value, dict):
        for key in sorted(value):
            value[key] = value.pop(key)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it as Snakemake does with --configfile: mappings merged, all else replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def validate(config: dict[str, Any], schema: dict[str, Any]) -> None:
    """Check `config`, fill the schema's defaults and sort the keys of all mappings, in place.

    Sorted, since Snakemake compares what jobs are given as text: the order of keys must not rerun them. Raises SettingsError with one sentence per mistake.
    """
    _fill_defaults(config, schema)
    validator = jsonschema.Draft202012Validator(schema)
    problems = [_sentence(error) for error in sorted(validator.iter_errors(config), key=lambda e: list(map(str, e.path)))]
    if problems:
        raise SettingsError("The configuration cannot be used:\n" + "\n".join(f"  {p}" for p in problems))
    _sort_keys(config)


def read(path: Path) -> dict[str, Any]:
    """The settings that stand in a file. Raises SettingsError."""
    try:
        with path.open(encoding="utf-8") as file:
            found = yaml.load(file, _Loader)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise SettingsError(f"{path}: expected a mapping of settings")
    return found


def load(folder: Path, *files: Path) -> dict[str, Any]:
    """The configuration of `folder`/config.yaml with `files` laid over it, checked by `folder`/schema.yaml.

    As the workflow reads it, for what runs beside Snakemake. Raises SettingsError.
    """
    config: dict[str, Any] = {}
    for path in (folder / "config.yaml", *files):
        config = merge(config, read(path))
    validate(config, yaml.safe_load((folder / "schema.yaml").read_text(encoding="utf-8")))
    return config


def _sentence(error: jsonschema.ValidationError) -> str:
    key = ".".join(str(step) for step in error.absolute_path) or "the configuration"
    expected = f"; expected: {error.schema['description']}" if "description" in error.schema else ""
    if error.validator == "additionalProperties":
        allowed = sorted(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(allowed))
        return f"{key}: unknown key {', '.join(map(repr, unknown))}; expected one of {', '.join(allowed)}"
    if error.validator == "oneOf":
        found = f"the keys {', '.join(error.instance)}" if isinstance(error.instance, dict) else repr(error.instance)
        return f"{key}: found {found}{expected}"
    return f"{key}: {error.message}{expected}"
