"""Sources are read and never run: hostile archives are refused, links left out, a tree is packed to the same bytes."""

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from envs.swe import sources
from envs.swe.sources import Refused, is_source, is_test, load, unpack


def tarball(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for member, data in members:
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def member(
    path: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(path)
    info.type, info.linkname, info.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
    return info, data


@pytest.mark.parametrize(
    "path", ["/etc/cron.d/x", "../x", "a/../../x", "a/..", ".", "a\\..\\x", "a\nb", "a\x00b", "a/\x1b[2Jb"]
)
def test_paths_that_lead_out_or_astray_are_refused(path: str) -> None:
    with pytest.raises(Refused):
        unpack(tarball([member("a/b"), member(path)]), "a-1.tar.gz")


def test_links_and_devices_are_left_out() -> None:
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
    members = [member(f"a/{number}", b"", kind, "/etc/passwd") for number, kind in enumerate(kinds)]
    assert unpack(tarball([*members, member("a/b.py", b"1")]), "a-1.tar.gz") == {"b.py": b"1"}


def test_a_zip_is_read_like_a_tar() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a-1/b.py", "1")
        link = zipfile.ZipInfo("a-1/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    assert unpack(buffer.getvalue(), "a-1.zip") == {"b.py": b"1"}
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("../x", "1")
    with pytest.raises(Refused):
        unpack(buffer.getvalue(), "a-1.zip")


@pytest.mark.parametrize(
    "members",
    [
        [member("a/b"), member("a/b")],
        [member("a/b"), member("a/b/c")],
        [member("a/b", bytes(sources.MAX_FILE_BYTES + 1))],
        [member(f"a/{number}") for number in range(sources.MAX_FILES + 1)],
    ],
)
def test_what_is_ambiguous_or_too_large_is_refused(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with pytest.raises(Refused):
        unpack(tarball(members), "a-1.tar.gz")


def test_bombs_and_rubbish_are_refused_without_being_unpacked() -> None:
    with pytest.raises(Refused, match="more than"):
        unpack(gzip.compress(bytes(sources.MAX_BYTES * 4)), "a-1.tar.gz")
    huge = tarfile.TarInfo("a/b")
    huge.size = 1 << 40
    for data in (huge.tobuf(), b"no archive", tarball([member("a/b", b"1" * 5000)])[:80]):
        with pytest.raises(Refused):
            unpack(data, "a-1.tar.gz")


def test_a_folder_becomes_a_tree_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "pkg" / "__pycache__").mkdir(parents=True)
    ran = tmp_path / "ran"
    (tmp_path / "setup.py").write_text(f"open({str(ran)!r}, 'w')")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'My.Package'\nversion = '1.2'\n")
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "__pycache__" / "a.pyc").write_text("")
    (tmp_path / "passwd").symlink_to("/etc/passwd")
    tree = load(str(tmp_path), tmp_path)
    assert (tree.name, tree.root) == ("my-package-1.2", "")
    assert sorted(tree.files) == ["pkg/__init__.py", "pyproject.toml", "setup.py"] and not ran.exists()
    again = load(str(tmp_path), tmp_path)
    assert again.packed == tree.packed and unpack(tree.packed, "t.tar.gz", strip=False) == tree.files


def test_a_downloaded_package_does_not_run_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through pip, which would run setup.py to learn the package's metadata."""
    ran, index = tmp_path / "ran", tmp_path / "index"
    index.mkdir()
    archive = tarball(
        [
            member("touchstone-fixture-1.0/setup.py", f"open({str(ran)!r}, 'w')\n".encode()),
            member(
                "touchstone-fixture-1.0/PKG-INFO", b"Metadata-Version: 2.1\nName: touchstone-fixture\nVersion: 1.0\n"
            ),
        ]
    )
    (index / "touchstone-fixture-1.0.tar.gz").write_bytes(archive)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    tree = load("touchstone-fixture==1.0", tmp_path / "cache")
    assert tree.name == "touchstone-fixture-1.0" and "setup.py" in tree.files and not ran.exists()
    assert load("touchstone-fixture==1.0", tmp_path / "cache").packed == tree.packed, "the second time, from the cache"
    with pytest.raises(Refused, match="touchstone-fixture"):
        load("touchstone-fixture==2.0", tmp_path / "cache")


def test_what_is_no_source_is_named() -> None:
    with pytest.raises(Refused, match="expected a folder"):
        load("no such thing", Path())


def test_files_of_tests_and_of_machinery_are_not_the_attempts() -> None:
    for path in ("tests/a.py", "a/test/b.txt", "test_a.py", "a/b_test.py", "conftest.py", "a/conftest.py"):
        assert is_test(path) and not is_source(path), path
    for path in ("sitecustomize.py", "usercustomize.py", "setup.py", "pytest.ini", "a.pth", "setup.cfg"):
        assert not is_source(path), path
    for path in ("a.py", "src/a/contest.py", "a/testing.py", "a/latest.py"):
        assert is_source(path), path
