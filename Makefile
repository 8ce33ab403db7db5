.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CARGO ?= cargo

.PHONY: help demo test cluster build lint crds clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a file approves a device, deleting it revokes the device: on the real gateway, no root, stops by itself
	@hack/demo.sh

test: ## every check and test on the real parts; says at the end what ran on what
	@hack/test.sh

cluster: ## control plane, gateway and operator on this machine, until Ctrl-C
	@hack/cluster.sh

build: ## the binary, for development
	$(CARGO) build --locked

lint: ## formatting, clippy and documentation, warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked

# By a second file: a build that fails must not leave an empty one behind.
crds: ## writes crds/gatewaytrust.io.yaml from the Rust types
	@mkdir -p crds
	$(CARGO) run --quiet -- crds > crds/.new && mv crds/.new crds/gatewaytrust.io.yaml && cp crds/gatewaytrust.io.yaml charts/gatewaytrust/crds/gatewaytrust.io.yaml || { rm -f crds/.new; exit 1; }

clean: ## cargo's output; the downloaded parts stay (~/.cache/gatewaytrust)
	$(CARGO) clean
