#!/bin/sh
# The far side of a launch on a TPU slice, before the project is there: unpack it, then host.sh.
#   tpu_host.sh FOLDER RUN ARCHIVE WORD...   the project's folder, the run's launch folder in it,
#                                            both below the home; WORD... is for host.sh
# A slice runs one training at a time: while one runs, nothing is replaced.
set -eu
cd
PATH=$HOME/.local/bin:$PATH
export PATH
for lock in "$1"/runs/*/launch/lock; do
    [ -e "$lock" ] && ! flock -n "$lock" true || continue
    if [ "$lock" = "$1/$2/lock" ]; then
        echo "$(uname -n): the run is under way; nothing is replaced"
        exit 0
    fi
    echo "$(uname -n): another run is under way here: $lock" >&2
    exit 3
done
mkdir -p -- "$1"
tar -xzf "$3" -C "$1"
cd -- "$1"
shift 3
# The image's Python may be too old: uv brings one, below the home.
python3.12 -c '' 2>/dev/null || python3.13 -c '' 2>/dev/null || {
    python3 -m pip install --user --quiet uv
    python3 -m uv python install 3.12
}
exec sh launch/host.sh "$@"
