"""Messages, warnings and histograms about the contrast against a queue."""

import math

import torch
from torch import Tensor

from fss.nn.contrast import Queue

LATEST, COMPARED = 64, 512  # keys whose similarities make a histogram: enough to see its shape, and soon computed


class QueueMonitor:
    """Observes one contrast: `name` is 'global' or 'local', `option` the option that sets the size of its queue."""

    def __init__(self, name: str, queue: Queue, *, option: str, keys_per_image: int):
        self.name = name
        self.queue = queue
        self.option = option
        self.keys_per_image = keys_per_image
        self.guessing_loss = math.log(len(queue) + 1)  # nats
        self._reported: set[str] = set()

    def startup_messages(self, images: int, batch: int) -> list[str]:
        """Return sentences for the start of a run over `images` images, `batch` an optimizer step over all ranks."""
        name, size = self.name, len(self.queue)
        steps = math.ceil(size / (batch * self.keys_per_image))
        messages = [
            f"loss/{name} lies between 0 and about {self.guessing_loss:.2f} = ln({size}+1), that of guessing: it is "
            f"low while the queue of {size} still holds random vectors, rises as keys replace them (full after {steps} "
            f"steps), then falls slowly; staying at {self.guessing_loss:.2f} means that nothing is learned"
        ]
        keys = images * self.keys_per_image
        if size > keys:
            messages.append(
                f"the {name} queue holds {size / keys:.1f} times the keys of all {images} images, so every image meets "
                f"old keys of itself as negatives: lower {self.option} below {keys}, or set mask_same_image"
            )
        return messages

    def chance_levels(self) -> dict[str, float]:
        """Return the values of guessing by metric: a loss of ln(K + 1) nats, one hit in K + 1."""
        return {f"loss/{self.name}": self.guessing_loss, f"top1/{self.name}": 1 / (len(self.queue) + 1)}

    @torch.no_grad()
    def distributions(self) -> dict[str, Tensor]:
        """Return values for histograms of the keys, by name, without the random vectors of the start.

        queue_age/NAME [n]: for every key, the images that the network has seen since the key was made.
        key_similarity/NAME_young and _old [n]: cosine similarities of the latest keys to some of the youngest and some
        of the oldest quarter of the others. If the two differ, the queue is stale; if all are near 1, the embedding has
        collapsed.
        """
        name, queue = self.name, self.queue
        ages = torch.arange(queue.filled)  # keys written since
        values = {f"queue_age/{name}": ages.float() / self.keys_per_image}
        latest = min(LATEST, -(-queue.filled // 5))
        quarter = (queue.filled - latest) // 4
        if not quarter:
            return values
        stride = -(-quarter // COMPARED)
        keys = queue.keys[(queue.pointer - 1 - ages[:latest]).to(queue.keys.device) % len(queue)]  # [n, D]
        for end, part in (("young", ages[latest : latest + quarter]), ("old", ages[-quarter:])):
            others = queue.keys[(queue.pointer - 1 - part[::stride]).to(keys.device) % len(queue)]  # [m, D]
            values[f"key_similarity/{name}_{end}"] = (keys @ others.T).flatten()
        return values

    def warnings(self, step: int, report: dict[str, float]) -> list[str]:
        """Return sentences about the report of a step; one about a passing state is returned only once."""
        name, size = self.name, len(self.queue)
        loss, top1 = report[f"loss/{name}"], report[f"top1/{name}"]
        if self.queue.filled < size:
            return self._once(
                "filling",
                f"the {name} queue is {self.queue.filled / size:.0%} full: until it is, most negatives are random "
                f"vectors, and loss/{name} and top1/{name} mean little",
            )
        if self.queue.total >= 2 * size and loss > 0.99 * self.guessing_loss:
            return [
                f"loss/{name} is {loss:.2f} at step {step}, that of guessing is {self.guessing_loss:.2f}, and the "
                "queue has been filled twice: nothing is learned; try a lower lr, and look at the views"
            ]
        if self.queue.total <= 4 * size and top1 > 0.995:
            return self._once(
                "perfect",
                f"top1/{name} is {top1:.1%} before the queue of {size} was filled 4 times, which is too good: do the "
                "views differ, does bn give the pairs away, is the queue large enough to be hard?",
            )
        return []

    def _once(self, topic: str, text: str) -> list[str]:
        new = topic not in self._reported
        self._reported.add(topic)
        return [text] if new else []
