#!/usr/bin/env bash
# Runs the given command; without one, an ssh server for the launcher, as the ordinary user. Untested in a container.
set -euo pipefail

if [[ $# -gt 0 ]]; then
    exec "$@"
fi
key=$HOME/.ssh/host_ed25519
install -d -m 700 "$HOME/.ssh"
[[ -f $key ]] || ssh-keygen -q -t ed25519 -N '' -f "$key" # of this container alone
exec /usr/sbin/sshd -D -e -f /etc/ssh/sshd_multicoco -h "$key"
