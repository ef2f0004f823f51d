"""Which folder of results was made from which: by the inputs and outputs that the manifests list."""

import os
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import accumulate
from pathlib import Path

from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, load_manifest

_RUN_STAGES = ("run", "hf", "evaluation")  # in the order they run


@dataclass(frozen=True)
class Origin:
    """One folder of results: the pipeline stages in it, its config, and the folders it was made from."""

    name: str
    kinds: tuple[str, ...]
    config: str  # relative to the root
    made_from: tuple[str, ...]


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


def find_origins(root: Path, manifests: dict[str, Manifest]) -> list[Origin]:
    """The outermost complete folders, parents first; complete folders inside one count as part of it."""
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
    parents = {name: sorted(start for start, end in edges if end == name) for name in kinds}
    origins = []
    for name in TopologicalSorter(parents).static_order():
        own = tuple(kind for kind in _RUN_STAGES if kind in kinds[name])
        config = f"{name}/{'config.yaml' if (root / name / 'config.yaml').is_file() else FILE_NAME}"
        others = sorted(kinds[name] - {*own, "checkpoint"})  # a run's checkpoints are part of it
        origins.append(Origin(name, (*own, *others), config, tuple(parents[name])))
    return origins


def _reached(name: str, edges: set[tuple[str, str]]) -> set[str]:
    """`name`, and every folder to which edges lead from it."""
    found = {name}
    while more := {end for start, end in edges if start in found} - found:
        found |= more
    return found
