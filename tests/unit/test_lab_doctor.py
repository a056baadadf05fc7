import shutil

import pytest

from vlws.lab import doctor


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("VLWS_ROOT", str(tmp_path))


def by_name(checks):
    return {check["name"]: check for check in checks}


def test_every_check_says_what_was_found_or_what_is_worse_without_it():
    checks = doctor.checks()
    assert {"C++ compiler", "OpenMP", "CUDA GPU", "browser", "disk", "cores", "packages", "unicode-data"} <= set(
        by_name(checks)
    )
    for check in checks:
        assert set(check) == {"name", "present", "found", "without", "needed"}
        assert check["found"] if check["present"] else check["without"]


def test_without_a_compiler_the_kernels_are_slower_not_absent(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    found = by_name(doctor.checks())
    for name in ("C++ compiler", "OpenMP", "browser"):
        assert not found[name]["present"]
        assert not found[name]["needed"]
    assert "slower" in found["C++ compiler"]["without"]


def test_a_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    found = by_name(doctor.checks())["packages"]
    assert not found["present"]
    assert found["needed"]
    assert "no-such-package" in found["without"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_deep_look_compiles_in_a_home_that_a_shell_would_not_take_as_it_is(tmp_path, monkeypatch):
    home = tmp_path / "Jane O'Hara (1)"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("KEOPS_CACHE_FOLDER", raising=False)
    assert by_name(doctor.checks(deep=True))["KeOps"]["present"]


def test_the_deep_look_says_where_torch_takes_over(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    found = by_name(doctor.checks(deep=True))["KeOps"]
    assert not found["present"]
    assert "no C++ compiler is found" in found["found"]
