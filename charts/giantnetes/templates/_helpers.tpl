{{- define "giantnetes.labels" -}}
app.kubernetes.io/name: giantnetes
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "giantnetes.selector" -}}
app.kubernetes.io/name: giantnetes
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "giantnetes.devicePluginSelector" -}}
app.kubernetes.io/name: giantnetes-device-plugin
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "giantnetes.flannelEtcd" -}}
{{ .Release.Name }}-flannel-etcd
{{- end }}
{{- define "giantnetes.flannelEtcdSelector" -}}
app.kubernetes.io/name: giantnetes-flannel-etcd
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "giantnetes.flannelEtcdLabels" -}}
{{ include "giantnetes.flannelEtcdSelector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "giantnetes.testSelector" -}}
app.kubernetes.io/name: giantnetes-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- /* Fails if another release works here: two would write to the same Clusters. Kinds that one left behind are helm's to tell of. */ -}}
{{- define "giantnetes.onlyRelease" -}}
{{- $kind := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "clusters.giantnetes.io" }}
{{- $owner := dig "metadata" "annotations" dict $kind }}
{{- $release := get $owner "meta.helm.sh/release-name" }}
{{- $namespace := get $owner "meta.helm.sh/release-namespace" }}
{{- if and $release (or (ne $release .Release.Name) (ne $namespace .Release.Namespace)) }}
{{- if lookup "apps/v1" "Deployment" $namespace $release }}
{{- fail (printf "Giantnetes is installed already, as release %s in namespace %s, and serves all namespaces: helm upgrade that one, or helm uninstall it first" $release $namespace) }}
{{- end }}
{{- end }}
{{- end }}
{{- /* Address of the DNS server; an empty one is looked up. A Service without an address of its own is none. */ -}}
{{- define "giantnetes.clusterDNS" -}}
{{- $dns := lookup "v1" "Service" "kube-system" "kube-dns" }}
{{- $found := dig "spec" "clusterIP" "" $dns }}
{{- .Values.settings.network.clusterDNS | default (ternary "" $found (eq $found "None")) }}
{{- end }}
{{- /* The settings. */ -}}
{{- define "giantnetes.settings" -}}
{{- $settings := deepCopy .Values.settings }}
{{- $_ := set $settings.network "clusterDNS" (include "giantnetes.clusterDNS" .) }}
{{- $_ := set $settings.network "managerNamespace" .Release.Namespace }}
{{- if .Values.flannel.enabled }}
{{- $_ := set $settings.network "flannel" (dict "service" (include "giantnetes.flannelEtcd" .) "members" (int .Values.flannel.etcd.replicas)) }}
{{- end }}
{{- toYaml $settings }}
{{- end }}

{{/* Egress to the management cluster's DNS. */}}
{{- define "giantnetes.dnsEgress" -}}
- ports: [{port: 53}, {port: 53, protocol: UDP}]
# A policy sees address and port after they were translated to a pod's: not every distribution's listen at 53.
- to:
  - namespaceSelector:
      matchLabels: {kubernetes.io/metadata.name: kube-system}
    podSelector:
      matchLabels: {k8s-app: kube-dns}
{{- end }}
