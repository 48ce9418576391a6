"""Loads saved tokenizers with transformers and writes the ids of texts, as JSON."""

import json
import pathlib
import sys

import transformers


def main() -> None:
    """Encode and decode every text with every tokenizer of the job."""
    job = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = []
    for folder in job["folders"]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        found.append({
            "class": type(tokenizer).__name__,
            "ids": [tokenizer(text)["input_ids"] for text in job["texts"]],
            "chat": tokenizer.apply_chat_template(
                job["chat"], add_generation_prompt=True, return_dict=False
            ),
        })  # fmt: skip
    pathlib.Path(job["out"]).write_text(json.dumps(found), encoding="utf-8")


main()
