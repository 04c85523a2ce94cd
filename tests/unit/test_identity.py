"""What a source runs is what it is known by."""

import pytest

from netllm.identity import hash_source

SOURCE = '''"""About."""

LIMIT = 3
"""Of something."""


def twice(x):
    """Two of it."""
    return 2 * x  # quick
'''


def written(folder, text):
    path = folder / f"source_{len(list(folder.iterdir()))}.py"
    path.write_text(text)
    return path


def test_comments_docstrings_and_layout_make_no_other_policy(tmp_path):
    other = (
        SOURCE.replace("Two of it.", "Two of them.").replace("  # quick", "").replace("LIMIT = 3", "LIMIT  =  3\n").replace("About", "On")
    )
    assert other != SOURCE and hash_source(written(tmp_path, other)) == hash_source(written(tmp_path, SOURCE))


@pytest.mark.parametrize("change", [("2 * x", "3 * x"), ("LIMIT = 3", "LIMIT = 4"), ("2 * x", "2 * x + 0"), ("twice", "double")])
def test_what_runs_does(tmp_path, change):
    assert hash_source(written(tmp_path, SOURCE.replace(*change))) != hash_source(written(tmp_path, SOURCE))


def test_of_another_file_every_byte_counts(tmp_path):
    files = [tmp_path / "a.c", tmp_path / "b.c"]
    for file, text in zip(files, ("int a; /* one */", "int a; /* two */"), strict=True):
        file.write_text(text)
    assert hash_source(files[0]) != hash_source(files[1])
