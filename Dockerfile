# The image. Two targets, of one source:
#
#   runtime   (the default) a dynamic binary on distroless/cc: glibc, libgcc, libstdc++, libssl, CA certificates, and no
#             shell. A PKCS#11 library of an HSM's vendor is loaded at run time (dlopen), which needs the real glibc
#   static    one static binary and CA certificates, FROM scratch: nothing else to patch. No HSMs: dlopen does not work there
#
#   docker build -t alipayplus-cancel --build-arg COMMIT=$(git rev-parse --short=12 HEAD) .
#   docker build -t alipayplus-cancel:static --target static .
#   buildah bud --isolation chroot --format docker -t alipayplus-cancel .     without an engine; the format keeps HEALTHCHECK
#
# Base images are pinned by version. For a digest, which pins for good, give the whole reference:
#   --build-arg RUST_IMAGE=docker.io/library/rust:1.95.0-slim-bookworm@sha256:…
#   --build-arg RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot@sha256:…
# Both must be of one Debian: a binary that was linked against a newer glibc does not start on an older one.
ARG RUST_IMAGE=docker.io/library/rust:1.95.0-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

# ---- What the dependencies are made of, and the tools that say so -----------------------------------------------------
FROM ${RUST_IMAGE} AS tools
# cargo auditable writes the list of crates into the binary, where scanners of images look for it; cyclonedx into a file
RUN cargo install --locked --version 0.7.7 cargo-auditable \
    && cargo install --locked --version 0.5.9 cargo-cyclonedx

# ---- The dependencies alone: a layer that stays until Cargo.toml or Cargo.lock changes ---------------------------------
FROM tools AS dependencies
WORKDIR /src
# no path of the machine in a panic's line
ENV RUSTFLAGS="--remap-path-prefix=/usr/local/cargo/registry/src=/crates --remap-path-prefix=/src=/alipayplus-cancel"
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
# without tests and benches, whose files are not here and whose changes are no change of the image
RUN awk '/^\[/ { skip = /^\[\[(test|bench)\]\]/ } !skip' Cargo.toml >trimmed && mv trimmed Cargo.toml \
    && mkdir src && echo 'fn main() {}' >build.rs && cp build.rs src/main.rs && touch src/lib.rs
RUN cargo auditable build --release --locked

FROM dependencies AS sources
COPY build.rs ./
COPY proto proto
COPY src src
# newer than what was built from the empty ones above
RUN find build.rs src -name '*.rs' -exec touch {} +

# ---- runtime's binary -------------------------------------------------------------------------------------------------
FROM sources AS build
ARG COMMIT=
ARG SOURCE_DATE_EPOCH=0
RUN export ALIPAYPLUS_CANCEL_COMMIT="$COMMIT" \
    && cargo auditable build --release --locked \
    && cargo cyclonedx --format json --override-filename alipayplus-cancel.cdx \
    && install -D -t /out/bin target/release/alipayplus-cancel \
    && install -D -m 0644 -t /out/doc alipayplus-cancel.cdx.json \
    && mkdir -p /out/state /out/var/lib && find /out -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

# ---- static's binary --------------------------------------------------------------------------------------------------
FROM sources AS build-static
ARG COMMIT=
ARG SOURCE_DATE_EPOCH=0
# a --target, so that crt-static is not meant for build scripts and macros, which are loaded
RUN export ALIPAYPLUS_CANCEL_COMMIT="$COMMIT" RUSTFLAGS="$RUSTFLAGS -C target-feature=+crt-static" \
    && target="$(rustc --print host-tuple)" \
    && cargo auditable build --release --locked --target "$target" \
    && cargo cyclonedx --format json --override-filename alipayplus-cancel.cdx \
    && install -D -t /out/bin "target/$target/release/alipayplus-cancel" \
    && install -D -m 0644 -t /out/doc alipayplus-cancel.cdx.json \
    && mkdir -p /out/state /out/var/lib && find /out -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

# ---- static -----------------------------------------------------------------------------------------------------------
FROM scratch AS static
ARG COMMIT=
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="alipayplus-cancel" \
    org.opencontainers.image.description="An e-wallet's service for Alipay+ cancelPayment and cancelToken; static, without HSMs" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${COMMIT}"
# for `call` over https, and a collector with a public certificate
COPY --from=build-static /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build-static /out/doc /usr/share/doc/alipayplus-cancel
# else the folders above would have the owner of the last one
COPY --from=build-static /out/var /var
COPY --from=build-static --chown=65532:65532 /out/state /var/lib/alipayplus-cancel
COPY --from=build-static /out/bin /usr/local/bin
# by number: Kubernetes' runAsNonRoot cannot tell of a name
USER 65532:65532
EXPOSE 8080 50051 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["/usr/local/bin/alipayplus-cancel", "health"]
ENTRYPOINT ["/usr/local/bin/alipayplus-cancel"]
CMD ["serve", "--config", "/etc/alipayplus-cancel/alipayplus-cancel.toml"]

# ---- runtime ----------------------------------------------------------------------------------------------------------
FROM ${RUNTIME_IMAGE} AS runtime
ARG COMMIT=
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="alipayplus-cancel" \
    org.opencontainers.image.description="An e-wallet's service for Alipay+ cancelPayment and cancelToken" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${COMMIT}"
COPY --from=build /out/doc /usr/share/doc/alipayplus-cancel
COPY --from=build --chown=65532:65532 /out/state /var/lib/alipayplus-cancel
COPY --from=build /out/bin /usr/local/bin
# by number: Kubernetes' runAsNonRoot cannot tell of a name
USER 65532:65532
EXPOSE 8080 50051 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["/usr/local/bin/alipayplus-cancel", "health"]
ENTRYPOINT ["/usr/local/bin/alipayplus-cancel"]
CMD ["serve", "--config", "/etc/alipayplus-cancel/alipayplus-cancel.toml"]
