#!/usr/bin/env bash
# Makes the image that sandboxes run in: nothing to do where it exists; else pulled; else, where no registry answers, built
# from Debian packages. With `cpp` as argument: one that has g++ and gcc too, always from Debian packages.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

variant=${1:-}
image=touchstone-sandbox:bookworm${variant:+-$variant}
packages=python3,git,ca-certificates${variant:+,g++}
base=python:3.11-slim-bookworm
registry_timeout_s=8
pull_timeout_s=300

# Pulls the base image; gives up soon where the registry does not even name its layers.
pull() {
    timeout "$pull_timeout_s" docker pull "$base" >"$tmp/pull" 2>/dev/null </dev/null &
    local pid=$! deadline=$((SECONDS + registry_timeout_s))
    while kill -0 "$pid" 2>/dev/null && [[ ! -s $tmp/pull ]] && ((SECONDS < deadline)); do sleep 0.1; done
    if [[ ! -s $tmp/pull ]]; then kill "$pid" 2>/dev/null || true; fi
    wait "$pid"
}

# Prints the id of an image with the packages, without documentation.
build() {
    mmdebstrap --quiet --variant=minbase --include="$packages" --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        bookworm - 2>"$tmp/build" </dev/null | docker import --change 'CMD ["bash"]' -
}

if [[ $variant != "" && $variant != cpp ]]; then
    echo "sandbox image: got '$variant', expected nothing or cpp" >&2
    exit 1
fi
if docker image inspect "$image" >/dev/null 2>&1; then exit 0; fi
if ! timeout 10 docker version >/dev/null 2>&1; then exit 0; fi # bubblewrap needs no image: see docker-engine.sh

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

if [[ $variant == "" ]]; then
    echo "sandbox image: pulling $base (about 15 s)"
    if pull; then
        docker tag "$base" "$image"
        exit 0
    fi
    echo "sandbox image: no registry answers; building it from Debian packages (about 25 s)"
else
    echo "sandbox image: building $image from Debian packages"
fi
command -v mmdebstrap >/dev/null ||
    "${0%/*}"/apt-install.sh "building the image of its sandboxes" mmdebstrap debian-archive-keyring
if id=$(build); then
    docker tag "$id" "$image"
else
    printf '%s\n' "Touchstone needs the image $image for its sandboxes; it could be neither pulled nor built: $(tail -n 1 "$tmp/build")" \
        "Type 'docker pull $base && docker tag $base $image' where a registry answers, then the same command again." >&2
    exit 1
fi
