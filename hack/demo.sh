#!/usr/bin/env bash
# hack/demo.sh: a file approves a device, and deleting the file revokes it. Runs on the real gateway, without
# Kubernetes and without root, and stops by itself. It ends with 0 only if every step was seen to happen.
#
# GATEWAYTRUST_BIN=FILE uses that binary instead of building one. KEEP=1 keeps the logs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

address=$(own_address)
[ -n "$address" ] || die "this machine has no IPv4 address besides loopback, so the demo cannot show anything:" \
  "a gateway pairs devices on loopback silently, and the demo's device has to come from an address that it calls remote."

"$ROOT/hack/setup.sh" gateway
build_gatewaytrust

RUN=$(mktemp -d "${TMPDIR:-/tmp}/gatewaytrust-demo.XXXXXX")
token=$(random_token)

finish() {
  local code=$?
  trap - EXIT INT TERM HUP
  end_all
  if [ -n "${KEEP:-}" ]; then echo "logs: $RUN"; else rm -rf "$RUN"; fi
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# fail WHAT: the step that was not seen, and what each part said last (never the token).
fail() {
  local name
  say "$RED" demo "did not see: $1"
  for name in gateway operator device; do
    [ -s "$RUN/$name.log" ] || continue
    printf -- '--- %s, last lines\n' "$name"
    tail -n 15 "$RUN/$name.log" | sed "s/$token/(token)/g" | cut -c 1-300
  done
  exit 1
}

# The gateway's own log and the device's own lines are the witnesses; the operator's word is not taken for it.
gateway_says() { grep -q "$1" "$RUN/gateway.log"; }
device_says() { tail -n "+$((seen + 1))" "$RUN/device.log" | grep -q "^$1"; }
# mark: device_says looks only at what comes after this.
mark() { seen=$(wc -l <"$RUN/device.log"); }
seen=0
alive_and() { ! alive "$operator" || "$@"; }
# expect SECONDS WHAT COMMAND...
expect() {
  local seconds=$1 what=$2
  shift 2
  wait_for "$seconds" alive_and "$@" || fail "$what"
  alive "$operator" || fail "$what (gatewaytrust sync has ended)"
}

T0=$(now_us)
echo
port=$(free_ports 1)
start_gateway "$port" "$token" || fail "the gateway coming up"
say "$CYAN" gateway "up on http://127.0.0.1:$port (OpenClaw $OPENCLAW_VERSION)"

mkdir "$RUN/git"
cp "$ROOT"/examples/quickstart/*.yaml "$RUN/git/"
sed -i "s/18789/$port/" "$RUN/git/gateway.yaml"
(umask 077 && mkdir "$RUN/state")
export OPENCLAW_GATEWAY_TOKEN=$token
spawn operator "$GATEWAYTRUST_BIN" sync -f "$RUN/git" --state-dir "$RUN/state"
operator=$SPAWNED_PID
expect 20 "the operator pairing with the gateway" gateway_says 'device pairing auto-approved'
say "$GREEN" operator "follows examples/quickstart (gatewaytrust sync -f ...), and is paired with the gateway"

"$NODE" "$ROOT/hack/demo-device.mjs" identity --key "$RUN/device.pem" >"$RUN/identity"
read -r id _ <"$RUN/identity"
id=${id#id=}
spawn device "$NODE" "$ROOT/hack/demo-device.mjs" connect --key "$RUN/device.pem" --url "ws://$address:$port"
expect 20 "the device being refused" device_says 'refused PAIRING_REQUIRED'
say "$YELLOW" device "${id:0:8}... comes from $address with the right token; refused: pairing required"

"$NODE" "$ROOT/hack/demo-device.mjs" approval --key "$RUN/device.pem" >"$RUN/device.yaml"
cp "$RUN/device.yaml" "$RUN/git/device.yaml"
say "$BOLD" you "write examples/quickstart/device.yaml:"
sed 's/^/                    | /' "$RUN/git/device.yaml"
expect 20 "the operator approving the device" gateway_says "device pairing approved device=$id"
say "$GREEN" operator "approved ${id:0:8}..."
expect 20 "the device connecting" device_says connected
say "$YELLOW" device "connected"

mark
rm "$RUN/git/device.yaml"
say "$BOLD" you "delete examples/quickstart/device.yaml"
expect 20 "the operator revoking the device" gateway_says "device pairing removed device=$id"
say "$GREEN" operator "revoked ${id:0:8}..."
expect 20 "the device's socket closing with 4001" device_says 'closed 4001'
say "$YELLOW" device "$(tail -n "+$((seen + 1))" "$RUN/device.log" | grep -m 1 '^closed 4001')"
expect 20 "the device being refused again" device_says 'refused PAIRING_REQUIRED'
say "$YELLOW" device "tries again; refused: pairing required"

if grep -qF "$token" "$RUN/operator.log" "$RUN/device.log"; then fail "the token staying out of every log"; fi
say "$BOLD" demo "every step seen. The files are the list of who may connect: put them in Git."
