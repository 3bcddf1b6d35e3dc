"""The page on scaling quotes what its script counts."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tables_of_the_page_are_those_of_the_script():
    spec = importlib.util.spec_from_file_location('scaling', ROOT / 'tools' / 'scaling.py')
    scaling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scaling)
    page = (ROOT / 'docs' / 'scaling.md').read_text()
    for table in scaling.tables():
        assert table in page
