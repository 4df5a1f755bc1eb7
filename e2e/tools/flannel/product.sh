module=github.com/flannel-io/flannel
binaries=(flanneld=github.com/flannel-io/flannel)
# On amd64 its package of UDP is C, and has nothing for a build without.
cgo=1
# As it links itself: no C library of the machine that builds has to fit the image's. (Names and users are looked up by Go's own code.)
tags=netgo,osusergo
ldflags="-X github.com/flannel-io/flannel/pkg/version.Version=$(version_of "$module") -extldflags=-static"
