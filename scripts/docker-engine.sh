#!/usr/bin/env bash
# Makes a Docker engine answer: nothing to do where one does; otherwise, as root on Debian or Ubuntu, installs and starts one.
# Where none can be had, bubblewrap takes its place, unless DOCKER_HOST asks for a certain engine.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

log=/var/log/dockerd.log
start_timeout_s=45

answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# Whether sandboxes without an engine work; as root the way they run there, which is as somebody else.
bubblewrap_works() {
    command -v bwrap >/dev/null || "${0%/*}"/apt-install.sh "sandboxes without Docker" bubblewrap 2>/dev/null || return 1
    local as=()
    if [[ $EUID -eq 0 ]]; then as=(setpriv --reuid 65534 --regid 65534 --clear-groups); fi
    "${as[@]}" bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev true 2>/dev/null
}

give_up() {
    if [[ -z "${DOCKER_HOST:-}" ]] && bubblewrap_works; then
        printf '%s\n' "docker: $1 bubblewrap takes the engine's place; for Docker: $2"
        exit 0
    fi
    printf '%s\n' "Touchstone needs a Docker engine for its sandboxes: $1" "$2" >&2
    exit 1
}

install_engine() {
    echo "docker: installing the engine (about 15 s)"
    "${0%/*}"/apt-install.sh "the Docker engine of its sandboxes" docker.io iptables || return
    command -v docker >/dev/null || "${0%/*}"/apt-install.sh "the Docker engine of its sandboxes" docker-cli
}

start_engine() {
    echo "docker: starting the engine (about 3 s)"
    if [[ -d /run/systemd/system ]] && systemctl start docker >/dev/null 2>&1; then return; fi
    if pidof dockerd >/dev/null; then return; fi # somebody else has just started it
    rm -f /run/docker.pid /run/docker/containerd/containerd.pid # of an engine that did not end cleanly
    # Its own session, and none of our descriptors: it outlives make and never keeps a caller's pipe open.
    setsid dockerd >"$log" 2>&1 </dev/null 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&- &
}

if answers; then exit 0; fi

if [[ -n "${DOCKER_HOST:-}" ]]; then
    give_up "DOCKER_HOST is $DOCKER_HOST, and nothing answers there." "Start that engine or unset DOCKER_HOST, then type the same command again."
elif [[ $EUID -ne 0 ]]; then
    give_up "none answers this user, and only root may install or start one." \
        "Type 'sudo scripts/docker-engine.sh && sudo usermod -aG docker $(id -un)', log in again, then type the same command again."
fi

if ! command -v docker >/dev/null || ! command -v dockerd >/dev/null; then
    install_engine || give_up "it could not be installed." "Install one, then type the same command again."
    if answers; then exit 0; fi # the package has started it
fi

start_engine
deadline=$((SECONDS + start_timeout_s))
until answers; do
    sleep 0.2
    if pidof dockerd >/dev/null && ((SECONDS < deadline)); then continue; fi
    give_up "dockerd does not answer: $(grep -shE 'level=fatal|failed to start' "$log" | tail -n 1)" \
        "See $log (or 'journalctl -u docker'), then type the same command again."
done
