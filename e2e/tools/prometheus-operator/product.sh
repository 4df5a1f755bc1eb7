module=github.com/prometheus-operator/prometheus-operator
binaries=()
# The CustomResourceDefinitions of what the chart makes for whoever runs it.
share=(example/prometheus-operator-crd)
