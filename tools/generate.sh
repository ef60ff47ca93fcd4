#!/usr/bin/env bash
# Generates api/gen from api/proto and api/openapi. Output is committed; `make test` checks
# that it is not stale. Needs protoc (Debian: protobuf-compiler); the plugins are pinned in
# tools/go.mod.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "${1:?usage: tools/generate.sh BIN_DIR [OUT_DIR]}")
out=$(realpath -m "${2:-api/gen}")
mkdir -p "$out/v1"
(cd api/proto && PATH="$bin:$PATH" protoc -I . --go_out="$out" --go_opt=module=github.com/roosthq/roost/api/gen \
  --connect-go_out="$out" --connect-go_opt=module=github.com/roosthq/roost/api/gen \
  process/process.proto filesystem/filesystem.proto roost/guest/v1/control.proto roost/host/v1/host.proto)
"$bin/oapi-codegen" -config api/openapi/generate.yaml -o "$out/v1/v1.gen.go" api/openapi/roost.yaml
