"""Which folder was made from which, read from the manifests: an input that carries another's fingerprint.

Its picture is in the user units of an SVG; the templates draw it.
"""

import os
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, load_manifest

BOX_WIDTH, BOX_HEIGHT, COLUMN_GAP, ROW_GAP = 132.0, 44.0, 46.0, 14.0
_RUN_STAGES = ("run", "hf", "evaluation")


@dataclass(frozen=True)
class Node:
    """One folder of results: the stages in it (`run`, `hf`, `evaluation`) and its config, from the root."""

    name: str
    kinds: tuple[str, ...]
    config: str


@dataclass(frozen=True)
class Graph:
    """Folders in an order in which each comes after those it was made from, and edges (from, to)."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]

    def direct_edges(self) -> tuple[tuple[str, str], ...]:
        """The edges that no longer way through other folders implies."""
        below: dict[str, set[str]] = {node.name: set() for node in self.nodes}
        for node in reversed(self.nodes):
            for start, end in self.edges:
                if start == node.name:
                    below[start] |= {end, *below[end]}
        return tuple(
            (a, b)
            for a, b in self.edges
            if not any(b in below[middle] for start, middle in self.edges if start == a and middle != b)
        )

    def depths(self) -> dict[str, int]:
        """Length of the longest way from a source to each node."""
        depth = {node.name: 0 for node in self.nodes}
        for node in self.nodes:
            depth[node.name] = max((depth[a] + 1 for a, b in self.edges if b == node.name), default=0)
        return depth


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
    owner = {path: _outermost(path, manifests) for path in manifests}
    made_by = _fingerprints(manifests, owner)
    edges = {
        (made_by[value], owner[path])
        for path, manifest in manifests.items()
        for value in manifest.inputs.values()
        if value in made_by and made_by[value] != owner[path]
    }
    names = _in_order(list(dict.fromkeys(owner.values())), edges)
    kinds = {name: [m.kind for path, m in manifests.items() if owner[path] == name] for name in names}
    nodes = tuple(Node(name, _stages(kinds[name]), _config(root, name)) for name in names)
    return Graph(nodes, tuple(sorted(edges)))


def _stages(kinds: list[str]) -> tuple[str, ...]:
    """Each kind once, a run's stages in the order in which they are done; checkpoints are part of it."""
    own = [kind for kind in _RUN_STAGES if kind in kinds]
    return (*own, *sorted({*kinds} - {*own, "checkpoint"}))


def _outermost(path: str, manifests: dict[str, Manifest]) -> str:
    return next(head for head in accumulate(path.split("/"), "{}/{}".format) if head in manifests)


def _fingerprints(manifests: dict[str, Manifest], owner: dict[str, str]) -> dict[str, str]:
    """Fingerprint or file hash to its folder; what lies in several folders alike points nowhere."""
    owners: dict[str, set[str]] = {}
    for path, manifest in manifests.items():
        for value in (manifest.fingerprint(), *(file.sha256 for file in manifest.outputs.values())):
            owners.setdefault(value, set()).add(owner[path])
    return {value: min(names) for value, names in owners.items() if len(names) == 1}


def _in_order(names: list[str], edges: set[tuple[str, str]]) -> list[str]:
    ordered: list[str] = []
    while len(ordered) < len(names):
        waiting = [name for name in names if name not in ordered]
        ready = [n for n in waiting if all(a in ordered for a, b in edges if b == n)]
        ordered += ready or waiting  # no cycle can come from content hashes, short of a forged manifest
    return ordered


def _config(root: Path, name: str) -> str:
    own = f"{name}/config.yaml"
    return own if (root / own).is_file() else f"{name}/{FILE_NAME}"


@dataclass(frozen=True)
class Box:
    """One folder of the graph: upper left corner, and what is written in it."""

    name: str
    kinds: str
    config: str
    x: float
    y: float


@dataclass(frozen=True)
class GraphPlot:
    """Boxes in columns by depth, joined by curves (SVG path strings)."""

    boxes: tuple[Box, ...]
    paths: tuple[str, ...]
    width: float
    height: float
    box_width: float = BOX_WIDTH
    box_height: float = BOX_HEIGHT


def graph_plot(graph: Graph) -> GraphPlot:
    """Boxes of a column below one another in the graph's order, columns centred."""
    depths = graph.depths()
    columns: dict[int, list[str]] = {}
    for node in graph.nodes:
        columns.setdefault(depths[node.name], []).append(node.name)
    height = max((len(names) for names in columns.values()), default=0) * (BOX_HEIGHT + ROW_GAP) + ROW_GAP
    places = {
        name: (
            2 + depth * (BOX_WIDTH + COLUMN_GAP),
            (height - len(names) * (BOX_HEIGHT + ROW_GAP) + ROW_GAP) / 2 + row * (BOX_HEIGHT + ROW_GAP),
        )
        for depth, names in columns.items()
        for row, name in enumerate(names)
    }
    boxes = tuple(
        Box(node.name, " · ".join(node.kinds), node.config, *places[node.name]) for node in graph.nodes
    )
    paths = tuple(_edge(places[a], places[b]) for a, b in graph.direct_edges())
    width = len(columns) * (BOX_WIDTH + COLUMN_GAP) - COLUMN_GAP + 4
    return GraphPlot(boxes, paths, width, height)


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x0, y0 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT / 2
    x1, y1 = end[0], end[1] + BOX_HEIGHT / 2
    middle = (x0 + x1) / 2
    return f"M{x0:g},{y0:g}C{middle:g},{y0:g} {middle:g},{y1:g} {x1:g},{y1:g}"
