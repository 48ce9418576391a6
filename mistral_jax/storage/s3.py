"""Objects in S3, or in a store that speaks its protocol (endpoint from AWS_ENDPOINT_URL).

boto3 is imported when the first s3:// URI is used, and credentials come from its usual places.
ETags: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
"""

import contextlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import BinaryIO

from mistral_jax.storage import base

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 60
MAX_ATTEMPTS, MAX_CONNECTIONS = 5, 16
CLIENT_KEPT_S = 20.0
# A part of an upload; at most 10,000 of them make an object.
PART_BYTES = 64 << 20
PLAIN_ETAG = re.compile(r"[0-9a-f]{32}")
PARTS_ETAG = re.compile(r"[0-9a-f]{32}-[0-9]+")
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
NOT_KNOWN = (
    "AccessDenied", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch",
)  # fmt: skip


_clients: dict[tuple[Any, ...], Any] = {}
_making = threading.Lock()


class S3Storage:
    """Objects in S3."""

    def __init__(self) -> None:
        """Make a client, or take the one that was made a moment ago."""
        try:
            import boto3.session
            from botocore.config import Config
        except ImportError:
            raise base.StorageError(
                "s3:// needs boto3, which is not installed; "
                "run: MISTRAL_JAX_LOCKS=data ./run doctor"
            ) from None
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"max_attempts": MAX_ATTEMPTS, "mode": "standard"},
            max_pool_connections=MAX_CONNECTIONS,
            # Other stores than Amazon's refuse checksums that come as trailers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        # Making one takes a tenth of a second. It is not kept for long, nor under other settings:
        # new credentials, in files or variables, must be found.
        settings = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))
        key = (os.getpid(), MAX_ATTEMPTS, time.monotonic() // CLIENT_KEPT_S, settings)
        with _explained("s3://"), _making:
            if key not in _clients:
                _clients.clear()
                # A session of its own: the shared one keeps the credentials that it found first.
                _clients[key] = boto3.session.Session().client("s3", config=config)
            self._client = _clients[key]

    def open_read(self, uri: str) -> BinaryIO:
        """Download an object into a temporary file, which goes when it is closed."""
        bucket, key = base.split_bucket(uri)
        file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
        with _explained(uri):
            self._client.download_fileobj(bucket, key, file)
        file.seek(0)
        return file  # pyright: ignore[reportReturnType]

    def read_range(self, uri: str, start: int, size: int, version: str) -> bytes:
        """Return a part of an object that is still of this version."""
        bucket, key = base.split_bucket(uri)
        if size == 0:
            return b""
        wanted = f"bytes={start}-{start + size - 1}"
        with _explained(uri):
            answer = self._client.get_object(Bucket=bucket, Key=key, Range=wanted, IfMatch=version)
            with contextlib.closing(answer["Body"]) as body:
                return body.read()

    def write(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Put an object; `only_if_absent` uses If-None-Match, which the store must honour."""
        bucket, key = base.split_bucket(uri)
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        with _explained(uri, is_conditional=only_if_absent):
            self._client.put_object(Bucket=bucket, Key=key, Body=data, **condition)

    def upload(self, path: Path, uri: str, sha256: str) -> None:
        """Put a file, large ones in parts; it appears when the last part has arrived."""
        from boto3.s3.transfer import TransferConfig

        bucket, key = base.split_bucket(uri)
        with _explained(uri):
            self._client.upload_file(
                str(path),
                bucket,
                key,
                ExtraArgs={"Metadata": {base.SHA256_KEY: sha256}},
                Config=TransferConfig(
                    multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES
                ),
            )

    def size_bytes(self, uri: str) -> int | None:
        """Return the size of an object; None when there is no such object."""
        head = self._head(uri)
        return None if head is None else head["ContentLength"]

    def facts(self, uri: str) -> base.FileFacts | None:
        """Return size, ETag and what of them is a digest."""
        head = self._head(uri)
        if head is None:
            return None
        computed = self._computed(uri, head)
        sha256 = head.get("Metadata", {}).get(base.SHA256_KEY)
        return base.FileFacts(
            head["ContentLength"],
            head["ETag"],
            f"sha256:{sha256}" if sha256 else computed,
            computed,
            head["LastModified"].timestamp(),
        )

    def list_files(self, uri: str) -> Iterator[str]:
        """Yield the URIs of all objects under a prefix, sorted."""
        for name, _ in self.list_facts(uri):
            yield name

    def list_facts(self, uri: str) -> Iterator[tuple[str, base.FileFacts]]:
        """Yield the same with size and ETag, which is taken for the MD5 that it mostly is."""
        bucket, key = base.split_bucket(uri)
        prefix = f"{key.rstrip('/')}/" if key else ""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        with _explained(uri):
            for page in pages:
                for found in page.get("Contents", []):
                    if not found["Key"].endswith("/"):
                        yield f"s3://{bucket}/{found['Key']}", _listed(found)

    def delete(self, uri: str) -> None:
        """Remove an object; one that is not there is no error."""
        bucket, key = base.split_bucket(uri)
        with _explained(uri):
            self._client.delete_object(Bucket=bucket, Key=key)

    def _head(self, uri: str, **options: Any) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        bucket, key = base.split_bucket(uri)
        with _explained(uri):
            try:
                return self._client.head_object(Bucket=bucket, Key=key, **options)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise

    def _computed(self, uri: str, head: dict[str, Any]) -> str:
        etag = head["ETag"].strip('"')
        # With these kinds of encryption an ETag is not a digest of the content.
        if (
            head.get("ServerSideEncryption", "").startswith("aws:kms")
            or "SSECustomerAlgorithm" in head
        ):
            return ""
        if PLAIN_ETAG.fullmatch(etag):
            return f"md5:{etag}"
        if PARTS_ETAG.fullmatch(etag):
            first = self._head(uri, PartNumber=1)
            return f"etag:{first['ContentLength']}:{etag}" if first else ""
        return ""


def _listed(found: dict[str, Any]) -> base.FileFacts:
    etag = found["ETag"].strip('"')
    modified = found.get("LastModified")
    return base.FileFacts(
        found["Size"],
        found["ETag"],
        f"md5:{etag}" if PLAIN_ETAG.fullmatch(etag) else "",
        modified_s=modified.timestamp() if modified else 0.0,
    )


@contextlib.contextmanager
def _explained(uri: str, *, is_conditional: bool = False) -> Iterator[None]:
    """Turn boto's errors into ours: what the user can change, and what may pass by itself."""
    from boto3.exceptions import S3UploadFailedError
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        raise _refusal(uri, *_code(error), is_conditional=is_conditional) from error
    except (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.ProfileNotFound,
        exceptions.TokenRetrievalError,
    ) as error:
        raise base.StorageError(
            f"{uri}: no usable AWS credentials ({error}); run `aws configure` or set AWS_PROFILE, "
            "or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except exceptions.ParamValidationError as error:
        raise base.StorageError(f"{uri}: not an address that S3 takes: {error}") from error
    except S3UploadFailedError as error:
        cause = error.__context__
        if not isinstance(cause, exceptions.ClientError):
            raise _unreachable(uri, error) from error
        raise _refusal(uri, *_code(cause), is_conditional=False) from error
    except exceptions.BotoCoreError as error:
        raise _unreachable(uri, error) from error


def _code(error: Any) -> tuple[str, int]:
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code, error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _unreachable(uri: str, error: Exception) -> base.StorageUnreachable:
    return base.StorageUnreachable(
        f"{uri}: the store does not answer, or broke off ({error}); check the network and "
        "AWS_ENDPOINT_URL, then run the same command again"
    )


def _refusal(uri: str, code: str, status: int, *, is_conditional: bool) -> Exception:
    if code == "PreconditionFailed" or status == 412:
        if is_conditional:
            return base.AlreadyExists(f"{uri}: exists already; nothing was written")
        return base.changed(uri)
    if code == "NoSuchBucket":
        return base.StorageError(f"{uri}: there is no such bucket; correct the name or make it")
    if status == 404:
        return base.StorageError(f"{uri}: no such file")
    # The answer to a HEAD has no body: of an expired token it tells the number 400 alone.
    if code in EXPIRED or code == "400":
        return base.StorageError(
            f"{uri}: the credentials have expired ({code}); get new ones (`aws sso login`, or new "
            "values of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN) and run "
            "the same command again, it goes on where it was"
        )
    if status in (401, 403) or code in NOT_KNOWN:
        return base.StorageError(
            f"{uri}: the store refuses access ({code or status}); use credentials that may read "
            "and write there (AWS_PROFILE, or `aws configure`)"
        )
    return base.StorageUnreachable(f"{uri}: the store answered {code or status}; try again later")
