# make [build] | demo | test | lint | bench | install. demo, test, lint and bench install what they lack first (see
# scripts/deps); build needs cargo and a C compiler; install only copies what build has made.
# make soak: random programs and faults for ten minutes, or for SOAK_SECONDS: half of it on a fake backing, half on a real
# sshfs.
# make posix: public suites on a directory, on steadfs over it, on sshfs and on steadfs over that; target/posix/report.md.
# make deb: a Debian package of what build has made; make lintian: the same, checked against Debian's policy.
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
UNITDIR ?= $(PREFIX)/lib/systemd/system
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
DOCDIR ?= $(PREFIX)/share/doc/steadfs
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
# Where the units look for configurations, whatever PREFIX is.
CONFDIR := /etc/steadfs
# mount(8) looks for its helpers here and nowhere else.
HELPERDIR ?= /usr/sbin
# What is installed.
TARGET := $(or $(CARGO_TARGET_DIR),target)
BINARY ?= $(TARGET)/release/steadfs
UNITS := $(notdir $(wildcard systemd/*.service))
CARGO ?= cargo
SOAK_SECONDS ?= 600
# Public suites that come from crates.io.
POSIX_CRATES := pjdfstest@0.2.2 fsx@0.3.2

# The tests mount and make namespaces. Built as whoever runs make, they run as root: cargo starts them through this.
ifneq ($(shell id -u),0)
HOST := $(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
AS_ROOT := env CARGO_TARGET_$(HOST)_RUNNER="sudo -E"
endif

# What is built needs what is installed first.
.NOTPARALLEL:
.PHONY: all build demo test soak posix lint bench install uninstall deb lintian deps deny

all: build

build:
	$(CARGO) build --release --locked

deps:
	./scripts/deps

deps-%:
	./scripts/deps $*

demo: deps-demo build
	"$(BINARY)" demo

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

posix: deps-posix
	$(CARGO) install --quiet --locked --root target/posix/tools $(POSIX_CRATES)
	$(AS_ROOT) $(CARGO) test --locked --test posix steadfs_fails_nothing -- --ignored --nocapture

lint: deps-lint
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

deb: build
	./scripts/deb

# By Debian's policy. What is let pass, and why, is in systemd/debian.overrides.
lintian: deps-lintian deb
	lintian --allow-root --fail-on error,warning target/debian/*.deb

# Never builds: run by sudo it would build as root, with a cargo that root has not got. scripts/deb packs what this installs.
# The documents lie in one directory there, without the sources.
LINKS := -e 's|](docs/|](|g' -e 's|](\.\./examples/|](examples/|g' -e 's|\[\([^][]*\)](\.\./src/[^)]*)|\1|g'
PLACES := -e 's|/usr/bin/steadfs|$(BINDIR)/steadfs|' -e 's|/usr/share/doc/steadfs|$(DOCDIR)|g'
install:
	@[ -x "$(BINARY)" ] || \
		{ echo "install: there is no $(BINARY): run make first, as the user who builds" >&2; exit 1; }
	install -D -m 0755 "$(BINARY)" "$(DESTDIR)$(BINDIR)/steadfs"
	install -D -m 0755 mount-helper/mount.steadfs "$(DESTDIR)$(HELPERDIR)/mount.steadfs"
	ln -sf mount.steadfs "$(DESTDIR)$(HELPERDIR)/mount.fuse.steadfs"
	for page in docs/*.5 docs/*.8; do \
		install -D -m 0644 $$page "$(DESTDIR)$(MANDIR)/man$${page##*.}/$${page##*/}" || exit 1; done
	echo '.so man8/mount.steadfs.8' > "$(DESTDIR)$(MANDIR)/man8/mount.fuse.steadfs.8"
	chmod 0644 "$(DESTDIR)$(MANDIR)/man8/mount.fuse.steadfs.8"
	install -d "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(BASHDIR)" "$(DESTDIR)$(ZSHDIR)" "$(DESTDIR)$(FISHDIR)"
	for unit in $(UNITS); do \
		sed $(PLACES) systemd/$$unit > "$(DESTDIR)$(UNITDIR)/$$unit" || exit 1; \
		chmod 0644 "$(DESTDIR)$(UNITDIR)/$$unit"; done
	install -D -m 0644 systemd/steadfs.conf "$(DESTDIR)$(TMPFILESDIR)/steadfs.conf"
	"$(BINARY)" completions bash > "$(DESTDIR)$(BASHDIR)/steadfs"
	"$(BINARY)" completions zsh > "$(DESTDIR)$(ZSHDIR)/_steadfs"
	"$(BINARY)" completions fish > "$(DESTDIR)$(FISHDIR)/steadfs.fish"
	chmod 0644 "$(DESTDIR)$(BASHDIR)/steadfs" "$(DESTDIR)$(ZSHDIR)/_steadfs" "$(DESTDIR)$(FISHDIR)/steadfs.fish"
	install -d "$(DESTDIR)$(DOCDIR)/decisions" "$(DESTDIR)$(DOCDIR)/examples" "$(DESTDIR)$(DOCDIR)/monitoring"
	for page in README.md docs/*.md docs/decisions/*.md; do \
		sed $(LINKS) $(PLACES) $$page > "$(DESTDIR)$(DOCDIR)/$${page#docs/}" || exit 1; \
		chmod 0644 "$(DESTDIR)$(DOCDIR)/$${page#docs/}"; done
	install -m 0644 docs/demo.svg "$(DESTDIR)$(DOCDIR)"
	install -m 0644 CHANGELOG.md "$(DESTDIR)$(DOCDIR)/changelog"
	install -m 0644 COPYRIGHT "$(DESTDIR)$(DOCDIR)/copyright"
	install -m 0644 docs/monitoring/* "$(DESTDIR)$(DOCDIR)/monitoring"
	install -m 0644 systemd/examples/* examples/*.toml "$(DESTDIR)$(DOCDIR)/examples"
	install -d "$(DESTDIR)$(CONFDIR)"
	sed $(PLACES) systemd/etc.README > "$(DESTDIR)$(CONFDIR)/README"
	chmod 0644 "$(DESTDIR)$(CONFDIR)/README"

# What else is in /etc/steadfs and /var/lib/steadfs is the operator's: the second may have a spool.
uninstall:
	rm -f "$(DESTDIR)$(BINDIR)/steadfs" "$(DESTDIR)$(HELPERDIR)/mount.steadfs" "$(DESTDIR)$(HELPERDIR)/mount.fuse.steadfs"
	for page in docs/*.5 docs/*.8; do rm -f "$(DESTDIR)$(MANDIR)/man$${page##*.}/$${page##*/}"; done
	rm -f "$(DESTDIR)$(MANDIR)/man8/mount.fuse.steadfs.8"
	for unit in $(UNITS); do rm -f "$(DESTDIR)$(UNITDIR)/$$unit"; done
	rm -f "$(DESTDIR)$(TMPFILESDIR)/steadfs.conf" "$(DESTDIR)$(CONFDIR)/README"
	rm -f "$(DESTDIR)$(BASHDIR)/steadfs" "$(DESTDIR)$(ZSHDIR)/_steadfs" "$(DESTDIR)$(FISHDIR)/steadfs.fish"
	rm -rf "$(DESTDIR)$(DOCDIR)"
	[ ! -d "$(DESTDIR)$(CONFDIR)" ] || rmdir --ignore-fail-on-non-empty "$(DESTDIR)$(CONFDIR)"
