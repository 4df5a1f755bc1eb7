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
