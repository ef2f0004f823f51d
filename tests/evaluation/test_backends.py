"""The back ends against each other on one export; what each refuses; hub ids, servers, vLLM's arguments."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from megatron_mathcpt.checkpoint.convert import import_from_hf
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.backends import fingerprint, load, model_name, resolve
from megatron_mathcpt.evaluation.megatron_lm import MegatronLM
from megatron_mathcpt.evaluation.tasks import TASKS_FOLDER
from tests.support.model_server import ModelServer, install_vllm
from tests.support.small_models import write_trained_llama

CONFIG = EvaluationConfig(tasks=("sums",), max_new_tokens=24, batch_size=4)
BOS = "<|begin_of_text|>"
QUESTION = "Question: What is 3 + 4?\nSolution:"
PROMPTS = [QUESTION, "答案", "x", "a b " * 60, f"{QUESTION} 3", "assistant:"]
MESSAGES = [{"role": "system", "content": "Add."}, {"role": "user", "content": "What is 2 + 5?"}]
PAIRS = [
    (QUESTION, " 3 + 4 = 7."),
    ("", "Question: What"),
    (f"{BOS}Question:", " What is"),
    ("答案", "是7。"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With sampling settings that no back end may take from the folder."""
    options = {"repetition_penalty": 5.0, "top_k": 1, "do_sample": True}
    return write_trained_llama(tmp_path_factory.mktemp("trained") / "hf", **options)


@pytest.fixture
def server(folder: Path) -> Any:
    with ModelServer(model=str, folder=folder, name="org/sums") as running:
        yield running


def made(**changes: Any) -> EvaluationConfig:
    return EvaluationConfig.model_validate(CONFIG.model_dump() | changes)


def requests(kind: str, arguments: list[Any]) -> list[Any]:
    return [Instance(request_type=kind, doc={}, arguments=args, idx=0) for args in arguments]


def generate(lm: Any, prompts: list[str], **settings: Any) -> list[str]:
    greedy = {"until": ["\nQuestion:"], "max_gen_toks": 24, "do_sample": False} | settings
    return list(lm.generate_until(requests("generate_until", [(text, dict(greedy)) for text in prompts])))


def answers(lm: Any) -> dict[str, Any]:
    chat = lm.apply_chat_template(MESSAGES)
    return {
        "texts": generate(lm, PROMPTS),
        "chat": [chat, *generate(lm, [chat])],
        "bos": [lm.tok_encode(text)[:2].count(0) for text in (QUESTION, chat, f"{BOS}{QUESTION}")],
        "scores": lm.loglikelihood(requests("loglikelihood", PAIRS)),
        "rolling": lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(QUESTION,), ("答案是7。",)])),
    }


def check(found: dict[str, Any], expected: dict[str, Any]) -> float:
    for name in ("texts", "chat", "bos"):
        assert found[name] == expected[name]
    assert found["bos"] == [1, 1, 1]
    assert [greedy for _, greedy in found["scores"]] == [greedy for _, greedy in expected["scores"]]
    pairs = [(a[0], b[0]) for a, b in zip(found["scores"], expected["scores"], strict=True)]
    pairs += zip(found["rolling"], expected["rolling"], strict=True)
    return max(abs(a - b) for a, b in pairs)


def test_every_back_end_gives_the_same_texts_and_log_likelihoods(
    folder: Path, server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one export, and on the checkpoint made of it; `hf` is lm-eval's own."""
    expected = answers(load(folder, made(backend="hf")))
    assert expected["texts"][0].startswith(" ")
    assert all("<|" not in text for text in expected["texts"])
    assert [greedy for _, greedy in expected["scores"]].count(True) in (1, 2, 3)
    server_config = made(backend="openai", endpoint=server.url, tokenizer=str(folder))
    difference = {"openai": check(answers(load("org/sums", server_config)), expected)}
    import_from_hf(folder, tmp_path / "checkpoint", verify=False)
    for name, model in (("megatron", folder), ("checkpoint", tmp_path / "checkpoint")):
        lm: Any = load(model, made(backend="megatron"))
        difference[name] = check(answers(lm), expected)
        if name == "megatron":
            long = requests("loglikelihood_rolling", [("Question: What is 3 + 4? " * 30,)])
            theirs = load(folder, made(backend="hf")).loglikelihood_rolling(long)
            assert lm.loglikelihood_rolling(long) == pytest.approx(theirs, abs=5e-3)
        lm.close()
    install_vllm(tmp_path / "site", monkeypatch)
    difference["vllm"] = check(answers(load(folder, made(backend="vllm"))), expected)
    # The shortest text has 11 bytes: 1e-4 bits per byte are 7.6e-4 nats.
    assert max(difference.values()) < 5e-4, difference


def test_a_folder_s_own_sampling_settings_and_end_tokens(
    folder: Path, server: ModelServer, tmp_path: Path
) -> None:
    """Each text ends at token 2, which only the generation config names; sampling is not top_k 1."""
    hf: Any = load(folder, made(backend="hf"))
    assert not {2} & {*hf.tok_encode(generate(hf, [QUESTION])[0])}
    assert len({*generate(hf, ["Question:"] * 12, do_sample=True, temperature=2.0)}) > 1
    ours: Any = load(folder, made(backend="megatron"))
    assert len({*generate(ours, ["Question:"] * 12, do_sample=True, temperature=2.0)}) > 1
    assert len({*generate(ours, ["Question:"] * 12, do_sample=True, temperature=2.0, top_k=1)}) == 1
    ours.close()
    both = Path(shutil.copytree(folder, tmp_path / "both"))
    (both / "generation_config.json").write_text('{"eos_token_id": 1}')
    (both / "config.json").write_text(
        json.dumps(json.loads((both / "config.json").read_text()) | {"eos_token_id": [1, 2]})
    )
    assert generate(load(both, made(backend="hf")), PROMPTS) == generate(hf, PROMPTS)
    (both / "generation_config.json").write_text('{"eos_token_id": "two"}')
    for backend in ("hf", "megatron"):
        with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id"):
            load(both, made(backend=backend))


@pytest.mark.parametrize(
    ("backend", "changes", "message"),
    [
        ("hf", {"tensor_model_parallel_size": 2}, "tensor_model_parallel_size 2: .* use vllm or megatron"),
        ("hf", {"pipeline_model_parallel_size": 2}, "pipeline_model_parallel_size 2: .* use megatron"),
        ("vllm", {"pipeline_model_parallel_size": 2}, "pipeline_model_parallel_size 2: "),
        ("openai", {"pipeline_model_parallel_size": 2}, "pipeline_model_parallel_size 2: "),
        ("openai", {"tensor_model_parallel_size": 2}, "tensor_model_parallel_size 2: "),
        ("openai", {"params_dtype": "bf16"}, "params_dtype bf16: .* use hf or vllm or megatron"),
        ("openai", {"chat": True}, "likelihood: a chat endpoint gives no log-probabilities"),
        ("openai", {"endpoint": "http://me:secret@host/v1"}, "endpoint 'host/v1': .* OPENAI_API_KEY"),
        ("openai", {"endpoint": ""}, "endpoint '': "),
        ("hf", {"data_parallel_size": 2}, "data_parallel_size 2: .* use vllm"),
        ("megatron", {"data_parallel_size": 2}, "data_parallel_size 2: .* use vllm"),
        ("hf", {"endpoint": "http://host/v1"}, "endpoint http://host/v1: .* use openai"),
        ("vllm", {"tokenizer": "x"}, "tokenizer x: .* use openai or megatron"),
        ("hf", {"top_p": 0.9}, "top_p 0.9: has no effect at temperature 0"),
        ("vllm", {}, r"vllm: not installed; pip install megatron_mathcpt\[vllm\]"),
    ],
)
def test_a_setting_that_the_back_end_cannot_follow_is_refused(
    model_folder: Path, backend: str, changes: dict[str, Any], message: str
) -> None:
    own = {"endpoint": "http://host/v1"} if backend == "openai" else {}
    for do in (resolve, fingerprint, load):
        with pytest.raises(EvaluationError, match=message) as found:
            do(model_folder, made(backend=backend, **own | changes))
        assert "secret" not in str(found.value)


def test_the_back_end_follows_from_the_model(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_from_hf(model_folder, tmp_path / "run", verify=False)
    assert resolve(model_folder, CONFIG).backend == "hf"
    assert resolve("owner/name@main", CONFIG).backend == "hf"
    assert resolve(tmp_path / "run", CONFIG).backend == "megatron"
    assert resolve("owner/name", made(endpoint="http://host:1/v1")).backend == "openai"
    (tmp_path / "site").mkdir()
    wrong = {"site": r"no config\.json here and no complete", "none": "no such folder"}
    for name, message in wrong.items():
        with pytest.raises(EvaluationError, match=message):
            resolve(tmp_path / name, CONFIG)
    install_vllm(tmp_path / "site", monkeypatch)
    assert resolve(model_folder, CONFIG).backend == "hf"  # no GPU here
    monkeypatch.setattr("megatron_mathcpt.device.on_gpu", lambda: True)
    assert resolve(model_folder, CONFIG).backend == "vllm"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EvaluationError, match="2 processes: the back end vllm runs in one"):
        resolve(model_folder, CONFIG)


def test_vllm_gets_its_arguments(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor parallelism of 8, as for a 72B on 8 GPUs; a seed of its own for each request; all end tokens."""
    calls = install_vllm(tmp_path / "site", monkeypatch)
    lm = load(folder, made(backend="vllm", tensor_model_parallel_size=8, seed=5, params_dtype="bf16"))
    made_with = {name: calls[0][name] for name in ("model", "dtype", "tensor_parallel_size", "seed")}
    assert made_with == {"model": str(folder), "dtype": "bfloat16", "tensor_parallel_size": 8, "seed": 5}
    assert calls[0]["trust_remote_code"] is False
    assert (getattr(lm, "takes_seeds"), lm.max_length) == (True, 96)  # noqa: B009
    generate(lm, ["a"], seed=2**50)
    last = calls[0]["sampling"][-1]
    assert (last.seed, last.stop_token_ids, last.skip_special_tokens) == (2**50, [1, 2], True)
    with pytest.raises(EvaluationError, match="ray is required for data parallelism"):
        load(folder, made(backend="vllm", data_parallel_size=2))
    load(folder, made(backend="vllm"))
    assert calls[1]["dtype"] == "float32"  # vLLM's own `auto` would be fp16


def test_a_server_is_asked_for_its_model_and_gives_seeded_texts(
    folder: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "sk-0123456789abcdef"
    config = made(backend="openai", endpoint=server.url + "/", tokenizer=str(folder))
    with pytest.raises(EvaluationError, match=r"models: no list of models \(status 401\)"):
        fingerprint("org/sums", config)
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    with pytest.raises(EvaluationError, match="serves org/sums, not 'other'"):
        load("other", config)
    lm: Any = load("org/sums", config)
    generate(lm, [QUESTION, "x"], seed=2**40 + 3)
    body = server.bodies[-1]
    assert (body["seed"], body["stop_token_ids"], body["repetition_penalty"]) == (3, [1, 2], 1.0)
    assert body["authorization"] == f"Bearer {server.key}"
    assert body["stop"] == ["\nQuestion:", "<|end_of_text|>"]
    assert model_name("org/sums") == "org/sums"
    with ModelServer(model=str, folder=folder, name="org/sums", key=server.key) as other:
        elsewhere = config.model_copy(update={"endpoint": other.url})
        assert fingerprint("org/sums", elsewhere) == fingerprint("org/sums", config)
        other.folder, other.engine.model.config.max_position_embeddings = folder, 64
        assert fingerprint("org/sums", elsewhere) != fingerprint("org/sums", config)


def test_a_chat_endpoint_applies_the_template_itself(folder: Path, server: ModelServer) -> None:
    own = {"endpoint": server.url, "tokenizer": str(folder), "likelihood": False, "chat": True}
    lm: Any = load("org/sums", made(backend="openai", **own))
    prompt = lm.apply_chat_template(MESSAGES)
    assert json.loads(prompt) == MESSAGES
    assert lm.scores_text is False
    hf: Any = load(folder, made(backend="hf", chat=True))
    assert generate(lm, [prompt, prompt]) == generate(hf, [hf.apply_chat_template(MESSAGES)]) * 2
    assert lm.tok_encode("答案") == hf.tok_encode("答案")
    for message in (b'{"role": "assistant"}', b'{"content": null}', b'{"content": 5}'):
        server.reply = (200, b'{"choices": [{"index": 0, "message": %b}]}' % message)
        with pytest.raises(EvaluationError, match="reply without a text"):
            generate(lm, [prompt])
    # what the server has cut off before the answer counts as thinking
    thoughts = {"5": "<think>2 + 3</think>5", None: "<think>2 + 3"}
    for content, text in thoughts.items():
        message = {"content": content, "reasoning_content": "2 + 3"}
        server.reply = (200, json.dumps({"choices": [{"index": 0, "message": message}]}).encode())
        assert generate(lm, [prompt]) == [text]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, b'{"error": {"message": "overloaded"}}'), "reply without choices.*overloaded"),
        ((200, b"<html>"), "JSON"),
        ((400, b'{"error": "prompt too long sk-0123456789abcdef"}'), "withheld"),
        ((200, b'{"choices": [{"index": 0, "message": {}}]}'), "reply without a text"),
        ((200, b'{"choices": [{"index": 0, "text": null}]}'), "reply without a text"),
    ],
)
def test_a_failing_server_is_one_line(
    folder: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch, reply: Any, message: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    lm: Any = load("org/sums", made(backend="openai", endpoint=server.url, tokenizer=str(folder)))
    server.reply = reply
    with pytest.raises(EvaluationError, match=message) as found:
        generate(lm, ["x"])
    assert "sk-0" not in str(found.value)
    with pytest.raises(EvaluationError, match=r"/completions: "):
        lm.loglikelihood(requests("loglikelihood", [("a", "b")]))
    server.delay_seconds, lm.timeout = 0.4, 0.1
    with pytest.raises(EvaluationError, match="ReadTimeout"):
        generate(lm, ["x"])


def test_a_server_that_does_not_echo_is_refused(folder: Path, server: ModelServer) -> None:
    lm: Any = load("org/sums", made(backend="openai", endpoint=server.url, tokenizer=str(folder)))
    scores = {"token_logprobs": [None, -1.0], "top_logprobs": [None, {"a": -1.0}]}
    for found in (scores, None, {"token_logprobs": [None] * 5, "top_logprobs": [None] * 5}):
        choice = {"index": 0, "text": "", "logprobs": found}
        server.reply = (200, json.dumps({"choices": [choice]}).encode())
        with pytest.raises(EvaluationError, match=r"completions: no log-probabilities of the prompt.*`echo`"):
            lm.loglikelihood(requests("loglikelihood", [("abc", "d")]))


def test_a_hub_id_is_its_snapshot_in_the_cache(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "models--owner--sums"
    shutil.copytree(folder, place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    program = (
        "import sys; from megatron_mathcpt.errors import run_command\n"
        "from megatron_mathcpt.evaluation.backends import fingerprint, resolve\n"
        "from megatron_mathcpt.config.evaluation import EvaluationConfig\n"
        "config = EvaluationConfig(tasks=('sums',))\n"
        "run_command(lambda: print(fingerprint(sys.argv[1], resolve(sys.argv[1], config))))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    for model in ("owner/sums", f"owner/sums@{'a' * 40}", "owner/other"):
        command = [sys.executable, "-W", "ignore", "-c", program, model]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if model == "owner/other":
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
            assert done.stderr.startswith("error: owner/other: no such folder here; as a hub id: the hub")
        else:
            assert done.stdout.strip() == fingerprint(folder, made(backend="hf"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "model_args dtype: unknown; known are pretrained, tokenizer, tensor_model"),
        ({"path": "x"}, "model_args: 2 models"),
        ({"batch_size": "many"}, "model_args batch_size: "),
        ({"tensor_model_parallel_size": 0}, "model_args tensor_model_parallel_size: "),
    ],
)
def test_unknown_model_args_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        MegatronLM.create_from_arg_obj({"pretrained": str(folder)}, options)


def test_generation_settings_are_followed_or_refused(folder: Path) -> None:
    """Each name of the limit is the same; lm-eval's additions to the model's arguments are accepted."""
    added = {"batch_size": "auto", "max_batch_size": 8, "device": "cuda:0"}
    lm: Any = MegatronLM.create_from_arg_string(f"pretrained={folder},params_dtype=fp32", added)
    texts = {
        name: lm.generate_until(requests("generate_until", [(QUESTION, {name: 3, "until": ["", None][:1]})]))
        for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    }
    assert len({texts[name][0] for name in texts}) == 1
    assert len(lm.tok_encode(texts["max_tokens"][0], add_special_tokens=False)) == 3
    generate(lm, ["x"], repetition_penalty=1.0, num_beams=1, top_k=None, until=None)
    for setting in ({"repetition_penalty": 1.1}, {"max_length": 9}, {"foo": 1}, {"do_sample": True}):
        with pytest.raises(EvaluationError, match=f"generation setting {next(iter(setting))}: "):
            generate(lm, ["x"], **setting)
    with pytest.raises(EvaluationError, match="could not convert string to float: 'hot'"):
        generate(lm, ["x"], temperature="hot")
    lm.close()


@pytest.mark.parametrize("backend", ["hf", "megatron"])
def test_chat_needs_a_template(model_folder: Path, backend: str) -> None:
    with pytest.raises(EvaluationError, match="the tokenizer has no chat template"):
        load(model_folder, made(backend=backend, chat=True))


def test_lm_eval_s_chat_templates_give_the_prompts_and_texts_of_hf(folder: Path) -> None:
    """`--apply_chat_template` and `--fewshot_as_multiturn`, through lm-eval's own evaluator."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    places = {"include_path": str(TASKS_FOLDER), "include_defaults": False}
    manager = TaskManager(**places, metadata={"benchmarks": "samples"})
    options = {"limit": 2, "gen_kwargs": {"max_gen_toks": 8}, "bootstrap_iters": 0, "task_manager": manager}
    options |= {"apply_chat_template": True, "fewshot_as_multiturn": True}
    found = []
    for backend in ("hf", "megatron"):
        lm: Any = load(folder, made(backend=backend))
        results = simple_evaluate(lm, tasks=["mathcpt_gsm8k_few_shot"], **options)
        rows = results["samples"]["mathcpt_gsm8k_few_shot"]
        found.append([(row["arguments"], row["resps"]) for row in rows])
        if backend == "megatron":
            assert lm.chat_template(True) == lm.tokenizer.chat_template
            assert lm.tokenizer_name.endswith(folder.name)
            lm.close()
    assert found[0] == found[1]
    assert all(BOS in str(arguments) for arguments, _ in found[0])
