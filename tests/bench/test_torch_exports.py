"""Exports of real implementations: nearly all of their nodes are inside the algebra, and what is computed is right."""

from pathlib import Path

import pytest

from bench.coverage import LEAST_SHARE, coverage, covered, table
from bench.models import torch_exports

EXPORTERS = pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "dynamo"])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in torch_exports.PACKAGES:
        pytest.importorskip(package)
    return tmp_path_factory.mktemp("exports")


def exported(folder: Path, name: str, dynamo: bool) -> Path:
    path = torch_exports.path_of(folder, "small", name, dynamo=dynamo)
    if not path.exists():
        torch_exports.export(torch_exports.SMALL[name], path, dynamo=dynamo)
    return path


@EXPORTERS
@pytest.mark.parametrize("name", torch_exports.SMALL)
def test_an_export_is_inside_the_algebra(folder, name, dynamo):
    found = coverage(name, exported(folder, name, dynamo))
    assert found.share >= LEAST_SHARE, table([found])


@EXPORTERS
@pytest.mark.parametrize("name", ["resnet18", "vit", "t5_encoder"])
def test_an_export_is_optimized_and_verified(folder, name, dynamo):
    row = covered(str(exported(folder, name, dynamo)), portable=True)
    assert not row.problem, row


def test_the_command_says_what_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch_exports, "PACKAGES", ("a_package_that_does_not_exist",))
    assert torch_exports.main([str(tmp_path / "none")]) == 0
    assert "a_package_that_does_not_exist" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
