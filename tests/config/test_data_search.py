"""Microanneals and mixture searches: the rows that they become, by hand, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.data_search import MixtureSearch
from megatron_mathcpt.config.resolved_study import Asked, Study, load_run, load_study
from megatron_mathcpt.config.study_file import StudyFile
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.dry_run import plan_run
from megatron_mathcpt.experiment.stages import build_stages
from megatron_mathcpt.experiment.submit import load_cluster, stage_job
from tests.support.stages import CONFIGS

RECIPES = CONFIGS / "recipes" / "study.yaml"
PRICE: dict[str, Any] = {
    "from": "anneal",
    "rest": {"general": 3, "web": 1},
    "share": 0.4,
    "sources": {"code": {}, "proofs": {"data.corpus": "runs/demo/more", "seed": 7}},
}
MIX: dict[str, Any] = {"from": "anneal", "start": {"general": 3, "code": 1}, "concentration": 4.0}


def write(folder: Path, **sections: Any) -> Path:
    file = str(CONFIGS / "tiny" / "quickstart_base.yaml")
    row = {"file": file, "set": {"data.corpus": "runs/demo/raw", "train.train_tokens": 5120}}
    study: dict[str, Any] = {"name": "demo", "out": "runs/demo", "runs": {"stem": {"file": file}}}
    study |= {"variants": {"anneal": row}, "evaluation": {"max_new_tokens": 8}}
    YAML().dump(study | sections, folder / "study.yaml")
    return folder / "study.yaml"


def test_a_microanneal_is_a_row_for_the_rest_and_one_for_each_source(tmp_path: Path) -> None:
    path = write(tmp_path, microanneals={"price": PRICE}, report={"comparisons": ["stem:price-rest"]})
    study = load_study(path, Asked(out=tmp_path / "out"))
    assert [*study.runs] == ["stem", "price-rest", "price-code", "price-proofs"]
    rest, code, proofs = (study.runs[f"price-{name}"].config for name in ("rest", "code", "proofs"))
    assert rest.data.blend == {"general": 0.75, "web": 0.25}
    # 0.6 of the rest in its proportions
    assert code.data.blend == pytest.approx({"general": 0.45, "web": 0.15, "code": 0.4})
    assert proofs.data.blend == pytest.approx({"general": 0.45, "web": 0.15, "proofs": 0.4})
    assert (proofs.seed, proofs.data.corpus) == (7, tmp_path / "out" / "more")
    same = {"name": "x", "data": rest.data}
    assert code.model_copy(update=same) == rest.model_copy(update=same)
    assert study.scored == ("stem", "price-rest", "price-code", "price-proofs")
    pairs = (("price-rest", "stem"), ("price-code", "price-rest"), ("price-proofs", "price-rest"))
    assert study.comparisons == pairs
    assert "blend:" in (shown := load_run(f"{path}:price-code").as_yaml()) and "# set by price" in shown
    assert load_study(path, Asked(only=["price-rest", "price-code"])).comparisons == pairs[1:2]


def test_a_search_draws_its_runs_around_the_start_and_scores_none(tmp_path: Path) -> None:
    path = write(tmp_path, mixtures={"mix": MIX | {"proxies": 4, "held_out": 4, "target": {"proofs": 2}}})
    study = load_study(path, Asked(out=tmp_path / "out"))
    names = [f"mix-0{n}" for n in range(1, 5)] + [f"mix-held-{n}" for n in range(1, 5)]
    assert [*study.runs] == ["stem", *names, "mix-best"] and study.scored == ("stem",)
    blends = [study.runs[name].config.data.blend for name in names]
    drawn = np.random.default_rng([1, 0]).dirichlet([3.0, 1.0], 7)
    assert [*blends[0].values()] == [0.75, 0.25]
    assert np.array([[*blend.values()] for blend in blends[1:]]) == pytest.approx(drawn, abs=1e-4)
    assert len({*map(str, blends)}) == 8
    best = study.runs["mix-best"].config
    assert (best.data.blend, best.validation.sets) == (blends[0], ("general", "code", "proofs"))
    assert {run.config.seed for run in study.runs.values()} == {1}
    search = study.mixtures["mix"]
    assert (search.runs, search.check_run) == (tuple(tmp_path / "out" / name for name in names), best)
    assert search.mixture.losses() == {"proofs": 1.0}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"microanneals": {"p": PRICE | {"sources": {"web": {}}}}}, "p: sources.web: is part of the rest"),
        (
            {"microanneals": {"p": PRICE | {"sources": {"a": {"data.blend.b": 1}}}}},
            "leave data.blend, train, phases out",
        ),
        ({"microanneals": {"p": PRICE | {"from": "other"}}}, "runs.p-rest: no row 'other'; there are: stem"),
        ({"mixtures": {"m": MIX | {"proxies": 3}}}, "m: proxies: 3, but a law of 3 parameters .*; give 4"),
        (
            {"mixtures": {"m": MIX | {"held_out": 3}}},
            "mixtures.m.held_out: expected a whole number of at least 4",
        ),
        ({"mixtures": {"m": MIX | {"start": {"general": 1}}}}, "mixtures.m.start: .*at least 2"),
        ({"mixtures": {"stem": MIX}}, "mixtures.stem: another stage has this folder"),
        (
            {"mixtures": {"m": MIX}, "variants": {"anneal": {"from": "stem"}, "m-03": {"from": "stem"}}},
            "m: its run m-03 has the name of another; rename one",
        ),
    ],
)
def test_what_cannot_be_is_refused(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(write(tmp_path, **sections))


def test_a_phase_may_not_have_a_blend_of_its_own(tmp_path: Path) -> None:
    phases = {"late": {"from_tokens": 2048, "blend": {"general": 1.0}}}
    changes = {"train.train_tokens": 5120, "phases": phases}
    file = str(CONFIGS / "tiny" / "quickstart_base.yaml")
    rows = {"variants": {"anneal": {"file": file, "set": changes}}}
    with pytest.raises(ConfigError, match=r"runs\.mix-01: a phase of the row it is from has a blend"):
        load_study(write(tmp_path, mixtures={"mix": MIX}, **rows))


def test_a_pool_that_no_corpus_has_is_refused_before_anything_runs(tmp_path: Path) -> None:
    build = {"raw": {"file": str(CONFIGS / "tiny" / "quickstart_corpus.yaml"), "set": {}}}
    sections: dict[str, Any] = {"corpora": {"seed": 1}, "corpus": build, "mixtures": {"mix": MIX}}
    text = (CONFIGS / "tiny" / "quickstart_corpus.yaml").read_text().replace("runs/quickstart", "runs/demo")
    (tmp_path / "corpus.yaml").write_text(text)
    build["raw"]["file"] = "corpus.yaml"
    sections["runs"] = {"stem": {"from": "anneal"}}
    study = load_study(write(tmp_path, **sections))
    with pytest.raises(ConfigError, match=r"runs\.mix-01: data.blend: raw has no pool 'code'"):
        build_stages(study, 2)


def recipes(scale: str | None) -> Study:
    return load_study(RECIPES, Asked(scale))


def test_the_stages_of_a_search_run_in_order_here_and_under_slurm(tmp_path: Path) -> None:
    study = recipes("tiny")
    stages = {stage.name: stage for stage in build_stages(study, 2)}
    runs = [f"mix-{n:02d}" for n in range(1, 13)] + [f"mix-held-{n}" for n in range(1, 6)]
    assert {*stages["mix"].needs} == {*runs, "stem", "corpus_base", "corpus_synthesis"}
    check, out = stages["mix-best"], study.out
    assert {*check.needs} == {"mix", "stem", "corpus_base", "corpus_synthesis"} and check.config is None
    words = [str(out / "mix" / "check.yaml"), "--out", str(out / "mix-best"), "--processes", "2"]
    assert [*check.command[3:]] == words
    assert {"mix", "mix-best", "price-rest/evaluation"} <= {*stages["report"].needs}
    report = " ".join(stages["report"].command)
    assert "--compare price-rest:price-math_corpus --compare price-rest:price-problem_solving" in report
    assert "mix-01/evaluation" not in stages and "price-math_corpus/evaluation" in stages
    search = tmp_path / "mix.yaml"
    assert stages["mix"].config
    search.write_text(stages["mix"].config.text)
    assert load_config(search, MixtureSearch) == study.mixtures["mix"]
    cluster = load_cluster("h100")
    jobs = {name: stage_job(stages[name], cluster, out) for name in ("mix-01", "mix", "mix-best")}
    assert [job.gpus_per_node for job in jobs.values()] == [8, 0, 8]
    only = build_stages(load_study(RECIPES, Asked("tiny", only=["mix-best"])), 2, only=["mix-best"])
    assert {*runs, "mix", "mix-best", "report"} <= {stage.name for stage in only}


def test_the_recipes_are_planned_at_full_size() -> None:
    study, file = recipes(None), load_config(RECIPES, StudyFile)
    plans = {name: plan_run(run.config, 64, "h100", run.tokens) for name, run in study.runs.items()}
    assert len(plans) == 3 + 5 + 12 + 5 + 1
    stages = {stage.name: stage for stage in build_stages(study, 64, None, Path("sets"))}
    assert stages["soup"].needs == ("price-math_corpus", "price-problem_solving")
    assert "soup/evaluation" in stages and "soup" in stages["report"].needs
    assert plans["two_phase"].pools["problem_solving"][0] == pytest.approx(2.5e9, rel=1e-3)
    # 3,815 steps of 512 x 4,096 are the first that reach 8B tokens; the rest has 64 x 32,768.
    assert (plans["long"].steps, plans["long"].tokens) == (4769, 4769 * 2**21)
    sources = [f"price-{source}" for source in file.microanneals["price"].sources]
    assert {plans[name].steps for name in ("price-rest", *sources)} == {4769}  # 10B / (512 x 4096)
    for name in sources:  # OLMo 3's 5B + 5B
        assert [*plans[name].pools.values()][1][0] == pytest.approx(5e9, rel=1e-3)
    assert plans["mix-best"].gpu_hours == plans["mix-01"].gpu_hours > 1
    for plan in plans.values():
        assert plan.memory_gib < 72 and 0.2 < plan.step_seconds < 5


def test_the_recipes_are_planned_for_two_cores() -> None:
    study = recipes("tiny")
    model = study.runs["stem"].config.model
    assert model is not None
    model = model.model_copy(update={"vocab_size": 2048})
    for name, run in study.runs.items():
        tokens = dict.fromkeys(run.config.pools, 1e6)
        plan = plan_run(run.config.model_copy(update={"model": model}), 2, "h100", tokens)
        assert plan.steps == {"stem": 293, "two_phase": 293 + 98}.get(name, 98)
