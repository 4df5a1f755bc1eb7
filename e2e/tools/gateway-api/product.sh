module=sigs.k8s.io/gateway-api
binaries=()
# Kinds of gateways and routes. Traefik reads routes in a version that the experimental channel alone serves.
share=(config/crd/experimental config/crd/standard/gateway.networking.k8s.io_tlsroutes.yaml)
