# make dist     builds the source distribution and the wheel into dist/
# make deb      builds the Debian package into dist/ (docs/install.md)
# make sbom     writes dist/dmnotid-VERSION.cdx.json, the packages of an installation in CycloneDX
# make lock     writes systemd/*requirements.txt, the versions and hashes that systemd/install installs
# make release  prepares a release, with VERSION=1.2.3 (CONTRIBUTING.md)
# make docs     writes the schema and the tables of docs/configuration.md from dmnotid/config/keys.py, the completion for
#               bash from dmnotid/cli/parser.py, the catalog of the systemd journal from docs/events.md, and the picture
#               of the README from docs/pictures/ways.txt
# make man      makes the man pages from docs/ into build/man/ (needs pandoc)
# make site     builds a site of the documents in build/site/
# make clean    removes the man pages, the site, and everything that dist, deb and sbom have built
#
# docs needs the dependencies of dmnotid; dist, sbom and lock need the extra "release", and site the extra "site". Install them
# in .venv, and add PYTHON=.venv/bin/python.

# Everything in the repository, so that a source distribution builds, tests and releases like a checkout.
sources := .ci .gitignore CHANGELOG.md CONTRIBUTING.md LICENSE Makefile README.md SECURITY.md \
	benchmarks completions config contrib debian dmnotid docs examples mkdocs.yml pyproject.toml setup.cfg systemd tests \
	tools
DIST := dist
PYTHON := python3
MAN := build/man
site_sources := CHANGELOG.md CONTRIBUTING.md LICENSE README.md SECURITY.md docs $(wildcard config contrib examples)
pages := $(MAN)/dmnotid.8 $(MAN)/dmnotid.yaml.5 $(MAN)/dmnotid-hook.7

# The time of every file in a build, so that a release is the same octets wherever and whenever it is built. debian/changelog,
# from which dpkg-buildpackage takes the time, has the same.
export SOURCE_DATE_EPOCH := $(shell sed -n 's/^RELEASED_AT = //p' dmnotid/__init__.py)

# Builds run in a copy, so that they write nothing beside the sources and package no other files of this directory. The modes
# are those of a checkout with the usual umask. The times are set because a time before SOURCE_DATE_EPOCH would get into the
# Debian package.
in_copy := set -eu; umask 022; copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; mkdir -p $(DIST) "$$copy/dmnotid"; \
	tar -c --mode=u=rwX,go=rX --mtime=@$(SOURCE_DATE_EPOCH) --exclude=__pycache__ --exclude='*.egg-info' $(sources) | tar -xp -C "$$copy/dmnotid"

.PHONY: dist deb sbom lock release docs man site clean

# The source distribution consists of the copy and the wheel's metadata. setuptools would follow the symbolic links in tests/,
# and would write owners and the time of the build into it.
dist:
	@$(in_copy); \
	$(PYTHON) -P -m build --wheel --no-isolation --outdir "$$copy/dist" "$$copy/dmnotid"; \
	name=$$(cd "$$copy/dist" && ls); name=$${name%-py3-none-any.whl}; \
	$(PYTHON) -m zipfile --extract "$$copy"/dist/*.whl "$$copy/wheel"; \
	cp "$$copy"/wheel/*.dist-info/METADATA "$$copy/dmnotid/PKG-INFO"; \
	tar -c -C "$$copy" --transform="s,^dmnotid,$$name,S" --exclude='*.egg-info' --exclude=dmnotid/build --format=ustar \
		--sort=name --mtime=@$(SOURCE_DATE_EPOCH) --owner=0 --group=0 --numeric-owner dmnotid | \
		gzip --no-name --best >"$(DIST)/$$name.tar.gz"; \
	cp "$$copy"/dist/*.whl $(DIST); \
	ls -l $(DIST)/*.tar.gz $(DIST)/*.whl

deb:
	@$(in_copy); \
	(cd "$$copy/dmnotid" && dpkg-buildpackage --build=binary --no-sign); \
	cp "$$copy"/*.deb $(DIST); \
	ls -l $(DIST)/*.deb

# The SBOM describes an environment as `systemd/install --sms` makes it: dmnotid and the packages of the lock files. Those of
# the extra "sms" are marked as optional. cyclonedx_py does not resolve the fields that pyproject.toml leaves to setuptools, so
# the copy gets their values first.
sbom:
	@$(in_copy); \
	$(PYTHON) -m venv --without-pip "$$copy/venv"; \
	install="$(PYTHON) -m uv pip install --quiet --python $$copy/venv/bin/python"; \
	$$install --require-hashes --requirement systemd/requirements.txt --requirement systemd/sms-requirements.txt; \
	$$install --no-deps "$$copy/dmnotid"; \
	version=$$("$$copy/venv/bin/python" -c 'import dmnotid; print(dmnotid.__version__)'); \
	sbom=$(DIST)/dmnotid-$$version.cdx.json; \
	sed -i "s/^dynamic = .*/version = \"$$version\"\nlicense = \"MIT\"/" "$$copy/dmnotid/pyproject.toml"; \
	$(PYTHON) -P -m cyclonedx_py environment --pyproject "$$copy/dmnotid/pyproject.toml" --mc-type application \
		--spec-version 1.6 --output-format JSON --output-reproducible --output-file "$$sbom" "$$copy/venv/bin/python"; \
	$(PYTHON) -m tools.sbom "$$sbom" systemd/sms-requirements.txt; \
	ls -l "$$sbom"

lock: compile := $(PYTHON) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-annotate --custom-compile-command 'make lock'
lock:
	$(compile) pyproject.toml --output-file systemd/requirements.txt
	sed -n 's/^requires = \["\(.*\)"\]/\1/p' pyproject.toml | $(compile) - --output-file systemd/build-requirements.txt
	sed -n 's/^sms = \["\(.*\)"\]/\1/p' pyproject.toml | $(compile) - --output-file systemd/sms-requirements.txt

release:
	$(PYTHON) -m tools.release "$(VERSION)"

docs:
	$(PYTHON) -m tests.project.generate

man: $(pages)

$(MAN)/dmnotid.8: docs/dmnotid.md
$(MAN)/dmnotid.yaml.5: docs/configuration.md
$(MAN)/dmnotid-hook.7: docs/hook.md

$(pages): docs/man/page.lua dmnotid/__init__.py Makefile
	@mkdir -p $(MAN)
	pandoc --standalone --from=gfm --to=man --wrap=preserve --lua-filter=docs/man/page.lua $(filter %.md,$^) --output=$@

# mkdocs.yml has the order of the pages. --strict turns warnings into errors: broken links, and pages that mkdocs.yml does not
# list. With --quiet they would be dropped before --strict counts them.
SITE := build/site
site:
	rm -rf build/pages
	mkdir -p build/pages
	ln -s $(addprefix ../../,$(site_sources)) build/pages
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --site-dir $(abspath $(SITE))

clean:
	rm -rf $(MAN) build/pages $(SITE) $(DIST)/*.deb $(DIST)/*.tar.gz $(DIST)/*.whl $(DIST)/*.cdx.json
