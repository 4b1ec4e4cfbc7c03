"""Imports point down only. Read from the source, so that an import inside a function counts like any other."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import somatize_worker

PACKAGE = "somatize_worker"
ROOT = Path(somatize_worker.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

_BASE = {"errors", "settings", "packing", "report", "values", "requirements", "readable"}
_MESSAGES = _BASE | {"protocol", "ports"}
_DATA = _MESSAGES | {"pipeline", "stores", "ledger"}
_SENDING = _DATA | {"transport", "messaging", "submission"}

#: What each part may import of ours: its own kind, and the parts listed here.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "settings": {"errors"},
    "packing": {"errors"},
    "report": {"errors", "packing"},
    "values": {"errors", "packing"},
    "requirements": {"errors"},
    "readable": set(),
    "orphan": set(),
    "owned": {"orphan"},
    "protocol": {"errors", "packing", "values"},
    "ports": {"errors", "packing", "protocol"},
    "pipeline": _MESSAGES,
    "stores": _MESSAGES,
    "ledger": _MESSAGES,
    "transport": set(),
    "messaging": _BASE | {"ledger", "transport"},
    "job rules": _BASE,
    "submission": _DATA | {"job rules"},
    "hosts": _DATA | {"orphan"},
    "jobs": _DATA | {"job rules", "hosts"},
    "worker": _SENDING | {"job rules", "hosts", "jobs"},
    "coordinator": _SENDING | {"job rules"},
    "server": {"errors", "owned"},
    "local": _SENDING | {"coordinator", "server", "orphan", "owned"},
    "cli": _SENDING | {"coordinator", "server", "local", "worker", "hosts", "job rules", "jobs"},
    "__main__": {"cli"},
}

#: Modules that stand lower than the folder they lie in: clients check jobs by the same rules as workers.
LOWER = {f"jobs.{name}": "job rules" for name in ("validation", "entry", "paths", "outcome")}

#: These run in filter hosts of any environment, with all that they import: nothing but these packages may be there.
LIGHT_ROOTS = [
    "hosts/inside/*.py",
    "report.py",
    "pipeline/filter.py",
    "pipeline/adapters.py",
    "stores/formats.py",
]
LIGHT_PACKAGES = {"cloudpickle", "msgpack", "numpy", *sys.stdlib_module_names}

#: What light modules may import inside functions, for users who have it.
OPTIONAL_PACKAGES = {"sklearn", "scipy", "torch"}

#: Who looks at the environment beside settings.py, and why.
ENVIRONMENT_READERS = {
    "local/cluster.py": "hands its own environment on to the workers that it starts",
    "report.py": "reads the file descriptor that a job's worker gave it",
}


def imports(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """(dotted name, line, at the module's top level) of every import except those for the type checker."""
    for node, top in _statements(tree, top=True):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from ((f"{node.module}.{alias.name}", node.lineno, top) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"import_module", "importlib.import_module"}:
            yield from ((str(one.value), node.lineno, top) for one in node.args[:1] if isinstance(one, ast.Constant))


def _statements(node: ast.AST, *, top: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield child, top
        yield from _statements(child, top=top and not inside)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return LOWER.get(".".join(parts), parts[0])


def ours(dotted: str) -> str | None:
    """The part of ours that an import names (a public name of the package leads to its home), None for others'."""
    package, _, rest = dotted.partition(".")
    if package != PACKAGE:
        return None
    first, *more = rest.split(".")
    if first in ALLOWED or not first:
        return LOWER.get(".".join([first, *more[:1]]), first) or None
    home = somatize_worker._HOMES.get(first, "somatize_worker.errors")
    return home.split(".")[1]


def module_of(dotted: str) -> Path | None:
    """The file of ours in which an imported name lives."""
    for candidate in (dotted, dotted.rpartition(".")[0]):
        path = ROOT.parent.joinpath(*candidate.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def light_modules() -> dict[Path, str]:
    """Every module that light code loads as it is imported, with one that imports it."""
    found = {path: "itself" for pattern in LIGHT_ROOTS for path in ROOT.glob(pattern)}
    ahead = list(found)
    while ahead:
        path = ahead.pop()
        for dotted, _, top in imports(ast.parse(path.read_text())):
            target = module_of(dotted) if top and dotted.startswith(PACKAGE) else None
            if target is None:
                continue
            for one in (target, *(folder / "__init__.py" for folder in target.parents if folder.is_relative_to(ROOT))):
                if one not in found and one.is_file():
                    found[one] = name_of(path)
                    ahead.append(one)
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":  # looked at below
        return
    assert part in ALLOWED, f"{part} has no place among the layers yet: give it one in {__file__}"
    for dotted, line, _ in imports(ast.parse(path.read_text())):
        target = ours(dotted)
        if target is not None and target != part:
            assert target in ALLOWED[part], f"{path}:{line}: {part} must not import {target} ({dotted})"


def test_the_layers_have_no_cycle() -> None:
    left = dict(ALLOWED)
    while left:
        bottom = [part for part, below in left.items() if not below & left.keys() - {part}]
        assert bottom, f"a cycle among {sorted(left)}"
        for part in bottom:
            del left[part]


def test_the_package_itself_imports_only_errors_and_report() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    eager = {ours(dotted) for dotted, _, top in imports(tree) if top and dotted.startswith(PACKAGE)}
    assert eager <= {"errors", "report"}


def test_light_modules_need_little() -> None:
    light = light_modules()
    assert len(light) > len(LIGHT_ROOTS)
    for path, importer in light.items():
        for dotted, line, top in imports(ast.parse(path.read_text())):
            package = dotted.partition(".")[0]
            allowed = LIGHT_PACKAGES | {PACKAGE} | (set() if top else OPTIONAL_PACKAGES)
            # The package's own lazy names are for its users, not for hosts.
            assert package in allowed or name_of(path) == "__init__.py", (
                f"{path}:{line}: {package} may be missing where {name_of(path)} runs (imported by {importer})"
            )


def test_light_modules_load_where_nothing_else_is_installed() -> None:
    """For real: everything that is not light is made unimportable, then all light modules are imported."""
    names = sorted(".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in light_modules())
    modules = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    code = f"""
import importlib, importlib.abc, sys
allowed = {sorted(LIGHT_PACKAGES | {PACKAGE})!r}
class Only(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed and not name.startswith("_"):
            raise ModuleNotFoundError(f"not installed here: {{name}}", name=name)
sys.meta_path.insert(0, Only())
for module in {modules!r}:
    importlib.import_module(module)
print("loaded")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "loaded", done.stderr


def _reads_environment(tree: ast.Module) -> list[int]:
    """Lines that look at the environment. Setting a variable, for the processes started next, is not looking."""
    lines = []
    written = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Subscript) and _is_store(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.environb", "os.getenv"}:
            lines += [node.lineno] if id(node) not in written else []
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            lines += [node.lineno for alias in node.names if alias.name in {"environ", "environb", "getenv"}]
    return lines


def _is_store(node: ast.Subscript) -> bool:
    return isinstance(node.ctx, ast.Store)


def test_the_environment_is_read_in_one_place() -> None:
    readers = {name_of(path): lines for path in MODULES if (lines := _reads_environment(ast.parse(path.read_text())))}
    assert set(readers) == {"settings.py", *ENVIRONMENT_READERS}, readers


def test_the_environment_is_never_read_at_import() -> None:
    tree = ast.parse((ROOT / "settings.py").read_text())
    inside = {
        line
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    assert set(_reads_environment(tree)) <= inside
