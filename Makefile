# make demo       everything once on the bundled model: engines, annotated video, results (no torch, no GPU)
# make check      between edits: lint and the tests that need no torch
# make test       everything: installs torch and torchvision (about 5 GB), lints, runs all tests
# make gpu-check  on a machine with an NVIDIA GPU: kernels against torchvision, times, engines; writes benchmarks/results
# make clean      removes environments and what the targets made

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
PINS := constraints/$(VERSION).txt

LIGHT := vision,cpu,rtx,compile,eval
LIVE := web,ros,dds,zenoh
FULL := $(LIGHT),$(LIVE),train,tabletop,dev
# NVRTC compiles the kernels on any machine. Of the CUDA that this Python's torch brings, lest there are two.
CUDA := $(if $(filter py310,$(VERSION)),gpu-cu12,gpu-cu13)

GRAPHICS := libGL.so.1=libgl1 libglib-2.0.so.0=libglib2.0-0
RENDERING := libOSMesa.so=libosmesa6
# The tests run the kernels on the CPU, and build the plugin library.
COMPILER := bin:g++=g++
# The tests' RTSP server, Debian's OpenCV, which has GStreamer, and a browser for the live page.
RTSP := libgstrtspserver-1.0.so.0=gir1.2-gst-rtsp-server-1.0
CAMERAS := $(RTSP) $(foreach one,plugins-base plugins-good plugins-ugly tools,libgstrtspserver-1.0.so.0=gstreamer1.0-$(one)) \
    libgstrtspserver-1.0.so.0=python3-gi libopencv_videoio.so=python3-opencv
BROWSER := bin:chromedriver=chromium-driver

SOURCES := $(foreach kind,cuh cu hpp h cpp,'plugins/*.$(kind)' 'tests/plugins/*.$(kind)')

# TensorRT's Python bindings alone, of the versions that are supported: a test holds what is called of TensorRT against
# them. 10.3 has none for Python 3.13.
BINDINGS := tensorrt-cu12-bindings==10.3.0 tensorrt-cu12-bindings==10.13.3.9 tensorrt-cu13-bindings==11.4.0.106

# Of gpu-check: a Python with torch for CUDA. Nothing is installed into it.
GPU_PYTHON ?= $(firstword $(wildcard .venv/bin/python) $(PYTHON))

.PHONY: demo check test lint bindings gpu-check clean
.DELETE_ON_ERROR:

demo: .venv-demo/ready
	.venv-demo/bin/python samples/demo.py demo

check: .venv-check/ready
	$(MAKE) --no-print-directory lint BIN=.venv-check/bin MYPY_FLAGS="--exclude edge_mrcnn/training --follow-imports silent"
	$(MAKE) --no-print-directory bindings BIN=.venv-check/bin
	.venv-check/bin/python -m pytest -q -n auto --dist loadfile -m "not torch and not render and not gpu and not slow"

test: .venv/ready
	$(MAKE) --no-print-directory lint BIN=.venv/bin
	$(MAKE) --no-print-directory bindings BIN=.venv/bin
	.venv/bin/python -m pytest -n auto --dist loadfile -m "not gpu"

# BIN: where the tools are. Without torch its stubs are missing: `make check` leaves out the folder where it lives.
BIN ?= .venv/bin
lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z -- $(SOURCES) | xargs -0 -r $(BIN)/clang-format --dry-run --Werror
	$(BIN)/codespell
	$(BIN)/mypy $(MYPY_FLAGS)

bindings:
	@for package in $(BINDINGS); do \
	    folder=.venv-bindings/$(VERSION)/$${package##*==}; \
	    test -d $$folder || $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $$folder $$package \
	        || echo "no $$package for this Python: its test is skipped"; \
	done

gpu-check:
	$(GPU_PYTHON) -m benchmarks.gpu_check

.venv-demo/ready .venv-check/ready .venv/ready: pyproject.toml setup.py $(wildcard $(PINS))
	@test -f $(PINS) || { echo "no pins for $(VERSION): use Python 3.10 to 3.13 (make PYTHON=python3.11 ...), or write them with constraints/update.py"; exit 1; }
	.ci/system-packages $(GRAPHICS) $(if $(filter .venv-demo/ready,$@),,$(COMPILER) $(CAMERAS) $(BROWSER)) $(if $(filter .venv/ready,$@),$(RENDERING))
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --constraint $(PINS) --editable '.[$(EXTRAS)]'
	touch $@
.venv-demo/ready: EXTRAS = $(LIGHT)
.venv-check/ready: EXTRAS = $(LIGHT),$(LIVE),$(CUDA),dev
.venv/ready: EXTRAS = $(FULL),$(CUDA)

clean:
	rm -rf .venv .venv-demo .venv-check .venv-bindings demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
