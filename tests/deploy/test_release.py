"""A release is made of a tree that says which one it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from deploy import release

ROOT = Path(__file__).parents[2]
FILES = ("setup.cfg", "CHANGELOG.md", "deploy/kubernetes/production/kustomization.yaml")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A committed repository with the files that a release looks at."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(tree: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=tree, check=True, capture_output=True)


def commit(tree: Path) -> None:
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "Change")


def later(tree: Path) -> str:
    major, minor, _ = release.version(tree).split(".")
    return f"{major}.{int(minor) + 1}.0"


def test_what_is_prepared_and_committed_can_be_released(tree: Path) -> None:
    new = later(tree)
    release.prepare(tree, new, "2026-12-01")
    with pytest.raises(release.NotReady, match="not committed"):
        release.check(tree)
    commit(tree)
    assert release.version(tree) == new
    assert "### Added" in release.check(tree)
    assert "## [Unreleased]\n\n## [" in (tree / "CHANGELOG.md").read_text()
    git(tree, "tag", f"v{new}")
    with pytest.raises(release.NotReady, match="tagged already"):
        release.check(tree)


def test_the_first_release_has_the_version_that_the_tree_has(tree: Path) -> None:
    path, first = tree / "CHANGELOG.md", release.version(tree)
    path.write_text("# Changelog\n\n## [Unreleased]\n\nThe first version.\n")
    release.prepare(tree, first, "2026-12-01")
    commit(tree)
    assert release.check(tree) == "The first version."
    with pytest.raises(release.NotReady, match="no version after"):
        release.prepare(tree, first, "2026-12-01")


def test_a_version_is_prepared_once_and_upwards(tree: Path) -> None:
    release.prepare(tree, later(tree), "2026-12-01")
    for wrong in (release.version(tree), "0.0.9", "1", "2.0.0rc1"):
        with pytest.raises(release.NotReady, match="no version after"):
            release.prepare(tree, wrong, "2026-12-01")
    with pytest.raises(release.NotReady, match="nothing under"):
        release.prepare(tree, later(tree), "2026-12-01")


def test_an_overlay_of_another_version_is_not_released(tree: Path) -> None:
    release.prepare(tree, later(tree), "2026-12-01")
    path = tree / FILES[2]
    path.write_text(path.read_text().replace(f'newTag: "{release.version(tree)}"', 'newTag: "0.0.1"', 1))
    commit(tree)
    with pytest.raises(release.NotReady, match="overlay"):
        release.check(tree)


def test_a_version_without_a_dated_section_is_not_released(tree: Path) -> None:
    path = tree / "setup.cfg"
    path.write_text(path.read_text().replace(f"version = {release.version(tree)}", f"version = {later(tree)}"))
    with pytest.raises(release.NotReady, match="no section"):
        release.notes(tree, later(tree))


def test_the_overlay_names_the_version_of_the_package() -> None:
    text = (ROOT / FILES[2]).read_text()
    assert text.count(f'newTag: "{release.version()}"') == 3
