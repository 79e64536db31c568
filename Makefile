# make demo      a fresh Debian 12 machine, as root: installs what is missing, builds, starts the daemon, shows three servers
# make demo-down removes every trace of the demo
# make test      everything needed to pass the tests, unit to end-to-end
# make test-lab  the same end-to-end tests on real KVM, pure cgroup v2 and systemd, in a lab guest
# make bench     figures beside the peers' (make bench-peers installs those)
# make deb       the Debian package
SHELL   := /bin/bash
export PATH := /usr/local/lib/croft-go/bin:$(PATH):/usr/local/go/bin
export CGO_ENABLED := 0
export GOTOOLCHAIN := local
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0)
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: build demo demo-down test test-unit test-race test-e2e test-lab bench bench-peers deb docs lint fuzz clean install

build:
	@scripts/setup.sh build
	@mkdir -p build
	go build -trimpath -ldflags '$(LDFLAGS)' -o build/croft ./cmd/croft

demo: build
	@scripts/demo.sh up

demo-down:
	@scripts/demo.sh down

# Unit to end-to-end: the latter run build/croft on hosts of their own.
test:
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory build
	go vet ./...
	CROFT_BIN=$(CURDIR)/build/croft scripts/test.sh ./...
	@$(MAKE) --no-print-directory test-race

# The promises that races could break, under the race detector (which needs cgo).
test-race:
	@scripts/setup.sh test
	CGO_ENABLED=1 scripts/test.sh -race -run 'Concurrent|TwoControl|Storm' ./internal/control
	CGO_ENABLED=1 scripts/test.sh -race ./internal/reconcile ./internal/agent

test-unit:
	go vet ./...
	scripts/test.sh . ./api/... ./client/... ./cmd/... ./internal/...

test-e2e: build
	CROFT_BIN=$(CURDIR)/build/croft scripts/test.sh $(if $(ONLY),-run '^($(ONLY))$$') ./test/e2e/...

test-lab:
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory build
	scripts/lab.sh

bench: build
	go run ./test/bench -o bench/results.json

bench-peers:
	@scripts/setup.sh peers

deb: build
	packaging/deb.sh '$(VERSION)'

docs:
	go generate ./internal/docgen

lint:
	@test -z "$$(gofmt -l api client cmd internal test *.go)" || { gofmt -l api client cmd internal test *.go; exit 1; }
	go vet ./...

fuzz:
	scripts/fuzz.sh

install: build
	install -m 755 build/croft /usr/bin/croft
	install -m 644 packaging/croft.service /lib/systemd/system/croft.service
	systemctl daemon-reload && systemctl enable --now croft

clean:
	rm -rf build
