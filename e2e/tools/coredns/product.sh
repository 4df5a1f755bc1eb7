module=github.com/coredns/coredns
binaries=(coredns=github.com/coredns/coredns)
