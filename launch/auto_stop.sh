#!/bin/sh
# auto_stop.sh IDLE_MINUTES MAX_MINUTES: run by a timer each minute, as root. Shuts the machine down
# after MAX_MINUTES whatever runs, or after IDLE_MINUTES without a supervised run and without an ssh
# session (a set-up, a copy of results). EC2 turns the shutdown into a stop or a termination.
set -eu
idle=$1
most=$2
counter=${AUTO_STOP_COUNTER:-/run/mistral-jax-idle-minutes}
up=$(cut -d . -f 1 "${AUTO_STOP_UPTIME:-/proc/uptime}")
if [ "$up" -ge $((most * 60)) ]; then exec shutdown -h now; fi
if pgrep -f 'launch[.](detach|supervise)' >/dev/null || pgrep -f 'sshd.*@' >/dev/null; then
    echo 0 >"$counter"
    exit 0
fi
minutes=$(($(cat "$counter" 2>/dev/null || echo 0) + 1))
echo "$minutes" >"$counter"
if [ "$minutes" -ge "$idle" ]; then exec shutdown -h now; fi
