module=go.etcd.io/etcd/server/v3
binaries=(
  etcd=go.etcd.io/etcd/server/v3
  etcdctl=go.etcd.io/etcd/etcdctl/v3
  etcdutl=go.etcd.io/etcd/etcdutl/v3
)
