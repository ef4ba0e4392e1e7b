#!/usr/bin/env bash
# Builds images with Docker BuildKit and prints their sizes. Use: build.sh NAME..., of
#   cpu-train cpu-serve gpu-train gpu-serve
# Environment:
#   BASE_IMAGE    what they stand on; python:3.11-slim-bookworm where it is not set
#   ARCHITECTURES compute capabilities that the images gpu-* hold kernels for, such as "80 90"
#   TORCH_INDEX   address of PyTorch's wheels without CUDA, for the images cpu-*; pip's own settings else
#   LOCAL_ENGINE  folder with docker-up.sh and make-base.sh, which help out where no engine runs, or where no
#                 registry can be reached for the base
#   PIP           the pip that fetches wheels
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
docker=${DOCKER:-$(command -v /usr/bin/docker || command -v docker || true)}
engine=${LOCAL_ENGINE:-../shared/containers}
base=${BASE_IMAGE:-python:3.11-slim-bookworm}
stand_in=local/python:3.11-slim-bookworm
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
known="cpu-train, cpu-serve, gpu-train and gpu-serve"
torch=$(sed -n 's/^torch==/torch==/p' constraints.txt)

fail() { echo "images: $1" >&2; exit 1; }
# Whether pip's wheel of torch is here, of this release and for the images' Python: pip passes over any other.
wheel() { compgen -G "containers/wheels/cpu/${torch/==/-}${1:-}*-cp311-*.whl" >/dev/null; }

[ $# -gt 0 ] || fail "no image is named; there are $known"
for name in "$@"; do
  [[ $name =~ ^(cpu|gpu)-(train|serve)$ ]] || fail "no image $name; there are $known"
done

said="there is no program docker"
if [ -z "$docker" ] || ! said=$("$docker" info 2>&1 >/dev/null); then
  [ -x "$engine/docker-up.sh" ] \
    || fail "no Docker engine answers (${said//$'\n'/ }); install and start Docker, then run this again"
  "$engine/docker-up.sh"
  docker=/usr/bin/docker
fi

if ! "$docker" image inspect "$base" >/dev/null 2>&1 && ! said=$("$docker" pull -q "$base" 2>&1); then
  [ -z "${BASE_IMAGE:-}" ] && [ -x "$engine/make-base.sh" ] \
    || fail "base image $base is not here and cannot be pulled (${said//$'\n'/ }); give another with BASE_IMAGE=NAME:TAG"
  echo "images: $base cannot be pulled; building on $stand_in" >&2
  DOCKER=$docker "$engine/make-base.sh" "$stand_in" >/dev/null
  base=$stand_in
fi

for name in "$@"; do
  kind=${name%-*} target=${name#*-}
  if [ "$kind" = cpu ]; then
    wheel || ${PIP:-python3 -m pip} download -q --no-deps --python-version 3.11 -d containers/wheels/cpu \
      ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch" 2>&1 | grep -v '^WARNING' || true
    wheel +cpu || echo "images: pip found no wheel of $torch without CUDA: the image will be 4 GB larger (see containers/wheels/README.md)" >&2
  fi
  tag=feedworks/python-$kind
  [ "$target" = serve ] && tag+=-serve
  tag+=:$version
  echo "images: building $tag" >&2
  mkdir -p out/images
  DOCKER_BUILDKIT=1 "$docker" build --progress=plain --network=host \
    --build-arg "BASE_IMAGE=$base" --build-arg "VERSION=$version" \
    ${ARCHITECTURES:+--build-arg "ARCHITECTURES=$ARCHITECTURES"} \
    --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
    --file "containers/$kind.Containerfile" --target "$target" --tag "$tag" . 2>&1 \
    | tee "out/images/$name.log" | sed -nu 's/^#[0-9]* \(\[[^]]*\] [A-Z]* .\{0,80\}\).*/  \1/p' >&2 \
    || { tail -15 "out/images/$name.log" >&2; fail "$tag was not built; all of it: out/images/$name.log"; }
  "$docker" run --rm --entrypoint cat "$tag" /srv/feedworks/bill.cdx.json > "out/images/$name.cdx.json"
  bytes=$("$docker" image inspect --format '{{.Size}}' "$tag")
  awk -v tag="$tag" -v bytes="$bytes" 'BEGIN { printf "%-40s %6.2f GB\n", tag, bytes / 1e9 }'
done
