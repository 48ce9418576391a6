"""Which predicted times rest on published runs: the ground that published.py covers, as limits.

A prediction outside is the same arithmetic without a witness: `extrapolated`, with what is new.
"""

from typing import Literal

from launch import predict
from launch.target import Target

# Of each generation: chips, experts, experts of a token, devices along the expert axis, and
# whether latent attention was among the runs that the predictor met within 20 %.
PUBLISHED_CHIPS = {"v5p": 512, "v6e": 256}
PUBLISHED_EXPERTS = {"v5p": 256, "v6e": 8}
PUBLISHED_TOP_K = {"v5p": 8, "v6e": 2}
PUBLISHED_EXPERT_AXIS = {"v5p": 1, "v6e": 4}
LATENT_GENERATIONS = ("v5p",)
PUBLISHED_ROW_TOKENS = 8192
PUBLISHED_PASS_TOKENS = 8192


def judge(
    work: predict.Workload, target: Target
) -> tuple[Literal["calibrated", "extrapolated", "uncalibrated"], list[str]]:
    """Return the mark of a predicted time, and a sentence on what no published run covers."""
    known = predict.generation(target.accelerator_type)
    if known is None or known not in PUBLISHED_CHIPS:
        return "uncalibrated", [f"No published run on {known} chips was compared with."]
    news = _news(work, target, known)
    if not news:
        return "calibrated", []
    return "extrapolated", ["Times go beyond the published runs: " + "; ".join(news) + "."]


def _news(work: predict.Workload, target: Target, known: str) -> list[str]:
    decoder, mesh, moe = work.decoder, work.mesh, work.moe
    pairs = [
        ("chips", target.num_chips, PUBLISHED_CHIPS[known]),
        ("tokens in a row", work.num_tokens, PUBLISHED_ROW_TOKENS),
    ]
    if moe is not None:
        pairs += [
            ("experts", moe.num_experts, PUBLISHED_EXPERTS[known]),
            ("experts of a token", moe.top_k, PUBLISHED_TOP_K[known]),
            ("devices along the expert axis", mesh["expert"], PUBLISHED_EXPERT_AXIS[known]),
        ]
    news = [
        f"{value:,} {name} (published: up to {top:,})" for name, value, top in pairs if value > top
    ]
    if work.pass_tokens < PUBLISHED_PASS_TOKENS:
        shown = f"{work.pass_tokens:,.0f} tokens of a chip in a pass"
        news.append(f"{shown} (published: {PUBLISHED_PASS_TOKENS:,} and more)")
    news += [f"a {axis} axis" for axis in ("tensor", "context") if mesh[axis] > 1]
    if decoder.attention.kind == "latent" and known not in LATENT_GENERATIONS:
        news.append("latent attention")
    if decoder.attention.kind in ("window", "interleaved"):
        news.append("windowed attention")
    if work.adapter.kind != "none":
        news.append("an adapter")
    return news
