"""The folders and pyproject.toml agree; what is not listed there vanishes from the wheel."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"egraph_opt.rules": "rules", "egraph_opt.extract": "extract"}
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
LONGEST_FILE = 500


def packages_below(folder: Path, package: str) -> set[str]:
    found = {package}
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink() and any(child.rglob("*.py")):
            found |= packages_below(child, f"{package}.{child.name}")
    return found


def test_every_package_is_listed() -> None:
    packages = packages_below(ROOT / "egraph_opt", "egraph_opt")
    for package, folder in OUTSIDE.items():
        packages |= packages_below(ROOT / folder, package)
    assert set(SETUPTOOLS["packages"]) == packages
    assert len(SETUPTOOLS["packages"]) == len(packages)


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_every_package_has_an_init_file(package: str) -> None:
    folder = OUTSIDE.get(package, package.replace(".", "/"))
    assert (ROOT / folder / "__init__.py").is_file()


@pytest.mark.parametrize("name", ["rules", "extract"])
def test_links_are_relative(name: str) -> None:
    link = ROOT / "egraph_opt" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}"


def test_package_directories() -> None:
    assert SETUPTOOLS["package-dir"] == {"egraph_opt": "egraph_opt", **OUTSIDE}


def test_no_file_is_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("egraph_opt", "rules", "extract", "tests", "bench")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert long == {}
