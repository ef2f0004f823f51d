"""Phases of a run: spans, samples and rates by hand, a resumed run's bits, and branches from one stem."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_mathcpt.checkpoint.convert import export_to_hf
from megatron_mathcpt.config.phases import phases_of, pool_tokens
from megatron_mathcpt.errors import EXIT_REQUEUE, ConfigError
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.train.blends import build_blends, build_train_datasets, index_cache
from megatron_mathcpt.train.inputs import check_resumable, resolve_inputs
from megatron_mathcpt.train.traced_step import trace_step
from tests.support.tokenized_corpus import POOLS, TOKENIZER, write_tokenized_corpus
from tests.support.training_outputs import losses_of, metric_rows
from tests.support.training_runs import KEEP_ALL, ConfigOf, train, train_forked
from tests.train.test_layouts import TWO_PROCESSES
from tests.train.test_resume import check_same_run, started

STEADY = {"lr_decay_style": "constant", "lr_warmup_fraction": 0.0}
TO_ZERO = {"lr_decay_style": "linear", "lr_warmup_fraction": 0.0}
# Steps 1 to 8 are the first phase's, of 4 x 64 tokens; to 14 the anneal's; to 20 of 2 x 128 tokens.
PHASES = {
    "anneal": {
        "from_tokens": 2000,
        "blend": {"math_corpus": 3.0, "problem_solving": 1.0},
        "schedule": TO_ZERO,
    },
    "long": {
        "from_tokens": 3584,
        "blend": {"general": 1.0},
        "schedule": {
            "lr_decay_style": "wsd",
            "lr_wsd_decay_fraction": 0.5,
            "lr_wsd_decay_style": "minus_sqrt",
        },
        "lr": 1e-3,
        "seq_length": 128,
        "global_batch_size": 2,
        "rotary_base": 50_000.0,
    },
}


def phased(config_of: ConfigOf, **more: Any) -> Any:
    logging, faults = {"loss_by_source": True}, {"spike_sigma": 1e9}  # which is never, but counts the losses
    sections = {"schedule": STEADY, "phases": PHASES, "logging": logging, "faults": faults} | KEEP_ALL
    return config_of(**sections | more)


@pytest.fixture(scope="module")
def run(config_of: ConfigOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phases") / "run"
    train(phased(config_of), out)
    return out


def test_spans_by_hand(config_of: ConfigOf) -> None:
    """2,000 tokens are 7.8 steps, so the second phase begins after 8; the last one after 14."""
    main, anneal, long = phases_of(phased(config_of))
    assert [phase.name for phase in (main, anneal, long)] == ["main", "anneal", "long"]
    spans = [(phase.first_step, phase.last_step, phase.first_sample) for phase in (main, anneal, long)]
    assert spans == [(0, 8, 0), (8, 14, 32), (14, 20, 56)]
    assert [phase.config.train.train_tokens for phase in (main, anneal, long)] == [2048, 1536, 1536]
    assert [phase.schedule_span for phase in (main, anneal, long)] == [(0, 2048), (2048, 3584), (3584, 5120)]
    assert (long.samples(16), long.tokens(16)) == (60, 4096)
    assert long.config.model.rotary_base == 50_000 and anneal.config.model.rotary_base == 10_000
    assert anneal.config.data.blend == PHASES["anneal"]["blend"] and long.config.optimizer.lr == 1e-3
    # 0.5 of the first, all of the last; 0.3 and 3/4; 0.2 and 1/4.
    expected = {"general": 1024 + 1536, "math_corpus": 614.4 + 1152, "problem_solving": 409.6 + 384}
    assert pool_tokens(phased(config_of)) == pytest.approx(expected)
    # One schedule for both phases: the second only has another blend.
    shared = {"anneal": {"from_tokens": 2048, "blend": {"general": 1.0}}}
    assert [phase.schedule_span for phase in phases_of(config_of(phases=shared))] == [(0, 5120)] * 2
    plain = config_of()
    assert phases_of(plain)[0].config == plain and "phases" not in plain.model_dump()
    begun = config_of(phases={"long": {"from_tokens": 0, "rotary_base": 5e5}})
    assert [phase.name for phase in phases_of(begun)] == ["long"]


WRONG = {
    "order": ({"a": {"from_tokens": 2000}, "b": {"from_tokens": 1000}}, "in the order of their from_tokens"),
    "late": ({"a": {"from_tokens": 5120}}, "begin at 5,120 tokens, and train.train_tokens is not above it"),
    "main": ({"main": {"from_tokens": 512}}, "other names than main"),
    "rate": ({"a": {"from_tokens": 512, "lr": 1.0}}, "lr, min_lr: are the ends of a schedule"),
    "field": ({"a": {"from_tokens": 512, "sequence": 1}}, "sequence"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_phases_are_refused(config_of: ConfigOf, kind: str) -> None:
    phases, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        config_of(phases=phases)


def test_phases_are_checked_like_runs(config_of: ConfigOf, tmp_path: Path) -> None:
    def message(**phase: Any) -> str:
        config = config_of(phases={"b": {"from_tokens": 2048} | phase}, data={"max_epochs": 1.0})
        return train(config, tmp_path / "run", status=2)

    assert "phases.b: train.global_batch_size: 3 is not divisible" in message(
        global_batch_size=3, micro_batch_size=2
    )
    assert "data.blend: no pool 'other'" in message(blend={"other": 1.0})
    short = message(seq_length=128, max_position_embeddings=100)
    assert "phases.b: seq_length: 128 is above 100, the model's max_position_embeddings" in short
    assert "tokens of pool 'problem_solving' are" in message(blend={"problem_solving": 1.0})
    with pytest.raises(
        ConfigError, match="'a' has no step of its own; change its from_tokens or the next one's"
    ):
        phases_of(config_of(phases={"a": {"from_tokens": 2000}, "b": {"from_tokens": 2048}}))


def test_tokens_and_losses_are_told_by_phase(run: Path) -> None:
    """Samples of each pool by the greedy rule of the blend, recomputed here; rates by hand."""
    counts = load_manifest(run, "run").counts
    rows = [row for row in metric_rows(run) if "loss" in row]
    samples = {  # 32 of 0.5, 0.3, 0.2; 24 of 3/4, 1/4; 12
        "main": {"general": 16, "math_corpus": 10, "problem_solving": 6},
        "anneal": {"math_corpus": 18, "problem_solving": 6},
        "long": {"general": 12},
    }
    tokens = {
        phase: {pool: count * (128 if phase == "long" else 64) for pool, count in found.items()}
        for phase, found in samples.items()
    }
    assert {name: phase["tokens_by_source"] for name, phase in counts["phases"].items()} == tokens
    seen = {pool: sum(found.get(pool, 0) for found in tokens.values()) for pool in tokens["main"]}
    assert {pool: found["seen"] for pool, found in counts["tokens_by_source"].items()} == seen
    assert rows[-1]["tokens_by_source"] == seen and counts["consumed_tokens"] == 5120 == sum(seen.values())
    assert (counts["consumed_samples"], rows[-1]["consumed_samples"]) == (68, 68)
    assert [row["phase"] for row in rows] == ["main"] * 8 + ["anneal"] * 6 + ["long"] * 6
    rates = [row["learning_rate"] for row in rows]
    assert rates[:8] == [3e-3] * 8
    assert rates[8:14] == pytest.approx([3e-3 * (1 - done / 6) for done in range(1, 7)])
    assert rates[14:] == pytest.approx([1e-3] * 3 + [1e-3 * (1 - (part / 3) ** 0.5) for part in (1, 2, 3)])
    for name, steps in (("main", range(8)), ("anneal", range(8, 14)), ("long", range(14, 20))):
        loss = np.mean([rows[step]["loss"] for step in steps])
        assert counts["phases"][name]["loss"] == pytest.approx(loss, rel=1e-12)
        validation = [row["validation"] for row in metric_rows(run) if "validation" in row]
        assert counts["phases"][name]["final_validation"] in validation
    paths = folders.checkpoint_paths(run)
    assert [folders.step_of(path) for path in paths] == [20, 16, 14, 8]
    # What a spike is compared with is of its own phase.
    guards = [folders.checkpoint_counts(folders.checkpoint_manifest(path)).guard for path in paths]
    assert [len(found["losses"]) for found in guards if found] == [6, 2, 6, 8]


def test_a_run_does_not_resume_with_pools_in_another_order(run: Path, config_of: ConfigOf) -> None:
    """The order decides which pool's sample comes first, so which sample each step trains on."""
    other = {"anneal": PHASES["anneal"] | {"blend": {"problem_solving": 1.0, "math_corpus": 3.0}}}
    inputs, newest = resolve_inputs(phased(config_of, phases=PHASES | other)), folders.newest_checkpoint(run)
    with pytest.raises(ConfigError, match=r"data\.blend: names its pools in another order"):
        check_resumable(inputs, newest)
    check_resumable(resolve_inputs(phased(config_of)), newest)


@pytest.mark.parametrize(
    ("step", "sent"),
    [
        pytest.param(4, signal.SIGKILL, marks=pytest.mark.slow),
        (12, signal.SIGKILL),
        (16, signal.SIGTERM),
    ],
)
def test_a_run_killed_or_stopped_in_any_phase_resumes_with_the_same_bits(
    run: Path, config_of: ConfigOf, tmp_path: Path, step: int, sent: signal.Signals
) -> None:
    config, out = phased(config_of, checkpoint={"keep": 9, "interval": 4}), tmp_path / "run"
    stopped = started(config, out, step)
    stopped.send_signal(sent)
    assert stopped.wait(timeout=60) == (EXIT_REQUEUE if sent == signal.SIGTERM else -sent)
    train(config, out)
    check_same_run(run, out)


def test_every_layout_trains_the_phases(run: Path, config_of: ConfigOf, tmp_path: Path) -> None:
    layouts = ("tensor", "pipeline", "data, overlapped")
    configs = {f"run{n}": phased(config_of, parallel=TWO_PROCESSES[name]) for n, name in enumerate(layouts)}
    for out in train_forked(configs, 2, tmp_path).values():
        assert losses_of(out) == pytest.approx(losses_of(run), abs=1e-4)


@pytest.mark.usefixtures("layout")
def test_the_samples_of_a_phase_follow_those_of_the_one_before(run: Path, config_of: ConfigOf) -> None:
    inputs = resolve_inputs(phased(config_of))
    main, anneal, long = build_blends(inputs, index_cache(inputs, run))
    for pool, first, second in ((1, 10, 18), (2, 6, 6)):
        places = [
            blend.dataset_sample_index[blend.dataset_index == number].tolist()
            for blend, number in ((main, pool), (anneal, pool - 1))
        ]
        assert places == [[*range(first)], [*range(first, first + second)]]
    # 16 samples of 64 tokens are 8 of 128.
    assert long.dataset_sample_index.tolist() == [*range(8, 20)]
    traced = {(one.pool, one.sample) for step in (8, 9, 15) for one in trace_step(run, step)}
    assert {sample for _, sample in traced} == {28, 29, 30, 31, 32, 33, 34, 35, 56, 57}
    assert {pool for pool, sample in traced if sample >= 56} == {"general"}


@pytest.mark.usefixtures("layout")
def test_the_longer_context_is_transformers_with_that_rotary_base(
    run: Path, config_of: ConfigOf, tmp_path: Path
) -> None:
    """The first loss of the last phase is that of the model before it, with another rope_theta."""
    before, after = tmp_path / "before", tmp_path / "after"
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER)
    export_to_hf(folders.checkpoint_path(run, 14), before, tmp_path, verify=False)
    export_to_hf(run, after, tmp_path, verify=False)
    assert AutoModelForCausalLM.from_pretrained(after).config.rope_parameters["rope_theta"] == 50_000
    model = AutoModelForCausalLM.from_pretrained(before)
    assert model.config.rope_parameters["rope_theta"] == 10_000
    model.config.rope_parameters["rope_theta"] = 50_000.0
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    long = build_train_datasets(resolve_inputs(phased(config_of)), run)[2]
    rows = [long[0], long[1]]
    tokens, labels = (torch.stack([row[name] for row in rows]) for name in ("tokens", "labels"))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), labels.flatten())
    assert losses_of(run)[14] == pytest.approx(loss.item(), abs=1e-5)


def branch(config_of: ConfigOf, stem: Path, blend: dict[str, float], **more: Any) -> Any:
    init = {"scratch": False, "checkpoint": str(stem), "load_optimizer": True, "continue_data": True} | more
    tokens = {"train": {"train_tokens": 1536}}
    config = config_of(init=init, schedule=TO_ZERO, **tokens, **KEEP_ALL)
    return config.model_copy(update={"data": config.data.model_copy(update={"blend": blend})})


def test_branches_go_on_from_one_stem_as_a_phase_would(
    run: Path, config_of: ConfigOf, tmp_path: Path
) -> None:
    """Three anneals from one stem: the first has the losses, bit for bit, of the run of several phases."""
    stem = train_forked(
        {"stem": config_of(schedule=STEADY, train={"train_tokens": 2048}, **KEEP_ALL)}, 1, tmp_path
    )["stem"]
    blends = [PHASES["anneal"]["blend"], {"general": 1.0}, {"general": 0.5, "problem_solving": 0.5}]
    configs = {f"branch{number}": branch(config_of, stem, blend) for number, blend in enumerate(blends)}
    runs = train_forked(configs, 1, tmp_path)
    assert losses_of(stem) == losses_of(run)[:8]
    assert losses_of(runs["branch0"]) == losses_of(run)[8:14]
    newest = load_manifest(folders.newest_checkpoint(stem), "checkpoint")
    for out in runs.values():  # none has trained a stem of its own
        manifest = load_manifest(out, "run")
        assert manifest.inputs["checkpoint"] == newest.fingerprint()
        assert (manifest.counts["steps"], manifest.counts["consumed_tokens"]) == (6, 1536)
    found = load_manifest(runs["branch2"], "run").counts["tokens_by_source"]
    assert {pool: one["seen"] for pool, one in found.items()} == {"general": 768, "problem_solving": 768}
    before = {"general": 1024, "math_corpus": 640, "problem_solving": 384}
    assert load_manifest(runs["branch2"], "run").counts["seen_before"] == before
    # A branch of a branch has read what both have, of pools that only the stem had too.
    again = resolve_inputs(branch(config_of, runs["branch2"], blends[1]))
    assert again.seen == {"general": 1792, "math_corpus": 640, "problem_solving": 1152}
    config = branch(config_of, stem, blends[1])
    with pytest.raises(ConfigError, match="has read in the order of seed 7; take that"):
        resolve_inputs(config.model_copy(update={"seed": 8}))
    capped = config.data.model_copy(update={"max_epochs": 0.5})
    with pytest.raises(ConfigError, match=r"1,536 tokens of pool 'general' after 1,024 are more than 2,0"):
        resolve_inputs(config.model_copy(update={"data": capped}))
    # A corpus may be added, but not exchanged.
    write_tokenized_corpus(tmp_path / "more", ["extra"])
    both = (*config.data.corpora, tmp_path / "more")
    resolved = resolve_inputs(
        config.model_copy(update={"data": config.data.model_copy(update={"corpus": both})})
    )
    assert resolved.seen == before
    other = write_tokenized_corpus(tmp_path / "other", [*POOLS, "extra"])
    exchanged = config.data.model_copy(update={"corpus": other})
    with pytest.raises(ConfigError, match=r"has read other data; name its corpora in data\.corpus too"):
        resolve_inputs(config.model_copy(update={"data": exchanged}))
    # Another pass has another order, so that it cannot be read on.
    longer = config.train.model_copy(update={"train_tokens": 4096})
    with pytest.raises(ConfigError, match=r"4,096 tokens of pool 'general' after 1,024 are more than 4,0"):
        resolve_inputs(config.model_copy(update={"train": longer}))
