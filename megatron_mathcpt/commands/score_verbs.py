"""From weights to a comparison: benchmarks, paired tests, the report, the origin of a result."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option, echo

from megatron_mathcpt.commands.main import Pairs, Row, group, print_json, print_table, verb
from megatron_mathcpt.log import Cell, figure, is_first_process

if TYPE_CHECKING:
    from megatron_mathcpt.config.evaluation import EvaluationConfig


@dataclass(frozen=True)
class Answering:
    """Items and generation settings: the keyword arguments of `evaluation.tasks.plan`."""

    shots: Annotated[
        str, Option("--shots", "--num_fewshot", help="score a few-shot form too: N, or gsm8k=8,math=4")
    ] = ""
    limit: Annotated[int | None, Option(min=1, help="items per task")] = None
    benchmark_limit: Annotated[int | None, Option(min=1, help="items per benchmark set")] = None
    max_new_tokens: Annotated[int, Option(min=1, help="maximum length of an answer in tokens")] = 256
    batch_size: Annotated[
        int, Option("--batch-size", "--batch_size", min=1, help="sequences generated at a time")
    ] = 64
    samples: Annotated[int, Option(min=1, help="answers sampled per item")] = 1
    temperature: Annotated[float, Option(min=0.0, help="0 is greedy")] = 0.0
    seed: Annotated[int, Option(help="seed for sampling answers")] = 0
    backend: Annotated[
        Literal["auto", "hf", "vllm", "megatron", "openai"], Option(help="auto: by what the model is")
    ] = "auto"
    endpoint: Annotated[str, Option(help="address of the server of `openai`")] = ""
    tokenizer: Annotated[str, Option(help="folder or hub id, if the model has none")] = ""
    chat: Annotated[bool, Option("--chat", help="use the model's chat template")] = False
    likelihood: Annotated[bool, Option(help="score gold solutions too, in bits per byte")] = True
    params_dtype: Annotated[Literal["auto", "fp32", "bf16"], Option(help="precision of the weights")] = "auto"
    tensor_model_parallel_size: Annotated[int, Option(min=1)] = 1
    pipeline_model_parallel_size: Annotated[int, Option(min=1)] = 1
    data_parallel_size: Annotated[int, Option(min=1, help="replicas of `vllm`")] = 1


@verb("evaluate", example="mathcpt evaluate --model models/base --benchmarks samples --out scores/base")
def evaluate(
    *,
    model: Annotated[str, Option(help="Hugging Face folder or id, run folder, checkpoint, served model")],
    out: Annotated[Path, Option(help="folder of the results")],
    sweep: Annotated[bool, Option("--sweep", help="score every checkpoint of a run, a folder each")] = False,
    task: Annotated[list[str] | None, Option(help="NAME=FILE, or a folder of files")] = None,
    benchmarks: Annotated[Path | None, Option(help="folder of sets; `samples`: small ones of ours")] = None,
    sets: Annotated[
        str, Option("--sets", "--tasks", help="sets of --benchmarks, comma-separated; or `all`")
    ] = "",
    verify: Annotated[bool, Option("--verify", help="hash an exported folder over 4 GiB too")] = False,
    answering: Answering,
) -> None:
    """Score a model, loaded by lm-eval, on benchmark files.

    Every answer is kept, and a killed evaluation resumes if it is run again. With --shots, each set is scored
    in two forms, NAME and NAME_few_shot, and the study's score is the higher.
    """
    from megatron_mathcpt.evaluation.evaluate import evaluate as score
    from megatron_mathcpt.evaluation.tasks import plan

    files, settings = plan(task or (), benchmarks, sets, **vars(answering))
    if sweep:
        _score_checkpoints(Path(model), files, settings, out)
        return
    results = score(model, files, settings, out, verify=verify)
    if is_first_process():
        _show_scores(results)
        echo(f"Scores and answers: {out}")


def _score_checkpoints(run: Path, files: dict[str, Path], settings: "EvaluationConfig", out: Path) -> None:
    """Score the checkpoints of a run, oldest first, and report on all against the first.

    `out` is then a folder of results with one run per checkpoint: a killed sweep resumes with the next one,
    and later checkpoints are added. Under torchrun only the first process reports.
    """
    from megatron_mathcpt.errors import EvaluationError
    from megatron_mathcpt.evaluation.evaluate import evaluate as score
    from megatron_mathcpt.formats.output_folder import claim_folder
    from megatron_mathcpt.formats.run_folder import checkpoint_paths
    from megatron_mathcpt.report.page import build_report

    paths = {path.name: path for path in reversed(checkpoint_paths(run))}  # newest first before reversal
    if not paths:
        raise EvaluationError(f"{run}: has no checkpoint in checkpoints/; --sweep takes the folder of a run")
    if is_first_process():
        claim_folder(out, "sweep")
    for name, path in paths.items():
        score(path, files, settings, out / name / "evaluation")
    if is_first_process():
        first, *later = paths
        pairs = [(name, first) for name in later]
        build_report(out, out / "report", runs=list(paths), comparisons=pairs)
        print_report(out / "report", out.name)


def _show_scores(results: dict[str, Any]) -> None:
    """A row for each task, and below it for its draws; for each set in two forms; for the mean of four."""
    from megatron_mathcpt.statistics import wilson_interval

    def row(name: str, found: dict[str, Any], n: int = 0, *more: int | Cell | None) -> Row:
        value, error = found.get("value", found.get("accuracy", 0)), found["stderr"]
        # Of draws and of the mean the normal one, but that has no width where no answer or each is right.
        normal = "n" not in found and error > 0
        symmetric = value - 1.96 * error, value + 1.96 * error
        ends = symmetric if normal else wilson_interval(round(value * n), n)
        low, high = (100 * min(1, max(0, end)) for end in ends)
        return name, 100 * value, Cell((low, high), f"{low:.1f} to {high:.1f}"), *more

    rows = list[Row]()
    for name, found in results["tasks"].items():
        bits = figure(found["bits_per_byte"]["value"], ".3f") if "bits_per_byte" in found else None
        cut = figure(100 * found["cut_outputs"] / found["n"], ".1f") if "cut_outputs" in found else None
        rows.append(row(name, found, found["n"], found["ungraded"], bits, cut))
        drawn = found.get("samples", {}).items()
        rows += (row(f"  {score}", its, found["n"]) for score, its in drawn)
    aggregates = results["aggregates"]
    higher = aggregates.get("higher_of_forms", {}).items()
    rows += (row(f"{name}, higher", best, best["n"]) for name, best in higher)
    if "mean_of_four" in aggregates:
        rows.append(row("mean of four", aggregates["mean_of_four"]))
    echo(results["model"])
    headings = ("task", "accuracy in %", "95% interval", "ungraded", "bits per byte", "cut in %")
    print_table(headings, rows, bare=True)


@verb("contamination", example="mathcpt contamination scores/mine --documents raw --task own=own.jsonl")
def contamination(
    *,
    evaluation: Annotated[Path, Argument(help="folder that `mathcpt evaluate` wrote")],
    documents: Annotated[list[Path], Option(help="*.jsonl with a field `text`, or their folder")],
    task: Annotated[list[str], Option(help="NAME=FILE, as it was evaluated; may be repeated")],
    threshold: Annotated[float, Option(min=0.0, max=1.0, help="share of an item that counts")] = 0.5,
) -> None:
    """Find test items that overlap with training documents, and the scores without them."""
    from megatron_mathcpt.data.decontaminate import overlap_report
    from megatron_mathcpt.evaluation.tasks import named_files
    from megatron_mathcpt.formats.output_folder import write_own_file

    files = {name: path for text in task for name, path in named_files(text).items()}
    result = overlap_report(evaluation, files, documents, threshold)
    out = evaluation.with_name(f"{evaluation.name}_contamination.json")
    text = json.dumps(result, indent=1, ensure_ascii=False)
    write_own_file(out, text.encode(), b'{\n "threshold": ')
    rows = []
    for name, scores in result["tasks"].items():
        found = (scores[part]["accuracy"] for part in ("all", "clean"))
        shares = (None if accuracy is None else 100 * accuracy for accuracy in found)
        rows.append((name, scores["all"]["n"], scores["overlapping"]["n"], *shares))
    print_table(("task", "items", "overlapping", "accuracy in %", "without them"), rows, str(out))


@verb("compare", example="mathcpt compare scores/base scores/mine")
def compare(
    baseline: Annotated[Path, Argument(help="folder of a run, of an evaluation, or of lm-eval's output")],
    candidate: Annotated[Path, Argument(help="another; of lm-eval's output also a log or results file")],
) -> None:
    """Show paired tests CANDIDATE - BASELINE on the same items, and settings that differ between two runs.

    Of lm-eval's output (--log_samples --output_path) every task, filter and metric is tested.
    """
    from megatron_mathcpt.report.comparison import HEADINGS, compare_outputs

    settings, rows, sentences = compare_outputs(baseline.resolve(), candidate.resolve())
    echo(f"A: {baseline}\nB: {candidate}")
    if settings:
        print_table(("setting", "A", "B"), settings, bare=True)
    if rows:
        print_table(HEADINGS, rows, bare=True)
    for sentence in sentences:
        echo(sentence)


@verb("report", example="mathcpt report runs --compare base:mine")
def report(
    root: Annotated[Path, Argument(help="folder of results, with one folder per run")],
    out: Annotated[Path | None, Option(help="folder of the report; default: ROOT/report")] = None,
    runs: Annotated[str, Option(help="runs in order, comma-separated; default: all finished ones")] = "",
    compare: Pairs = None,
    study: Annotated[
        bool, Option("--study", help="compare with the published figures of arXiv 2501.14002")
    ] = False,
    quiet: Annotated[bool, Option("--quiet", help="write the report, print nothing")] = False,
) -> None:
    """Write the report on a folder of results, and print the scores."""
    from megatron_mathcpt.config.resolved_study import pairs_of
    from megatron_mathcpt.report.page import build_report
    from megatron_mathcpt.report.read import finished_runs

    names = [name for name in runs.split(",") if name] or finished_runs(root)
    out = out or root / "report"
    build_report(root, out, runs=names, comparisons=pairs_of(compare or ()), study=study)
    if not quiet:
        print_report(out, root.resolve().name)


def print_report(out: Path, title: str) -> None:
    """Print the scores, what the report in `out` says of comparisons and searches, and its path."""
    from megatron_mathcpt.report.page import SCORE_HEADINGS, load_scores

    rows, sentences = load_scores(out)
    if rows:
        print_table(SCORE_HEADINGS, rows, title)
    for sentence in (*sentences, f"Report: {out / 'index.html'}"):
        echo(sentence)


@verb("mixture", example="mathcpt mixture search.yaml --out mixtures/mine")
def mixture(
    config: Annotated[Path, Argument(help="YAML file that a study writes for one of its `mixtures`")],
    out: Annotated[Path, Option(help="folder of best.yaml, for --add, and of check.yaml, for the check run")],
) -> None:
    """Predict the best mixture of pools from the validation losses of a study's proxies."""
    from megatron_mathcpt.config.base import load_config
    from megatron_mathcpt.config.data_search import MixtureSearch
    from megatron_mathcpt.report.mixture_search import judge_search, search_mixture
    from megatron_mathcpt.report.page import describe_found

    settings = load_config(config, MixtureSearch)
    found = {settings.name: judge_search(search_mixture(settings, out), {})}
    echo("\n".join(describe_found({"worth": [], "searches": found}, {})))


@verb("status", example="mathcpt status runs")
def status(root: Annotated[Path, Argument(help="folder of results")]) -> None:
    """List the runs below a folder: state, steps, tokens, losses, scores."""
    from megatron_mathcpt.report.read import LIST_HEADINGS, list_runs

    print_table(LIST_HEADINGS, list_runs(root), bare=True)


tracing = group("trace", "The origin of a synthesized record, and the documents of a training step.")


@verb("record", tracing, example="mathcpt trace record synthesized/mine RECORD_ID")
def trace_record(
    folder: Annotated[Path, Argument(help="folder of a synthesis run, or of one shard")],
    record: Annotated[str, Argument(help="id of a record, or SEED/METHOD/SAMPLE of a rejected case")],
) -> None:
    """Print a synthesized record, or a rejected case, with every prompt, reply and verdict; JSON has all."""
    from megatron_mathcpt.formats.lost_escapes import visible
    from megatron_mathcpt.synthesis.store import describe_trace, trace

    found = trace(folder, record)
    if not print_json(found):
        echo(visible("\n".join(describe_trace(found))))


@verb("step", tracing, example="mathcpt trace step runs/mine 100")
def trace_step(
    run: Annotated[Path, Argument(help="run folder")],
    step: Annotated[int, Argument(help="optimizer step, from 1")],
) -> None:
    """List the documents that a step was trained on."""
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()  # before the first import of Megatron-Core
    from megatron_mathcpt.train.traced_step import trace_step as find

    seen = find(run, step)
    if not print_json({"title": f"step {step}", "rows": seen}):
        for one in seen:
            echo(f"── sample {one.sample}: {one.pool} {one.document}, {one.record} ──\n{one.text!r}")
