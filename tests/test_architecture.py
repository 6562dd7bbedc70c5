"""What holds the code base in shape: directions of imports, sizes, and what must not occur."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOTS = [ROOT / name for name in ("client", "common", "server", "simulations")]
FILES = sorted(path for root in ROOTS for path in root.rglob("*.py"))
MAX_LINES = 350

pytestmark = pytest.mark.skipif(not FILES, reason="no source roots beside the tests")


def _environment() -> dict[str, str]:
    path = os.pathsep.join(map(str, ROOTS))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(path: Path) -> Iterator[str]:
    """All modules that a file imports, wherever in it, as absolute dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}: relative import; write it in full"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_import_contracts_hold() -> None:
    command = (
        "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_only_one_file_knows_opacus() -> None:
    users = [_name(path) for path in FILES if any(_within(m, "opacus") for m in _imports(path))]
    assert users == ["client/hushtune/client/opacus_hooks.py"]


def test_common_knows_no_flower_app() -> None:
    # import-linter sees external packages as a whole, so this part is checked here.
    apps = ("flwr.clientapp", "flwr.serverapp", "flwr.client", "flwr.server", "flwr.simulation")
    for path in FILES:
        if path.is_relative_to(ROOT / "common"):
            found = [m for m in _imports(path) if any(_within(m, app) for app in apps)]
            assert not found, f"{_name(path)} imports {found}"


def test_hushtune_is_a_namespace_of_typed_packages() -> None:
    for root in ROOTS:
        assert not (root / "hushtune" / "__init__.py").exists()
        package = root / "hushtune" / root.name
        assert (package / "__init__.py").is_file()
        assert (package / "py.typed").is_file()


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: split it by what changes together"


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_nothing_runs_code_from_data(path: Path) -> None:
    # Pickles, and model folders that bring their own Python, run code of whoever made them.
    loaders = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
    assert not [m for m in _imports(path) if any(_within(m, loader) for loader in loaders)]
    for name, call in _calls(ast.parse(path.read_text(encoding="utf-8"))):
        assert name not in ("torch.load", "eval", "exec"), f"line {call.lineno}: {name}"
        for keyword in call.keywords:
            allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg in ("trust_remote_code", "allow_pickle"):
                assert allowed, f"line {call.lineno}: {keyword.arg} must be False"


@pytest.mark.parametrize("module", ["errors", "config", "config_io", "seeds"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, hushtune.common.{module}\n"
        "heavy = ('torch', 'flwr', 'transformers', 'opacus', 'peft', 'sklearn', 'scipy', 'ray')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
