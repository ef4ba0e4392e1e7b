#!/usr/bin/env bash
# Removes from an environment what no image runs: headers, static libraries, debugging symbols, tests of packages,
# web pages, type checkers that come along, pip itself, and bytecode (see bytecode.py for what comes back).
# Use: slim.sh VENV
set -euo pipefail
site=$(echo "$1"/lib/python3.*/site-packages)
"$1/bin/pip" uninstall -q -y mypy mypy_extensions librt || true
rm -rf "$site"/torch/{include,share,test} "$site"/torch/bin/{protoc*,test_*} "$site"/pyarrow/{include,tests,src} "$site"/feast/ui/build
find "$site" \( -name '*.a' -o -name '*.pyc' -o -name '*.js.map' -o -name '*.css.map' \) -delete
for package in pandas scipy sklearn sympy networkx matplotlib statsmodels dask distributed fontTools ibis mpmath joblib; do
  [ -d "$site/$package" ] || continue
  find "$site/$package" -depth -type d \( -name tests -o -name test \) -exec rm -rf {} +
done
# Libraries below *.libs were moved about by the tool that packed them and break when they are stripped; those of
# CUDA come stripped.
find "$site" -name '*.so*' -type f -not -path '*.libs/*' -not -path '*/nvidia/*' -not -name 'libtorch_cuda*' -exec strip --strip-unneeded {} +
"$1/bin/pip" uninstall -q -y pip
