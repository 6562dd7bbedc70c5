"""What the tensors of an adapter are called."""

from __future__ import annotations

A_SUFFIX = ".lora_A"
B_SUFFIX = ".lora_B"
R_SUFFIX = ".lora_R"
BASE_A_SUFFIX = ".base_A"
BASE_B_SUFFIX = ".base_B"
HEAD_PREFIX = "head."


def a_key(module: str) -> str:
    """Key of the factor A of a module."""
    return module + A_SUFFIX


def b_key(module: str) -> str:
    """Key of the factor B of a module."""
    return module + B_SUFFIX


def r_key(module: str) -> str:
    """Key of the inner factor R of a module."""
    return module + R_SUFFIX


def base_keys(module: str) -> tuple[str, str]:
    """Keys of the two factors of the change of a module's frozen weight."""
    return module + BASE_A_SUFFIX, module + BASE_B_SUFFIX


def head_key(name: str) -> str:
    """Key of a tensor of the head."""
    return HEAD_PREFIX + name
