# A client. Build from the repository's root, for amd64 and arm64:
#   docker buildx build --platform linux/amd64,linux/arm64 -f deploy/container/client.Dockerfile -t motley-client .
ARG BASE=debian:bookworm-slim
FROM ${BASE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
# The processor's wheel of torch: that of the package index brings CUDA's libraries.
ARG TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu"
ARG TORCH="torch>=2.0,<2.14"
RUN python3 -m venv /opt/motley && /opt/motley/bin/pip install --no-cache-dir ${TORCH_OPTIONS} "${TORCH}"
# EXTRAS=client alone for a workload of your own; `digits` is what the example run needs.
ARG EXTRAS=client,digits
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY core core
COPY fedserver fedserver
COPY fedclient fedclient
RUN /opt/motley/bin/pip install --no-cache-dir ".[${EXTRAS}]"
# What only compilers need, and the installer.
RUN rm -rf /opt/motley/lib/python3*/site-packages/torch/include /opt/motley/lib/python3*/site-packages/pip /opt/motley/lib/python3*/site-packages/setuptools

FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends python3 ca-certificates && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10400 motley && useradd --uid 10400 --gid 10400 --no-create-home --home-dir /var/lib/motley --shell /usr/sbin/nologin motley
RUN install -d -o motley -g motley -m 0700 /var/lib/motley
COPY --from=build /opt/motley /opt/motley
COPY deploy/container/join-and-start.sh deploy/container/healthy.sh /usr/local/bin/
ENV HOME=/tmp PATH=/opt/motley/bin:/usr/local/bin:/usr/bin:/bin MOTLEY_STATE=/var/lib/motley PYTHONUNBUFFERED=1
USER 10400:10400
WORKDIR /var/lib/motley
VOLUME /var/lib/motley
# Says whether the daemon lives. Whether the server can be reached is no fault of this container.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["healthy.sh"]
ENTRYPOINT ["join-and-start.sh"]
