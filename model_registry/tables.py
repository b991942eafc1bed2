"""Writes what is generated from the schema: this folder's README tables and the JSON schema of a registry file.

    python -m model_registry.tables            shows the tables
    python -m model_registry.tables --write    brings README.md and registry.schema.json up to date

A test fails while either is stale. Not imported by anything that serves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from model_registry.keys import sections_in, type_of, yaml_names
from model_registry.schema import RegistryEntry, Section

FOLDER: Final = Path(__file__).parent
README: Final = FOLDER / "README.md"
JSON_SCHEMA: Final = FOLDER / "registry.schema.json"
BEGIN: Final = "<!-- tables: begin, written by `python -m model_registry.tables --write` -->"
END: Final = "<!-- tables: end -->"

_EXTENDS: Final = "Another file, by its name, whose keys apply where this file does not give its own."
_WHOLE: Final = "File"
_EXTENDING: Final = "Extending"
_DEFS: Final = "#/$defs/"
_SIGNS: Final = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_WORDS: Final = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    dict: "mapping",
    list: "list",
}


def tables() -> str:
    """One Markdown table per section, in the order of a file."""
    rows = ["| key | value | default | meaning |", "|---|---|---|---|", f"| `extends` | file name | | {_EXTENDS} |"]
    blocks = ["\n".join(["### The file", "", *rows, *_rows(RegistryEntry)])]
    for title, section in dict.fromkeys(_sections("", RegistryEntry)):
        blocks.append("\n".join([f"### {title}", "", *_intro(section), *rows[:2], *_rows(section)]))
    return "\n\n".join(blocks) + "\n"


def json_schema() -> dict[str, Any]:
    """The schema of a file for editors and checkers: in full, or building on another file by `extends`."""
    whole = RegistryEntry.model_json_schema(by_alias=True)
    sections = {**whole.pop("$defs"), _WHOLE: whole}
    sections = {name: _readable(schema) for name, schema in sections.items()}
    _add_old_names(sections, {below.__name__: below for _, below in _sections("", RegistryEntry)})
    extending = {f"{_EXTENDING}{name}": _without_required(schema) for name, schema in sections.items()}
    root = extending[f"{_EXTENDING}{_WHOLE}"]
    root["properties"] = {"extends": {"type": "string", "description": _EXTENDS}, **root["properties"]}
    root["required"] = ["extends", "model_config"]
    extending[f"{_EXTENDING}ModelConfig"]["required"] = ["model_id"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Aviary registry file",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": f"#/$defs/{_EXTENDING}{_WHOLE}"},
        "else": {"$ref": f"#/$defs/{_WHOLE}"},
        "$defs": dict(sorted({**sections, **extending}.items())),
    }


def _readable(node: Any) -> Any:
    """Without titles that repeat the key, without defaults of whole sections, without OpenAPI's discriminators."""
    if isinstance(node, list):
        return [_readable(item) for item in node]
    if not isinstance(node, dict):
        return node
    dropped = {"discriminator"} if "oneOf" in node else set()
    if isinstance(node.get("title"), str):
        dropped.add("title")
    if "$ref" in node:
        dropped.add("default")
    return {key: _readable(value) for key, value in node.items() if key not in dropped}


def _add_old_names(schemas: Mapping[str, Any], sections: Mapping[str, type[Section]]) -> None:
    for name, section in sections.items():
        properties = schemas[name]["properties"]
        for attribute, field in section.model_fields.items():
            today, *old = yaml_names(attribute, field)
            for key in old:
                properties[key] = {**properties[today], "deprecated": True, "description": f"Old name of `{today}`."}


def _without_required(node: Any) -> Any:
    """The schema of a section that may leave out anything, because the base file has it."""
    if isinstance(node, list):
        return [_without_required(item) for item in node]
    if not isinstance(node, dict):
        return node
    loose = {key: _without_required(value) for key, value in node.items() if not _is_required_list(key, value)}
    if "$ref" in loose:
        loose["$ref"] = loose["$ref"].replace(_DEFS, f"{_DEFS}{_EXTENDING}")
    if "oneOf" in loose:
        loose["anyOf"] = loose.pop("oneOf")
    if not any(loose.get("anyOf", [True])):
        del loose["anyOf"]  # a choice between lists of required keys
    return loose


def _is_required_list(key: str, value: object) -> bool:
    return key == "required" and isinstance(value, list)


def readme_with_tables(readme: str) -> str:
    """The README's text with the tables between its markers brought up to date."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has lost its markers, {BEGIN} and {END}; put them back")
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def json_schema_text() -> str:
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model_registry.tables", description="Registry tables and schema.")
    parser.add_argument("--write", action="store_true", help=f"bring {README.name} and {JSON_SCHEMA.name} up to date")
    if not parser.parse_args().write:
        sys.stdout.write(tables())
        return
    README.write_text(readme_with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
    JSON_SCHEMA.write_text(json_schema_text(), encoding="utf-8")


def _intro(section: type[Section]) -> list[str]:
    return [" ".join(section.__doc__.split()), ""] if section.__doc__ and section.__doc__ != Section.__doc__ else []


def _sections(prefix: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    for attribute, field in section.model_fields.items():
        key = f"{prefix}{yaml_names(attribute, field)[0]}"
        for below in sections_in(field.annotation):
            chosen_by = type_of(below)
            yield (f"`{key}`" if chosen_by is None else f"`{key}` of type `{chosen_by}`"), below
            yield from _sections(f"{key}.", below)


def _rows(section: type[Section]) -> Iterator[str]:
    for attribute, field in section.model_fields.items():
        today, *old = yaml_names(attribute, field)
        names = f"`{today}`" + "".join(f" (old: `{name}`)" for name in old)
        yield f"| {names} | {_kind(field)} | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    default = field.default
    if default is None or isinstance(default, BaseModel) or default in ("", {}, []):
        return ""
    return f"`{json.dumps(default)}`"


def _kind(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {value:g}"
        for bound in _metadata(field)
        for name, sign in _SIGNS.items()
        if isinstance(value := getattr(bound, name, None), int | float)
    ]
    return " ".join([" or ".join(_kinds(field.annotation)), ", ".join(bounds)]).strip()


def _metadata(field: FieldInfo) -> list[Any]:
    """The field's constraints, also those inside an optional type."""
    inner = [entry for argument in get_args(field.annotation) for entry in getattr(argument, "__metadata__", ())]
    nested = [bound for entry in inner for bound in getattr(entry, "metadata", ())]
    return [*field.metadata, *nested]


def _kinds(annotation: Any) -> list[str]:
    """What a value may be, each once: the members of unions, without null."""
    origin = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return ["section"]
    if origin is Literal:
        return [", ".join(f"`{value}`" for value in get_args(annotation))]
    if (word := _WORDS.get(origin or annotation)) is not None:
        return [word]
    members = get_args(annotation)[:1] if origin is Annotated else get_args(annotation)
    return list(dict.fromkeys(kind for member in members for kind in _kinds(member)))


if __name__ == "__main__":
    main()
