"""Runs a program that nobody trusts: all namespaces of bubblewrap, no network, hard limits.

The program sees a read-only Python installation (and what a View adds), an empty work folder with
a size, no network, no process but its own, no environment but a fixed one. A batch of cases
shares one sandbox, each in a forked child of its own with its own limits; between two cases
everything is killed and emptied. Where bubblewrap is missing or does not work, SandboxMissing:
never a run without it. Standard library only; Linux on x86_64 and aarch64.

What it does not bound: memory beyond `num_processes` times `memory_bytes` (that takes a cgroup),
and faults of the kernel itself (a seccomp filter narrows them: system_calls.py). A program's exit
code and output are its own claims.
"""

from mistral_jax.sandbox.bubblewrap import SandboxMissing
from mistral_jax.sandbox.bubblewrap import View
from mistral_jax.sandbox.run import Case
from mistral_jax.sandbox.run import Limits
from mistral_jax.sandbox.run import Outcome
from mistral_jax.sandbox.run import Sandbox
from mistral_jax.sandbox.run import available
from mistral_jax.sandbox.run import run
from mistral_jax.sandbox.run import run_many

__all__ = [
    "Case",
    "Limits",
    "Outcome",
    "Sandbox",
    "SandboxMissing",
    "View",
    "available",
    "run",
    "run_many",
]
