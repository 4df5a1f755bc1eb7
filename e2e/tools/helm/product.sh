module=helm.sh/helm/v3
binaries=(helm=helm.sh/helm/v3/cmd/helm)
