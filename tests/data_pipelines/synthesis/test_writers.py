"""The endpoint writer against a real HTTP server on loopback: busy, slow, broken or right."""

import http.server
import json
import threading
import time

import pytest

from data_pipelines import synthesis
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.synthesis import writers
from mistral_jax.config import generators
from mistral_jax.protocols import Completion

TEXT = (
    "The harbour of Lindmark was opened in 1874. Lindmark is a town on the northern coast with a "
    "large fish market. Its crane lifts 25 kg at most.\n"
)


class Server:
    """Answers each request by what `answer(request, count)` returns: bytes, or a status."""

    def __init__(self, answer):
        self.asked = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.asked.append((self.path, self.headers, json.loads(body)))
                made = answer(json.loads(body), len(server.asked))
                if callable(made):
                    made(self)
                    return
                status, data = made if isinstance(made, tuple) else (200, made)
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def said(text):
    return json.dumps(
        {
            "choices": [{"message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20},
        }
    ).encode()


def endpoint(url, **told):
    settings = {"timeout_s": 2.0, "deadline_s": 5.0, "concurrency": 1, "price_input": 10.0} | told
    return writers.EndpointTexts(
        generators.EndpointWriter(kind="endpoint", base_url=url, model="tiny", **settings)
    )


def test_a_busy_server_and_a_broken_answer_are_asked_again(monkeypatch):
    monkeypatch.setattr(writers, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("SYNTHESIS_KEY", "secret-7")
    answers = [(503, b"busy"), b"{not json", said(""), b"[]", said("fine")]
    with Server(lambda body, count: answers[count - 1]) as server:
        writer = endpoint(server.url, api_key_env="SYNTHESIS_KEY")
        assert writer.write(["say it"], seed=3) == ["fine"]
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret-7"
    assert body["messages"] == [{"role": "user", "content": "say it"}]
    assert body["seed"] == 3
    assert "secret" not in writer.label
    assert (writer.usage.requests, writer.usage.retries, writer.usage.failed) == (5, 4, 0)
    # Two whole completions were paid: the empty one and the right one.
    assert writer.usage.cost == pytest.approx(2 * 100 * 10 / 1e6)


def test_a_stalling_server_costs_one_text_not_the_run(monkeypatch):
    monkeypatch.setattr(writers, "FIRST_PAUSE_S", 0.01)

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(300):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.02)

    def answer(body, count):
        return drip if "slow" in body["messages"][0]["content"] else said("quick")

    with Server(answer) as server:
        writer = endpoint(server.url, timeout_s=1.0, deadline_s=1.4)
        began = time.monotonic()
        texts = writer.write(["slow", "other"], seed=0)
        assert time.monotonic() - began < 5
    assert isinstance(texts[0], Reject)
    assert texts[0].kind == "writer_failed"
    assert texts[1] == "quick"


def test_refusals_redirects_and_floods_are_not_asked_again():
    answers = {"no": (401, b"bad key"), "go": (302, b""), "flood": said("x" * 5000)}
    with Server(lambda body, count: answers[body["messages"][0]["content"]]) as server:
        texts = endpoint(server.url, answer_bytes=1000).write(list(answers), seed=0)
    assert [text.kind for text in texts] == ["writer_refused"] * 3
    assert "bad key" in texts[0].reason
    assert len(server.asked) == 3


def test_the_budget_and_a_missing_key_stop_the_run():
    with Server(lambda body, count: said("ok")) as server:
        writer = endpoint(server.url, max_cost=0.0015)
        with pytest.raises(writers.OverBudget, match="max_cost"):
            writer.write(["a", "b", "c", "d"], seed=0)
    with pytest.raises(ValueError, match="NO_SUCH_KEY"):
        endpoint("http://127.0.0.1:1/v1", api_key_env="NO_SUCH_KEY").write(["a"], seed=0)


def test_requests_keep_their_rate():
    with Server(lambda body, count: said("ok")) as server:
        began = time.monotonic()
        endpoint(server.url, requests_per_minute=600, concurrency=3).write(["a"] * 4, seed=0)
        assert time.monotonic() - began >= 0.3


def test_written_answers_stay_only_if_they_pass_their_check():
    """The server knows the truth of every second row and is wrong about the others."""
    config = generators.Instructions(
        kind="instructions", name="i", levels=(1.0, 0.0, 0.0, 0.0, 0.0)
    )
    truths = {
        row.document.prompt: row.document.completion
        for row in synthesis.build(config).rows(0, 6)
        if isinstance(row, Row)
    }

    def answer(body, count):
        text = truths[body["messages"][0]["content"]]
        return said(text if count % 2 else text + " or so")

    with Server(answer) as server:
        rows = list(synthesis.build(config, writer=endpoint(server.url)).rows(0, 6))
    assert [isinstance(row, Row) for row in rows] == [True, False] * 3
    assert {row.kind for row in rows if isinstance(row, Reject)} == {"wrong_answer"}
    assert "endpoint model=tiny" in rows[0].made_by


def test_ungrounded_questions_of_an_endpoint_are_refused():
    items = [
        {"question": "When was the harbour opened?", "quote": "1874"},
        {"question": "Who paid for it?", "quote": "Baron Falk"},
        {"question": "What does 25 kg mean?", "quote": "25 kg"},
        {"question": "In which year?", "quote": "1874"},
        {"quote": "crane"},
    ]
    source = Row(Document("a.pdf", "text", text=TEXT, pages=(0,)), "pdfs", "text", "general", "MIT")
    config = generators.DocumentQuestions(kind="document_questions", name="q", min_per_document=1)
    with Server(lambda body, count: said(f"```json\n{json.dumps(items)}\n```")) as server:
        made = list(synthesis.build(config, writer=endpoint(server.url)).rows(source))
    assert TEXT in server.asked[0][2]["messages"][0]["content"]
    rows = [row for row in made if isinstance(row, Row)]
    assert [row.document.completion for row in rows] == ["1874"]
    assert [row.kind for row in made if isinstance(row, Reject)] == [
        "ungrounded", "answer_in_question", "asked_twice", "bad_question",
    ]  # fmt: skip
    assert rows[0].facts["cited"]["page"] == 1
    with Server(lambda body, count: said("Sure! Here are some.")) as server:
        made = list(synthesis.build(config, writer=endpoint(server.url)).rows(source))
    assert [row.kind for row in made] == ["bad_question", "too_few_questions"]


def test_a_model_writes_in_batches():
    class Echo:
        def generate(self, prompts, *, max_tokens, seed):
            self.sizes = [*getattr(self, "sizes", []), len(prompts)]
            return [Completion(f"{p}!" if p else " ", [], [], "stop") for p in prompts]

    config = generators.ModelWriter(kind="model", weights="w", batch_prompts=2)
    model = Echo()
    writer = writers.build(config, model=model)
    texts = writer.write(["a", "", "c"], seed=0)
    assert texts[0] == "a!"
    assert texts[1].kind == "writer_failed"
    assert model.sizes == [2, 1]
    with pytest.raises(ValueError, match="loaded"):
        writers.build(config)
    assert writers.build(generators.TemplateWriter()) is None
