"""The warm process of the tests: it hides what it should, and its programs do not run for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from .warm import Warm


def test_what_is_hidden_cannot_be_imported_and_an_endless_program_is_ended(tmp_path: Path) -> None:
    with Warm("safetensors", without=["peft"]) as made:
        code = "import importlib.util as u; print(u.find_spec('peft'), u.find_spec('transformers'))"
        (line,) = made.lines_of(code, at=tmp_path)
        assert line.startswith("None ModuleSpec(")
        with pytest.raises(AssertionError, match="No module named 'peft'"):
            made.lines_of("import peft", at=tmp_path)
        with pytest.raises(AssertionError, match=r"after 0\.5 s this had not ended:\nwhile True"):
            made.lines_of("while True: pass", at=tmp_path, seconds=0.5)
        with pytest.raises((AssertionError, BrokenPipeError)):
            made.lines_of("print(1)", at=tmp_path)
