#!/usr/bin/env bash
# hack/cluster.sh: a control plane (etcd and kube-apiserver), the real gateway and the operator on this machine,
# to play with by kubectl. Needs no root. Runs until Ctrl-C, then takes everything away.
#
# CLUSTER_SECONDS=N stops it by itself after N seconds. GATEWAYTRUST_BIN=FILE uses that binary instead of building one.
# KEEP=1 keeps the state and the logs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

"$ROOT/hack/setup.sh" gateway controlplane
build_gatewaytrust
assets=$BIN
if [ -x "${KUBEBUILDER_ASSETS:-}/etcd" ] && [ -x "${KUBEBUILDER_ASSETS:-}/kube-apiserver" ]; then assets=$KUBEBUILDER_ASSETS; fi
[ -d "$ROOT/crds" ] || die "there is no folder crds: make crds writes it"

RUN=$(mktemp -d "${TMPDIR:-/tmp}/gatewaytrust-cluster.XXXXXX")
finish() {
  local code=$?
  trap - EXIT INT TERM HUP
  [ ${#SPAWNED[@]} = 0 ] || step "stopping"
  end_all
  if [ -n "${KEEP:-}" ]; then step "state and logs: $RUN"; else rm -rf "$RUN"; fi
  exit "$code"
}
trap finish EXIT
trap 'exit 0' INT
trap 'exit 143' TERM HUP

token=$(random_token)
admin_token=$(random_token)
# fail WHAT LOG
fail() {
  printf -- '--- %s, last lines\n' "$2"
  tail -n 20 "$RUN/$2.log" | sed -e "s/$token/(token)/g" -e "s/$admin_token/(token)/g"
  die "$1"
}

mapfile -t ports < <(free_ports 4)
etcd_client=http://127.0.0.1:${ports[0]} etcd_peer=http://127.0.0.1:${ports[1]}
api=https://127.0.0.1:${ports[2]}
gateway_port=${ports[3]}

umask 077
spawn etcd "$assets/etcd" --data-dir "$RUN/etcd" --unsafe-no-fsync \
  --listen-client-urls "$etcd_client" --advertise-client-urls "$etcd_client" \
  --listen-peer-urls "$etcd_peer" --initial-advertise-peer-urls "$etcd_peer" --initial-cluster "default=$etcd_peer"

echo "$admin_token,admin,admin,system:masters" >"$RUN/tokens.csv"
"$NODE" -e '
  const pem = require("crypto").generateKeyPairSync("rsa", {modulusLength: 2048}).privateKey;
  require("fs").writeFileSync(process.argv[1], pem.export({format: "pem", type: "pkcs8"}), {mode: 0o600});' "$RUN/sa.key"
# No controller-manager runs, so no namespace ever gets its default service account: the admission plugin that
# insists on one would refuse every pod.
spawn kube-apiserver "$assets/kube-apiserver" --etcd-servers "$etcd_client" --cert-dir "$RUN/certs" \
  --bind-address 127.0.0.1 --advertise-address 127.0.0.1 --secure-port "${ports[2]}" --endpoint-reconciler-type none \
  --token-auth-file "$RUN/tokens.csv" --authorization-mode RBAC --disable-admission-plugins ServiceAccount \
  --service-account-issuer https://kubernetes.default.svc --service-cluster-ip-range 10.96.0.0/16 \
  --service-account-key-file "$RUN/sa.key" --service-account-signing-key-file "$RUN/sa.key"
apiserver=$SPAWNED_PID

export KUBECONFIG=$RUN/kubeconfig
cat >"$KUBECONFIG" <<EOF
apiVersion: v1
kind: Config
current-context: gatewaytrust
contexts: [{name: gatewaytrust, context: {cluster: gatewaytrust, user: admin, namespace: openclaw}}]
clusters: [{name: gatewaytrust, cluster: {server: "$api", certificate-authority: "$RUN/certs/apiserver.crt"}}]
users: [{name: admin, user: {token: "$admin_token"}}]
EOF
kubectl=$(command -v "$BIN/kubectl" || command -v kubectl) || die "no kubectl"
kubectl() { "$kubectl" --cache-dir "$RUN/kubectl-cache" "$@"; }
api_ready_or_dead() { ! alive "$apiserver" || kubectl get --raw /readyz; }
if ! wait_for 60 api_ready_or_dead || ! alive "$apiserver"; then fail "kube-apiserver did not become ready" kube-apiserver; fi
step "control plane: up on $api"

start_gateway "$gateway_port" "$token" || fail "the gateway did not come up" gateway
step "gateway: up on http://127.0.0.1:$gateway_port (OpenClaw $OPENCLAW_VERSION)"

kubectl apply --server-side -f "$ROOT/crds/" >/dev/null
kubectl wait --for=condition=Established --timeout=30s \
  crd/gatewaytrusts.gatewaytrust.io crd/deviceapprovals.gatewaytrust.io >/dev/null
# The annotation is the Secret owner's consent that its token may be sent to this address.
kubectl apply -f - >/dev/null <<EOF
apiVersion: v1
kind: Namespace
metadata: {name: openclaw}
---
apiVersion: v1
kind: Secret
metadata:
  name: openclaw-secrets
  namespace: openclaw
  annotations: {gatewaytrust.io/allow-endpoint: "http://127.0.0.1:$gateway_port"}
stringData: {OPENCLAW_GATEWAY_TOKEN: "$token"}
---
apiVersion: gatewaytrust.io/v1alpha1
kind: GatewayTrust
metadata: {name: openclaw, namespace: openclaw}
spec:
  gateway:
    url: http://127.0.0.1:$gateway_port/
    auth:
      tokenSecretRef: {name: openclaw-secrets, key: OPENCLAW_GATEWAY_TOKEN}
EOF
step "cluster: CRDs, namespace openclaw, Secret openclaw-secrets and GatewayTrust openclaw are there"

spawn operator "$GATEWAYTRUST_BIN" run --allow-insecure-gateway-urls
operator=$SPAWNED_PID
ready_or_dead() {
  ! alive "$operator" ||
    [ "$(kubectl -n openclaw get gatewaytrust openclaw -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]
}
wait_for 60 ready_or_dead || fail "the GatewayTrust did not become Ready within 60 s" operator
alive "$operator" || fail "gatewaytrust run has ended" operator
step "operator: runs; GatewayTrust openclaw is Ready"

address=$(own_address)
"$NODE" "$ROOT/hack/demo-device.mjs" approval --key "$RUN/device.pem" --namespace openclaw --gateway openclaw >"$RUN/device.yaml"
cat <<EOF

In another terminal:

  export KUBECONFIG=$KUBECONFIG

1. See what the operator found out:

  $kubectl describe gatewaytrust openclaw

EOF
if [ -n "$address" ]; then
  cat <<EOF
2. Start a device. It comes from $address, so the gateway refuses it until it is approved:

  OPENCLAW_GATEWAY_TOKEN=\$($kubectl get secret openclaw-secrets -o go-template='{{.data.OPENCLAW_GATEWAY_TOKEN | base64decode}}') \\
    $NODE $ROOT/hack/demo-device.mjs connect --key $RUN/device.pem --url ws://$address:$gateway_port

3. In a third one, approve it, look, and revoke it again:

  $kubectl apply -f $RUN/device.yaml
  $kubectl get deviceapprovals
  $kubectl delete -f $RUN/device.yaml

EOF
else
  cat <<EOF
(This machine has no address besides loopback, and the gateway pairs devices on loopback silently: there is no device to approve.)

EOF
fi
echo "Logs: $RUN/*.log. Ctrl-C stops everything and deletes $RUN."

end_at=$((SECONDS + ${CLUSTER_SECONDS:-315360000}))
while [ "$SECONDS" -lt "$end_at" ]; do
  for pid in "${SPAWNED[@]}"; do
    if ! alive "$pid"; then
      for log in etcd kube-apiserver gateway operator; do printf -- '--- %s\n' "$log"; tail -n 5 "$RUN/$log.log"; done |
        sed -e "s/$token/(token)/g" -e "s/$admin_token/(token)/g"
      die "one of the processes has ended by itself"
    fi
  done
  sleep 0.5
done
