"""A warm process that loads the libraries once and forks a child for every task.

``test_faults.py`` starts it and writes tasks to its standard input, a line of JSON each:
``{"root": folder, "nodes": [pytest node ids]}``. A child runs those tests in the copy of the
project at ``root`` and leaves ``ROOT.json``::

    {"verdicts": {node id: "passed", "caught" or what else happened}, "foreign": [modules]}

with ``foreign`` the modules of hushtune that did not come from the copy; there must be none. If the
child died, it is ``{"died": status}``. What it printed is in ``ROOT.txt``.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

SOURCE_ROOTS = ("client", "common", "server", "simulations")
MOST_SECONDS = 120  # for one test
MOST_CHILDREN = min(4, os.cpu_count() or 1)

# What hushtune and its tests import, and what these import on their first use.
LIBRARIES = (
    *("cryptography.hazmat.primitives.ciphers", "dp_accounting.rdp", "filelock", "hypothesis"),
    *("dp_accounting.pld.privacy_loss_distribution", "flwr.app", "flwr.clientapp", "numpy"),
    *("opacus.grad_sample", "peft", "platformdirs", "pydantic.fields", "pydantic.main"),
    *("pydantic.types", "rich.progress", "safetensors.torch", "scipy.optimize", "scipy.stats"),
    *("sklearn.metrics", "sqlite3", "tomli_w", "torch", "torch._dynamo", "transformers"),
    *("transformers.models.auto.modeling_auto", "transformers.models.vit.modeling_vit"),
)


class Recorder:
    """Notes how each test ended, and whether it was the test itself that failed."""

    def __init__(self) -> None:
        self.verdicts: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.excinfo is None:
            self.verdicts.setdefault(item.nodeid, report.outcome)
        elif call.when == "call" and is_failure(call.excinfo.value):
            self.verdicts[item.nodeid] = "caught"
        else:
            self.verdicts[item.nodeid] = f"{call.excinfo.typename} in {call.when}"
        return report


def is_failure(error: BaseException) -> bool:
    """Whether a test found what it looks for. Hypothesis groups what it found in several ways."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_failure, error.exceptions))
    return isinstance(error, (AssertionError, pytest.fail.Exception))  # that of pytest.raises


def run_tests(root: Path, nodes: Sequence[str]) -> NoReturn:
    """What a child does: run some tests of the copy at ``root``, leave the result, and end."""
    signal.alarm(MOST_SECONDS * len(nodes))  # a fault may make a loop endless
    os.chdir(root)
    output = os.open(f"{root}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(output, standard)
    roots = [str(root / name) for name in SOURCE_ROOTS]
    sys.path[:0] = roots
    os.environ["PYTHONPATH"] = os.pathsep.join(roots)  # for what a test starts
    recorder = Recorder()
    # The tests need no plugins, and are the same in all copies: what would be reported more richly
    # is seen where they run by themselves.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-q", "--tb=short", "--assert=plain", "-p", "no:cacheprovider"]
    options += ["-c", "pyproject.toml", "--rootdir", ".", "--basetemp", "tmp"]
    pytest.main([*options, *nodes], plugins=[recorder])
    sys.stdout.flush()
    leave_result(root, verdicts=recorder.verdicts, foreign=foreign_modules(root))
    os._exit(0)


def foreign_modules(root: Path) -> list[str]:
    """Modules of hushtune that were loaded from elsewhere than the copy at ``root``."""
    modules = [(name, module) for name, module in sys.modules.items() if module is not None]
    files = {
        name: getattr(module, "__file__", None)
        for name, module in modules
        if name.startswith("hushtune")
    }
    return [
        f"{name} from {file}"
        for name, file in files.items()
        if file is not None and not Path(file).is_relative_to(root)
    ]


def leave_result(root: Path, **result: Any) -> None:
    """Write the result in one piece."""
    part = Path(f"{root}.part")
    part.write_text(json.dumps(result), encoding="utf-8")
    part.replace(f"{root}.json")


def warm_up() -> None:
    """Have the libraries do what they do once. Never import hushtune: a child has its own."""
    for library in LIBRARIES:
        importlib.import_module(library)
    import peft
    import torch
    import transformers

    torch.set_num_threads(1)  # threads do not survive a fork
    tiny = {"hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 2}
    base = transformers.BertModel(transformers.BertConfig(**tiny, intermediate_size=2))
    peft.get_peft_model(base, peft.LoraConfig(r=1, target_modules=["query"]))
    assert not any(name.startswith("hushtune") for name in sys.modules)
    sys.dont_write_bytecode = True  # a copy is used once
    gc.collect()
    gc.freeze()  # pytest collects garbage when it ends; what is here by now stays


def main() -> None:
    """Read tasks until there are no more, some at a time."""
    warm_up()
    running: dict[int, Path] = {}

    def wait_for_one() -> None:
        child, status = os.wait()
        root = running.pop(child)
        if not Path(f"{root}.json").exists():
            leave_result(root, died=status)

    for line in sys.stdin:
        task = json.loads(line)
        root = Path(task["root"])
        if len(running) >= MOST_CHILDREN:
            wait_for_one()
        child = os.fork()
        if child == 0:
            run_tests(root, task["nodes"])
        running[child] = root
    while running:
        wait_for_one()


if __name__ == "__main__":
    main()
