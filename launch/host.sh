#!/bin/sh
# The far side of a launch over ssh, run in the project's folder there. No value stands in this
# text: what differs comes as arguments.
#   host.sh setup LOCK [SET...]   environment from requirements/LOCK.lock; auto: the driver decides
#   host.sh run VERB...           ./run VERB...
#   host.sh python ARGUMENT...    the environment's Python
#   host.sh keep                  take back a shutdown that an earlier run's end has ordered
#   host.sh halt                  order one, in a minute
set -eu
cd -- "$(dirname -- "$0")/.."
venv=${MISTRAL_JAX_VENV:-.venv}
stop() { printf 'launch: %s\n' "$*" >&2; exit 3; }

driver_lock() { # the newest CUDA that the driver takes: CUDA 13 from 580 on, CUDA 12 from 525 on
    version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1) ||
        stop "nvidia-smi does not answer: install NVIDIA's driver (580 or newer), or set launcher.lock"
    major=${version%%.*}
    case $major in '' | *[!0-9]*) stop "nvidia-smi tells no driver version: $version" ;; esac
    if [ "$major" -ge 580 ]; then lock=cuda13
    elif [ "$major" -ge 525 ]; then lock=cuda12
    else stop "NVIDIA driver $version is too old: install 580 or newer (CUDA 12 takes 525)"
    fi
    printf 'launch: driver %s takes %s\n' "$version" "$lock"
}

first_boot() { # a new cloud machine may still be installing packages, and holds apt's lock
    command -v cloud-init >/dev/null || return 0
    timeout 600 cloud-init status --wait >/dev/null 2>&1 || [ $? -ne 124 ] ||
        printf 'launch: the first boot has not ended after 10 minutes; going on\n'
}

verb=$1
shift
case $verb in
    setup)
        lock=$1
        shift
        first_boot
        case $lock in auto) driver_lock ;; none) lock= ;; esac
        MISTRAL_JAX_LOCKS="$lock $*" exec ./run doctor ;;
    run) exec ./run "$@" ;;
    python) exec "$venv/bin/python" "$@" ;;
    keep) sudo -n shutdown -c || true ;;
    halt) exec sudo -n shutdown -h +1 ;;
    *) stop "host.sh knows no verb $verb" ;;
esac
