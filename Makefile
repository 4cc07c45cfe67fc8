# make [build] | demo | test | lint | bench | install. demo, test, lint and bench install what they lack first (see
# scripts/deps); build needs cargo and a C compiler; install only copies what build has made.
# make soak: random programs and faults for ten minutes, or for SOAK_SECONDS: half of it on a fake backing, half on a real
# sshfs.
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
# mount(8) looks for its helpers here and nowhere else.
HELPERDIR ?= /usr/sbin
CARGO ?= cargo
SOAK_SECONDS ?= 600

# The tests mount and make namespaces. Built as whoever runs make, they run as root: cargo starts them through this.
ifneq ($(shell id -u),0)
HOST := $(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
AS_ROOT := env CARGO_TARGET_$(HOST)_RUNNER="sudo -E"
endif

.PHONY: all build demo test soak lint bench install uninstall deps deny

all: build

build:
	$(CARGO) build --release --locked

deps:
	./scripts/deps

demo: deps build
	./target/release/steadfs demo

# Mounts of one test must not be counted by another: integration tests run one at a time.
test: deps
	@[ "$$(id -u)" -eq 0 ] || command -v sudo >/dev/null || \
		{ echo "test: the tests need root and there is no sudo: run make test as root" >&2; exit 1; }
	mkdir -p target
	./scripts/leftovers list > target/leftovers.before
	$(AS_ROOT) $(CARGO) test --locked --lib --bins
	$(CARGO) test --locked --doc
	$(AS_ROOT) $(CARGO) test --locked --test '*' -- --test-threads=1
	./scripts/leftovers check target/leftovers.before

soak: deps
	STEADFS_SOAK_SECONDS=$$(($(SOAK_SECONDS) / 2)) $(AS_ROOT) $(CARGO) test --locked --test soak programs_do_not -- --nocapture
	STEADFS_SOAK_SECONDS=$$(($(SOAK_SECONDS) / 2)) $(AS_ROOT) $(CARGO) test --locked --test soak_real programs_do_not -- --nocapture

lint: deps
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	for script in scripts/* mount-helper/mount.steadfs; do sh -n $$script || exit 1; done
	./scripts/man
	./scripts/deny

deny:
	./scripts/deny

bench: deps
	$(CARGO) bench --locked

# Never builds: run by sudo it would build as root, with a cargo that root has not got.
install:
	@[ -x target/release/steadfs ] || \
		{ echo "install: there is no target/release/steadfs: run make first, as the user who builds" >&2; exit 1; }
	install -D -m 0755 target/release/steadfs $(DESTDIR)$(BINDIR)/steadfs
	install -D -m 0755 mount-helper/mount.steadfs $(DESTDIR)$(HELPERDIR)/mount.steadfs
	install -D -m 0644 docs/steadfs.8 $(DESTDIR)$(MANDIR)/man8/steadfs.8

uninstall:
	rm -f $(DESTDIR)$(BINDIR)/steadfs $(DESTDIR)$(HELPERDIR)/mount.steadfs $(DESTDIR)$(MANDIR)/man8/steadfs.8
