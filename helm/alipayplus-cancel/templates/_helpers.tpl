{{/*
Names, labels and tiers. A "tier" is a dict that `tier` fills in; templates that need many things of it take it as their
context instead of passing texts around.
*/}}

{{- define "alipayplus-cancel.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* 40 letters, so that the longest suffix of ours still fits into a name of 63 */}}
{{- define "alipayplus-cancel.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.selectorLabels" -}}
app.kubernetes.io/name: {{ include "alipayplus-cancel.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Takes root and component. */}}
{{- define "alipayplus-cancel.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "alipayplus-cancel.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/part-of: {{ include "alipayplus-cancel.name" .root }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.serviceAccountName" -}}
{{- with .Values.serviceAccount }}
{{- if .create }}{{ .name | default (include "alipayplus-cancel.fullname" $) }}{{ else }}{{ .name | default "default" }}{{ end }}
{{- end }}
{{- end }}

{{/* The roles that run, with blanks between. */}}
{{- define "alipayplus-cancel.roles" -}}
{{- if eq .Values.mode "single" }}all
{{- else }}
{{- $roles := list }}
{{- if .Values.core.enabled }}{{ $roles = append $roles "core" }}{{ end }}
{{- if .Values.bridge.enabled }}{{ $roles = append $roles "bridge" }}{{ end }}
{{- join " " $roles }}
{{- end }}
{{- end }}

{{/* The role that has this front ("json" or "grpc"); empty: another release's. */}}
{{- define "alipayplus-cancel.roleOf" -}}
{{- $roles := splitList " " (include "alipayplus-cancel.roles" .root) }}
{{- $tier := ternary "bridge" "core" (eq .front "json") }}
{{- if has "all" $roles }}all{{ else if has $tier $roles }}{{ $tier }}{{ end }}
{{- end }}

{{/*
Puts every value of .over into .base, tables into tables. Not mergeOverwrite: that passes over false, 0 and "".
*/}}
{{- define "alipayplus-cancel.merge" -}}
{{- $base := .base }}
{{- range $key, $value := .over }}
{{- if and (kindIs "map" $value) (kindIs "map" (get $base $key)) }}
{{- include "alipayplus-cancel.merge" (dict "base" (get $base $key) "over" $value) }}
{{- else }}
{{- $_ := set $base $key $value }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Fills in a tier from its root and role:
  component, fullname   of its objects
  pods                  the values of its pods
  least                 the least number of pods that it has
  has                   which fronts: json, grpc
  settings, files, pems see _settings.tpl
*/}}
{{- define "alipayplus-cancel.tier" -}}
{{- $tier := . }}
{{- /* a template that has nothing to work with says why, whichever is rendered first */}}
{{- if not .role }}{{ include "alipayplus-cancel.validate" .root }}{{ end }}
{{- $values := .root.Values }}
{{- $fullname := include "alipayplus-cancel.fullname" .root }}
{{- $pods := deepCopy $values.pods }}
{{- if eq .role "all" }}
{{- $_ := set $tier "component" "service" }}
{{- $_ := set $tier "fullname" $fullname }}
{{- else }}
{{- $_ := set $tier "component" .role }}
{{- $_ := set $tier "fullname" (printf "%s-%s" $fullname .role) }}
{{- include "alipayplus-cancel.merge" (dict "base" $pods "over" (get $values .role).pods) }}
{{- end }}
{{- $_ := set $tier "pods" $pods }}
{{- $_ := set $tier "least" (ternary $pods.autoscaling.minReplicas $pods.replicas $pods.autoscaling.enabled | int) }}
{{- $_ := set $tier "has" (dict "json" (ne .role "core") "grpc" (ne .role "bridge")) }}
{{- $_ := set $tier "embedded" (and (ne .role "bridge") (eq $values.store.kind "sqlite")) }}
{{- include "alipayplus-cancel.settings" $tier }}
{{- end }}

{{/* The host and port that a bridge finds the cores of this release at. */}}
{{- define "alipayplus-cancel.cores" -}}
{{ include "alipayplus-cancel.fullname" . }}-cores.{{ .Release.Namespace }}.svc:50051
{{- end }}

{{/* A duration of the service in whole seconds, rounded up. */}}
{{- define "alipayplus-cancel.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 }}
{{- $unit := regexFind "[a-z]+$" . }}
{{- if eq $unit "ms" }}{{ div (add $number 999) 1000 }}
{{- else }}{{ mul $number (get (dict "s" 1 "m" 60 "h" 3600 "d" 86400) $unit) }}
{{- end }}
{{- end }}

{{/* What the drain needs: the delay, the grace, and what the process may take on top (docs/operations.md, Stopping). */}}
{{- define "alipayplus-cancel.drainSeconds" -}}
{{- with .Values.settings.shutdown | default dict -}}
{{ add (include "alipayplus-cancel.seconds" (.drain_delay | default "0s")) (include "alipayplus-cancel.seconds" (.grace | default "25s")) 10 }}
{{- else }}35{{ end }}
{{- end }}

{{/* Every path of the JSON front, as a JSON array. */}}
{{- define "alipayplus-cancel.paths" -}}
{{- $paths := list }}
{{- range $prefix := .Values.settings.bridge.path_prefixes }}
{{- range list "payments/cancelPayment" "authorizations/cancelToken" }}
{{- $paths = append $paths (printf "%s/v1/%s" $prefix .) }}
{{- end }}
{{- end }}
{{- toJson $paths }}
{{- end }}
