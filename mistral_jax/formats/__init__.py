"""Reading and writing other people's weight files: safetensors, GGUF, PEFT, params.json.

Everything here is numpy and plain files; nothing imports jax, so `inspect` and `plan` stay fast.
"""
