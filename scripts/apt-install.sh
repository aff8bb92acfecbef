#!/usr/bin/env bash
# Installs Debian packages as root, or says in one message what to type: apt-install.sh PURPOSE PACKAGE...
set -euo pipefail

purpose=$1
shift

give_up() {
    printf '%s\n' "Touchstone needs $* for $purpose, and $reason." \
        "Type 'sudo apt-get install $*' (or what your system calls it), then the same command again." >&2
    exit 1
}

if ! command -v apt-get >/dev/null; then reason="there is no apt-get to install it with" && give_up "$@"; fi
if [[ $EUID -ne 0 ]]; then reason="only root may install it" && give_up "$@"; fi

export DEBIAN_FRONTEND=noninteractive
apt() { output=$(apt-get -qq -o DPkg::Lock::Timeout=180 "$@" 2>&1 </dev/null); }
install() { apt install --yes --no-install-recommends "$@"; }

exec 9>/run/lock/touchstone-apt.lock
flock 9 # two scripts may ask at once
install "$@" || { apt update || true; install "$@"; } || {
    reason="apt-get answered: $(tail -n 1 <<<"$output")"
    give_up "$@"
}
