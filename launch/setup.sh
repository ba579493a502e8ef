#!/usr/bin/env bash
# Sets up .venv and, where it may (root or passwordless sudo, apt), the compilers and tools outside Python.
# Asks nothing. What it may not install is named, with what falls back to the ziglang wheel or is left out.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }

# Command that shows a package is there, and the package. The zig wheel stands in for absent compilers.
TOOLS=(
  "gcc gcc"
  "as binutils"
  "aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu"
  "aarch64-linux-gnu-as binutils-aarch64-linux-gnu"
  "qemu-aarch64 qemu-user"
  "bwrap bubblewrap"
  "zstd zstd"
  "riscv64-linux-gnu-gcc gcc-riscv64-linux-gnu"
  "riscv64-linux-gnu-as binutils-riscv64-linux-gnu"
  # What projects' own builds use, and Debian's source packages.
  "make make"
  "cmake cmake"
  "meson meson"
  "ninja ninja-build"
  "autoconf autoconf"
  "automake automake"
  "libtoolize libtool"
  "pkg-config pkg-config"
  "bison bison"
  "flex flex"
  "m4 m4"
  "patch patch"
  "git git"
  "bear bear"
  "dpkg-source dpkg-dev"
)
# A cluster for tests/cluster: Slurm, ssh and pdsh between network namespaces. These packages start services, sshd
# among them, so nobody gets them unasked: CI=true launch/setup.sh installs them.
CLUSTER_TOOLS=(
  "slurmctld slurmctld"
  "slurmd slurmd"
  "sbatch slurm-client"
  "munged munge"
  "sshd openssh-server"
  "ssh openssh-client"
  "pdsh pdsh"
  "ip iproute2"
)
# Tests of asmtrain serve and the pictures of docs/ look through a browser.
[ -z "${CI:-}" ] || TOOLS+=("${CLUSTER_TOOLS[@]}" "chromium chromium")
# Headers have no command of their own.
FILES=(
  "/usr/include/stdio.h libc6-dev"
  "/usr/aarch64-linux-gnu/include/stdio.h libc6-dev-arm64-cross"
  "/usr/riscv64-linux-gnu/include/stdio.h libc6-dev-riscv64-cross"
)

missing_packages() {
  local entry PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # daemons lie where a user's PATH may not look
  for entry in "${TOOLS[@]}"; do command -v "${entry% *}" >/dev/null || echo "${entry#* }"; done
  for entry in "${FILES[@]}"; do [ -e "${entry% *}" ] || echo "${entry#* }"; done
  find_clang >/dev/null || echo clang
}

find_clang() {
  local version
  for version in 19 18 17 16 15 14; do command -v "clang-$version" && return 0; done
  return 1
}

find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$name" && return 0
  done
  echo "setup: Python 3.11 or newer is needed; install python3.11 or newer and run make again" >&2
  return 2
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_apt() {
  command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
}

apt_install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

newest_clang_package() {
  local version
  for version in 19 18 17 16 15 14; do
    apt-cache show "clang-$version" >/dev/null 2>&1 && echo "clang-$version" && return 0
  done
  return 1
}

install_tools() {
  local packages package
  mapfile -t packages < <(missing_packages | sort -u)
  [ "${#packages[@]}" -gt 0 ] || return 0
  if ! may_apt; then
    say "not installed, as this needs root and apt: ${packages[*]}"
    say "compilers that are absent fall back to the ziglang wheel; .venv/bin/asmtrain doctor tells the rest"
    return 0
  fi
  say "installing ${packages[*]}"
  as_root apt-get update -qq || say "apt-get update failed; going on with the package lists there are"
  for package in "${packages[@]}"; do
    [ "$package" != clang ] || package=$(newest_clang_package || echo clang)
    apt_install "$package" || say "$package could not be installed; it is left out"
  done
}

make_venv() {
  [ -x .venv/bin/pip ] && return 0
  local python
  python=$(find_python)
  rm -rf .venv
  if ! "$python" -c 'import ensurepip' 2>/dev/null && may_apt; then
    apt_install "$("$python" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')"
  fi
  "$python" -m venv .venv || {
    echo "setup: $python cannot make a virtual environment; install python3-venv and run make again" >&2
    return 2
  }
}

install_tools
make_venv
say "installing Python packages into .venv (about 2 GB with torch; minutes the first time)"
.venv/bin/pip install --quiet --disable-pip-version-check --editable ".[corpus,train,eval,dev]"
say "done; .venv/bin/asmtrain doctor shows what this machine has"
