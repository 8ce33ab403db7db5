#!/usr/bin/env bash
# hack/test.sh (make test): every check and every test, on the real parts. Goes on after a failure, and says at the
# end what ran on what, what could not run here and why. Ends with 0 only if nothing failed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

need_rust
"$ROOT/hack/setup.sh" all
if ! [ -x "${KUBEBUILDER_ASSETS:-}/etcd" ] || ! [ -x "${KUBEBUILDER_ASSETS:-}/kube-apiserver" ]; then export KUBEBUILDER_ASSETS=$BIN; fi
export GATEWAYTRUST_CACHE=$CACHE PATH=$BIN:$PATH

TMP=$(mktemp -d "${TMPDIR:-/tmp}/gatewaytrust-test.XXXXXX")
trap 'rm -rf "$TMP"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
export GATEWAYTRUST_TEST_REPORT=$TMP/report
: >"$GATEWAYTRUST_TEST_REPORT"

passed=() failed=() skipped=()
# check NAME COMMAND...
check() {
  local name=$1 start=$SECONDS
  shift
  step "$name"
  if "$@"; then
    passed+=("$name ($((SECONDS - start)) s)")
  else
    failed+=("$name")
    step "FAILED: $name"
  fi
}

docs() { RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --quiet; }
crds() {
  cargo run --locked --quiet -- crds >"$TMP/crds.yaml" || return 1
  diff -u crds/gatewaytrust.io.yaml "$TMP/crds.yaml" || {
    echo "crds/gatewaytrust.io.yaml is not what the code says: run make crds and commit the result"
    return 1
  }
}

if cargo fmt --version >/dev/null 2>&1; then
  check "cargo fmt --check" cargo fmt --check
else
  skipped+=("cargo fmt: not installed (rustup component add rustfmt)")
fi
if cargo clippy --version >/dev/null 2>&1; then
  check "cargo clippy -D warnings" cargo clippy --all-targets --locked --quiet -- -D warnings
else
  skipped+=("cargo clippy: not installed (rustup component add clippy)")
fi
check "cargo doc -D warnings" docs
check "crds are up to date" crds
tests() { cargo test --locked --no-fail-fast 2>&1 | tee "$TMP/tests"; }
check "cargo test" tests
if [ -n "$(own_address)" ]; then
  check "make demo" "$ROOT/hack/demo.sh"
else
  skipped+=("make demo: this machine has no IPv4 address besides loopback")
fi
check "make cluster" env CLUSTER_SECONDS=2 "$ROOT/hack/cluster.sh"

# --- what this run was worth ---------------------------------------------------------------------
# Is there root, and may it make network namespaces?
netns=no
if [ "$(id -u)" = 0 ] && unshare --net true 2>/dev/null; then netns=yes; fi

echo
echo "Real parts on this machine:"
echo "  $("$KUBEBUILDER_ASSETS/kube-apiserver" --version 2>/dev/null || echo 'kube-apiserver: none') with $("$KUBEBUILDER_ASSETS/etcd" --version 2>/dev/null | sed -n 1p)"
echo "  OpenClaw $OPENCLAW_VERSION on Node $("$NODE" --version)"
if command -v nginx >/dev/null; then echo "  $(nginx -v 2>&1)"; else skipped+=("tests with a real proxy: nginx is not installed"); fi
if [ $netns = yes ]; then
  echo "  root, and network namespaces can be made"
elif [ "$(id -u)" = 0 ]; then
  skipped+=("tests with network namespaces: root may not make them here (a container without CAP_SYS_ADMIN?)")
else
  skipped+=("tests with network namespaces: not root")
fi
command -v ip >/dev/null || skipped+=("tests with network namespaces: iproute2 is not installed")
# The tests' own lines: what each ran on, and what each passed by.
not_run='skip|could not|cannot|not run|unavailable'
echo "What the tests ran on, in their own words:"
sort -u "$GATEWAYTRUST_TEST_REPORT" | grep -viE "$not_run" | sed 's/^/  /' || echo "  (they reported nothing)"
mapfile -t -O "${#skipped[@]}" skipped < <(sort -u "$GATEWAYTRUST_TEST_REPORT" | grep -iE "$not_run" || true)
echo "Could not run here:"
if [ ${#skipped[@]} = 0 ]; then echo "  nothing is known to be missing"; else printf '  %s\n' "${skipped[@]}"; fi
echo "Passed:"
if [ ${#passed[@]} = 0 ]; then echo "  nothing"; else printf '  %s\n' "${passed[@]}"; fi
if [ ${#failed[@]} != 0 ]; then
  echo "Failed:"
  printf '  %s\n' "${failed[@]}"
  exit 1
fi
step "all passed"
# The tests of all binaries together, in one line.
awk '/^test result:/ {passed += $4; failed += $6} END {printf "%d passed, %d failed\n", passed, failed}' "$TMP/tests"
