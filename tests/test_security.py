"""One test for every promise of SECURITY.md."""

from __future__ import annotations

import ast
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from egraph_opt.cli import main
from egraph_opt.errors import InputRejected
from egraph_opt.extract.profile import TABLE, Measurement, Profile
from egraph_opt.pipeline import optimize
from egraph_opt.runtime.artifacts import library_path, write_model
from egraph_opt.runtime.cache import remember_library, trusted_library
from tests.pipeline.support import build, node, normal, static, wrong

# A day far ahead: failures of long ago are forgotten.
DAY = 10_000_000
SOURCE = Path(__file__).parents[1]
FOLDERS = ("egraph_opt", "rules", "extract")

# ---- nothing in the source turns data into code, or talks to the network -------------------------

# What executes data, by the name it is called or imported by.
CODE = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "yaml",
    "runpy",
}
NETWORK = {"socket", "ssl", "urllib", "http", "ftplib", "smtplib", "asyncio", "requests", "socketserver", "xmlrpc"}
NATIVE = {
    "ctypes",
    "cffi",
    "register_custom_ops_library",
    "load_module",
    "exec_module",
    "load_extension",
    "enable_load_extension",
}
UNSAFE = {"system", "popen", "mktemp", "NamedTemporaryFile"}
# Each with its reason; a new entry needs one, too.
ALLOWED = {
    ("egraph_opt/saturation_worker.py", "pickle"): "between a process and the worker it started, over a private file",
    ("egraph_opt/saturation_worker.py", "cloudpickle"): "the same, for rule packs",
    ("egraph_opt/backends/processes.py", "pickle"): "the same, with processes that work for this one",
    ("egraph_opt/backends/tracker.py", "socket"): "the tracker that the user names",
    ("egraph_opt/packs.py", "exec_module"): "a rule pack that the user names is code",
    ("egraph_opt/backends/onnxruntime.py", "register_custom_ops_library"): "libraries built here, or trusted ones",
    ("egraph_opt/gpu/cuda_device.py", "ctypes"): "the CUDA driver; a bundle or program that is run is code",
    ("egraph_opt/gpu/host_device.py", "ctypes"): "the same kernels, on the processor",
}


def names(tree: ast.AST) -> Iterator[str]:
    """Modules imported, functions called, and attributes called."""
    for found in ast.walk(tree):
        match found:
            case ast.Import(aliases):
                yield from (alias.name.partition(".")[0] for alias in aliases)
            case ast.ImportFrom(module, aliases, 0) if module:
                yield module.partition(".")[0]
                yield from (alias.name for alias in aliases)
            case ast.Call(ast.Name(name), _, _) if name in CODE:
                yield name
            case ast.Call(ast.Attribute(_, name), _, _) if name != "compile":  # re.compile
                yield name


def uses() -> set[tuple[str, str]]:
    forbidden = CODE | NETWORK | NATIVE | UNSAFE
    found = set()
    for folder in FOLDERS:
        for path in sorted((SOURCE / folder).rglob("*.py")):
            relative = str(path.relative_to(SOURCE))
            if not path.parent.resolve().is_relative_to((SOURCE / folder).resolve()) or "/examples/" in relative:
                continue
            found |= {(relative, name) for name in names(ast.parse(path.read_text())) if name in forbidden}
    return found


def test_no_data_becomes_code_and_no_network() -> None:
    assert uses() <= ALLOWED.keys()


def test_the_scan_sees_what_it_must() -> None:
    text = (
        "import pickle\nfrom os import system\nx.load_extension(1)\neval('1')\nimport urllib.request\nre.compile('a')"
    )
    assert set(names(ast.parse(text))) >= {"pickle", "system", "load_extension", "eval", "urllib"}
    assert "compile" not in set(names(ast.parse(text)))


def test_no_shell_and_no_pickled_arrays() -> None:
    for folder in FOLDERS:
        for path in (SOURCE / folder).rglob("*.py"):
            for found in ast.walk(ast.parse(path.read_text())):
                if isinstance(found, ast.keyword) and found.arg in ("shell", "allow_pickle"):
                    assert isinstance(found.value, ast.Constant), path
                    assert found.value.value is False, path


OFFLINE = """
import sys
def refuse(event, arguments):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "urllib", "http")):
        print("network:", event, arguments[1:], flush=True)
sys.addaudithook(refuse)
from egraph_opt.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_whole_run_opens_no_connection(save_model: Callable[..., Path], home: Path) -> None:
    temporary = home / "tmp"
    temporary.mkdir()
    words = [sys.executable, "-c", OFFLINE, "optimize", str(save_model()), "-q", "--cost", "static"]
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(words, env=environment | {"TMPDIR": str(temporary)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    # onnxruntime's telemetry would leave the number of its session, and a database of events in the cache.
    assert list(temporary.iterdir()) == []
    assert [path.name for path in (home / ".cache").iterdir()] == ["egraph-opt"]


# ---- kernel libraries ----------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model with a library that this user built, the cache, and the copy in it."""
    model, cache = tmp_path / "m.onnx", tmp_path / "cache"
    write_model(model, b"model", b"code")
    return model, cache, remember_library(library_path(model), cache=cache)


def test_a_library_built_here_is_loaded_from_the_cache(library: tuple[Path, Path, Path]) -> None:
    model, cache, copy = library
    assert trusted_library(model, cache=cache) == copy
    assert copy.parent.stat().st_mode & 0o777 == 0o700
    assert copy.stat().st_mode & 0o077 == 0


def foreign(model: Path, copy: Path) -> None:
    library_path(model).write_bytes(b"other code")


def changed(model: Path, copy: Path) -> None:
    copy.write_bytes(b"other code")


def writable(model: Path, copy: Path) -> None:
    copy.chmod(0o702)


def in_a_writable_folder(model: Path, copy: Path) -> None:
    copy.parent.chmod(0o770)


def linked(model: Path, copy: Path) -> None:
    copy.rename(copy.with_name("elsewhere"))
    copy.symlink_to(copy.with_name("elsewhere"))


@pytest.mark.parametrize("spoil", [foreign, changed, writable, in_a_writable_folder, linked])
def test_other_libraries_are_refused(library: tuple[Path, Path, Path], spoil: Callable[[Path, Path], None]) -> None:
    model, cache, copy = library
    spoil(model, copy)
    with pytest.raises(InputRejected, match="--trust-kernels"):
        trusted_library(model, cache=cache)


def test_libraries_of_other_users_are_refused(
    library: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache, _ = library
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(InputRejected, match="belongs to another user"):
        trusted_library(model, cache=cache)


def test_optimize_loads_no_library_beside_a_model(save_model: Callable[..., Path], home: Path) -> None:
    model = save_model()
    library_path(model).write_bytes(b"\x7fELF code of a stranger")
    assert main(["optimize", str(model), "-q", "--cost", "static"]) == 0
    assert library_path(model).read_bytes() == b"\x7fELF code of a stranger"


# ---- profile databases ---------------------------------------------------------------------------

ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select i, i, i, i, i from n"


def with_sql(*statements: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        Profile(path, "device").add([Measurement("s", "i", (1.0,))])
        database = sqlite3.connect(path)
        for statement in statements:
            database.execute(statement)
        database.commit()
        database.close()

    return make


def with_row(samples: object) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with_sql()(path)
        with sqlite3.connect(path) as database:
            database.execute(
                "insert into measurements values (?, ?, ?, ?, ?, ?)", ("device", "t", "i", samples, "e", DAY)
            )

    return make


STRANGE: dict[str, Callable[[Path], None]] = {
    "trigger": with_sql("create trigger t after insert on measurements begin delete from measurements; end"),
    "view": with_sql("drop table measurements", f"create view measurements (a, b, c, d, e) as {ENDLESS}"),
    "another view": with_sql(f"create view v as {ENDLESS}"),
    "generated column": with_sql(
        "drop table measurements",
        "create table measurements (device text, signature text, implementation text, error text,"
        " samples text generated always as (hex(zeroblob(300000))))",
        "insert into measurements (device) values ('device')",
    ),
    "another table": with_sql("create table other (a)"),
    "index on an expression": with_sql("create index x on measurements (abs(length(samples)))"),
    "future version": with_sql("pragma user_version = 99"),
    "no table": with_sql("drop table measurements"),
    "no list": with_row('{"a": 1}'),
    "texts": with_row('["fast"]'),
    "bytes": with_row(b"\xff\x00"),
    "nothing": with_row(None),
    "deep": with_row("[" * 100_000),
    "digits": with_row("[" + "9" * 4000 + "]"),
    "more digits": with_row("[" + "9" * 10_000 + "]"),
    "infinite": with_row("[1e999]"),
    "broken": lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"latencies\n"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_databases_do_no_harm(name: str, tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    STRANGE[name](path)
    profile = Profile(path, "device")
    assert profile.warning or name in ("infinite", "empty")
    assert "\n" not in profile.warning
    profile.add([Measurement("mine", "i", (2.0,))])
    assert profile.best("mine") is not None


def test_a_value_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    with_sql("insert into measurements values ('device', 's', 'j', zeroblob(30000000), '', 0)")(path)
    assert "too big" in Profile(path, "device").warning


@pytest.mark.parametrize("samples", [[1e-300], [1e300], [-1.0], [0.0], [float("nan")], [float("inf")], []])
def test_absurd_latencies_lead_to_right_models(samples: list[float], tmp_path: Path, home: Path) -> None:
    path = tmp_path / "p.sqlite"
    model = build([node("MatMul", "x w", "p"), node("Relu", "p", "y")], {"x": [2, 4]}, {"y": None}, {"w": normal(4, 3)})
    first = optimize(model, threads=1, profile_db=path, portable=True)
    with sqlite3.connect(path) as database:
        database.execute("update measurements set samples = ?", (json.dumps(samples),))
        assert database.execute("select sql from sqlite_master where sql is not null").fetchall() == [(TABLE,)]
    second = optimize(model, threads=1, profile_db=path, portable=True)
    for result in (first, second):
        assert not wrong(model, result, {"x": normal(2, 4, seed=3)})


# ---- names ---------------------------------------------------------------------------------------


def test_generated_code_holds_no_names_of_the_model() -> None:
    mark = 'PWNED"; system("x"); /*'
    names = {key: f"{mark}{key}" for key in "xwpry"}
    nodes = [
        helper.make_node("MatMul", [names["x"], names["w"]], [names["p"]], name=mark),
        helper.make_node("Relu", [names["p"]], [names["r"]], name=f"{mark}2"),
        helper.make_node("Softmax", [names["r"]], [names["y"]], name=f"{mark}3"),
    ]
    model = build(nodes, {names["x"]: [3, 4]}, {names["y"]: [3, 4]}, {names["w"]: normal(4, 4)})
    model.graph.name = model.producer_name = mark
    result = static(model)
    assert result.library
    assert b"PWNED" not in result.library
    assert result.report.kernels
    assert all(re.fullmatch(r"k_[0-9a-f]{20}", name) for name in result.report.kernels)


# ---- explanations --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{}", "[" * 50_000, "eJwDAAAAAAE=", "\0", "A" * 1_000_000, '"; <script>'])
def test_strange_explanations_are_rejected(text: str, save_model: Callable[..., Path], capsys) -> None:
    path = save_model()
    model = onnx.load(path)
    model.metadata_props.add(key="egraph_opt.explanation", value=text)
    onnx.save(model, path)
    assert main(["explain", str(path)]) == 3
    assert capsys.readouterr().err.count("\n") == 1


# ---- files ---------------------------------------------------------------------------------------


def test_temporary_files_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: dict[str, int] = {}

    def look(*_: object) -> None:
        seen.update({path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path != home})

    model = build([node("MatMul", "x w", "p"), node("Relu", "p", "y")], {"x": [2, 4]}, {"y": None}, {"w": normal(4, 3)})
    mask = os.umask(0)
    try:
        result = optimize(model, cost="static", threads=1, progress=look)
        result.session()
        look()
    finally:
        os.umask(mask)
    assert seen
    assert set(seen.values()) == {0o700}
    del result
    assert not [path for path in tmp_path.iterdir() if path != home]


def test_the_cache_is_private(tmp_path: Path, home: Path) -> None:
    mask = os.umask(0)
    try:
        path = tmp_path / "cache" / "p.sqlite"
        Profile(path, "device").add([Measurement("s", "i", (1.0,))])
    finally:
        os.umask(mask)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_nothing_outside_the_folder_is_read(tmp_path: Path) -> None:
    """tests/hostile holds the many ways of asking for it; here is that what is refused is not opened either."""
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "secret")  # opening it would wait for ever
    tensor = numpy_helper.from_array(normal(4, 3), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    model = build([node("MatMul", "x w", "y")], {"x": [2, 4]}, {"y": None})
    model.graph.initializer.append(tensor)
    path = tmp_path / "model" / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputRejected, match="not inside the model's folder"):
        optimize(path)
