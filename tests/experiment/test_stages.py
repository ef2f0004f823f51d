"""A study's stages follow from the paths in its configs."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.base import set_field
from megatron_mathcpt.config.resolved_study import Asked, Study, load_run, load_study
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.stages import Stage, build_stages
from megatron_mathcpt.experiment.submit import load_cluster, render, stage_job, submit_stages
from megatron_mathcpt.formats.manifest import write_manifest
from tests.support.stages import CONFIGS
from tests.support.tokenized_corpus import complete_corpus

LATE = {"init": {"checkpoint": "runs/demo/child/checkpoints/step_2"}}
RUN = str(CONFIGS / "tiny" / "quickstart_base.yaml")
BUILD = str(CONFIGS / "tiny" / "quickstart_corpus.yaml")


def study(folder: Path) -> dict[str, Any]:
    def blend(corpus: str) -> dict[str, Any]:
        return {"validation.sets": [], "validation.interval": None} | {
            "data": {"corpus": f"runs/demo/{corpus}", "blend": {"problems": 1}}
        }

    def build(path: str) -> dict[str, Any]:
        source = {"pool": "problems", "kind": "problem", "path": f"runs/demo/{path}"}
        sets = ["runs/demo/corpora/evaluation", "elsewhere"]
        return {"sources": {"problems": source}, "decontaminate.benchmarks": sets}

    packed = {"data": {"corpus": "runs/demo/raw", "sft": "runs/demo/sft/problems"}}
    made = build("synthesis/shard-*/x/accepted.jsonl") | {"tokenizer": {"path": "runs/demo/raw/tokenizer"}}
    child = blend("made") | {"init": {"checkpoint": "runs/demo/base"}}
    seeds = {"seeds.path": "runs/demo/corpora/problem_solving.jsonl"}
    return {
        "name": "demo",
        "out": "runs/demo",
        "corpora": {"seed": 1},
        "corpus": {
            "raw": {"file": BUILD, "set": build("corpora/problem_solving.jsonl")},
            "made": {"file": BUILD, "set": made},
        },
        "synthesis": {"file": str(CONFIGS / "tiny" / "synthesis.yaml"), "set": seeds, "scripted": True},
        "runs": {
            "tuned": {"from": "base", "set": LATE | packed},
            "child": {"file": RUN, "set": child},
            "base": {"file": RUN, "set": blend("raw") | {"init": {"hf": "models/elsewhere"}}},
        },
        "evaluation": {"runs": ["child"], "max_new_tokens": 8},
        "report": {"study": True},
    }


def stages(
    folder: Path,
    field: str = "",
    value: Any = None,
    benchmarks: Path | None = None,
    **asked: Any,
) -> dict[str, Stage]:
    """The stages of the study with one field of its file changed."""
    tree, path = study(folder), folder / "study.yaml"
    if field:
        set_field(tree, field, value, "test")
    path.write_text(json.dumps(tree))
    found = load_study(path, Asked(out=folder / "out", **asked))
    built = build_stages(found, 2, None, benchmarks, asked.get("only", ()))
    return {stage.name: stage for stage in built}


def test_concurrent_stages_have_the_processes_of_their_layout_or_one() -> None:
    quickstart = load_study(CONFIGS / "tiny" / "quickstart.yaml")
    assert quickstart.concurrent_stages
    found = {stage.name: stage for stage in build_stages(quickstart, 2)}
    narrow = {name for name, stage in found.items() if stage.processes == 1}
    scored = {f"{run}/{part}" for run in ("base", "base1", "base2") for part in ("hf", "evaluation")}
    assert narrow == {"base1", "base2"} | scored
    assert found["base"].command[-2:] == ("--processes", "2")
    assert found["base2"].command[-2:] == ("--processes", "1")
    with pytest.raises(ConfigError, match="global_batch_size: 1 is not divisible"):
        build_stages(quickstart, 2, local=False)  # Slurm's jobs have all processes


def test_the_megatron_back_end_scores_runs_without_an_export(tmp_path: Path) -> None:
    found = stages(tmp_path, "evaluation.backend", "megatron")
    assert not any(stage.kind == "hf" for stage in found.values())
    scored = found["child/evaluation"]
    assert scored.command[4:6] == ("--model", str(tmp_path / "out" / "child"))
    assert scored.needs == ("corpora", "child")


def test_paths_in_the_configs_say_what_each_stage_needs_and_move_with_the_results(tmp_path: Path) -> None:
    found = stages(tmp_path, benchmarks=tmp_path / "sets")
    assert {name: stage.needs for name, stage in found.items()} == {
        "corpora": (),
        "raw": ("corpora",),
        "synthesis": ("corpora",),
        "made": ("synthesis", "corpora", "raw"),
        "sft/problems": ("raw",),
        "base": ("raw",),
        "child": ("base", "made"),
        "tuned": ("child", "raw", "sft/problems"),
        "child/hf": ("child",),
        "child/evaluation": ("corpora", "child/hf"),
        "report": ("raw", "made", "synthesis", "tuned", "child", "base", "child/evaluation"),
    }
    done: set[str] = set()
    for name, stage in found.items():  # in an order in which each can run
        assert done.issuperset(stage.needs), name
        done.add(name)
    out = tmp_path / "out"
    texts = {name: stage.config[1] for name, stage in found.items() if stage.config}
    assert f"  - {out}/corpora/evaluation\n  - elsewhere\n  - {tmp_path}/sets\n" in texts["raw"]
    assert f"checkpoint: {out}/child/checkpoints/step_2" in texts["tuned"]
    assert f"sft: {out}/sft/problems" in texts["tuned"]
    assert "hf: models/elsewhere" in texts["base"]
    written = str(out / "configs" / "tuned.yaml")
    assert found["tuned"].command[2:4] == ("megatron_mathcpt.train", written)
    found["tuned"].write_config()
    assert Path(written).read_text() == texts["tuned"]
    pack = [str(out / "raw"), "problems", "--seq-length", "512", "--out", str(out / "sft" / "problems")]
    assert list(found["sft/problems"].command[1:]) == ["-m", "megatron_mathcpt", "pack-sft", *pack]
    assert found["synthesis"].command[-1] == "--scripted"
    assert found["report"].command[-1] == "--study"


OTHER = {"from": "tuned", "set": {"data.corpus": "runs/demo/made"}}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("evaluation.runs", ["kid"], "study.yaml: evaluation.runs: names 'kid'"),
        ("report.comparisons", ["child:base"], "names 'base', which is not scored"),
        ("runs.raw", {"from": "base"}, "runs.raw: another stage has this folder"),
        ("runs", {"../base": {"file": RUN}}, "cannot be a name here, which should match pattern"),
        ("runs.other", OTHER, "runs.other: .*sft/problems is made from"),
        ("runs.child.set.init", {"checkpoint": "runs/demo/bass"}, "init.checkpoint: no stage .*/bass"),
        ("runs.base.set.init", {"checkpoint": "runs/demo/child"}, "in a cycle among .*child, .*base"),
        (
            "runs.base.set.init",
            {"checkpoint": "runs/dmo/child"},
            "init.checkpoint: runs/dmo/child is not there",
        ),
        ("runs.base.set.data.blend", {"problem": 1}, "runs.base: data.blend: raw has no pool 'problem'"),
        (
            "runs.base.set.checkpoint",
            {"interval": 2, "keep_every": 3},
            "runs.base: checkpoint.keep_every: not a multiple",
        ),
        ("runs.tuned.set.data.sft", "runs/demo/child", "child: two stages have this folder"),
    ],
)
def test_wrong_names_are_errors(field: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        stages(tmp_path, field, value)


def several(corpora: list[str], **more: Any) -> dict[str, Any]:
    """A run with pools of these corpora."""
    data = {"corpus": [f"runs/demo/{name}" for name in corpora], "blend": {"problems": 2, "fresh": 1}}
    return {"from": "base", "set": {"data": data | more, "train.train_tokens": 10**10}}


def planned(folder: Path, *, tokenizer: bool = True, **runs: Any) -> tuple[Study, dict[str, Stage]]:
    """The study with a build `extra`, whose pool is `fresh`, and these runs."""
    tree = study(folder)
    tree["corpus"]["raw"]["tokens"] = {"problems": 4.0}
    changed = {"sources.problems.pool": "fresh", "validation_fraction": 0.1}
    changed |= {"tokenizer": {"path": "runs/demo/raw/tokenizer"}} if tokenizer else {}
    tree["corpus"]["extra"] = {"from": "raw", "set": changed, "tokens": {"fresh": 1.0}}
    tree["runs"] |= runs
    (folder / "study.yaml").write_text(json.dumps(tree))
    found = load_study(folder / "study.yaml", Asked(out=folder / "out"))
    return found, {stage.name: stage for stage in build_stages(found, 2)}


def test_a_run_with_pools_of_several_corpora(tmp_path: Path) -> None:
    """Each is a stage that it needs; packed samples are made from the one with their pool."""
    packed = several(["raw", "extra"], blend={}, sft="runs/demo/sft/fresh")
    found, at = planned(tmp_path, both=several(["raw", "extra"]), fresh=packed)
    assert at["both"].needs == ("raw", "extra")
    assert at["sft/fresh"].needs == ("extra",)
    assert at["sft/fresh"].command[4:6] == (str(tmp_path / "out" / "extra"), "fresh")
    assert at["fresh"].needs == ("raw", "extra", "sft/fresh")
    # without the 5 % and the 10 % for validation; a build has no pool of the row that it starts from
    assert found.runs["both"].tokens == {"problems": 3.8e9, "fresh": 0.9e9}
    assert found.corpus["extra"].tokens == {"fresh": 1e9}


@pytest.mark.parametrize(
    ("corpora", "more", "message"),
    [
        (["raw", "made"], {}, "data.blend: raw, made has no pool 'fresh'; there are: problems"),
        (["raw", "made", "extra"], {}, "data.blend: pool 'problems' is in more than one of raw, made, extra"),
        (["raw", "child"], {}, "data.corpus: .*child is no corpus of the study"),
        # two thirds of 10B over 95 % of 4B; one third over 90 % of 1B
        (["raw", "extra"], {"max_epochs": {"problems": 1.7}}, "epochs.problems: .* 1.75 passes .* than 1.7"),
        (["raw", "extra"], {"max_epochs": 3}, "'fresh' are 3.70 passes over the 900,000,000 .* than 3;"),
    ],
)
def test_corpora_that_do_not_fit_a_run(
    corpora: list[str], more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"runs.both: .*{message}"):
        planned(tmp_path, both=several(corpora, **more))


def test_corpora_of_a_run_must_not_each_train_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as found:
        planned(tmp_path, tokenizer=False, both=several(["raw", "extra"]))
    assert str(found.value) == (
        "runs.both: data.corpus: raw and extra have different tokenizers; set "
        f"tokenizer: {{path: {tmp_path}/out/raw/tokenizer}} in corpus.extra"
    )


def test_branches_stay_within_the_pass_that_their_stem_has_begun(tmp_path: Path) -> None:
    """0.6B of 0.9B by the stem, 0.2B by the first branch, the same by one that starts from that."""
    stem = several(["raw", "extra"])
    stem["set"]["train.train_tokens"] = 1_800_000_000

    def branch(of: str) -> dict[str, Any]:
        init = {"checkpoint": f"runs/demo/{of}", "load_optimizer": True, "continue_data": True}
        return several(["raw", "extra"]) | {
            "from": "stem",
            "set": {"init": init, "train.train_tokens": 6 * 10**8},
        }

    planned(tmp_path, stem=stem, first=branch("stem"))
    found = "runs.second: init.continue_data: .* of pool 'fresh' after 800,.* are more than 900,000,000"
    with pytest.raises(ConfigError, match=found):
        planned(tmp_path, stem=stem, first=branch("stem"), second=branch("first"))


def test_an_average_is_of_runs_of_one_shape(tmp_path: Path) -> None:
    wide = {"from": "base", "set": {"model.hidden_size": 512}}
    changes = {"averages": {"soup": {"of": ["base", "wide"]}}}
    tree = study(tmp_path)
    (tmp_path / "study.yaml").write_text(json.dumps(tree | changes | {"runs": tree["runs"] | {"wide": wide}}))
    with pytest.raises(ConfigError, match=r"averages\.soup: its runs differ in model, or in phases"):
        load_study(tmp_path / "study.yaml")


def test_passes_are_over_what_a_finished_build_has(tmp_path: Path) -> None:
    """3.8B are expected; a build that came out smaller, or larger, decides."""
    run = several(["raw", "extra"], max_epochs={"problems": 2})
    planned(tmp_path, both=run)  # 1.75
    for tokens, passes in ((4_000_000_000, None), (3_000_000_000, "2.22 passes over the 3,000,000,000")):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        complete_corpus(tmp_path / "out" / "raw", 512, {"problems": {"train": {"tokens": tokens}}})
        with pytest.raises(ConfigError, match=passes) if passes else nullcontext():
            planned(tmp_path, both=run)


def test_runs_added_on_the_command_line(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\nfrom: child\nset: {seed: 2}\n")
    found = stages(tmp_path, add=[mine], compare=["child:mine"])
    assert list(found)[-4:] == ["mine", "mine/hf", "mine/evaluation", "report"]
    assert found["report"].command[-3:] == ("--compare", "child:mine", "--study")
    assert found["mine"].needs == found["child"].needs
    with pytest.raises(ConfigError, match="--compare: names 'yours', which is not scored"):
        stages(tmp_path, add=[mine], compare=["yours:mine"])
    mine.write_text("name: base\nfrom: child\n")
    with pytest.raises(ConfigError, match="run 'base': the study has one of this name"):
        stages(tmp_path, add=[mine])


def test_the_key_of_a_stage_changes_with_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "models" / "elsewhere"
    weights.mkdir(parents=True)
    (weights / "a.safetensors").write_bytes(b"1")

    def key(**changed: Any) -> str:
        stage = stages(tmp_path, **changed)["base"]
        return replace(stage, needs=()).key({}, tmp_path / "out")

    first = key()
    assert key() == first
    assert key(field="runs.base.set.seed", value=2) != first
    (weights / "a.safetensors").write_bytes(b"22")
    (weights / "gone.safetensors").symlink_to("nowhere")
    assert key() != first


def test_a_finished_folder_of_other_settings_is_named(tmp_path: Path) -> None:
    stage = stages(tmp_path)["base"]
    assert stage.config is not None and stage.changed_field() is None
    stage.folder.mkdir(parents=True)
    tree = load_run(f"{tmp_path}/study.yaml:base").config.model_dump(mode="json")
    moved = tree | {"data": tree["data"] | {"corpus": str(tmp_path / "out" / "raw")}}
    write_manifest(stage.folder, "run", inputs={}, counts={}, config=moved)
    assert stage.changed_field() is None
    assert stages(tmp_path, "runs.base.set.seed", 5)["base"].changed_field() == "seed"
    planned = build_stages(load_study(tmp_path / "study.yaml", Asked(out=tmp_path / "out")), 2)
    with pytest.raises(ConfigError, match=r"base: is complete with another 'seed'"):
        submit_stages(planned, load_cluster("test"), tmp_path / "out", allow_dirty=True)


def test_only_some_runs(tmp_path: Path) -> None:
    found = stages(tmp_path, only=("base",))
    assert list(found) == ["corpora", "raw", "base", "base/hf", "base/evaluation", "report"]
    assert found["report"].needs == ("raw", "base", "base/evaluation")
    whole = set(stages(tmp_path, only=("tuned",)))
    assert {"child", "synthesis", "made"} <= whole
    assert "child/evaluation" not in whole
    with pytest.raises(
        ConfigError, match="--only: names 'kid', which is no run; there are: tuned, child, base"
    ):
        stages(tmp_path, only=("kid",))


def words(stage: Stage, first: str) -> list[str]:
    """What follows the option `first` in a stage's command."""
    return list(stage.command[stage.command.index(first) :]) if first in stage.command else []


def test_the_protocol_is_passed_on_to_every_evaluation(tmp_path: Path) -> None:
    """Only what is set: the command, and with it the key, of other studies stays as it was."""
    plain = {"runs": ["child"], "max_new_tokens": 8}
    shots = {"gsm8k": 8, "heldout_en": 2}
    more = {"shots": shots, "backend": "vllm", "batch_size": 16, "chat": True, "data_parallel_size": 2}
    sets = tmp_path / "sets"
    before = stages(tmp_path, benchmarks=sets)["child/evaluation"]
    assert before.command[-2:] == ("--benchmarks", str(sets))
    for given, benchmarks, last in (
        (plain | {"shots": 4}, sets, ["--shots", "4"]),
        (plain | {"shots": shots}, sets, ["--shots", "gsm8k=8,heldout_en=2"]),
        (plain | {"shots": shots}, None, ["--shots", "heldout_en=2"]),
        (plain | {"shots": {"gsm8k": 8}}, None, []),
    ):
        found = stages(tmp_path, "evaluation", given, benchmarks)["child/evaluation"]
        assert words(found, "--shots") == last
    found = stages(tmp_path, "evaluation", plain | more, sets)["child/evaluation"]
    options = "--chat --backend vllm --batch-size 16 --data-parallel-size 2"
    assert " ".join(words(found, "--shots")) == f"--shots gsm8k=8,heldout_en=2 {options}"
    assert (before.gpus, found.gpus) == (1, 2)
    with pytest.raises(ConfigError, match=r"child: evaluation.backend: hf has one GPU here; take vllm"):
        stages(tmp_path, "evaluation", plain | {"backend": "hf", "tensor_model_parallel_size": 2})


def test_a_model_of_others_is_a_stage_that_needs_no_run(tmp_path: Path) -> None:
    models = {"far": {"hub": "a/b", "chat": True}, "near": {"hf": "m/x", "tensor_model_parallel_size": 4}}
    found = stages(tmp_path, "models", models)
    far, near = found["far/evaluation"], found["near/evaluation"]
    assert (far.needs, far.outside, near.outside) == (("corpora",), (), ("m/x",))
    assert words(far, "--model")[1] == "a/b" and far.command[-1] == "--chat"
    assert near.command[-2:] == ("--tensor-model-parallel-size", "4")
    assert found["report"].needs[-3:] == ("child/evaluation", "far/evaluation", "near/evaluation")
    assert words(found["report"], "--runs")[1] == "far,near,tuned,child,base"  # before they are compared with
    only = stages(tmp_path, "models", models, only=("near",))
    assert list(only) == ["corpora", "near/evaluation", "report"]
    assert words(only["report"], "--runs")[1] == "near"


def test_an_average_is_scored_as_a_run_is_and_may_start_one(tmp_path: Path) -> None:
    """Each run keeps two checkpoints, which `last: 2` takes."""
    averages = {"soup": {"of": ["child", "tuned"]}, "late": {"of": ["base"], "last": 2}}
    tree = {"from": "child", "set": {"init.checkpoint": "runs/demo/soup"}}
    folder, out = study(tmp_path), tmp_path / "out"
    runs = folder["runs"] | {"next": tree}
    changes = {"averages": averages, "runs": runs, "report": {"comparisons": ["child:soup"]}}
    (tmp_path / "study.yaml").write_text(json.dumps(folder | changes))
    found = {one.name: one for one in build_stages(load_study(tmp_path / "study.yaml", Asked(out=out)), 2)}
    assert words(found["soup"], "average") == [
        *("average", f"{out}/child", f"{out}/tuned", "--out", f"{out}/soup")
    ]
    assert words(found["late"], "average")[1:] == [f"{out}/base", "--out", f"{out}/late", "--last", "2"]
    assert (found["soup"].needs, found["next"].needs) == (("child", "tuned"), ("soup", "made"))
    assert found["soup/hf"].needs == ("soup",)
    assert found["soup/evaluation"].needs == ("corpora", "soup/hf")
    assert {"soup", "late", "soup/evaluation", "late/evaluation"} <= {*found["report"].needs}
    assert words(found["report"], "--runs")[1] == "tuned,child,base,next,soup,late"
    assert words(found["report"], "--compare") == ["--compare", "child:soup"]
    assert stage_job(found["soup"], load_cluster("h100"), out).gpus_per_node == 0
    only = load_study(tmp_path / "study.yaml", Asked(out=out, only=["late"]))
    assert [one.name for one in build_stages(only, 2, only=["late"])] == [
        *("corpora", "raw", "base", "late", "late/hf", "late/evaluation", "report")
    ]


def test_an_evaluation_has_a_job_with_the_gpus_of_its_model(tmp_path: Path) -> None:
    models = {"far": {"hub": "a/b"}, "big": {"hub": "a/c", "tensor_model_parallel_size": 8}}
    found, cluster = stages(tmp_path, "models", models), load_cluster("h100")
    jobs = {name: stage_job(stage, cluster, tmp_path / "out") for name, stage in found.items()}
    gpus = {name: job.gpus_per_node for name, job in jobs.items()}
    assert gpus["far/evaluation"] == gpus["child/evaluation"] == 1 and gpus["big/evaluation"] == 8
    assert gpus["corpora"] == gpus["child/hf"] == 0
    for name, partition in ("big/evaluation", "gpu"), ("child/hf", "cpu"), ("base", "gpu"):
        assert f"#SBATCH --partition={partition}\n" in render(jobs[name], cluster)
    assert jobs["big/evaluation"].tasks == 1  # vLLM starts its own processes
    without = load_cluster("test")
    assert stage_job(found["big/evaluation"], without, tmp_path / "out").gpus_per_node == 0
    with pytest.raises(ConfigError, match=r"big/evaluation: 8 GPUs of one node, but h100 has 4"):
        stage_job(
            found["big/evaluation"],
            load_cluster("h100", ["gpus_per_node=4", "synthesis=null"]),
            tmp_path / "out",
        )
