#!/usr/bin/env bash
# hack/measure.sh: the size of the release binary, its start-up time and its memory at rest, beside a real gateway.
# Prints the rows of the README's table. These machines differ and are noisy: medians of five runs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

"$ROOT/hack/setup.sh" gateway
need_rust
(cd "$ROOT" && cargo build --release --locked --quiet)
target=$(cd "$ROOT" && cargo metadata --locked --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
binary=$target/release/gatewaytrust

RUN=$(mktemp -d "${TMPDIR:-/tmp}/gatewaytrust-measure.XXXXXX")
trap 'end_all; rm -rf "$RUN"' EXIT
token=$(random_token)
port=$(free_ports 1)
start_gateway "$port" "$token" || die "the gateway did not come up"
export OPENCLAW_GATEWAY_TOKEN=$token
mkdir "$RUN/git"
sed "s/18789/$port/" "$ROOT/examples/quickstart/gateway.yaml" >"$RUN/git/gateway.yaml"

# median COMMAND...: milliseconds, of five runs after one that is not counted.
median() {
  local i t
  "$@" >/dev/null 2>&1
  for i in 1 2 3 4 5; do
    t=$(now_us)
    "$@" >/dev/null 2>&1
    echo $((($(now_us) - t) / 1000))
  done | sort -n | sed -n 3p
}
# rest PID: resident memory in KiB.
rest() { awk '/^VmRSS/ {print $2}' "/proc/$1/status"; }
mib() { awk -v k="$1" 'BEGIN {printf "%.1f MiB", k / 1024}'; }

start=$(median "$binary" --version)
once=$(median "$binary" sync -f "$RUN/git" --state-dir "$RUN/state" --once)
spawn operator "$binary" sync -f "$RUN/git" --state-dir "$RUN/state"
operator=$SPAWNED_PID
sleep 20
empty=$(rest "$operator")
for i in $(seq 1000); do
  printf '{apiVersion: gatewaytrust.io/v1alpha1, kind: DeviceApproval, metadata: {name: d%s}, spec: {gatewayTrustRef: {name: quickstart}, device: {id: "%064x"}, roles: [operator], scopes: [operator.read]}}\n---\n' "$i" "$i"
done >"$RUN/devices.yaml"
mv "$RUN/devices.yaml" "$RUN/git/devices.yaml"
sleep 20
full=$(rest "$operator")
ticks() { awk '{print $14 + $15}' "/proc/$operator/stat"; }
before=$(ticks)
sleep 20
cpu=$(($(ticks) - before))

echo "| what | measured |"
echo "|---|---|"
echo "| release binary | $(awk -v b="$(stat -c %s "$binary")" 'BEGIN {printf "%.1f MiB", b / 1048576}') |"
echo "| start to exit of \`--version\` | $start ms |"
echo "| \`sync --once\`: start, connect to the gateway, plan, settled, exit | $once ms |"
echo "| memory at rest, \`sync\`, connected | $(mib "$empty") |"
echo "| memory at rest with 1,000 approvals | $(mib "$full") |"
echo "| processor time at rest with 1,000 approvals, in 20 s | $((cpu * 1000 / $(getconf CLK_TCK))) ms |"
