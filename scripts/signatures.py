"""The signatures of an installed library's functions, read from its source: nothing of it is imported or run."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def source_of(module: str) -> Path:
    """The file of a module, found by its top package's place alone.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    package, *rest = module.split(".")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed", name=package)
    path = Path(spec.origin).parent.joinpath(*rest)
    found = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
    if found is None:
        raise ModuleNotFoundError(f"{module} is not there", name=module)
    return found


def signature(module: str, name: str) -> inspect.Signature:
    """The signature of `name` (`function` or `Class.method`) in a module; defaults are their source text.

    Raises:
        LookupError: there is no such function.
    """
    return inspect.Signature(list(_parameters(_definition(module, name).args)))


def _definition(module: str, name: str) -> ast.FunctionDef:
    body: list[ast.stmt] = ast.parse(source_of(module).read_text(encoding="utf-8")).body
    *classes, function = name.split(".")
    for outer in classes:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == outer), [])
    found = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == function), None)
    if found is None:
        raise LookupError(f"{module} has no {name}")
    return found


def _parameters(arguments: ast.arguments) -> Any:
    positional = [*arguments.posonlyargs, *arguments.args]
    without = len(positional) - len(arguments.defaults)
    for index, argument in enumerate(positional):
        default = inspect.Parameter.empty if index < without else ast.unparse(arguments.defaults[index - without])
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        yield inspect.Parameter(argument.arg, kind, default=default)
    if arguments.vararg:
        yield inspect.Parameter(arguments.vararg.arg, inspect.Parameter.VAR_POSITIONAL)
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        default = inspect.Parameter.empty if value is None else ast.unparse(value)
        yield inspect.Parameter(argument.arg, inspect.Parameter.KEYWORD_ONLY, default=default)
    if arguments.kwarg:
        yield inspect.Parameter(arguments.kwarg.arg, inspect.Parameter.VAR_KEYWORD)


def complaints(module: str, name: str, given: Mapping[str, Any], *positional: Any) -> list[str]:
    """What is wrong with calling a function so: arguments that it does not know, or lacks.

    One that its `**kwargs` would take counts as known where the function asks for it there by its name.
    """
    found = signature(module, name)
    asked = _asked_for(_definition(module, name))
    unknown = [key for key in given if key not in found.parameters and key not in asked]
    wrong = [f"{module}.{name} has no argument {key}" for key in unknown]
    try:
        found.bind(*positional, **given)
    except TypeError as error:
        wrong.append(f"{module}.{name}: {error}")
    return wrong


def _asked_for(function: ast.FunctionDef) -> set[str]:
    """The names that a function looks for in its `**kwargs`: `kwargs["name"]`, `kwargs.get("name")` and the like."""
    if function.args.kwarg is None:
        return set()
    name = function.args.kwarg.arg
    keys: list[ast.expr] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == name:
            keys.append(node.slice)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (f"{name}.get", f"{name}.pop"):
            keys += node.args[:1]
    return {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
