"""The rules of the house that a script can see."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("firmware_iface", "calibration", "acquisition", "reconstruction", "gui", "sim")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "data" not in path.parts)
MAX_LINES = 600
FORBIDDEN_NAMES = {"utils.py", "util.py", "common.py", "helpers.py", "base.py", "misc.py"}
UNITS = {
    "kev", "ev", "mm", "um", "cm", "m", "s", "ms", "us", "ns", "rad", "deg", "mrad", "per_mm", "per_cm", "g_cm3",
    "mg_ml", "g_mol", "cm2_g", "dac", "kvp", "ma", "mas", "v", "mv", "e", "per_s", "hz", "mhz", "mk", "k", "c",
    "per_kev", "w", "per_mm_per_g_cm3", "dac_per_kev", "mm2", "mm3", "ff", "mgy", "kcps", "px", "na", "na_per_code",
}  # fmt: skip
DIMENSIONLESS = {
    "fraction", "fractions", "fluorescence_yield", "slope", "r2", "fano", "weight", "magnification", "ratio",
    "relative", "share", "shares", "exponent", "opacity", "normal", "voxels", "counts",
}  # fmt: skip


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", [*MODULES, ROOT / "mpxct.py", *sorted((ROOT / "tests").rglob("*.py"))], ids=str)
def test_module_is_small_and_named_for_what_it_hides(path: Path) -> None:
    n_lines = len(path.read_text().splitlines())
    assert n_lines <= MAX_LINES, f"{path} has {n_lines} lines, over {MAX_LINES}: cut it where it hides two things"
    assert path.name not in FORBIDDEN_NAMES


@pytest.mark.parametrize("package", PACKAGES)
def test_package_init_holds_a_docstring_only(package: str) -> None:
    body = ast.parse((ROOT / package / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def is_float(annotation: object) -> bool:
    return re.search(r"\bfloat(?!ing)", str(annotation)) is not None and "NDArray" not in str(annotation)


def float_fields() -> list[tuple[str, str]]:
    found = []
    for path in MODULES:
        if path.name in {"__init__.py", "cli.py"} or "kernels" in path.parts:
            continue
        module = importlib.import_module(module_of(path))
        for name, record in vars(module).items():
            if not isinstance(record, type) or record.__module__ != module.__name__:
                continue
            if is_dataclass(record):
                found += [(f"{module_of(path)}.{name}", field.name) for field in fields(record) if is_float(field.type)]
            elif issubclass(record, msgspec.Struct):
                annotations = record.__annotations__
                found += [(f"{module_of(path)}.{name}", field) for field in annotations if is_float(annotations[field])]
    return found


def test_every_float_field_carries_its_unit() -> None:
    unnamed = [
        f"{record}.{field}"
        for record, field in float_fields()
        if not any(field.endswith(f"_{unit}") or field == unit for unit in UNITS)
        and not any(field == word or field.endswith(f"_{word}") for word in DIMENSIONLESS)
    ]
    assert not unnamed, f"float fields without a unit suffix: {', '.join(unnamed)}"


def test_the_float_field_rule_sees_fields() -> None:
    assert ("calibration.geometry.Geometry", "pitch_mm") in float_fields()


def test_walk_table_rows_are_the_modules_first_lines() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([a-z_]+/[a-z_]+\.py)`", readme, flags=re.MULTILINE)
    assert len(rows) >= 10
    for stage, _, file in rows:
        first_line = (ast.get_docstring(ast.parse((ROOT / file).read_text())) or "").splitlines()[0].lower()
        assert stage.strip().lower() in first_line, f"{file} should open with the stage {stage!r}, not {first_line!r}"


def test_each_dependency_gives_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("\ndependencies = [") : text.index("[project.optional-dependencies]")]
    lines = [line for line in block.splitlines() if line.strip().startswith('"')]
    assert len(lines) == len(tomllib.loads(text)["project"]["dependencies"])
    assert all("#" in line for line in lines)
