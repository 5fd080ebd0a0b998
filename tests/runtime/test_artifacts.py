"""Output files appear whole or not at all."""

import os
from pathlib import Path

import pytest

from egraph_opt.errors import InputRejected, UsageError
from egraph_opt.runtime import artifacts
from egraph_opt.runtime.artifacts import Publication, check_report_path, choose_output, default_output, library_path
from egraph_opt.runtime.cache import folder_size, remember_library, trusted_library


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("model", "output", "library"),
    [
        ("m.onnx", "m.opt.onnx", "m.kernels.so"),
        ("a.b.ONNX", "a.b.opt.onnx", "a.b.kernels.so"),
        ("m", "m.opt.onnx", "m.kernels.so"),
        (".onnx", ".opt.onnx", ".kernels.so"),
    ],
)
def test_names(model: str, output: str, library: str) -> None:
    assert default_output(Path("d") / model) == Path("d") / output
    assert library_path(Path("d") / model) == Path("d") / library


def test_model_and_library_are_written(tmp_path: Path) -> None:
    written = artifacts.write_model(tmp_path / "m.onnx", b"model", b"library")
    assert written == (tmp_path / "m.onnx", tmp_path / "m.kernels.so")
    assert [path.read_bytes() for path in written] == [b"model", b"library"]
    assert names(tmp_path) == ["m.kernels.so", "m.onnx"]


def test_stale_library_is_removed(tmp_path: Path) -> None:
    artifacts.write_model(tmp_path / "m.onnx", b"one", b"library")
    assert artifacts.write_model(tmp_path / "m.onnx", b"two", None) == (tmp_path / "m.onnx",)
    assert names(tmp_path) == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"two"


def test_failure_keeps_the_old_files(tmp_path: Path) -> None:
    artifacts.write_model(tmp_path / "m.onnx", b"old", b"old library")
    with pytest.raises(KeyboardInterrupt), Publication() as publication:  # noqa: PT012 - the block is what is tested
        publication.stage(tmp_path / "m.kernels.so").write_bytes(b"new library")
        publication.stage(tmp_path / "m.onnx").write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["m.kernels.so", "m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"old"


def test_missing_staged_file_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileNotFoundError), Publication() as publication:  # noqa: PT012
        publication.stage(tmp_path / "a").write_bytes(b"new")
        publication.stage(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_replacement_is_a_new_file_for_open_readers(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        artifacts.write_model(path, b"new", None)
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "real.onnx").write_bytes(b"old")
    (tmp_path / "m.onnx").symlink_to("real.onnx")
    artifacts.write_model(tmp_path / "m.onnx", b"new", None)
    assert (tmp_path / "m.onnx").is_symlink()
    assert (tmp_path / "real.onnx").read_bytes() == b"new"


def test_files_get_ordinary_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        artifacts.write_model(tmp_path / "m.onnx", b"model", None)
    finally:
        os.umask(mask)
    assert (tmp_path / "m.onnx").stat().st_mode & 0o777 == 0o644


def test_output_must_be_writable(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"")
    assert choose_output(model, None) == tmp_path / "m.opt.onnx"
    assert choose_output(model, model) == model
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        choose_output(model, tmp_path / "folder")
    with pytest.raises(UsageError, match="does not exist"):
        choose_output(model, tmp_path / "nowhere" / "m.onnx")
    with pytest.raises(UsageError, match="not a regular file"):
        choose_output(model, Path(os.devnull))


def test_input_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"")
    (tmp_path / "m.opt.onnx").symlink_to(model)
    with pytest.raises(UsageError, match="is the input"):
        choose_output(model, None)
    odd = tmp_path / "x.kernels.so"
    odd.write_bytes(b"")
    with pytest.raises(UsageError, match="would replace the input"):
        choose_output(odd, tmp_path / "x.onnx")


def test_report_path(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    check_report_path(None, [model])
    check_report_path(tmp_path / "r.json", [model])
    with pytest.raises(UsageError, match="would replace"):
        check_report_path(model, [model])
    with pytest.raises(UsageError, match="cannot be written"):
        check_report_path(tmp_path / "nowhere" / "r.json", [model])


def test_only_libraries_built_here_are_loaded(tmp_path: Path) -> None:
    model, cache = tmp_path / "m.onnx", tmp_path / "cache"
    assert trusted_library(model, cache=cache) is None
    artifacts.write_model(model, b"model", b"code")
    with pytest.raises(InputRejected, match=r"m\.kernels\.so was not built by this user on this machine"):
        trusted_library(model, cache=cache)
    assert trusted_library(model, trust_any=True, cache=cache) == library_path(model)
    copy = remember_library(library_path(model), cache=cache)
    assert trusted_library(model, cache=cache) == copy
    assert copy.read_bytes() == b"code"
    assert folder_size(cache) == (1, 4)
    copy.chmod(0o722)
    with pytest.raises(InputRejected, match="others may write"):
        trusted_library(model, cache=cache)
    copy.chmod(0o700)
    copy.write_bytes(b"evil")
    with pytest.raises(InputRejected, match="was changed"):
        trusted_library(model, cache=cache)
