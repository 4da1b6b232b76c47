"""A network namespace that the test itself runs in."""

from collections.abc import Iterator

import pytest

from tests.netns import Namespace


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """The thread of the test is inside, so its sockets are too."""
    with Namespace() as made, made.entered():
        yield made
