"""What synthesis made, over all shards of a run, next to what the study's methods made."""

import re
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import chain, zip_longest

from megatron_mathcpt.records import JsonObject, id_rank
from megatron_mathcpt.report.figures import Plot, pair_plot
from megatron_mathcpt.report.study import load_published

_SHARD = re.compile(r"(^|/)shard-\d{5}-of-\d{5}$")
_SHOWN = 5  # malformed replies and seeds with their records; other samples are fewer
_OTHERS = 3
_MALFORMED = "malformed"  # how the reasons of replies that cannot be read begin


def sum_shards(
    folders: Mapping[str, JsonObject], configs: Mapping[str, JsonObject] | None = None
) -> dict[str, JsonObject]:
    """By folder and method the counts of all shards; shares, yields and costs are those of the sums.

    `folders` are the counts in the manifests by path, `configs` their configs. If a shard of an older version
    was not measured, nothing is said of lengths, near duplicates and samples.
    """
    shards: dict[tuple[str, str], list[JsonObject]] = {}
    about: dict[str, JsonObject] = {}
    names = {path: _SHARD.sub("", path) or "synthesis" for path in folders}
    for path, counts in folders.items():
        name, of = names[path], counts.get("shards", 0)
        if (there := [*names.values()].count(name)) < of and path:
            name += f" ({there} of {of} shards)"
        name += " (stub server)" if counts.get("scripted") else ""
        about[name] = (configs or {}).get(path, {})
        for method, made in counts["methods"].items():
            shards.setdefault((name, method), []).append({"shards": 1, "rejected": {}, **made})
    study = {row.method: row.model_dump(mode="json") for row in load_published().synthesis}
    return {
        f"{run}: {method}": _conclude(found)
        | {"run": run, "method": method, "study": study.get(method), **_settings(about[run], method)}
        for (run, method), found in shards.items()
    }


def _settings(config: JsonObject, method: str) -> JsonObject:
    servers = config.get("servers", {}).items()  # a model may be the path of a folder, which is named instead
    models = {name: re.sub("^/.*/", "", one["model"].rstrip("/")) for name, one in servers}
    own = config.get("methods", {}).get(method, {})
    return {"settings": own, "models": models, "verification": config.get("verification", {})}


def _add(one: JsonObject, other: JsonObject) -> JsonObject:
    """Both by key: numbers added, lists joined; of flags whether one is set, of texts the first."""
    total = {**one}
    for key, value in other.items():
        known = total.get(key)
        if known is None:
            total[key] = value
        elif isinstance(known, dict):
            total[key] = _add(known, value)
        elif value is not None:
            total[key] = known or value if isinstance(known, bool | str) else known + value
    return total


def _conclude(shards: list[JsonObject]) -> JsonObject:
    made = reduce(_add, shards, JsonObject())
    quality = made.pop("quality", {}) if all("quality" in shard for shard in shards) else {}
    ratios = {"accepted_share": ("accepted", "outcomes"), "tokens_per_record": ("tokens", "records")}
    ratios |= {"cost_per_record": ("cost", "records"), "cost_per_token": ("cost", "tokens")}
    for name, (part, whole) in ratios.items():
        made[name] = made[part] / made[whole] if made[whole] else None
    seeds, near = quality.get("seeds"), quality.get("near_duplicates", {})
    made["records_per_seed"] = made["records"] / seeds if seeds else None
    made["near_share"] = near["found"] / near["compared"] if near.get("compared") else None
    return made | {"quality": _first_samples(quality) if quality else None}


def _first_samples(quality: JsonObject) -> JsonObject:
    """The samples of all shards, as few as one shard has."""
    counts = {reason: _SHOWN if reason.startswith(_MALFORMED) else _OTHERS for reason in quality["rejected"]}
    rejected = {reason: quality["rejected"][reason][:count] for reason, count in counts.items()}
    contrary = {pair: found[:_OTHERS] for pair, found in quality["disagreements"].items()}
    pairs = sorted(quality["pairs"], key=lambda pair: id_rank(pair["seed"]["id"]))[:_SHOWN]
    return quality | {"rejected": rejected, "disagreements": contrary, "pairs": pairs}


def first_malformed(made: JsonObject) -> list[tuple[str, JsonObject]]:
    """Up to five malformed replies of a method, as (kind, sample): the first of each kind, then others."""
    kinds = (made.get("quality") or {}).get("rejected", {})
    kept = ([(kind, one) for one in found] for kind, found in kinds.items() if kind.startswith(_MALFORMED))
    return [*filter(None, chain.from_iterable(zip_longest(*kept)))][:_SHOWN]


def length_plots(made: JsonObject) -> Iterator[Plot]:
    """Histograms of tokens and steps of the seeds and of the records, in percent of each."""
    quality = made["quality"]
    for what in ("tokens", "steps") if quality else ():
        before, after = (quality[f"{what}_{when}"] for when in ("before", "after"))
        lows = sorted(map(int, before))
        filled = [at for at, low in enumerate(lows) if before[str(low)] or after[str(low)]]
        totals = [max(1, sum(bins.values())) for bins in (before, after)]
        rows = []
        # At least six bins, so that a bar looks like one.
        for at in range(filled[0], min(len(lows), max(filled[-1] + 1, filled[0] + 6))) if filled else ():
            low, end = lows[at], lows[at + 1] if at + 1 < len(lows) else None
            name = f"{low}" if end == low + 1 else f"{low} to {end - 1}" if end else f"{low} and more"
            counts = [bins[str(low)] for bins in (before, after)]
            shares = [100 * count / total for count, total in zip(counts, totals, strict=True)]
            seeds, records = (f"{n:,} ({share:.1f}%)" for n, share in zip(counts, shares, strict=True))
            rows.append((f"{low}", *shares, f"{name} {what}: seeds {seeds}, records {records}"))
        yield pair_plot(f"{what} of seeds and records", "% of each", rows)
