# tunesmith in a container, for a CPU or for GPUs of NVIDIA (docs/how-to/install.md):
#   docker build --target cpu -t tunesmith:cpu .
#   docker build --target cuda -t tunesmith:cuda .
#   docker run --rm -it -v "$PWD:/work" -v tunesmith-home:/home/tunesmith tunesmith:cpu run recipe.yaml
#   docker run --rm -it --gpus all -v "$PWD:/work" -v tunesmith-home:/home/tunesmith tunesmith:cuda run recipe.yaml
# PyTorch's wheels bring CUDA along, so both images stand on plain Debian; the host brings the driver.
ARG DEBIAN=trixie

FROM debian:${DEBIAN}-slim AS python
# Debian's own Python gets its security fixes; versions of these follow the release that DEBIAN names.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libgomp1 python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

FROM python AS wheel
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN python3 -m venv /build \
 && /build/bin/pip wheel --no-deps --wheel-dir /dist /source

FROM python AS base
RUN useradd --create-home --uid 1000 tunesmith \
 && mkdir /work \
 && chown tunesmith:tunesmith /work \
 && python3 -m venv /opt/tunesmith
ENV PATH=/opt/tunesmith/bin:$PATH
COPY constraints.txt /opt/
COPY --from=wheel /dist /opt/dist
WORKDIR /work
ENTRYPOINT ["tunesmith"]
CMD ["--help"]

FROM base AS cpu
# Where the build of PyTorch without CUDA comes from: 200 MB in the place of 3 GB.
ARG TORCH_FROM="--index-url https://download.pytorch.org/whl/cpu"
# hadolint ignore=DL3013,SC2086
RUN pip install $TORCH_FROM "$(grep ^torch== /opt/constraints.txt)" \
 && pip install -c /opt/constraints.txt "$(echo /opt/dist/*.whl)[all]"
USER 1000

FROM base AS cuda
# Triton compiles what starts its kernels, for the Python that runs it.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
 && rm -rf /var/lib/apt/lists/*
# hadolint ignore=DL3013
RUN pip install -c /opt/constraints.txt "$(echo /opt/dist/*.whl)[all]"
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
