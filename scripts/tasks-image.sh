#!/usr/bin/env bash
# Makes the image that real tasks run in: the sandboxes' image, with the packages of configs/tasks/library.txt in
# /opt/tasks. Nothing to do where it exists. Only wheels are taken, so nothing is built and no code of them runs here.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

base=touchstone-sandbox:bookworm
image=touchstone-tasks:bookworm
library=configs/tasks/library.txt
python=${PYTHON:-python3.11}
if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; fi

wanted=$(cat "$library" scripts/tasks-image.sh | sha256sum | cut -c1-16)
if [[ "$(docker image inspect --format '{{index .Config.Labels "touchstone.library"}}' "$image" 2>/dev/null)" == "$wanted" ]]; then
    exit 0
fi

scripts/sandbox-image.sh
echo "tasks image: $base with the $(grep -c == "$library") packages of $library (about 10 s)"
tmp=$(mktemp -d)
container=
clean() {
    rm -rf "$tmp"
    if [[ -n $container ]]; then docker rm "$container" >/dev/null; fi
}
trap clean EXIT

"$python" -m pip -qq --disable-pip-version-check download --no-deps --only-binary :all: --platform any \
    --python-version 3.11 --implementation py --abi none --dest "$tmp/wheels" --requirement "$library"
mkdir "$tmp/tasks"
for wheel in "$tmp"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$tmp/tasks"; done
chmod -R a+rX "$tmp/tasks"

# Compiled there, once: in a sandbox nothing is written back, and every run would compile pytest again.
container=$(docker create --network none "$base" python3 -m compileall -q --invalidation-mode unchecked-hash /opt/tasks)
docker cp "$tmp/tasks" "$container:/opt/" >/dev/null
docker start --attach "$container"
docker commit --change 'CMD ["bash"]' --change "LABEL touchstone.library=$wanted" "$container" "$image" >/dev/null
