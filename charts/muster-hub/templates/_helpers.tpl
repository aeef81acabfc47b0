{{/* The name of the chart's objects: the release's name, and the chart's name unless the former contains it. */}}
{{- define "muster-hub.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Selectors are immutable, so no value is used here. */}}
{{- define "muster-hub.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "muster-hub.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "muster-hub.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: hub
app.kubernetes.io/part-of: muster
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
The metadata of an object. Call with a dict of root and name, and optionally labels and annotations, which override
the common ones.
*/}}
{{- define "muster-hub.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "muster-hub.labels" .root | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default dict .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The labels of an alert. Call with (list . severity). */}}
{{- define "muster-hub.alertLabels" -}}
labels:
  severity: {{ index . 1 }}
  {{- with (index . 0).Values.prometheusRule.alertLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "muster-hub.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "muster-hub.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "muster-hub.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "muster-hub.advertise" -}}
{{- $inside := printf "%s.%s.svc:%v" (include "muster-hub.fullname" .) .Release.Namespace .Values.service.port -}}
{{- default $inside .Values.advertise -}}
{{- end -}}

{{/* Rejects values that the schema could reject only with an unhelpful message. */}}
{{- define "muster-hub.check" -}}
{{- if and .Values.repo.branch .Values.repo.tag -}}
{{- fail "repo.branch and repo.tag exclude each other: set only one of them" -}}
{{- end -}}
{{- $keys := join "" (values .Values.repo.auth) -}}
{{- if and .Values.repo.existingSecret (not $keys) -}}
{{- fail "repo.existingSecret is set, but no key of it is named in repo.auth; for example, set repo.auth.tokenKey=token" -}}
{{- end -}}
{{- if and $keys (not .Values.repo.existingSecret) -}}
{{- fail "repo.auth names keys, but repo.existingSecret does not name the Secret that contains them" -}}
{{- end -}}
{{- end -}}
