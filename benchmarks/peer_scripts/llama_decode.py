"""Completes token ids greedily in llama.cpp, for benchmarks/decode.py; one JSON line a request.

`python llama_decode.py FILE.gguf THREADS`. A request is {"prompt": [ids], "count": n}; the answer
has the tokens and llama.cpp's own seconds for all of them but the first, which the prompt gave.
"""

import importlib.metadata
import json
import os
import sys

import xllamacpp


def open_server(path: str, num_threads: int) -> xllamacpp.Server:
    """Load the model for one request at a time, on the CPU."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 512
    params.n_parallel = 1
    params.warmup = True
    params.fit_params = False
    params.cpuparams.n_threads = num_threads
    params.cpuparams_batch.n_threads = num_threads
    return xllamacpp.Server(params)


def complete(server: xllamacpp.Server, request: dict) -> dict:
    """Return tokens and seconds."""
    answer = server.handle_completions(
        {
            "prompt": request["prompt"],
            "n_predict": request["count"],
            "temperature": -1.0,
            "n_probs": 1,
            "ignore_eos": True,
            "cache_prompt": False,
        }
    )
    answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
    if "choices" not in answer:
        raise SystemExit(f"llama.cpp answered {answer}")
    places = answer["choices"][0]["logprobs"]["content"]
    timings = answer["timings"]
    return {
        "tokens": [place["id"] for place in places],
        "seconds": timings["predicted_ms"] / 1000,
        "count": timings["predicted_n"],
    }


def main() -> None:
    """Answer until the input ends."""
    # llama.cpp writes to standard output as it likes: it gets the errors' channel instead.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = open_server(sys.argv[1], int(sys.argv[2]))
    print(
        json.dumps({"xllamacpp": importlib.metadata.version("xllamacpp")}),
        file=answers,
        flush=True,
    )
    for line in sys.stdin:
        print(json.dumps(complete(server, json.loads(line))), file=answers, flush=True)


main()
