"""Episode lists: files of episodes to be evaluated.

The text is tab-separated, also gzipped, and has one of two forms.

This project's form begins with a header. `class` is a class name or id of the packed set, `query` and `support` are
sample keys or names of source files; `seed` may be left out:

    seed    class    query          support        support
    0       cat      2007_000528    2007_000876    2008_000464

The published form has no header and counts classes from 0: `class query support...`. Its names are paths or ids of the
data sets' native layouts; FSS-1000's supports lie in the folder of their query, whose name is the class.
"""

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fss.data.episodes import Episode
from fss.datasets.base import class_named
from shards.format import Manifest, ShardError, write_whole
from shards.sources import read_file, unique_keys

GZIP = b"\x1f\x8b"  # first bytes of a gzip file
COLUMNS = ("seed", "class", "query", "support")


def read_list(path: str | Path, manifest: Manifest, shots: int) -> list[Episode]:
    """Read a list and find its samples in a packed set; see the module's docstring for the forms.

    Episodes without a seed get seed 0; those of a seed are numbered in the order of the file.

    Raises ShardError if the file is no such list, if an episode does not have `shots` supports, if a sample is not in
    the set or does not show the class, or if a query is its own support.
    """
    path = Path(path)
    lines = [(number, text) for number, text in enumerate(_text(path).splitlines(), start=1) if text.strip()]
    if not lines:
        raise ShardError(f"{path} lists no episodes")
    header = lines[0][1].split("\t")
    ours = "class" in header
    if ours and (set(header) - set(COLUMNS) or header.count("class") * header.count("query") != 1):
        raise ShardError(f"{path} has the columns {header}: give one class, one query and a support a shot")
    columns = header if ours else ["class", "query", *["support"] * (len(header) - 2)]
    if "support" not in columns:
        raise ShardError(f"{path} begins with {lines[0][1][:40]!r}: give a class, a query and supports between tabs")
    if (supports_listed := columns.count("support")) != shots:
        raise ShardError(
            f"{path} lists episodes of {supports_listed} support(s), episodes.shots is {shots}: "
            f"set it to {supports_listed}"
        )

    samples = _Samples(manifest)
    numbers: Counter[int] = Counter()
    episodes = []
    for line, text in lines[ours:]:
        cells = text.split("\t")
        try:
            if len(cells) != len(columns):
                raise ShardError(f"has {len(cells)} columns for {len(columns)}")
            seed, class_id, query, supports = samples.episode(list(zip(columns, cells, strict=True)), ours)
        except ShardError as error:
            raise ShardError(f"line {line} of {path} {error}") from None
        episodes.append(Episode(seed, numbers[seed], class_id, query, supports))
        numbers[seed] += 1
    if not episodes:
        raise ShardError(f"{path} lists no episode: give a list with rows of class, query and supports")
    return episodes


def write_list(path: str | Path, episodes: Sequence[Episode], manifest: Manifest) -> None:
    """Write episodes with equal numbers of shots as a list for `read_list`, gzipped if the name ends in .gz."""
    shots = len(episodes[0].supports)
    rows = [["seed", "class", "query", *["support"] * shots]]
    for episode in episodes:
        keys = [manifest.samples[index].key for index in (episode.query, *episode.supports)]
        rows.append([str(episode.seed), manifest.classes[episode.class_id], *keys])
    data = "".join("\t".join(row) + "\n" for row in rows).encode()
    write_whole(Path(path), gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)


def _text(path: Path) -> str:
    data = read_file(path)
    try:
        return (gzip.decompress(data) if data.startswith(GZIP) else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ShardError(f"{path} is no list of episodes ({type(error).__name__}): give tab-separated text") from None


class _Samples:
    """Samples and classes of a packed set by the names in a list."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self.index = {sample.key: index for index, sample in enumerate(manifest.samples)}
        self.ids = {name: class_id for class_id, name in manifest.classes.items()}

    def episode(self, cells: list[tuple[str, str]], ours: bool) -> tuple[int, int, int, tuple[int, ...]]:
        """Return seed, class, query and supports of a row of (column, cell). Raises ShardError if the row is wrong."""
        row = dict(cells)
        folder = PurePosixPath(row["query"]).parent
        names = [row["query"], *(cell for column, cell in cells if column == "support")]
        if not ours:
            names[1:] = [name if "/" in name else str(folder / name) for name in names[1:]]
        indices = [self.find(name) for name in names]
        class_id = self.named_class(row["class"]) if ours else self.counted_class(row["class"], folder.name)
        for name, index in zip(names, indices, strict=True):
            if class_id not in self.manifest.samples[index].classes:
                raise ShardError(f"wants {self.manifest.classes[class_id]} in {name}, which shows none in this set")
        query, *supports = indices
        if query in supports:
            raise ShardError(f"has its query {names[0]} among its supports")
        seed = row.get("seed", "0")
        if not seed.isdecimal():
            raise ShardError(f"has the seed {seed!r}: give a whole number")
        return int(seed), class_id, query, tuple(supports)

    def find(self, name: str) -> int:
        """Return the index of the sample of a source file; its key may have any number of the path's folders.

        Raises ShardError if the set has no such sample.
        """
        parts = re.sub(r"\.(jpe?g|png)$", "", name, flags=re.IGNORECASE).split("/")
        candidates = [name, *("_".join(parts[start:]) for start in range(len(parts)))]
        # COCO 2017 has the images of 2014 under their numbers alone.
        candidates += re.findall(r"^COCO_(?:train|val)2014_(\d{12})$", parts[-1])
        for candidate in candidates:
            if (index := self.index.get(unique_keys([candidate], [candidate])[0])) is not None:
                return index
        raise ShardError(
            f"names {name}, which set {self.manifest.name} of {len(self.index)} samples does not have: give the set "
            "that the list was made for with data.shards"
        )

    def named_class(self, name: str) -> int:
        """Return the id of a class by name or id. Raises ShardError if the set has no such class."""
        if (class_id := class_named(name, self.manifest.classes)) is None:
            raise ShardError(f"names the class {name!r}, which set {self.manifest.name} does not have")
        return class_id

    def counted_class(self, number: str, folder: str) -> int:
        """Return the class of a published row: the query's folder if that is a class, else the number from 0.

        Raises ShardError if the number is not one or the set has no such class.
        """
        if not number.isdecimal():
            raise ShardError(
                f"begins with {number!r}: give a class number, or a header (see fss/data/episode_lists.py)"
            )
        class_id = self.ids.get(folder, int(number) + 1)
        if class_id not in self.manifest.classes:
            raise ShardError(f"names class {number}, counted from 0, of {len(self.ids)} in set {self.manifest.name}")
        return class_id
