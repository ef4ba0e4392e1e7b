#!/usr/bin/env bash
# Builds images, loads them into a cluster, runs the tests of this folder there. `make kind` calls it.
# Environment:
#   KUBECONFIG  the cluster; where it is not set, `kind` makes one, which is deleted at the end in any case
#   KIND_LOAD   a command that copies images, its arguments, from Docker into the nodes of the cluster of KUBECONFIG;
#               without it the nodes must have them
#   BASE_IMAGE  what the images stand on, see containers/README.md
#   PIP, PYTEST the programs of the environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
docker=$(command -v /usr/bin/docker || command -v docker || true)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
redis=redis:$(sed -n '/name: redis$/{n;s/.*newTag: //p}' manifests/components/images/kustomization.yaml)
stand_in=feedworks/redis-stand-in:debian
base=${BASE_IMAGE:-python:3.11-slim-bookworm}
local_base=local/python:3.11-slim-bookworm  # of containers/build.sh, where the public one cannot be pulled
load=${KIND_LOAD:-}

fail() { echo "kind: $1" >&2; exit 1; }

command -v kubectl >/dev/null || fail "no kubectl on the PATH"
if [ -z "${KUSTOMIZE:-}" ] && ! command -v kustomize >/dev/null &&
  ! kubectl version --client -o json | grep -q '"kustomizeVersion": "v[5-9]'; then
  fail "no kustomize 5: .ci/kustomize puts it on a Debian machine; or set KUSTOMIZE, or install kubectl >= 1.27"
fi
if [ -z "${KUBECONFIG:-}" ]; then
  command -v kind >/dev/null || fail "KUBECONFIG is not set and there is no program kind to make a cluster; install kind, or set KUBECONFIG"
fi

if [ -z "${KUBECONFIG:-}" ] || [ -n "$load" ]; then
  containers/build.sh cpu-train cpu-serve
  loaded=("feedworks/python-cpu:$version" "feedworks/python-cpu-serve:$version")
  if "$docker" image inspect "$redis" >/dev/null 2>&1 || "$docker" pull -q "$redis" >/dev/null 2>&1; then
    loaded+=("$redis")
  else
    echo "kind: $redis cannot be pulled; Debian's Redis stands in" >&2
    "$docker" image inspect "$base" >/dev/null 2>&1 || base=$local_base
    "$docker" build -q --network=host --build-arg "BASE_IMAGE=$base" \
      --file tests/kind/redis.Containerfile --tag "$stand_in" tests/kind >/dev/null
    loaded+=("$stand_in")
  fi
else
  loaded=()
  echo "kind: KIND_LOAD is not set; the nodes must have feedworks/python-cpu:$version and feedworks/python-cpu-serve:$version" >&2
fi

if [ -z "${KUBECONFIG:-}" ]; then
  name=feedworks-$$
  scratch=$(mktemp -d)
  trap 'kind delete cluster --name "$name" || true; rm -rf "$scratch"' EXIT
  export KUBECONFIG=$scratch/kubeconfig
  kind create cluster --name "$name" --config manifests/kind-cluster.yaml --wait 180s
  load="kind load docker-image --name $name"
fi
if [ ${#loaded[@]} -gt 0 ]; then
  $load "${loaded[@]}"
fi
${PYTEST:-pytest} -m kind tests/kind
