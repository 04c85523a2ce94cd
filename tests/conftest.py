"""What all tests share: which are skipped on this host and why, and how hypothesis behaves."""

import os
import shutil

import hypothesis
import pytest

hypothesis.settings.register_profile("suite", deadline=None, database=None)  # no files, and no verdict on a busy machine's pace
hypothesis.settings.load_profile("suite")

NEEDS = {
    "emulation": (os.geteuid() == 0, "builds namespaces and links, which takes root"),
    "browser": (shutil.which("chromium") is not None, "needs chromium, which is not installed here"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for name, (met, reason) in NEEDS.items():
        for item in items:
            if not met and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))
