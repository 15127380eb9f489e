# Lifeboat as an image: one binary, with a link for each of its commands.
#   docker build -t lifeboat .
# BUILD_IMAGE needs cargo and a C compiler, RUNTIME_IMAGE the same or a newer glibc.
ARG BUILD_IMAGE=rust:1-slim-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
# Cargo wants the whole workspace to be there.
COPY tests tests
# The secret `ca` is a CA bundle, for builds behind a proxy that has one of its own.
RUN --mount=type=secret,id=ca,required=false \
    --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca CARGO_HTTP_CAINFO=/run/secrets/ca; fi \
    && CARGO_HOME=${CARGO_HOME:-/usr/local/cargo} cargo build --release --locked --bin lifeboat \
    && install -D target/release/lifeboat /out/usr/local/bin/lifeboat \
    && for name in run backup list show restore mark pitr import forget export verify prune repair copy key doctor status; do \
        ln -s lifeboat "/out/usr/local/bin/$name"; \
    done \
    && install -d -m 0700 /out/backup /out/var/lib/lifeboat && install -d /out/data /out/project

FROM ${RUNTIME_IMAGE}
COPY --from=build /out/ /
LABEL org.opencontainers.image.title="Lifeboat" \
    org.opencontainers.image.description="Backup sidecar for compose stacks of n8n, PostgreSQL, Ollama and Qdrant" \
    org.opencontainers.image.licenses="Apache-2.0"
# Unhealthy when the last backup failed, is overdue, or retention is frozen.
HEALTHCHECK --interval=60s --timeout=10s --start-period=30s --retries=1 CMD ["lifeboat", "status"]
STOPSIGNAL SIGTERM
VOLUME ["/backup", "/var/lib/lifeboat"]
ENTRYPOINT ["lifeboat"]
CMD ["run"]
