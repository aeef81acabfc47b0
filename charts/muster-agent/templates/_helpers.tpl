{{/* The name of the chart's objects: the release's name, and the chart's name unless the former contains it. */}}
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

{{/* Selectors are immutable, so no value is used here. */}}
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
The metadata of an object. Call with a dict of root and name, and optionally namespace (the default is the release's;
"" for none), labels and annotations. These labels and annotations override the common ones.
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
  {{- /* If Muster manages this agent, the agent must not prune itself, even if its objects leave the repository. */}}
  muster.dev/prune: disabled
  {{- with omit (merge (dict) (default dict .annotations) .root.Values.commonAnnotations) "muster.dev/prune" }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The labels of an alert. Call with (list . severity). */}}
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

{{/* The name of cluster-scoped objects, which includes the release's namespace. */}}
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

{{/* Rejects values that the schema could reject only with an unhelpful message. */}}
{{- define "muster-agent.check" -}}
{{- if and .Values.joinToken .Values.joinTokenSecret.name -}}
{{- fail "joinToken and joinTokenSecret.name exclude each other: set only one of them" -}}
{{- end -}}
{{- end -}}

{{- define "muster-agent.subjects" -}}
- kind: ServiceAccount
  name: {{ include "muster-agent.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{/* The verbs that the agent needs for the objects that it manages. Server-side apply needs `patch`, and `create` if
the object does not exist yet. The agent never uses `update` or `deletecollection` on them. */}}
{{- define "muster-agent.verbs" -}}
[get, list, watch, create, patch, delete]
{{- end -}}

{{/* The rules for the kinds that apps consist of. */}}
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
# The agent publishes Events on objects that have drifted.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{- /* The denied namespaces. After an upgrade with --reuse-values from an older chart the value may be missing. */}}
{{- define "muster-agent.denied" -}}
{{- if kindIs "invalid" .Values.rbac.denyNamespaces -}}
kube-system
{{- else -}}
{{- join "," .Values.rbac.denyNamespaces -}}
{{- end -}}
{{- end -}}
