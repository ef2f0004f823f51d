"""Which folder was made from which, read from the manifests: an input that carries another's fingerprint."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, load_manifest

COLUMN_GAP, ROW_GAP = 46.0, 14.0
_RUN_STAGES = ("run", "hf", "evaluation")


@dataclass(frozen=True)
class GraphNode:
    """One folder of results: the stages in it (`run`, `hf`, `evaluation`) and its config, from the root."""

    name: str
    kinds: tuple[str, ...]
    config: str


@dataclass(frozen=True)
class Graph:
    """Folders in an order in which each comes after those it was made from, and edges (from, to).

    Its picture is in the user units of an SVG: boxes in centred columns by depth, which templates draw.
    """

    box: ClassVar = (132.0, 44.0)
    nodes: tuple[GraphNode, ...]
    edges: tuple[tuple[str, str], ...]

    @cached_property
    def depths(self) -> dict[str, int]:
        """Length of the longest way from a source to each node."""
        depths = {node.name: 0 for node in self.nodes}
        for _ in self.nodes:
            for start, end in self.edges:
                depths[end] = max(depths[end], depths[start] + 1)
        return depths

    @property
    def width(self) -> float:
        return len({*self.depths.values()}) * (self.box[0] + COLUMN_GAP) - COLUMN_GAP + 4

    @property
    def height(self) -> float:
        return max(Counter(self.depths.values()).values(), default=0) * (self.box[1] + ROW_GAP) + ROW_GAP

    @cached_property
    def places(self) -> dict[str, tuple[float, float]]:
        """Upper left corner of each box."""
        counts, down = Counter(self.depths.values()), self.box[1] + ROW_GAP
        below = {depth: (self.height - count * down + ROW_GAP) / 2 for depth, count in counts.items()}
        found = {}
        for name, depth in self.depths.items():
            found[name] = 2 + depth * (self.box[0] + COLUMN_GAP), below[depth]
            below[depth] += down
        return found

    def direct_edges(self) -> Iterator[tuple[str, str]]:
        """The edges that no longer way through other folders implies."""
        below: dict[str, set[str]] = {node.name: set() for node in self.nodes}
        for node in reversed(self.nodes):
            for start, end in self.edges:
                if start == node.name:
                    below[start] |= {end, *below[end]}
        for a, b in self.edges:
            if not any(b in below[middle] for start, middle in self.edges if start == a and middle != b):
                yield a, b

    def paths(self) -> Iterator[str]:
        """SVG paths of the direct edges, from the right of one box to the left of the other."""
        for start, end in self.direct_edges():
            (x0, y0), (x1, y1) = self.places[start], self.places[end]
            x0, y0, y1 = x0 + self.box[0], y0 + self.box[1] / 2, y1 + self.box[1] / 2
            middle = (x0 + x1) / 2
            yield f"M{x0:g},{y0:g}C{middle:g},{y0:g} {middle:g},{y1:g} {x1:g},{y1:g}"


def find_manifests(root: Path, without: Path) -> dict[str, Manifest]:
    """Every complete folder below `root` but `without`, by path relative to `root`."""
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
    """The graph of the outermost folders; what lies inside a complete folder counts as part of it."""
    owner = {
        path: next(head for head in accumulate(path.split("/"), "{}/{}".format) if head in manifests)
        for path in manifests
    }
    made_by = _fingerprints(manifests, owner)
    found = {
        (made_by[value], owner[path])
        for path, manifest in manifests.items()
        for value in manifest.inputs.values()
        if value in made_by and made_by[value] != owner[path]
    }
    nodes = []
    for name in dict.fromkeys(owner.values()):
        kinds = {manifest.kind for path, manifest in manifests.items() if owner[path] == name}
        own = f"{name}/config.yaml"
        config = own if (root / own).is_file() else f"{name}/{FILE_NAME}"
        nodes.append(GraphNode(name, _stages(kinds), config))
    graph = Graph(tuple(nodes), tuple(sorted(found)))
    return replace(graph, nodes=tuple(sorted(nodes, key=lambda node: graph.depths[node.name])))


def _stages(kinds: set[str]) -> tuple[str, ...]:
    """A run's stages in the order in which they are done; its checkpoints are part of it."""
    own = [kind for kind in _RUN_STAGES if kind in kinds]
    return (*own, *sorted(kinds - {*own, "checkpoint"}))


def _fingerprints(manifests: dict[str, Manifest], owner: dict[str, str]) -> dict[str, str]:
    """Fingerprint or file hash to its folder; what lies in several folders alike points nowhere."""
    owners: dict[str, set[str]] = {}
    for path, manifest in manifests.items():
        for value in (manifest.fingerprint(), *(file.sha256 for file in manifest.outputs.values())):
            owners.setdefault(value, set()).add(owner[path])
    return {value: min(names) for value, names in owners.items() if len(names) == 1}
