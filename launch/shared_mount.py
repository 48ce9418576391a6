"""Mounts the NFS share of `launcher.shared_mount` on every host of a slice, again on each new one.

A new slice has nothing mounted, and nothing of the project: the script travels as one word of
`sh -c`, the share and its folder behind it. It mounts over nothing that holds files, and leaves
alone what is mounted. Nothing here runs it; tpu_pod.py does.
"""

import re

from launch import many_hosts
from launch.commands import Request
from launch.launcher import TpuQueued

SCRIPT = """set -eu
share=$1 folder=$2 PATH=$PATH:/usr/sbin:/sbin
stop() { echo "$(uname -n): $*" >&2; exit 1; }
if mountpoint -q "$folder"; then
    mounted=$(findmnt -n -o SOURCE --mountpoint "$folder" | tail -n 1)
    [ "$mounted" = "$share" ] || stop "another share, $mounted, is mounted at $folder"
else
    command -v mount.nfs >/dev/null || {
        apt="env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600"
        sudo -n $apt update || true
        sudo -n $apt install nfs-common || stop "cannot install nfs-common"
    }
    sudo -n mkdir -p "$folder"
    [ -z "$(ls -A "$folder")" ] || stop "$folder is not empty, so nothing is mounted over it"
    sudo -n mount -t nfs "$share" "$folder" || stop "cannot mount $share at $folder"
fi
[ -w "$folder" ] || sudo -n chmod 1777 "$folder" || stop "may not write in $share"
"""
FIXES = (
    ("another share", "correct launcher.shared_mount, or unmount the other one on every host"),
    ("cannot install nfs-common", "let the hosts reach their package mirror, or mount the share "
     "by hand and leave launcher.shared_mount out"),
    ("so nothing is mounted over it", "give launcher.shared_folder= a new or an empty folder"),
    ("cannot mount", "correct launcher.shared_mount, or let the slice's network reach the share's "
     "server (NFS, TCP port 2049)"),
    ("may not write in", "export the share so that the hosts' users may write in it"),
)  # fmt: skip

_SHARE = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?:(?:/[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}){1,16}"
)


def words(request: Request) -> list[str]:
    """Return what mounts the share on a host; empty where there is none to mount.

    Raises:
        ValueError: it is no SERVER:/PATH, or there is no folder to mount it at.
    """
    launcher = request.target.launcher
    assert isinstance(launcher, TpuQueued)
    share = launcher.shared_mount
    if share is None:
        return []
    if not _SHARE.fullmatch(share):
        raise ValueError(
            f"launcher.shared_mount {share[:100]!r}: expected SERVER:/PATH of an NFS share, of "
            "letters, digits, '_', '.', '-' and '/', such as 10.0.0.2:/shared"
        )
    folder = many_hosts.shared_folder(request)
    if folder is None:
        raise ValueError(
            f"launcher.shared_mount {share}: expected the folder to mount it at too, got none; "
            "give launcher.shared_folder=/mnt/shared"
        )
    return ["env", "LC_ALL=C", "sh", "-c", SCRIPT, "mount", share, folder]
