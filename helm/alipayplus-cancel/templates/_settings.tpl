{{/*
The settings of a tier: what .Values.settings says, less what is another tier's, with what the chart knows; references
become names of files. Then TOML of it. No secret passes through here: references hold names alone.
*/}}

{{/*
Sets on the tier
  settings   as the service reads them
  files      references: kind, name, key, and the path below the settings' folder (csi: the absolute one)
  pems       public material that stands in the values, by its name in the ConfigMap
*/}}
{{- define "alipayplus-cancel.settings" -}}
{{- $tier := . }}
{{- $values := .root.Values }}
{{- $all := deepCopy $values.settings }}
{{- $s := dict }}
{{- $core := ne .role "bridge" }}
{{- $serves := ne .role "migrate" }}
{{- if not $serves }}
{{- /* its log lines are all that a Job tells */}}
{{- $_ := set $s "telemetry" (pick (default dict $all.telemetry) "log_format" "log_level") }}
{{- else }}
{{- range $section := list "console" "telemetry" "limits" "reload" "shutdown" }}
{{- $_ := set $s $section (default dict (get $all $section)) }}
{{- end }}
{{- $_ := set $s "admin" (dict "listen" (printf "%s:9090" $values.service.listenAddress)) }}
{{- if not (hasKey $s.limits "replicas") }}{{ $_ := set $s.limits "replicas" (max 1 .least) }}{{ end }}
{{- end }}

{{- if .has.json }}
{{- $_ := set $s "bridge" (default dict $all.bridge) }}
{{- $_ := set $s.bridge "listen" (printf "%s:8080" $values.service.listenAddress) }}
{{- $_ := set $s "identity" $all.identity }}
{{- $_ := set $s "clients" $all.clients }}
{{- if eq .role "bridge" }}
{{- $urls := $values.bridge.coreUrls | default (list (printf "https://%s" (include "alipayplus-cancel.cores" .root))) }}
{{- $_ := set $s.bridge "core" (join "," $urls) }}
{{- else }}
{{- $_ := unset $s.bridge "core_tls" }}
{{- end }}
{{- else if $serves }}
{{- /* of clients a core needs who they are and their quota of tombstones, and no key */}}
{{- $clients := list }}
{{- range $all.clients }}{{ $clients = append $clients (pick . "id" "psp_ids" "acquirer_ids" "tombstones") }}{{ end }}
{{- $_ := set $s "clients" $clients }}
{{- end }}

{{- if $core }}
{{- $_ := set $s "tokens" $all.tokens }}
{{- $store := default dict $all.store }}
{{- if eq $values.store.kind "postgres" }}
{{- with $values.store.postgres }}
{{- $query := list (printf "sslmode=%s" .sslmode) }}
{{- range $name := list "sslrootcert" "sslcert" "sslkey" }}
{{- with get $values.store.postgres $name }}
{{- $at := include "alipayplus-cancel.reference" (dict "tier" $tier "way" (printf "store-%s" $name) "reference" .) }}
{{- $query = append $query (printf "%s=%s" $name (ternary $at (printf "/etc/alipayplus-cancel/%s" $at) (hasPrefix "/" $at))) }}
{{- end }}
{{- end }}
{{- $_ := set $store "url" (printf "postgres://%s@%s/%s?%s" .user (join "," .hosts) .database (join "&" $query)) }}
{{- with .password }}{{ $_ := set $store "password_file" . }}{{ end }}
{{- $_ := set $store "migrate_at_start" (not $values.migration.enabled) }}
{{- end }}
{{- else }}
{{- $_ := set $store "url" "sqlite:///var/lib/alipayplus-cancel/state.db" }}
{{- end }}
{{- $_ := set $s "store" $store }}
{{- end }}

{{- if and $core $serves }}
{{- $_ := set $s "grpc" (default dict $all.grpc) }}
{{- $_ := set $s.grpc "listen" (printf "%s:50051" $values.service.listenAddress) }}
{{- range $section := list "feed" "policy" }}
{{- $_ := set $s $section (default dict (get $all $section)) }}
{{- end }}
{{- end }}

{{- include "alipayplus-cancel.resolve" (dict "tier" $tier "way" "" "table" $s) }}
{{- $_ := set $tier "settings" $s }}
{{- end }}

{{/*
Replaces every reference in a table by the name of its file, and notes it on the tier. What is unset goes.
*/}}
{{- define "alipayplus-cancel.resolve" -}}
{{- $c := . }}
{{- range $key, $value := $c.table }}
{{- $way := ternary $key (printf "%s-%s" $c.way $key) (empty $c.way) }}
{{- if or (kindIs "invalid" $value) (and (kindIs "map" $value) (empty $value)) }}
{{- $_ := unset $c.table $key }}
{{- else if kindIs "map" $value }}
{{- if include "alipayplus-cancel.isReference" $value }}
{{- $_ := set $c.table $key (include "alipayplus-cancel.reference" (dict "tier" $c.tier "way" $way "reference" $value)) }}
{{- else }}
{{- include "alipayplus-cancel.resolve" (dict "tier" $c.tier "way" $way "table" $value) }}
{{- end }}
{{- else if kindIs "slice" $value }}
{{- $list := list }}
{{- range $index, $item := $value }}
{{- if not (kindIs "map" $item) }}
{{- $list = append $list $item }}
{{- else }}
{{- /* named after what it is, so that another client in front renames no file */}}
{{- $name := $item.id | default $item.version | default $index | toString }}
{{- $at := printf "%s-%s" $way $name }}
{{- if include "alipayplus-cancel.isReference" $item }}
{{- $list = append $list (include "alipayplus-cancel.reference" (dict "tier" $c.tier "way" $at "reference" $item)) }}
{{- else }}
{{- include "alipayplus-cancel.resolve" (dict "tier" $c.tier "way" $at "table" $item) }}
{{- $list = append $list $item }}
{{- end }}
{{- end }}
{{- end }}
{{- $_ := set $c.table $key $list }}
{{- end }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.isReference" -}}
{{- range list "secret" "csi" "configMap" "pem" }}{{ if hasKey $ . }}yes{{ end }}{{ end }}
{{- end }}

{{/* The name of a reference's file: from the settings' folder on, or (csi) from the root on. Takes tier, way, reference. */}}
{{- define "alipayplus-cancel.reference" -}}
{{- $tier := .tier }}
{{- $files := default list $tier.files }}
{{- $pems := default dict $tier.pems }}
{{- if .reference.pem }}
{{- $name := printf "%s.pem" .way }}
{{- $_ := set $pems $name .reference.pem }}
{{- $name }}
{{- else if .reference.csi }}
{{- with .reference.csi }}
{{- $files = append $files (dict "kind" "csi" "name" .volume) }}
{{- printf "/mnt/secrets-store/%s/%s" .volume .path }}
{{- end }}
{{- else }}
{{- $kind := ternary "secret" "configMap" (hasKey .reference "secret") }}
{{- with get .reference $kind }}
{{- $path := printf "%s/%s/%s" (ternary "secrets" "configmaps" (eq $kind "secret")) .name .key }}
{{- $files = append $files (dict "kind" $kind "name" .name "key" .key "path" $path) }}
{{- $path }}
{{- end }}
{{- end }}
{{- $_ := set $tier "files" $files }}
{{- $_ := set $tier "pems" $pems }}
{{- end }}

{{/*
A table as TOML: plain values first, since what follows a header belongs to it. Takes way and table.
Not toToml: Helm's numbers are all floating, and it writes 500 as 500.0, which is no count.
*/}}
{{- define "alipayplus-cancel.toml" -}}
{{- $way := .way }}
{{- range $key, $value := .table }}
{{- if not (include "alipayplus-cancel.isTables" $value) }}
{{ include "alipayplus-cancel.tomlKey" $key }} = {{ include "alipayplus-cancel.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .table }}
{{- $at := printf "%s%s%s" $way (ternary "" "." (empty $way)) (include "alipayplus-cancel.tomlKey" $key) }}
{{- if and (include "alipayplus-cancel.isTables" $value) (kindIs "map" $value) }}

[{{ $at }}]
{{- include "alipayplus-cancel.toml" (dict "way" $at "table" $value) }}
{{- else if include "alipayplus-cancel.isTables" $value }}
{{- range $value }}

[[{{ $at }}]]
{{- include "alipayplus-cancel.toml" (dict "way" $at "table" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.isTables" -}}
{{- if kindIs "map" . }}yes{{ else if kindIs "slice" . }}{{ if . }}{{ if kindIs "map" (first .) }}yes{{ end }}{{ end }}{{ end }}
{{- end }}

{{- define "alipayplus-cancel.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toRawJson . }}{{ end }}
{{- end }}

{{- define "alipayplus-cancel.tomlValue" -}}
{{- if kindIs "slice" . }}
{{- $items := list }}
{{- range . }}{{ $items = append $items (include "alipayplus-cancel.tomlValue" .) }}{{ end -}}
[{{ join ", " $items }}]
{{- else if kindIs "float64" . }}
{{- if eq (floor .) . }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- else if kindIs "string" . }}{{ toRawJson . }}
{{- else }}{{ . }}
{{- end }}
{{- end }}

{{/* The ConfigMap's data of a tier. */}}
{{- define "alipayplus-cancel.configData" -}}
alipayplus-cancel.toml: |
  # made by the chart from `settings`; what it means: docs/operations.md
  {{- include "alipayplus-cancel.toml" (dict "way" "" "table" .settings) | trim | nindent 2 }}
{{- range $name, $pem := .pems }}
{{ $name }}: |
  {{- $pem | trim | nindent 2 }}
{{- end }}
{{- end }}

{{/*
A hash over what needs a restart. What the service takes over by itself (src/app/reload.rs, LIVE; docs/operations.md, Reload)
is left out: a new client or rate is in effect seconds after its ConfigMap changed, and pods that restart for it would only
cost. A change of both restarts pods, and the old ones refuse it until they are replaced. References that change are part
of the pod. `limits.body_` counts here, because the gRPC front takes it over with a restart alone.
*/}}
{{- define "alipayplus-cancel.checksum" -}}
{{- $s := deepCopy (omit .settings "clients" "identity" "reload") }}
{{- range $section, $live := dict "grpc" (list "callers" "rates" "max_in_flight" "max_in_flight_per_caller") "bridge" list }}
{{- with get $s $section }}
{{- $rest := . }}
{{- range $live }}{{ $rest = omit $rest . }}{{ end }}
{{- /* whether there is TLS needs a restart, with which certificates does not */}}
{{- range list "tls" "core_tls" }}
{{- if hasKey $rest . }}{{ $rest = set (omit $rest .) . "is set" }}{{ end }}
{{- end }}
{{- $_ := set $s $section $rest }}
{{- end }}
{{- end }}
{{- with $s.limits }}
{{- $_ := set $s "limits" (omit . "max_in_flight" "max_in_flight_per_source" "max_in_flight_per_client" "replicas" "request_time_skew" "trusted_proxies" "unproven_per_source") }}
{{- end }}
{{- toJson $s | sha256sum }}
{{- end }}
