"""Runs one GGUF file in llama.cpp: log-probabilities after prompts, ids of texts, as JSON.

llama.cpp writes to standard output as it likes; the answer goes to a file.
"""

import json
import pathlib
import sys
import urllib.request

import xllamacpp


def open_server(job: dict) -> xllamacpp.Server:
    """Load the model for one request at a time, on the CPU, with a float32 cache."""
    params = xllamacpp.CommonParams()
    params.model.path = job["path"]
    params.n_ctx = job["context"]
    params.n_parallel = 1
    params.warmup = False
    params.fit_params = False
    params.cpuparams.n_threads = 2
    params.cpuparams_batch.n_threads = 2
    params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def top_log_probs(server: xllamacpp.Server, prompt: list[int], count: int) -> list[list]:
    """Return [id, log-probability] of the likeliest next tokens."""
    request = {
        "prompt": prompt,
        "n_predict": 1,
        "n_probs": count,
        "temperature": -1.0,  # greedy, with the probabilities of the plain softmax
        "cache_prompt": False,
    }
    answer = server.handle_completions(request)
    answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
    if "choices" not in answer:
        raise SystemExit(f"llama.cpp answered {answer}")
    first = answer["choices"][0]["logprobs"]["content"][0]
    return [[entry["id"], entry["logprob"]] for entry in first["top_logprobs"]]


def tokenize(server: xllamacpp.Server, text: str) -> list[int]:
    """Return the ids of plain text, without a begin token."""
    body = json.dumps({"content": text, "add_special": False, "parse_special": False})
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize",
        data=body.encode("utf-8"),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["tokens"]


def main() -> None:
    """Answer the job."""
    job = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    server = open_server(job)
    found = {
        "top": [top_log_probs(server, prompt, job["count"]) for prompt in job["prompts"]],
        "ids": [tokenize(server, text) for text in job["texts"]],
    }
    pathlib.Path(job["out"]).write_text(json.dumps(found), encoding="utf-8")


main()
