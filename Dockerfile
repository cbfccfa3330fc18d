# The image of avapd: two stages on one base, so that the virtual environment finds the same Python in both.
#
#     docker build --build-arg BASE_DIGEST=@sha256:… --build-arg VERSION=0.1.0 --build-arg REVISION=$(git rev-parse HEAD) -t avapd .
#
# A release names the digest of the base image; it is left empty here, since a digest that nobody renews only grows old.
# What a container needs to be told is in deploy/README.md.
ARG BASE_IMAGE=python:3.13-slim-trixie
ARG BASE_DIGEST=

FROM ${BASE_IMAGE}${BASE_DIGEST} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# /build has pip and what builds the wheel; /opt/avapd has neither. Nothing is installed without a hash.
COPY deploy/build.lock requirements.lock ./
RUN python3 -m venv /build \
    && /build/bin/pip install --require-hashes --only-binary :all: -r build.lock \
    && python3 -m venv --without-pip /opt/avapd \
    && /build/bin/pip --python /opt/avapd/bin/python install --require-hashes --only-binary :all: -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY avapd avapd
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /build/bin/pip --python /opt/avapd/bin/python install --no-deps --no-index /dist/*.whl \
    && /build/bin/pip --python /opt/avapd/bin/python check

FROM ${BASE_IMAGE}${BASE_DIGEST}
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="avapd" \
      org.opencontainers.image.description="The definition server of the AVAP platform: PostgreSQL to gRPC, served from RAM" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Nothing is installed into a running container.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/pip* /usr/lib/python3*/ensurepip \
        /usr/local/lib/python3*/ensurepip /usr/share/python-wheels

COPY --from=build /opt/avapd /opt/avapd
ENV PATH=/opt/avapd/bin:$PATH PYTHONDONTWRITEBYTECODE=1

# For AVAPD_SNAPSHOT_DIR: a new volume takes its owner and mode from what it is mounted over.
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/avapd

# A number, so that Kubernetes can see that it is not root. It owns that one folder: everything works on a read-only root.
USER 10001:10001
WORKDIR /
# gRPC, and HTTP for metrics and probes: the latter is on loopback until AVAPD_ADMIN_HOST says otherwise.
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
# With another PORT, set AVAPD_TARGET=127.0.0.1:<port> as well.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["avapd", "health", "--timeout", "4"]
ENTRYPOINT ["avapd", "serve"]
