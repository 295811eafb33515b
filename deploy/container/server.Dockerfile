# The server. Build from the repository's root, for amd64 and arm64:
#   docker buildx build --platform linux/amd64,linux/arm64 -f deploy/container/server.Dockerfile -t motley-server .
ARG BASE=debian:bookworm-slim
FROM ${BASE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
# The processor's wheel of torch: that of the package index brings CUDA's libraries.
ARG TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu"
ARG TORCH="torch>=2.0,<2.14"
RUN python3 -m venv /opt/motley && /opt/motley/bin/pip install --no-cache-dir ${TORCH_OPTIONS} "${TORCH}"
ARG EXTRAS=server,digits
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
RUN install -d -o motley -g motley -m 0700 /var/lib/motley /run/motley-tokens
COPY --from=build /opt/motley /opt/motley
COPY deploy/container/serve.sh deploy/container/tokens.sh /usr/local/bin/
ENV HOME=/tmp PATH=/opt/motley/bin:/usr/local/bin:/usr/bin:/bin MOTLEY_DATA=/var/lib/motley PYTHONUNBUFFERED=1
USER 10400:10400
WORKDIR /var/lib/motley
VOLUME /var/lib/motley
EXPOSE 9400 9401 9464
# Over the control socket: it answers as long as the server works.
HEALTHCHECK --interval=60s --timeout=20s --start-period=60s CMD ["fedserver", "runs", "--json"]
ENTRYPOINT ["serve.sh"]
