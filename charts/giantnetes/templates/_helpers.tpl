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
{{- define "giantnetes.testSelector" -}}
app.kubernetes.io/name: giantnetes-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- /* The settings; an empty clusterDNS is looked up. */ -}}
{{- define "giantnetes.settings" -}}
{{- $settings := deepCopy .Values.settings }}
{{- if not $settings.network.clusterDNS }}
{{- $dns := lookup "v1" "Service" "kube-system" "kube-dns" }}
{{- if $dns }}
{{- $_ := set $settings.network "clusterDNS" $dns.spec.clusterIP }}
{{- end }}
{{- end }}
{{- $_ := set $settings.network "managerNamespace" .Release.Namespace }}
{{- toYaml $settings }}
{{- end }}
