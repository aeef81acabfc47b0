{{/* Templates that all objects use. */}}
{{- define "selector" -}}
app.kubernetes.io/name: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "labels" -}}
{{ include "selector" . }}
app.kubernetes.io/part-of: {{ .Values.fleet.name }}
app.kubernetes.io/version: {{ .Values.image.tag | toJson }}
{{- if .Values.labelCluster }}
example.org/cluster: {{ .Values.cluster.name }}
{{- end }}
{{- end -}}

{{- define "probe" -}}
httpGet:
  path: {{ .path }}
  port: {{ .port }}
periodSeconds: {{ .period }}
timeoutSeconds: 2
failureThreshold: 3
{{- end -}}
