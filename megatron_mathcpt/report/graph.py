"""Graph of result folders: an edge leads from a folder to each one whose manifest lists it as an input."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, load_manifest

COLUMN_GAP, ROW_GAP = 46.0, 14.0
_RUN_STAGES = ("run", "hf", "evaluation")  # in the order they run


@dataclass(frozen=True)
class GraphNode:
    """One folder of results: the pipeline stages in it, and its config, relative to the root."""

    name: str
    kinds: tuple[str, ...]
    config: str


class Graph:
    """Folders in topological order, edges (from, to), and a layout in the user units of an SVG.

    Boxes are in centred columns by depth; `places` has their upper left corners.
    """

    box = (132.0, 44.0)

    def __init__(self, nodes: Sequence[GraphNode], edges: Sequence[tuple[str, str]]) -> None:
        self.edges, self.depths = edges, {node.name: 0 for node in nodes}
        for _ in nodes:  # depth is the longest path from a source, which has fewer edges than there are nodes
            for start, end in edges:
                self.depths[end] = max(self.depths[end], self.depths[start] + 1)
        self.nodes = sorted(nodes, key=lambda node: self.depths[node.name])
        counts = Counter(self.depths.values())
        across, down = self.box[0] + COLUMN_GAP, self.box[1] + ROW_GAP
        self.width = len(counts) * across - COLUMN_GAP + 4
        self.height = max(counts.values(), default=0) * down + ROW_GAP
        below = {depth: (self.height - count * down + ROW_GAP) / 2 for depth, count in counts.items()}
        self.places: dict[str, tuple[float, float]] = {}
        for node in self.nodes:
            depth = self.depths[node.name]
            self.places[node.name] = 2 + depth * across, below[depth]
            below[depth] += down

    def direct_edges(self) -> Iterator[tuple[str, str]]:
        """Transitive reduction of the edges: those that a longer path implies would only be clutter."""
        below: dict[str, set[str]] = {node.name: set() for node in self.nodes}
        for node in reversed(self.nodes):
            for start, end in self.edges:
                if start == node.name:
                    below[start] |= {end, *below[end]}
        for a, b in self.edges:
            if not any(b in below[middle] for start, middle in self.edges if start == a and middle != b):
                yield a, b

    def paths(self) -> Iterator[str]:
        """SVG paths of the direct edges, from the right side of one box to the left side of the other."""
        for start, end in self.direct_edges():
            (x0, y0), (x1, y1) = self.places[start], self.places[end]
            x0, y0, y1 = x0 + self.box[0], y0 + self.box[1] / 2, y1 + self.box[1] / 2
            middle = (x0 + x1) / 2
            yield f"M{x0:g},{y0:g}C{middle:g},{y0:g} {middle:g},{y1:g} {x1:g},{y1:g}"


def find_manifests(root: Path, without: Path) -> dict[str, Manifest]:
    """Manifests of all complete folders below `root` except `without`, by path relative to `root`."""
    found = {}
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        path = Path(folder)
        if path.resolve() == without.resolve():
            below.clear()
        elif FILE_NAME in files and path != root:
            found[path.relative_to(root).as_posix()] = load_manifest(path, None)
    return found


def build_graph(root: Path, manifests: dict[str, Manifest]) -> Graph:
    """Graph of the outermost complete folders; complete folders inside one count as part of it."""
    owner = {
        path: next(head for head in accumulate(path.split("/"), "{}/{}".format) if head in manifests)
        for path in manifests
    }
    owners: dict[str, set[str]] = {}  # by fingerprint or file hash
    kinds: dict[str, set[str]] = {}
    for path, manifest in manifests.items():
        kinds.setdefault(owner[path], set()).add(manifest.kind)
        for value in (manifest.fingerprint(), *(file.sha256 for file in manifest.outputs.values())):
            owners.setdefault(value, set()).add(owner[path])
    # A file that is in several folders, such as a tokenizer, does not identify which one was the input.
    made_by = {value: min(names) for value, names in owners.items() if len(names) == 1}
    edges: set[tuple[str, str]] = set()
    # Folders of their own first: scores inside a run may be those of an export that was made from the run.
    for path in sorted(manifests, key=lambda path: path != owner[path]):
        starts = {made_by[value] for value in manifests[path].inputs.values() if value in made_by}
        edges |= {(start, owner[path]) for start in starts - _reached(owner[path], edges)}
    nodes = []
    for name, found in kinds.items():
        own = tuple(kind for kind in _RUN_STAGES if kind in found)
        config = f"{name}/{'config.yaml' if (root / name / 'config.yaml').is_file() else FILE_NAME}"
        others = sorted(found - {*own, "checkpoint"})  # a run's checkpoints are part of it
        nodes.append(GraphNode(name, (*own, *others), config))
    return Graph(nodes, sorted(edges))


def _reached(name: str, edges: set[tuple[str, str]]) -> set[str]:
    """`name`, and every folder to which edges lead from it."""
    found = {name}
    while more := {end for start, end in edges if start in found} - found:
        found |= more
    return found
