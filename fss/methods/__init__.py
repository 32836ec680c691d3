"""The systems, by the name that users type."""

from fss.methods.base import Method
from fss.methods.prior import PriorExtractor

METHODS: dict[str, type[Method]] = {
    "prior": PriorExtractor,
}
