module=github.com/projectcalico/calico
# The release that the module's pseudo-version is.
version=v3.28.5
binaries=(
  calico-node=github.com/projectcalico/calico/node/cmd/calico-node
  calico=github.com/projectcalico/calico/cni-plugin/cmd/calico
  install=github.com/projectcalico/calico/cni-plugin/cmd/install
  kube-controllers=github.com/projectcalico/calico/kube-controllers/cmd/kube-controllers
)
package=github.com/projectcalico/calico/node
ldflags="-X main.VERSION=$version -X $package/pkg/lifecycle/startup.VERSION=$version -X $package/buildinfo.GitVersion=$version"
# Manifests for users' clusters, what the node image has beside its program, and BIRD's templates.
share=(manifests/calico-vxlan.yaml node/filesystem confd/etc/calico/confd)
