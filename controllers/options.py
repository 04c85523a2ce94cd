"""Turns the options of a policy reference (`level=3`) into arguments of the types that the policy's `__init__` tells."""

import inspect
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from testbed.errors import UserError, suggestion

_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_TYPES: dict[type, str] = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}


def typed_options(policy: type[Any], options: tuple[tuple[str, str], ...], where: str) -> tuple[tuple[str, Any], ...]:
    """`options` as keyword arguments of `policy`; `where` begins each error.

    Understood annotations: int, float, str, bool, Literal, and unions of them and None, whose first type that fits is taken. Without one
    an option is of its default's type.
    """
    parameters = _parameters(policy)
    hints = _hints(policy, where) if options else {}
    for name, _ in options:
        if name not in parameters:
            wanted = suggestion(name, parameters) if parameters else "wanted none: this policy takes no option"
            raise UserError(f"{where}: option {name!r} is unknown, {wanted}")
    given = dict(options)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            raise UserError(f"{where}: option {name!r} has no default, wanted +{name}=value")
    kinds = {name: hints.get(name, _kind(parameter.default)) for name, parameter in parameters.items()}
    return tuple((name, _value(text, kinds[name], f"{where}: option {name!r}")) for name, text in options)


def options_of(policy: type[Any]) -> list[str]:
    """`name=default` of each option; of one without a default `name=`."""
    parameters = _parameters(policy)
    return [f"{name}={'' if each.default in (inspect.Parameter.empty, None) else each.default}" for name, each in parameters.items()]


def _hints(policy: type[Any], where: str) -> dict[str, Any]:
    """Annotations of the options; those that only a type checker can read are no one's to give on a command line."""
    try:
        return get_type_hints(policy.__init__)
    except Exception as error:  # whatever a user's annotations may name
        told = f"{type(error).__name__}: {error}"
        raise UserError(f"{where}: the types of its options can't be read ({told}), wanted names that are imported when it runs") from None


def _parameters(policy: type[Any]) -> dict[str, inspect.Parameter]:
    if policy.__init__ is object.__init__:
        return {}
    parameters = inspect.signature(policy).parameters
    return {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _kind(default: object) -> type:
    """Type of an option that only has this default, if a text can give that type; else str."""
    return type(default) if type(default) in _TYPES else str


def _value(text: str, hint: Any, where: str) -> Any:
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [kind for kind in alternatives if kind is not NoneType] or [str]  # `int | None` takes an int
    told: list[str] = []
    for kind in kinds:
        try:
            return _of_kind(text, kind, where)
        except UserError as error:
            told.append(str(error))
    raise UserError(" or ".join([told[0], *(each.rpartition(", wanted ")[2] for each in told[1:])]))


def _of_kind(text: str, kind: Any, where: str) -> Any:
    if get_origin(kind) is Literal:
        return _choice(text, get_args(kind), where)
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise UserError(f"{where} is {text!r}, wanted true or false")
        return _BOOLS[text.lower()]
    if kind not in _TYPES:
        raise UserError(f"{where} is of type {kind}, which no text can give, wanted int, float, str, bool or Literal")
    try:
        value: Any = kind(text)
        if kind is float and not isfinite(value):
            raise ValueError(text)
    except ValueError as error:
        raise UserError(f"{where} is {text!r}, wanted {_TYPES[kind]}") from error
    return value


def _choice(text: str, choices: tuple[Any, ...], where: str) -> Any:
    for choice in choices:
        if str(choice) == text:
            return choice
    raise UserError(f"{where} is {text!r}, wanted one of {', '.join(map(str, choices))}")
