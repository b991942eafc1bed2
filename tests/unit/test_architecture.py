"""Who may import whom, read from the source itself: nothing is imported to find out."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("model_registry", "gateway", "workers", "aviary")
TENSOR_LIBRARIES = frozenset(("torch", "transformers"))
LEAF_LIBRARIES = frozenset(("pydantic", "pydantic_core", "yaml", "msgspec"))

TORCH_FREE_ENGINE = tuple(
    f"workers.engine.{name}"
    for name in (
        "engine",
        "scheduler",
        "sequence",
        "stops",
        "detokenizer",
        "kv_cache",
        "paged_kv_cache",
        "slot_kv_cache",
        "loop",
        "echo",
        "embeddings",
        "tokenization",
    )
)
"""The engine's logic: testable in milliseconds, and the same for every runner."""


@dataclass(frozen=True)
class Module:
    name: str
    tree: ast.Module
    at_import: frozenset[str]
    """Dotted names imported when the module is."""
    later: frozenset[str]
    """Those imported inside functions, or for type checkers only."""

    @property
    def all_imports(self) -> frozenset[str]:
        return self.at_import | self.later


def dotted_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(statement: ast.AST) -> Iterator[str]:
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        assert statement.level == 0, "imports are absolute"
        yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_in(node: ast.AST, *, is_later: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue  # holds no statements
        yield from ((name, is_later) for name in imported_by(child))
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports_in(child, is_later=is_later or is_function or is_for_type_checkers(child))


def parsed(path: Path) -> Module:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    imports = list(imports_in(tree, is_later=False))
    return Module(
        name=dotted_name(path),
        tree=tree,
        at_import=frozenset(name for name, is_later in imports if not is_later),
        later=frozenset(name for name, is_later in imports if is_later),
    )


@cache
def modules() -> Mapping[str, Module]:
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {module.name: module for module in map(parsed, files)}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def modules_of(package: str) -> list[Module]:
    found = [module for name, module in modules().items() if within(name, package)]
    assert found, f"there is no {package}"
    return found


def own_imports(module: Module) -> frozenset[str]:
    """The modules of this project that are imported with this one; names inside them are cut off."""
    found = set()
    for name in module.at_import:
        candidates = (name, name.rpartition(".")[0])
        found.update([candidate for candidate in candidates if candidate in modules()][:1])
    return frozenset(found - {module.name})


def reachable(name: str) -> frozenset[str]:
    """Everything that importing the module leads to, without the packages on the way; the module itself if a circle."""
    seen: set[str] = set()
    waiting = set(own_imports(modules()[name]))
    while waiting:
        current = waiting.pop()
        seen.add(current)
        waiting |= own_imports(modules()[current]) - seen
    return frozenset(seen)


def top_level(names: frozenset[str]) -> frozenset[str]:
    return frozenset(name.partition(".")[0] for name in names)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("model_registry", {"gateway", "workers", "aviary"}),
        ("gateway", {"workers", "aviary"}),
        ("workers", {"gateway", "aviary"}),
    ],
)
def test_imports_between_packages_go_one_way_and_only_aviary_composes(package: str, forbidden: set[str]) -> None:
    offenders = {m.name: found for m in modules_of(package) if (found := top_level(m.all_imports) & forbidden)}
    assert offenders == {}


def test_the_model_registry_is_a_leaf_of_few_libraries() -> None:
    allowed = sys.stdlib_module_names | LEAF_LIBRARIES | {"model_registry"}
    offenders = {m.name: found for m in modules_of("model_registry") if (found := top_level(m.all_imports) - allowed)}
    assert offenders == {}


@pytest.mark.parametrize("package", ["gateway", "workers.pool", "aviary"])
def test_tensor_libraries_stay_out_of_what_runs_no_model(package: str) -> None:
    offenders = {m.name: found for m in modules_of(package) if (found := top_level(m.all_imports) & TENSOR_LIBRARIES)}
    assert offenders == {}


def test_in_the_gateway_only_the_pool_client_knows_ray() -> None:
    users = {m.name for m in modules_of("gateway") if "ray" in top_level(m.all_imports)}
    assert users <= {"gateway.pool_client"}


def test_in_the_workers_only_the_actors_know_ray() -> None:
    users = {m.name for m in modules_of("workers") if "ray" in top_level(m.all_imports)}
    assert {name for name in users if not within(name, "workers.pool")} <= {"workers.worker"}


@pytest.mark.parametrize("name", TORCH_FREE_ENGINE)
def test_the_engines_logic_comes_without_torch_and_ray(name: str) -> None:
    if name not in modules():
        pytest.fail(f"{name} is gone; rename it here too")
    heavy = TENSOR_LIBRARIES | {"ray"}
    together = [modules()[part] for part in reachable(name) | {name}]
    assert {m.name: found for m in together if (found := top_level(m.at_import) & heavy)} == {}
    assert not top_level(modules()[name].later) & heavy


def test_the_simulator_comes_without_ray_and_without_a_web_framework() -> None:
    names = {name for module in modules_of("aviary.simulation") for name in (module.name, *reachable(module.name))}
    heavy = TENSOR_LIBRARIES | {"ray", "grpc", "fastapi", "starlette"}
    assert {name: found for name in names if (found := top_level(modules()[name].at_import) & heavy)} == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert [name for name in modules() if name in reachable(name)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_opens_with_a_docstring(package: str) -> None:
    assert [module.name for module in modules_of(package) if not ast.get_docstring(module.tree)] == []
