{{/* Name of the objects: the release's, with the chart's in it. */}}
{{- define "muster-agent.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Selectors are immutable: nothing in them comes from values. */}}
{{- define "muster-agent.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "muster-agent.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "muster-agent.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: agent
app.kubernetes.io/part-of: muster
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
Metadata of an object. Call with a dict: root, name; namespace, if not the release's ("" for none); labels and
annotations where the object has its own, which win over the common ones.
*/}}
{{- define "muster-agent.metadata" -}}
name: {{ .name }}
{{- with dig "namespace" .root.Release.Namespace (omit . "root") }}
namespace: {{ . }}
{{- end }}
labels:
  {{- include "muster-agent.labels" .root | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  {{- /* Muster may manage this agent, which then must not prune itself, whatever left the repository. */}}
  muster.dev/prune: disabled
  {{- with omit (merge (dict) (default dict .annotations) .root.Values.commonAnnotations) "muster.dev/prune" }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Labels of an alert. Call with (list . severity). */}}
{{- define "muster-agent.alertLabels" -}}
labels:
  severity: {{ index . 1 }}
  {{- with (index . 0).Values.prometheusRule.alertLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "muster-agent.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "muster-agent.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "muster-agent.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Names of what is cluster-wide have the namespace in them. */}}
{{- define "muster-agent.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "muster-agent.fullname" .) -}}
{{- end -}}

{{- define "muster-agent.joinTokenSecret" -}}
{{- if .Values.joinToken -}}
{{ include "muster-agent.fullname" . }}-join-token
{{- else -}}
{{ .Values.joinTokenSecret.name }}
{{- end -}}
{{- end -}}

{{/* What the schema can't say in words that help. */}}
{{- define "muster-agent.check" -}}
{{- if and .Values.joinToken .Values.joinTokenSecret.name -}}
{{- fail "joinToken and joinTokenSecret.name exclude each other: there is one token" -}}
{{- end -}}
{{- end -}}

{{- define "muster-agent.subjects" -}}
- kind: ServiceAccount
  name: {{ include "muster-agent.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{/* All that the agent does to an object that it looks after: server-side apply is `patch`, and `create` where
there is none yet. Nothing is ever updated or deleted by the collection. */}}
{{- define "muster-agent.verbs" -}}
[get, list, watch, create, patch, delete]
{{- end -}}

{{/* Rules of what apps consist of. */}}
{{- define "muster-agent.workloadRules" -}}
{{- $verbs := include "muster-agent.verbs" . -}}
- apiGroups: [""]
  resources:
    - configmaps
    - endpoints
    - limitranges
    - persistentvolumeclaims
    - pods
    - podtemplates
    - replicationcontrollers
    - resourcequotas
    - secrets
    - serviceaccounts
    - services
  verbs: {{ $verbs }}
- apiGroups: [apps]
  resources: [daemonsets, deployments, replicasets, statefulsets]
  verbs: {{ $verbs }}
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: {{ $verbs }}
- apiGroups: [batch]
  resources: [cronjobs, jobs]
  verbs: {{ $verbs }}
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: {{ $verbs }}
- apiGroups: [networking.k8s.io]
  resources: [ingresses, networkpolicies]
  verbs: {{ $verbs }}
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: {{ $verbs }}
- apiGroups: [resource.k8s.io]
  resources: [resourceclaims, resourceclaimtemplates]
  verbs: {{ $verbs }}
# Tells people on the objects themselves what has drifted.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{- /* The namespaces that the agent is told to leave alone; upgrades with --reuse-values may have none. */}}
{{- define "muster-agent.denied" -}}
{{- if kindIs "invalid" .Values.rbac.denyNamespaces -}}
kube-system
{{- else -}}
{{- join "," .Values.rbac.denyNamespaces -}}
{{- end -}}
{{- end -}}
