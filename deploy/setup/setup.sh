#!/usr/bin/env bash
# Installs the Debian packages that Roost needs and that are missing here. Safe to run again:
# with nothing missing it changes nothing, needs no root and no network.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: setup.sh [--dev] [--check]
  --dev    also what building, testing and generating code needs
  --check  install nothing; say what is missing and end with status 1 if anything is
EOF
}

runtime=(
  qemu-system-x86 qemu-utils    # VMs and their disks
  mmdebstrap gpg                # root disks of templates, from signed packages
  e2fsprogs xz-utils            # ext4 images; kernel modules
  ca-certificates
)
dev=(
  protobuf-compiler libprotobuf-dev
  nftables iproute2 procps strace
)

fail() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

say() { printf 'setup: %s\n' "$*"; }

# missing prints those of its arguments that are not installed.
missing() {
  local package state
  for package in "$@"; do
    state=$(dpkg-query --show --showformat='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [[ $state == ?i* ]] || printf '%s\n' "$package"
  done
}

# quietly runs a step: one line with its seconds, and what it said only if it fails.
quietly() {
  local label=$1 start=$SECONDS
  shift
  say "$label ..."
  if ! "$@" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    fail "$label failed (above: what it said)" "check that apt-get update works on this machine, then run this again"
  fi
  say "$label: $((SECONDS - start)) s"
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"; }

check=
for arg in "$@"; do
  case $arg in
    --dev) runtime+=("${dev[@]}") ;;
    --check) check=1 ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
done

command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
  fail "this needs Debian 12: apt-get and dpkg-query were not found"

mapfile -t want < <(missing "${runtime[@]}")
if ((${#want[@]} == 0)); then
  say "all ${#runtime[@]} packages are installed"
  exit 0
fi
[[ -z $check ]] || fail "missing: ${want[*]}"
((EUID == 0)) || fail "missing: ${want[*]}" "root is needed to install them: sudo $0 $*"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly "updating package lists" apt update
quietly "installing ${want[*]}" apt install --yes --no-install-recommends "${want[@]}"
mapfile -t want < <(missing "${want[@]}")
((${#want[@]} == 0)) || fail "still missing after the installation: ${want[*]}"
