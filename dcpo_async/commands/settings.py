"""The reference of every setting as Markdown, made from the models that define them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

Schema = Mapping[str, Any]

HEAD = """# Settings

Written by `dcpo settings > docs/settings.md`; edit the docstrings in `dcpo_async/config/`, not this page. In a TOML
file `a.b` is the key `b` of the table `[a]`; on the command line of `dcpo-learner` it is `--a.b VALUE`. A setting that
does not exist is refused, and so is a value out of its bounds.
"""
PIPE = r"\|"
"""A pipe inside a cell; a bare one would begin the next cell."""
_BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
_TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}


def settings_reference(config: type[BaseModel]) -> str:
    """Return a Markdown page: a table of the model's own fields, then one for each field that is a model itself.

    Args:
        config: its fields, and those of the models below, have defaults and descriptions.

    Example: `steps: Annotated[int, Field(gt=0)] = 5` with the docstring "How many." becomes
    ``| `steps` | integer > 0 | `5` | How many. |``.
    """
    schema = config.model_json_schema()
    fields, models = schema["properties"], schema.get("$defs", {})
    sections = {name: models[field["$ref"].rpartition("/")[2]] for name, field in fields.items() if "$ref" in field}
    own = {name: field for name, field in fields.items() if name not in sections}
    blocks = [HEAD, *_section("the run", schema["description"], own, prefix="")]
    for name, section in sections.items():
        blocks += _section(f"`[{name}]`", section["description"], section["properties"], prefix=f"{name}.")
        for inner, field in section["properties"].items():
            if model := _table_of(field):
                table, path = models[model], f"{name}.{inner}"
                blocks += _section(f"`[[{path}]]`", table["description"], table["properties"], prefix=f"{path}.")
    return "\n".join(blocks)


def _table_of(field: Schema) -> str:
    """The model whose tables a list holds; "" where it holds none."""
    reference: str = field.get("items", {}).get("$ref", "")
    return reference.rpartition("/")[2]


def _section(title: str, description: str, fields: Mapping[str, Schema], prefix: str) -> Iterator[str]:
    yield f"## {title[0].upper()}{title[1:]}\n\n{description}\n"
    yield "| name | type | default | what it does |\n|---|---|---|---|"
    for name, field in fields.items():
        cells = (f"`{prefix}{name}`", _type(field), _default(field), " ".join(field["description"].split()))
        yield f"| {' | '.join(cell.replace('|', PIPE) for cell in cells)} |"
    yield ""


def _default(field: Schema) -> str:
    if "default" not in field:
        return "must be given"
    return f"`{'none' if field['default'] is None else json.dumps(field['default'], ensure_ascii=False)}`"


def _type(field: Schema) -> str:
    if "anyOf" in field:
        return " or ".join(map(_type, field["anyOf"]))
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return " or ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    match field["type"]:
        case "null":
            return "none"
        case "object":
            return "table"
        case "array" if _table_of(field):
            return "tables"
        case "array":
            # A tuple of fixed length names each of its items, one of any length their common type.
            return f"list of {' and '.join(map(_type, field.get('prefixItems') or [field['items']]))}"
        case "string" if field.get("format") == "path":
            return "path"
        case plain:
            bounds = (f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field)
            return f"{_TYPES[plain]} {', '.join(bounds)}".strip()
