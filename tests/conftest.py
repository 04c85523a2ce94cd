"""What all tests share: which are skipped on this host and why, and how hypothesis behaves."""

import os
import shutil
from collections.abc import Generator

import hypothesis
import pytest

from testbed.errors import UserError
from traces.store import data_roots

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
    items.sort(key=lambda item: "guest" not in item.path.parts)  # it takes minutes, beside which the others run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """A test that meets a data set which isn't here is skipped, and says which; where any data are, what lacks is an error."""
    try:
        return (yield)
    except UserError as error:
        if "is not on this machine" in str(error) and not any(root.is_dir() and any(root.glob("[!.]*")) for root in data_roots()):
            pytest.skip(" ".join(str(error).split()))
        raise


pytest_runtest_setup = pytest_runtest_call
