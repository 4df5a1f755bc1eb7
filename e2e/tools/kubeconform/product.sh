module=github.com/yannh/kubeconform
binaries=(kubeconform=github.com/yannh/kubeconform/cmd/kubeconform)
