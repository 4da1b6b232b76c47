# make deb    builds the Debian package into dist/ (docs/install.md)
# make docs   writes the schema and the tables of docs/configuration.md from dmnotid/config/keys.py, the completion for
#             bash from dmnotid/cli/parser.py, the catalog of the systemd journal from docs/events.md, and the picture
#             of the README from docs/pictures/ways.txt (needs dmnotid's own dependencies: PYTHON=.venv/bin/python)
# make man    makes the man pages from docs/ into build/man/ (needs pandoc)
# make site   builds a site of the documents in build/site/ (needs the extra "site": PYTHON=.venv/bin/python)
# make clean  takes away what deb, man and site have made

sources := CHANGELOG.md LICENSE Makefile README.md completions config debian dmnotid docs pyproject.toml systemd
DIST := dist
PYTHON := python3
MAN := build/man
site_sources := CHANGELOG.md LICENSE README.md docs $(wildcard config contrib examples)
pages := $(MAN)/dmnotid.8 $(MAN)/dmnotid.yaml.5 $(MAN)/dmnotid-hook.7

.PHONY: deb docs man site clean

# In a copy, so that nothing is written beside the sources, and so that what else lies here is not packaged.
deb:
	@set -eu; copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	mkdir "$$copy/dmnotid"; \
	tar -c --exclude=__pycache__ --exclude='*.egg-info' $(sources) | tar -x -C "$$copy/dmnotid"; \
	(cd "$$copy/dmnotid" && dpkg-buildpackage --build=binary --no-sign); \
	mkdir -p $(DIST); \
	cp "$$copy"/*.deb $(DIST); \
	ls -l $(DIST)/*.deb

docs:
	$(PYTHON) -m tests.project.generate

man: $(pages)

$(MAN)/dmnotid.8: docs/dmnotid.md
$(MAN)/dmnotid.yaml.5: docs/configuration.md
$(MAN)/dmnotid-hook.7: docs/hook.md

$(pages): docs/man/page.lua dmnotid/__init__.py Makefile
	@mkdir -p $(MAN)
	pandoc --standalone --from=gfm --to=man --wrap=preserve --lua-filter=docs/man/page.lua $(filter %.md,$^) --output=$@

# mkdocs.yml has the order of the pages. A link that leads nowhere, or a page without a place there, is an error.
SITE := build/site
site:
	rm -rf build/pages
	mkdir -p build/pages
	ln -s $(addprefix ../../,$(site_sources)) build/pages
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet --site-dir $(abspath $(SITE))

clean:
	rm -rf $(MAN) build/pages $(SITE) $(DIST)/*.deb
