"""What is wrong with a config by its schema, in words: the key, the value, what is wanted, and the nearest name."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, cast

from jsonschema import Draft202012Validator, TypeChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

LONGEST = 60
"""Characters of a value that are shown."""

Schema = Mapping[str, Any]


def _whole(_: TypeChecker, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(checker: TypeChecker, value: object) -> bool:
    return _whole(checker, value) or (isinstance(value, float) and math.isfinite(value))


# JSON takes 8.0 for a whole number; a range of prompts does not. NaN and infinity are YAML, and no JSON.
Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _whole, "number": _number}),
)


def problems(config: Any, schema: Schema) -> list[str]:
    """What is wrong with a config, a line each.

    A part of the schema says what is wanted there in ``wanted``, where its keywords alone would not be understood.

    Args:
        config: What was read.
        schema: JSON Schema.
    """
    if not isinstance(config, dict):
        return [f"the config is {shown(config)}: wanted keys and values"]
    found: dict[str, None] = dict.fromkeys(_breaks(config, ()))
    errors = sorted(
        Validator(schema).iter_errors(config), key=lambda error: [str(part) for part in error.absolute_path]
    )
    for error in errors:
        found |= dict.fromkeys(_in_words(error, schema))
    return list(found)


def nearest(name: object, names: Iterable[str], also: str = "") -> str:
    """A question whether another name was meant, where one is near; nothing where none is.

    Args:
        name: What was given.
        names: What might have been meant.
        also: Stands before the name that is suggested.
    """
    given, by_lower = str(name).lower(), {each.lower(): each for each in names}
    close = get_close_matches(given, by_lower, 1, 0.6) or [
        each for each in by_lower if given and each.startswith(given)
    ]
    return f"; did you mean {also}{by_lower[close[0]]}?" if close else ""


def shown(value: object) -> str:
    """A value as an error shows it: in one line, cut where it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def dotted(path: Iterable[object]) -> str:
    """A key of the config as errors call it: ``models.mine.parts[0].source``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _breaks(value: object, path: tuple[object, ...]) -> Iterator[str]:
    """Text of more than one line, in names and values: it would break paths, captions and logs."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                yield f"{dotted((*path, shown(key)))} is no name: wanted text; put it in quotes"
            elif not key.isprintable():
                yield f"{dotted((*path, shown(key)))} is no name: it holds a line break or another character that is not seen"
            else:
                yield from _breaks(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _breaks(inner, (*path, number))
    elif isinstance(value, str) and not value.isprintable():
        yield (
            f"{dotted(path)} is {shown(value)}: wanted text in one line, without a line break or another character that is not "
            "seen"
        )


def _in_words(error: ValidationError, root: Schema) -> Iterator[str]:
    path, value, schema = list(error.absolute_path), cast(Any, error.instance), cast(Schema, error.schema)
    key = dotted(path)
    match error.validator:
        case "additionalProperties":
            known = schema["properties"]
            for name in (name for name in value if isinstance(name, str) and name not in known):
                yield _unknown(name, path, known, root)
        case "required":
            # Those that are misspelt are said already.
            needed = [name for name in cast(Any, error.validator_value) if name not in value]
            unknown = [str(other) for other in value if other not in schema.get("properties", {})]
            needed = [name for name in needed if not any(get_close_matches(other, [name]) for other in unknown)]
            if len(needed) == 1:
                yield f"{key or 'the config'} has no {needed[0]}: wanted {_wanted(_part(root, (*path, *needed)), root)}"
            elif needed:
                yield f"{key or 'the config'} has no {_or(needed)}: all of them are needed"
        case _ if "propertyNames" in error.absolute_schema_path:
            yield f"{key} has {shown(value)}, which is no name: wanted {_wanted(schema, root)}"
        case "minItems" if not value:
            yield f"{key} is empty: wanted {_wanted(schema, root)}"
        case "uniqueItems":
            twice = next(each for number, each in enumerate(value) if each in value[:number])
            yield f"{key} has {shown(twice)} twice: once is enough"
        case _:
            choices = _choices(schema, root)
            near = nearest(value, choices) if isinstance(value, str) and len(choices) > 1 else ""
            yield f"{key} is {shown(value)}: wanted {_wanted(schema, root)}{near}"


def _unknown(name: str, path: Sequence[object], known: Iterable[str], root: Schema) -> str:
    """A key that there is not: a near one beside it, or the same elsewhere."""
    key, known = dotted((*path, name)), list(known)
    if near := nearest(name, known, f"{dotted(path)}." if path else ""):
        return f"{key} is no key{near}"
    elsewhere = [other for other in _keys(root) if other.rpartition(".")[2] == name]
    if elsewhere:
        return f"{key} is no key; did you mean {' or '.join(elsewhere)}?"
    return f"{key} is no key: wanted {_or(known)}"


def _keys(schema: Schema) -> list[str]:
    """Keys of the sections, dotted."""
    sections = schema["properties"].items()
    return [f"{name}.{key}" for name, part in sections for key in part.get("properties", {})] + list(
        schema["properties"]
    )


def _resolved(schema: Schema, root: Schema) -> Schema:
    """A part of the schema with what it refers to."""
    if "$ref" not in schema:
        return schema
    at: Any = root
    for step in schema["$ref"].removeprefix("#/").split("/"):
        at = at[step]
    return {**_resolved(at, root), **{name: value for name, value in schema.items() if name != "$ref"}}


def _part(root: Schema, path: Sequence[object]) -> Schema:
    """The schema of a key."""
    at = root
    for step in path:
        at = _resolved(at, root)
        if isinstance(step, int):
            at = at.get("items", {})
        else:
            at = at.get("properties", {}).get(step) or at.get("additionalProperties") or {}
    return _resolved(at, root)


def _choices(schema: Schema, root: Schema) -> list[str]:
    """Words that a value may be."""
    schema = _resolved(schema, root)
    own = [each for each in schema.get("enum", []) if isinstance(each, str)]
    return own + [word for part in schema.get("oneOf", []) for word in _choices(part, root)]


def _wanted(schema: Schema, root: Schema) -> str:
    schema = _resolved(schema, root)
    if "wanted" in schema:
        return str(schema["wanted"])
    if "enum" in schema:
        return _or([str(each) for each in schema["enum"]])
    types = schema.get("type", "object")
    types = [types] if isinstance(types, str) else types
    return _or([_of_type(each, schema, root) for each in types])


def _of_type(type_: str, schema: Schema, root: Schema) -> str:
    match type_:
        case "integer" | "number":
            what = "a whole number" if type_ == "integer" else "a number"
            low, above, most = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
            if above is not None:
                what += f" above {above}"
            if low is not None:
                what += f" from {low} to {most}" if most is not None else f" of {low} or more"
            elif most is not None:
                what += f", {most} at most"
            return what
        case "boolean":
            return "true or false"
        case "string":
            return "text"
        case "array":
            what = _wanted(schema["items"], root) if "items" in schema else "values"
            most = f", {schema['maxItems']} at most" if "maxItems" in schema else ""
            return f"a list, of {what} each{most}"
        case "object":
            return (
                f"keys and values ({_or(list(schema['properties']))})" if "properties" in schema else "keys and values"
            )
    return type_


def _or(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
