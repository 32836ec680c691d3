"""A stand-in for torch's store, for ranks that are objects of one process."""


class MemoryStore(dict):
    """A store in this process's memory."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self[key] for key in keys]
