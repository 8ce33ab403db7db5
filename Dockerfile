# Two ways to the same image:
#
#   docker build .                                        builds the binary in here
#   docker build --target prebuilt --build-arg BINARY=gatewaytrust .
#                                                         packs a static binary that CI has built and tested already
#
# The image holds the binary and the public CA certificates, nothing else: no shell, no package manager, no libc.
# So the binary has to be static, which is what Alpine's musl target gives by default.

FROM rust:1.95-alpine AS build
# A C compiler and headers for aws-lc, the one TLS implementation; the CA bundle for gateways with a public certificate.
RUN apk add --no-cache build-base cmake perl linux-headers ca-certificates
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked && cp target/release/gatewaytrust /gatewaytrust

# No name in /etc/passwd: Kubernetes' runAsNonRoot wants a number anyway.
FROM scratch AS base
USER 65532:65532
ENTRYPOINT ["/gatewaytrust"]
CMD ["run"]

# Needs no registry: FROM scratch, and both files come from the build context
# (cp /etc/ssl/certs/ca-certificates.crt . makes the second one).
FROM base AS prebuilt
ARG BINARY=gatewaytrust
ARG CA_BUNDLE=ca-certificates.crt
COPY --chmod=0444 ${CA_BUNDLE} /etc/ssl/certs/ca-certificates.crt
COPY --chmod=0555 ${BINARY} /gatewaytrust

FROM base
COPY --from=build --chmod=0444 /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build --chmod=0555 /gatewaytrust /gatewaytrust
