module=github.com/containernetworking/plugins
binaries=(
  bandwidth=github.com/containernetworking/plugins/plugins/meta/bandwidth
  bridge=github.com/containernetworking/plugins/plugins/main/bridge
  host-local=github.com/containernetworking/plugins/plugins/ipam/host-local
  loopback=github.com/containernetworking/plugins/plugins/main/loopback
  portmap=github.com/containernetworking/plugins/plugins/meta/portmap
)
