"""The user's own cache folder, and the kernel libraries this machine trusts.

A shared library is code. Models travel, so a library found beside a model is loaded only when it is byte for byte one
that this user built here: its copy in the cache is checked for owner, mode and content, and that copy is what loads.
"""

import hashlib
import os
import stat
from pathlib import Path

from egraph_opt.errors import InputRejected
from egraph_opt.runtime.artifacts import LIBRARY_SUFFIX, Publication, library_path


def default_cache_folder() -> Path:
    """``~/.cache/egraph-opt``; it may not exist yet."""
    return Path.home() / ".cache" / "egraph-opt"


def private_folder(folder: Path) -> Path:
    """Create `folder` for this user only, with its parents, and return it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def folder_size(folder: Path) -> tuple[int, int]:
    """Files and bytes below `folder`; (0, 0) when there is none."""
    sizes = [path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return len(sizes), sum(sizes)


def remember_library(library: Path, *, cache: Path | None = None) -> Path:
    """Keep a library that was just built here in the cache, so that models using it load; returns the copy."""
    content = library.read_bytes()
    copy = _copy_of(content, cache)
    private_folder(copy.parent)
    with Publication() as publication:
        temporary = publication.stage(copy)
        temporary.write_bytes(content)
        temporary.chmod(0o700)
    return copy


def trusted_library(model: Path, *, trust_any: bool = False, cache: Path | None = None) -> Path | None:
    """The kernel library to load with the model file `model`, or None when there is none beside it.

    Raises InputRejected for a library that was not built by this user on this machine, unless `trust_any`.
    """
    beside = library_path(model)
    if not beside.is_file():
        return None
    if trust_any:
        return beside.absolute()
    copy = _copy_of(beside.read_bytes(), cache)
    problem = _why_not_trusted(copy)
    if problem:
        raise InputRejected(f"{beside} {problem}; pass --trust-kernels to load its code anyway")
    return copy


def _copy_of(content: bytes, cache: Path | None) -> Path:
    folder = (cache if cache is not None else default_cache_folder()) / "libraries"
    return folder / f"{hashlib.sha256(content).hexdigest()}{LIBRARY_SUFFIX}"


def _why_not_trusted(copy: Path) -> str:
    if not copy.is_file() or copy.is_symlink():
        return "was not built by this user on this machine"
    for path in (copy, copy.parent):
        status = path.stat()
        if status.st_uid != os.geteuid():
            return f"is known, but {path} belongs to another user"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"is known, but others may write {path}"
    if copy != _copy_of(copy.read_bytes(), copy.parent.parent):
        return f"is known, but its copy {copy} was changed"
    return ""
