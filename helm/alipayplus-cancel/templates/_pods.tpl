{{/*
What pods are made of. Every container of this chart runs our binary and nothing else, under the restricted Pod Security
Standard, without a service account's token.
*/}}

{{- define "alipayplus-cancel.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.podSecurity }}
{{- range $key := list "runAsUser" "runAsGroup" "fsGroup" }}
{{- with get $.Values.podSecurity $key }}
{{ $key }}: {{ int64 . }}
{{- end }}
{{- end }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "alipayplus-cancel.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What stands at the top of every pod's spec. */}}
{{- define "alipayplus-cancel.podCommon" -}}
automountServiceAccountToken: false
# NAME_PORT=tcp://… of every Service would stand in the environment
enableServiceLinks: false
securityContext:
  {{- include "alipayplus-cancel.podSecurity" . | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What every container has. */}}
{{- define "alipayplus-cancel.containerCommon" -}}
image: {{ include "alipayplus-cancel.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "alipayplus-cancel.containerSecurity" . | nindent 2 }}
{{- end }}

{{/*
The volumes of a tier's files. Settings and keys are one projected volume, which the kubelet swaps as a whole, so that a
reload never sees new settings with old keys; of a Secret only the keys that are named are in it. Takes tier, configMap.
*/}}
{{- define "alipayplus-cancel.volumes" -}}
- name: config
  projected:
    # readable by the group that is fsGroup; the octal form is YAML 1.1's
    defaultMode: 0440
    sources:
      {{- if .configMap }}
      - configMap:
          name: {{ .configMap }}
      {{- end }}
      {{- $grouped := dict }}
      {{- range .tier.files }}
      {{- if ne .kind "csi" }}
      {{- $source := printf "%s %s" .kind .name }}
      {{- $items := default dict (get $grouped $source) }}
      {{- $_ := set $items .path .key }}
      {{- $_ := set $grouped $source $items }}
      {{- end }}
      {{- end }}
      {{- range $source, $items := $grouped }}
      {{- $parts := splitList " " $source }}
      - {{ first $parts }}:
          name: {{ last $parts }}
          items:
            {{- range $path, $key := $items }}
            - key: {{ $key }}
              path: {{ $path }}
            {{- end }}
      {{- end }}
{{- range include "alipayplus-cancel.csiVolumes" .tier | fromJsonArray }}
- name: {{ printf "csi-%s" .name }}
  csi:
    driver: {{ $.tier.root.Values.csi.driver }}
    readOnly: true
    volumeAttributes:
      secretProviderClass: {{ .secretProviderClass }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.volumeMounts" -}}
- name: config
  mountPath: /etc/alipayplus-cancel
  readOnly: true
{{- range include "alipayplus-cancel.csiVolumes" .tier | fromJsonArray }}
- name: {{ printf "csi-%s" .name }}
  mountPath: {{ printf "/mnt/secrets-store/%s" .name }}
  readOnly: true
{{- end }}
{{- end }}

{{/* The volumes of csi.volumes that a tier's files are in, each with its class, as JSON. */}}
{{- define "alipayplus-cancel.csiVolumes" -}}
{{- $named := dict }}
{{- range .files }}{{ if eq .kind "csi" }}{{ $_ := set $named .name true }}{{ end }}{{ end }}
{{- $volumes := list }}
{{- range .root.Values.csi.volumes }}
{{- if hasKey $named .name }}
{{- $class := .secretProviderClass | default (printf "%s-%s" (include "alipayplus-cancel.fullname" $.root) .name) }}
{{- $volumes = append $volumes (dict "name" .name "secretProviderClass" $class) }}
{{- end }}
{{- end }}
{{- toJson $volumes }}
{{- end }}

{{/* The pod template of a tier. */}}
{{- define "alipayplus-cancel.pod" -}}
metadata:
  labels:
    {{- /* neither the chart's version nor the service's: a pod is not started anew for a label */}}
    {{- $labels := include "alipayplus-cancel.selectorLabels" . | fromYaml }}
    {{- toYaml (merge dict $labels .pods.labels .root.Values.commonLabels) | nindent 4 }}
  annotations:
    checksum/settings: {{ include "alipayplus-cancel.checksum" . }}
    {{- if .root.Values.metrics.annotations }}
    prometheus.io/scrape: "true"
    prometheus.io/port: "9090"
    prometheus.io/path: /metrics
    {{- end }}
    {{- with .pods.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "alipayplus-cancel.serviceAccountName" .root }}
  {{- include "alipayplus-cancel.podCommon" .root | nindent 2 }}
  # The binary drains itself on SIGTERM: it fails readiness, goes on accepting for shutdown.drain_delay while endpoints
  # forget it, then finishes what it accepted. A preStop that sleeps would only do the first half, twice.
  terminationGracePeriodSeconds: {{ .pods.terminationGracePeriodSeconds | default (include "alipayplus-cancel.drainSeconds" .root) | int64 }}
  {{- with .pods.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .pods.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .pods.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .pods.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .pods.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and .pods.topologySpread.keys (not .embedded) }}
  topologySpreadConstraints:
    {{- range .pods.topologySpread.keys }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: {{ $.pods.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "alipayplus-cancel.selectorLabels" $ | nindent 10 }}
      # each version for itself: during a rollout the old pods do not count
      matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
  containers:
    - name: alipayplus-cancel
      {{- include "alipayplus-cancel.containerCommon" .root | nindent 6 }}
      args:
        - serve
        - --config
        - /etc/alipayplus-cancel/alipayplus-cancel.toml
        {{- if ne .role "all" }}
        - --role
        - {{ .role }}
        {{- end }}
      env:
        # no stack traces of errors: they cost time under load, and a panic says its place anyway
        - name: RUST_LIB_BACKTRACE
          value: "0"
        {{- if (.settings.telemetry).otlp_endpoint }}
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        - name: OTEL_RESOURCE_ATTRIBUTES
          value: k8s.namespace.name={{ .root.Release.Namespace }},k8s.pod.name=$(POD_NAME),k8s.container.name=alipayplus-cancel
        {{- end }}
        {{- with .pods.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        {{- if .has.json }}
        - name: json
          containerPort: 8080
          protocol: TCP
        {{- end }}
        {{- if .has.grpc }}
        - name: grpc
          containerPort: 50051
          protocol: TCP
        {{- end }}
        - name: admin
          containerPort: 9090
          protocol: TCP
      # two minutes: an embedded store reads its log after an unclean stop
      startupProbe:
        httpGet:
          path: /livez
          port: admin
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 60
      # slow to give up: a restart helps against a hang alone, and everything else readiness tells
      livenessProbe:
        httpGet:
          path: /livez
          port: admin
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet:
          path: /readyz
          port: admin
        periodSeconds: 3
        timeoutSeconds: 2
        failureThreshold: 2
      resources:
        {{- toYaml .pods.resources | nindent 8 }}
      volumeMounts:
        {{- include "alipayplus-cancel.volumeMounts" (dict "tier" .) | nindent 8 }}
        {{- if .embedded }}
        - name: state
          mountPath: /var/lib/alipayplus-cancel
        # SQLite sorts here when a sort does not fit into memory
        - name: tmp
          mountPath: /tmp
        {{- end }}
        {{- with .pods.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "alipayplus-cancel.volumes" (dict "tier" . "configMap" .fullname) | nindent 4 }}
    {{- if .embedded }}
    - name: tmp
      emptyDir:
        sizeLimit: 1Gi
    {{- end }}
    {{- with .pods.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* The annotations of what is there for the migration alone. Takes its weight. */}}
{{- define "alipayplus-cancel.hook" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
# a Job that failed stays, for its log, until the next try
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{- define "alipayplus-cancel.testResources" -}}
requests:
  cpu: 50m
  memory: 32Mi
limits:
  memory: 128Mi
{{- end }}
