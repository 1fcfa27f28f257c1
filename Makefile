# Two commands matter: `make demo` and `make test`. `make help` lists the rest.
# Everything needs root, cargo and Go; `setup` installs what apt has and is quick when it is there.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PREFIX  ?= /usr/local
DESTDIR ?=
TUPLE   := $(shell rustc -vV | sed -n 's/^host: //p')
TARGET  := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/$(TUPLE)/release
HARNESS := $(TARGET)/$(TUPLE)/debug
# Which build of our binaries the harness drives.
export POUCH_BUILD := release
BINARIES := containerd-shim-runlxc-v2 runlxc runlxc-init containerd-shim-runv-v2 runv runv-agent snapshotter-quota snapshotter-remote fd-holder
CRATES := -p runlxc -p runlxc-init -p runv -p runv-agent -p snapshotter-quota -p snapshotter-remote -p fd-holder
UNITS := snapshotter-quota.service snapshotter-quota.socket snapshotter-remote-store.service \
	snapshotter-remote.service snapshotter-remote.socket
EXAMPLES := $(DESTDIR)$(PREFIX)/share/pouch-plugins

# What apt has and the build, the tests or the demo use (erofs-utils: fsck.erofs, a second opinion on image disks;
# podman: runlxc as its runtime; lxcfs: containers that see their limits; ssh: logins over a bridge; qemu-utils, libnbd-bin: NBD
# clients of a store; systemd, dbus: scopes by a systemd of a test's own).
PACKAGES := containerd runc lxc busybox-static mmdebstrap debian-archive-keyring \
	containernetworking-plugins iproute2 iptables xz-utils kmod cpio qemu-system-x86 protobuf-compiler \
	btrfs-progs xfsprogs e2fsprogs erofs-utils libprotobuf-dev podman lxcfs openssh-client \
	qemu-utils libnbd-bin systemd dbus

# How long each fuzz target runs.
FUZZ_SECONDS ?= 60

.PHONY: help setup build demo demo-stop test guest lint check fuzz bench install uninstall static clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: ## install what apt has; does nothing when all is there
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q ' installed$$' || echo $$p; done)
	if [ -n "$$missing" ]; then
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing
	fi

build: ## release binaries, and the harness around them
	@cargo build --release --bins --locked $(CRATES)
	cargo build --bins --locked -p integration

demo: setup build ## run real containers by stock containerd, beside runc (KEEP=1 leaves it running)
	@$(HARNESS)/demo $(if $(KEEP),--keep)

demo-stop: ## end what `make demo KEEP=1` left running
	@$(HARNESS)/demo --stop

guest: setup build ## one test on one of Debian's kernels: KERNEL=6.1 TEST=its_name PACKAGE=the_crate
	@$(HARNESS)/guest $(KERNEL) $(if $(PACKAGE),-p $(PACKAGE)) $(TEST)

lint: ## format and lints (a toolchain without rustfmt or clippy is told about)
	@if cargo fmt --version >/dev/null 2>&1; then cargo fmt --check; else echo "skipped: cargo fmt is not installed"; fi
	if cargo clippy --version >/dev/null 2>&1; then cargo clippy --workspace --all-targets --locked -- -D warnings
	else echo "skipped: cargo clippy is not installed"; fi

check: lint ## lints, unit tests, tidy: quick
	@cargo test --workspace --exclude integration --exclude runlxc --locked
	cargo test -p integration --test tidy --locked

test: setup build lint ## everything, on this machine; says what it skipped and why
	@$(HARNESS)/run-tests

fuzz: ## each fuzz target for FUZZ_SECONDS (60); FUZZ=NAME: that one
	@cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --version 0.13.2 --locked
	mkdir -p fuzz/corpus/config_json
	cp crates/bundle/src/example.json fuzz/corpus/config_json/
	cp -r fuzz/seeds/. fuzz/corpus/
	# What libFuzzer needs of the compiler is not stable.
	export RUSTC_BOOTSTRAP=1
	for target in $(or $(FUZZ),$$(cargo fuzz list)); do
		cargo fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1
	done

bench: setup build ## beside stock runc and overlayfs in one run; prints ratios, draws docs/bench.svg (ONLY=containers, snapshots or machines)
	@cargo build --release --bin bench --locked -p integration
	$(RELEASE)/bench --plot docs/bench.svg $(if $(ONLY),--only $(ONLY))

install: ## binaries, units and examples into DESTDIR/PREFIX
	@cargo build --release --bins --locked $(CRATES)
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 0755 $(addprefix $(RELEASE)/,$(BINARIES)) $(DESTDIR)$(PREFIX)/bin/
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(EXAMPLES)/containerd
	install -m 0644 packaging/containerd/*.toml $(EXAMPLES)/containerd/
	install -m 0644 packaging/quota.toml packaging/remote.toml packaging/remote-store.toml $(EXAMPLES)/
	for unit in $(UNITS); do
		sed 's|/usr/local/bin/|$(PREFIX)/bin/|' packaging/systemd/$$unit >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit
		chmod 0644 $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit
	done

uninstall: ## take all of that away again
	@rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(BINARIES)) $(addprefix $(DESTDIR)$(PREFIX)/lib/systemd/system/,$(UNITS))
	rm -rf $(EXAMPLES)
	rmdir --ignore-fail-on-non-empty $(addprefix $(DESTDIR)$(PREFIX)/lib/,systemd/system systemd) 2>/dev/null || true

static: ## musl binaries for kernels from 2.6.32 (target/static)
	@packaging/static-build.sh $(TARGET)/static

clean: ## build output
	@cargo clean
