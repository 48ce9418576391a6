# Thin: every target is one command that can be typed without make.
UV ?= uv
COMPILE = $(UV) pip compile --quiet --universal --fork-strategy fewest --generate-hashes --no-annotate \
	--custom-compile-command "make locks"
LOCK = $(COMPILE) --python-version 3.12 --constraints requirements/limits.in
FROM_CORE = $(LOCK) --constraints requirements/core.lock setup.cfg

.PHONY: test peers check locks

test:
	./run test

peers:
	./run peers

check:
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright
	./run test

# The other sets are solved on top of the core's versions, so that one environment may hold several.
# `make locks UPGRADE=--upgrade` moves to the newest releases.
locks:
	$(LOCK) $(UPGRADE) setup.cfg -o requirements/core.lock
	$(FROM_CORE) $(UPGRADE) --extra data -o requirements/data.lock
	$(FROM_CORE) --constraints requirements/data.lock $(UPGRADE) --extra data --extra test -o requirements/test.lock
	$(FROM_CORE) --constraints requirements/data.lock $(UPGRADE) --extra ray -o requirements/ray.lock
	$(FROM_CORE) $(UPGRADE) --extra stores -o requirements/stores.lock
	$(FROM_CORE) $(UPGRADE) --extra cuda -o requirements/cuda13.lock
	$(FROM_CORE) $(UPGRADE) --extra cuda12 -o requirements/cuda12.lock
	$(FROM_CORE) $(UPGRADE) --extra tpu -o requirements/tpu.lock
	$(LOCK) $(UPGRADE) setup.cfg requirements/core-jax0112.in -o requirements/core-jax0112.lock
	$(LOCK) $(UPGRADE) --no-deps requirements/demo.in -o requirements/demo.lock
	$(COMPILE) $(UPGRADE) --python-version 3.11 --config-file requirements/peers.uv.toml \
		--no-emit-package torch requirements/peers.in -o requirements/peers.lock
