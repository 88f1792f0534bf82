"""What the tests with a real model share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from local.model import local_model


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The model's."""
    with local_model(tmp_path_factory.mktemp("model") / "log") as found:
        yield found
