module=github.com/prometheus/prometheus
binaries=(
  prometheus=github.com/prometheus/prometheus/cmd/prometheus
  promtool=github.com/prometheus/prometheus/cmd/promtool
)
# Whom it asks is in a file or in Kubernetes: the libraries of clouds need not be built.
tags='remove_all_sd enable_kubernetes_sd'
