"""The layout that docs/architecture.md draws: no import circle between files, no folder that is too full to read."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "cytoglot"
MOST_FILES = 20


def test_no_two_files_import_each_other() -> None:
    """Imports inside of functions count: a circle that only works because it is delayed is still a circle."""
    graph = grimp.build_graph("cytoglot", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in sorted(graph.modules)}
    TopologicalSorter(imports).prepare()  # a CycleError names the files of a circle


def test_no_folder_holds_more_files_than_a_reader_can_take_in() -> None:
    for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
        files = [path.name for path in folder.iterdir() if path.is_file()]
        assert len(files) <= MOST_FILES, f"{folder.relative_to(REPOSITORY)} holds {len(files)} files"


def test_every_folder_says_what_is_in_it() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert path.read_text(encoding="utf-8").startswith('"""'), path


def test_the_architecture_page_names_every_folder() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in PACKAGE.rglob("__init__.py")} - {"cytoglot"}
    missing = sorted(name for name in folders if not re.search(rf"\b{name}/", page))
    assert not missing, f"docs/architecture.md does not name {missing}"
