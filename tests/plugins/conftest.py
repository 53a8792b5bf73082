"""The C++ plugin library, built once for all tests that need it."""

from __future__ import annotations

import pytest

from tests.plugins.library_build import Build, build_library


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build_library(tmp_path_factory.mktemp("library"))
