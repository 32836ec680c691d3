"""The packed set of the launch tests."""

from tests.launch.conftest import packed

__all__ = ["packed"]
