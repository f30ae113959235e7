"""Sources in C++ are compiled once, whole or not at all; where they cannot be, that is told once and done without."""

import logging
import platform
import shutil
from pathlib import Path

import pytest

from finetune import fused_bert
from launch import clipped_adamw, native

SOURCE = """#include "four.h"
extern "C" int answer() { return 10 * FOUR + 2; }
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "four.h").write_text("#define FOUR 4\n")
    (folder / "answer.cpp").write_text(SOURCE)
    return folder / "answer.cpp"


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("g++"), reason="no x86 processor, or no g++")
@pytest.mark.parametrize("module", [fused_bert, clipped_adamw])
def test_our_own_sources_can_be_compiled(module):
    """Else their tests would be left out, as on a machine that cannot."""
    assert native.compiled(module.SOURCE, module.INSTRUCTIONS).is_file()


def test_a_source_is_compiled_once_and_anew_where_it_or_a_header_changed(source):
    made = native.compiled(source, ())
    written_at = made.stat().st_mtime_ns
    assert native.library(source, ()).answer() == 42
    assert native.compiled(source, ()) == made and made.stat().st_mtime_ns == written_at
    assert list(made.parent.iterdir()) == [made] and made.parent.stat().st_mode & 0o077 == 0
    (source.parent / "four.h").write_text("#define FOUR 5\n")
    assert native.compiled(source, ()) != made
    assert native.compiled(source, ("fma",)) not in (made, native.compiled(source, ()))


def test_a_broken_source_is_told_with_the_compilers_words_and_leaves_nothing(source, caplog):
    source.write_text("int broken(")
    with caplog.at_level(logging.WARNING, "launch.native"):
        assert native.library(source, ()) is None
        assert native.library(source, ()) is None
    (record,) = caplog.records
    assert "answer.cpp is not compiled, steps are slower" in record.getMessage()
    assert not list((source.parent.parent / "cache" / "compiled").iterdir())


@pytest.mark.parametrize(
    "compiler, told", [("no-such-compiler", "there is no C++ compiler"), ("false", "returned non-zero")]
)
def test_without_a_compiler_it_is_told_and_done_without(source, compiler, told, monkeypatch, caplog):
    monkeypatch.setenv("CXX", compiler)
    with caplog.at_level(logging.WARNING, "launch.native"):
        assert native.library(source, ()) is None
    assert told in caplog.text


def test_a_cache_that_cannot_be_written_is_told(source, monkeypatch, caplog, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MSB_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "launch.native"):
        assert native.library(source, ()) is None
    assert "answer.cpp is not compiled" in caplog.text


def test_a_cache_that_others_can_write_is_not_trusted(source, caplog, tmp_path):
    (tmp_path / "cache" / "compiled").mkdir(parents=True)
    (tmp_path / "cache" / "compiled").chmod(0o777)
    with caplog.at_level(logging.WARNING, "launch.native"):
        assert native.library(source, ()) is None
    assert "can be written by others" in caplog.text


def test_a_processor_without_the_instructions_is_not_even_tried(source, monkeypatch, caplog):
    monkeypatch.setattr(native, "processor_flags", lambda: frozenset({"avx2"}))
    assert native.processor_has("avx2") and not native.processor_has("avx2", "fma")
    assert native.library(source, ("avx2", "fma")) is None and not caplog.records
