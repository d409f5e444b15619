"""The directions of import that the house is built on, read from the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FEATURES = {"train", "export", "chat", "hub", "evals"}
SCREEN = {"tui", "textual"}
# The engine's client and the list of models are what a screen needs, with their values, files, and the start.
SCREEN_MAY_USE = {"chat", "catalogue", "errors", "files", "start", "thoughts", "values"}
# What the light core lacks: only inside functions, in every module another one imports at its top.
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "accelerate",
    "unsloth",
    "llama_cpp",
    "textual",
    "safetensors",
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Each module that `path` imports, and whether that happens as soon as `path` is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    yield from _imports(tree, package, at_top=True)


def _imports(node: ast.AST, package: str, at_top: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                above = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*above, base] if base else above)
            yield base, at_top
            yield from ((f"{base}.{alias.name}", at_top) for alias in child.names)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, package, at_top=False)
        elif isinstance(child, ast.If) and _only_for_types(child.test):
            for other in child.orelse:
                yield from _imports(other, package, at_top)
        else:
            yield from _imports(child, package, at_top)


def _only_for_types(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def room(module: str) -> str | None:
    """`ftllm.evals.report` -> `evals`; None outside ftllm and for `ftllm` itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ftllm" and len(parts) > 1 else None


def complaints() -> Iterator[str]:
    for path in sources("ftllm"):
        here = room(module_name(path))
        at = path.relative_to(ROOT)
        for imported, _ in imports(path):
            there = room(imported)
            if imported.split(".")[0] in SCREEN and at != Path("ftllm/cli/chat.py"):
                yield f"{at} imports {imported}: only the screen itself and ftllm/cli/chat.py may"
            if here != "cli" and here != "__main__" and there == "cli":
                yield f"{at} imports {imported}: nothing below the command line may"
            if here in FEATURES and there in FEATURES and here != there:
                yield f"{at} imports {imported}: features do not import each other"
            if here not in FEATURES | {"cli"} and there in FEATURES:
                yield f"{at} imports {imported}: shared rooms do not import features"
    for path in sources("tui"):
        for imported, _ in imports(path):
            there = room(imported)
            if there is not None and there not in SCREEN_MAY_USE and imported != "ftllm.__version__":
                yield f"{path.relative_to(ROOT)} imports {imported}: the screen talks to ftllm.chat and ftllm.catalogue"


def test_directions() -> None:
    assert list(complaints()) == []


def test_heavy_libraries_wait_inside_functions_of_the_command_line() -> None:
    """A verb's `--help` costs no heavy import: neither its file nor anything that file imports at its top has one."""
    for path in sources("ftllm/cli"):
        for module in reached(module_name(path)):
            heavy = {name for name, at_top in imports(file_of(module)) if at_top and name.split(".")[0] in HEAVY}  # type: ignore[arg-type]
            assert not heavy, f"{path.relative_to(ROOT)} reaches {module}, which imports {sorted(heavy)} at its top"


def file_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def reached(module: str) -> set[str]:
    """`module` and every module of ours that importing it imports."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = file_of(name)
        if name in found or path is None or name.split(".")[0] not in ("ftllm", "tui"):
            continue
        found.add(name)
        waiting += [imported for imported, at_top in imports(path) if at_top]
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b", [("a.b", True)]),
        ("from a import b", [("a", True), ("a.b", True)]),
        ("from . import b", [("pack", True), ("pack.b", True)]),
        ("from ..x import y", [("x", True), ("x.y", True)]),
        ("def f():\n    import torch", [("torch", False)]),
        ("if TYPE_CHECKING:\n    import torch", []),
        ("try:\n    import a\nexcept ImportError:\n    pass", [("a", True)]),
    ],
)
def test_reader(source: str, expected: list[tuple[str, bool]]) -> None:
    package = "pack" if ".." not in source else "top.pack"
    found = [(name.removeprefix("top."), at_top) for name, at_top in _imports(ast.parse(source), package, at_top=True)]
    assert found == expected
