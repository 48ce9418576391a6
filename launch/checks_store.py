"""Pre-flight of buckets: the library, the right to read and to write, the clock, the owner.

One small object is written under the run's output, read back and removed. Its time, as the store
tells it, is what this machine's clock is compared with. Nothing here runs without a bucket's URI.
"""

import dataclasses
import importlib.util
import os
import time
from pathlib import Path

from launch import checks
from launch.checks import Answer
from launch.checks import Check
from launch.checks import Context
from mistral_jax import storage
from mistral_jax.storage import owner

LIBRARIES = {"s3": "boto3", "gs": "gcsfs"}
REFUSED_SKEW_S = 300.0  # S3 refuses a request at 900; tokens of both clouds before that
TOLD_SKEW_S = 30.0
NO_BUCKET = "no bucket is named"
PLACES = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
           "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
}  # fmt: skip
FILES = {"s3": ("~/.aws/credentials", "~/.aws/config"),
         "gs": ("~/.config/gcloud/application_default_credentials.json",)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Probe:
    """What came of the probe: its answer, and by how much this clock is ahead of the store's."""

    answer: Answer
    ahead_s: float | None = None
    store_time_s: float | None = None


def schemes(context: Context) -> list[str]:
    """Return the kinds of stores that the run needs."""
    uris = [*context.input_uris().values(), *([context.output] * context.has_bucket_output)]
    return sorted({uri.partition("://")[0] for uri in uris})


def _library(context: Context) -> Answer:
    needed = [LIBRARIES[scheme] for scheme in schemes(context)]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        return checks.failed(
            f"{', '.join(missing)} is not installed", "MISTRAL_JAX_LOCKS=data ./run doctor"
        )
    return checks.ok(", ".join(needed)) if needed else checks.skipped(NO_BUCKET)


def _credentials(context: Context) -> Answer:
    """Tell which credentials are found, by name; whether they are taken is seen by using them."""
    found = []
    for scheme in schemes(context):
        names = [name for name in PLACES[scheme] if context.environment.get(name)]
        names += [file for file in FILES[scheme] if Path(file).expanduser().is_file()]
        if not names:
            fix = "aws configure" if scheme == "s3" else "gcloud auth application-default login"
            return checks.warning(
                f"no {scheme} credentials in variables or files; the machine's own role may do",
                fix,
            )
        found.append(f"{scheme} by {names[0]}")
    return checks.ok(", ".join(found)) if found else checks.skipped(NO_BUCKET)


def _read(context: Context) -> Answer:
    """Ask the store for everything that the run reads there."""
    uris = context.input_uris()
    for key, uri in uris.items():
        try:
            is_there = storage.exists(uri) or bool(storage.list_files(uri))
        except (storage.StorageError, storage.StorageUnreachable) as error:
            return _refused(f"{key}: {checks.sentence(error)}", uri)
        if not is_there:
            return checks.failed(f"{key}: nothing is at {uri}", _list_line(uri))
    return checks.ok(f"{len(uris)} URI(s) can be read") if uris else checks.skipped(NO_BUCKET)


def _write(context: Context) -> Answer:
    if not context.has_bucket_output:
        return checks.skipped(NO_BUCKET)
    return probe(context).answer


def _clock(context: Context) -> Answer:
    if not context.has_bucket_output:
        newest = _newest_source_s()
        if newest - time.time() > 86400:
            return checks.failed(
                "this clock is behind the project's own files: certificates and tokens will fail",
                "sudo timedatectl set-ntp true",
            )
        return checks.ok("not before the project's own files; no store to compare it with")
    seen = probe(context)
    if seen.ahead_s is None:
        text = seen.answer.detail
        if "TimeTooSkewed" in text or "RequestExpired" in text:
            return checks.failed(f"the store refuses this clock: {text}",
                                 "sudo timedatectl set-ntp true")  # fmt: skip
        return checks.skipped("the store did not take the probe")
    shown = f"{abs(seen.ahead_s):.0f} s {'ahead of' if seen.ahead_s > 0 else 'behind'} the store's"
    if abs(seen.ahead_s) > REFUSED_SKEW_S:
        return checks.failed(f"this clock is {shown}", "sudo timedatectl set-ntp true")
    if abs(seen.ahead_s) > TOLD_SKEW_S:
        return checks.warning(f"this clock is {shown}", "sudo timedatectl set-ntp true")
    return checks.ok(shown)


def _newest_source_s() -> float:
    return max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))


def _owner(context: Context) -> Answer:
    """Check that no other process writes to the output."""
    if not context.has_bucket_output:
        return checks.skipped(NO_BUCKET)
    if context.is_fresh:
        return checks.ok("fresh=true: it starts beside what is there")
    seen, uri = probe(context), context.output.rstrip("/")
    if seen.store_time_s is None:
        return checks.skipped("the store did not take the probe")
    names = [n for n in storage.list_files(f"{uri}/{owner.FOLDER}")
             if owner.NAME.fullmatch(n.rpartition("/")[2])]  # fmt: skip
    newest = max(names, key=lambda name: int(Path(name).stem), default=None)
    record = owner.read(newest) if newest else None
    facts = storage.facts(newest) if newest else None
    if record is None or facts is None or record.get("released"):
        return checks.ok("no other process writes there")
    if seen.store_time_s - facts.modified_s >= owner.EXPIRY_S:
        return checks.ok("its last owner has not written for long, and counts as dead")
    if context.is_under_way:
        return checks.ok(checks.UNDER_WAY)
    if not context.on_host:
        return checks.warning(
            f"process {record.get('process')} on {record.get('host')} writes to {uri} since "
            f"{record.get('since')}: where that is this run on its host, launch attaches to it; a "
            "second one is refused there",
            context.command(verb="launch"),
        )
    tool = "aws s3 rm" if uri.startswith("s3://") else "gcloud storage rm"
    return checks.failed(
        f"process {record.get('process')} on {record.get('host')} writes to {uri} since "
        f"{record.get('since')}; wait for it, or, if it is dead, take its mark away",
        f"{tool} {checks.word(str(newest))}",
    )


def probe(context: Context) -> Probe:
    """Write, read back and remove a small object under the output, once for each context."""
    if "store probe" not in context.seen:
        context.seen["store probe"] = _probe(context.output.rstrip("/"))
    return context.seen["store probe"]


def _probe(uri: str) -> Probe:
    name, content = f"{uri}/.preflight-{os.urandom(8).hex()}", os.urandom(16)
    try:
        began = time.time()
        storage.write_bytes(name, content)
        middle = (began + time.time()) / 2
        back, facts = storage.read_bytes(name), storage.facts(name)
    except (storage.StorageError, storage.StorageUnreachable) as error:
        return Probe(_refused(checks.sentence(error), uri))
    when = facts.modified_s if facts else None
    ahead = middle - when if when else None
    if back != content:
        return Probe(
            checks.failed(f"{name}: other bytes came back than were written", _list_line(uri)),
            ahead, when,
        )  # fmt: skip
    try:
        storage.delete(name)
    except (storage.StorageError, storage.StorageUnreachable) as error:
        answer = checks.failed(
            f"{uri}: may be written and not deleted, so that old checkpoints would stay: "
            f"{checks.sentence(error)}",
            _who_line(uri),
        )
        return Probe(answer, ahead, when)
    return Probe(checks.ok(f"{uri}: written, read back, deleted"), ahead, when)


def _refused(text: str, uri: str) -> Answer:
    if "expired" in text:
        fix = (
            "aws sso login" if uri.startswith("s3://") else "gcloud auth application-default login"
        )
    elif "no such bucket" in text:
        bucket = "/".join(uri.split("/")[:3])
        fix = f"aws s3 mb {checks.word(bucket)}" if uri.startswith("s3://") else (
            f"gcloud storage buckets create {checks.word(bucket)}")  # fmt: skip
    elif "does not answer" in text or "try again later" in text:
        fix = "curl -sSI ${AWS_ENDPOINT_URL:-https://s3.amazonaws.com}"
    else:
        fix = _who_line(uri)
    return checks.failed(text, fix)


def _who_line(uri: str) -> str:
    return "aws sts get-caller-identity" if uri.startswith("s3://") else "gcloud auth list"


def _list_line(uri: str) -> str:
    tool = "aws s3 ls" if uri.startswith("s3://") else "gcloud storage ls"
    return f"{tool} {checks.word(uri)}"


CHECKS = (
    Check("store library", _library),
    Check("store credentials", _credentials),
    Check("store read", _read),
    Check("store write", _write),
    Check("clock", _clock),
    Check("output's owner", _owner),
)
