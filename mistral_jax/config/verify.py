"""How rows are verified: what untrusted programs may use, how long a check may take."""

from mistral_jax.config.base import Count
from mistral_jax.config.base import Fraction
from mistral_jax.config.base import Node
from mistral_jax.config.base import Positive


class SandboxConfig(Node):
    """What one untrusted program may use; its meaning: mistral_jax/sandbox, Limits."""

    wall_s: Positive = 10.0
    cpu_s: Count = 10
    memory_bytes: Count = 512 << 20
    file_bytes: Count = 8 << 20
    work_bytes: Count = 32 << 20
    num_processes: Count = 16
    num_files: Count = 64
    output_bytes: Count = 1 << 20


class VerifyConfig(Node):
    """The verification of rows.

    Attributes:
        sandbox: for tests of code.
        heavy_sandbox: for what loads large libraries: reasoning-gym's verifiers, proof checkers.
        max_mutants: small changes tried of one program, spread over it evenly.
        min_killed: share of them that its tests must notice, where the check names none.
        mutant_cpu_s: CPU time of one changed program; one that never ends counts as noticed. CPU
            time, so that a busy machine gives the same verdicts.
        formula_cpu_s: CPU time of one comparison of formulas.
        formula_memory_bytes: address space of the process that compares them.
    """

    sandbox: SandboxConfig = SandboxConfig()
    heavy_sandbox: SandboxConfig = SandboxConfig(
        wall_s=60.0, cpu_s=60, memory_bytes=4 << 30, num_files=256
    )
    max_mutants: Count = 16
    min_killed: Fraction = 0.7
    mutant_cpu_s: Positive = 0.25
    formula_cpu_s: Positive = 5.0
    formula_memory_bytes: Count = 2 << 30
