# Roost. `make run` sets everything up and starts it; `make test` tests everything.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := bin
TOOLS := .cache/bin
GUEST := internal/host/guestbin/embed/roost-guest
# Unless the caller says how many jobs: what waits for a disk, a linker or a mirror leaves a core.
TOGETHER = $(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j3)
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
export CGO_ENABLED := 0

.PHONY: help
help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

.PHONY: run
run: root setup ## set everything up, start Roost, run the quickstart
	@$(TOGETHER) $(BIN)/roost runsc-if-possible template
	@deploy/run

.PHONY: test
test: root setup-dev ## everything: lint, generated code, unit, contracts, end to end, leaks
	@test/all

# The in-VM lane (go doc ./test/vm): a package's tests inside a Linux VM of their own.
SHAPE := disk
LANE := .cache/bin/lane
.PHONY: $(LANE)
$(LANE):
	@go build -o $@ ./test/vm/lane

.PHONY: vmtest
vmtest: root $(LANE) ## test PKG=./PACKAGE in a VM; RUN=REGEX, SHAPE=host, ARGS='go test flags', LANE_ARGS='-v'
	@go run ./test/run -exec="'$(abspath $(LANE))' $(SHAPE) $(LANE_ARGS) --" -tags=failpoints -count=1 \
		$(if $(RUN),-run='$(RUN)') $(ARGS) $(or $(PKG),$(error PKG=./PACKAGE is missing))

# Firecracker and its jailer are found or built elsewhere; nothing of theirs is in the repository.
.PHONY: test-firecracker
test-firecracker: root setup-dev ## FC=PATH JAILER=PATH: Firecracker under nested KVM, in a VM; RUN=, PKG=, LANE_ARGS=
ifeq ($(and $(FC),$(JAILER)),)
	@echo "skipped: the tests of Firecracker in internal/host/vmm/firecracker and internal/host/runtime/microvm, and of the whole agent with it;"
	@echo "they need its programs: make test-firecracker FC=PATH/firecracker JAILER=PATH/jailer"
else
	@RUN='$(RUN)' LANE_ARGS='$(LANE_ARGS)' test/vm/firecracker '$(FC)' '$(JAILER)' $(PKG)
endif

.PHONY: soak
soak: root setup-dev $(BIN)/runsc ## the trials of docs/reliability.md in full, 40 minutes; ARGS='-run random -scale 0.1'
	@ROOST_RUNSC=$(abspath $(BIN)/runsc) go run ./test/soak $(ARGS)

.PHONY: build
build: ## build bin/roost with the guest agent inside, and bin/runsc
	@$(TOGETHER) $(BIN)/roost $(BIN)/runsc

# Go knows best what is out of date; an unchanged guest keeps its file, so that the binary
# around it is not linked anew.
.PHONY: $(GUEST)
$(GUEST):
	@go build -trimpath -ldflags '$(LDFLAGS)' -o $(GUEST).new ./cmd/roost-guest
	@if cmp -s $(GUEST).new $(GUEST); then rm $(GUEST).new; else mv $(GUEST).new $(GUEST); fi

.PHONY: $(BIN)/roost
$(BIN)/roost: $(GUEST)
	@go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/roost

# Once per pin in tools/runsc/go.mod. A build with another VERSION, for tests, costs a link.
.PHONY: runsc $(BIN)/runsc runsc-if-possible
runsc: $(if $(OUT),,$(BIN)/runsc) ## build bin/runsc, gVisor; or OUT=PATH VERSION=X
	@$(if $(OUT),tools/runsc/build $(OUT) $(if $(filter command,$(firstword $(origin VERSION))),$(VERSION)))
# The guest first: else both compile Go's own packages, at the same time.
$(BIN)/runsc: $(GUEST)
	@tools/runsc/build $@
runsc-if-possible: $(GUEST)
	@tools/runsc/build $(BIN)/runsc || echo "runsc is not built (why: above): sandboxes will be QEMU's" >&2

# The base template, built on the first run while runsc still compiles.
.PHONY: template
template: $(BIN)/roost
	@$(BIN)/roost template build base >/dev/null

# A roost that tests can make fail or die at named points; never shipped.
.PHONY: build-failpoints
build-failpoints: $(GUEST)
	@go build -trimpath -tags failpoints -ldflags '$(LDFLAGS)' -o $(OUT) ./cmd/roost

.PHONY: tools
tools: $(TOOLS)/.stamp ## build the pinned developer tools (once per tools/go.mod)
$(TOOLS)/.stamp: tools/go.mod tools/go.sum
	@mkdir -p $(TOOLS)
	@echo "building developer tools (once)"
	@go build -C tools -o $(abspath $(TOOLS))/ tool
	@touch $@

.PHONY: generate
generate: setup-dev tools ## make api/gen from api/proto and api/openapi
	@tools/generate.sh $(TOOLS)

.PHONY: lint
lint: tools ## golangci-lint
	@$(TOOLS)/golangci-lint run ./...

.PHONY: bench
bench: root setup build ## the figures of bench/README.md
	@go run ./bench $(ARGS)

.PHONY: setup setup-dev
setup:
	@deploy/setup
setup-dev:
	@deploy/setup --dev

.PHONY: root
root:
	@if [ "$$(id -u)" != 0 ]; then echo "run it as root (sudo make): Roost makes namespaces, taps and uids" >&2; exit 1; fi

.PHONY: clean
clean: ## remove what was built (not the data)
	@rm -rf $(BIN) $(GUEST)
