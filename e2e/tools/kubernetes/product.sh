module=k8s.io/kubernetes
binaries=(
  kube-apiserver=k8s.io/kubernetes/cmd/kube-apiserver
  kube-controller-manager=k8s.io/kubernetes/cmd/kube-controller-manager
  kube-scheduler=k8s.io/kubernetes/cmd/kube-scheduler
  kubelet=k8s.io/kubernetes/cmd/kubelet
  kube-proxy=k8s.io/kubernetes/cmd/kube-proxy
  kubectl=k8s.io/kubernetes/cmd/kubectl
)
# A build from the module proxy carries no git data; without these the binaries call themselves v0.0.0-master.
git_version=$(version_of "$module")
package=k8s.io/component-base/version
ldflags="-X $package.gitVersion=$git_version -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$git_version")"
ldflags+=" -X $package.gitTreeState=clean -X $package.buildDate=1970-01-01T00:00:00Z"
