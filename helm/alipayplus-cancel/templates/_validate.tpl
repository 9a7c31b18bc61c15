{{/*
What cannot work is refused before anything is sent to a cluster, all of it at once, each with what to do. Here stands what
hangs on several values, or deserves a better sentence than a schema gives; names and types are the schema's business.
*/}}

{{- define "alipayplus-cancel.validate" -}}
{{- $found := dict "problems" list }}
{{- range list "tiers" "store" "keys" "tls" "callers" "pods" "network" "rest" }}
{{- include (printf "alipayplus-cancel.validate.%s" .) (dict "root" $ "values" $.Values "found" $found) }}
{{- end }}
{{- with $found.problems }}
{{- fail (printf "\n\nThese values cannot work:\n  - %s\n" (join "\n  - " (uniq .))) }}
{{- end }}
{{- end }}

{{/* Notes a problem. Takes found and text. */}}
{{- define "alipayplus-cancel.problem" -}}
{{- $_ := set .found "problems" (append .found.problems .text) }}
{{- end }}

{{- define "alipayplus-cancel.validate.tiers" -}}
{{- $found := .found }}
{{- with .values }}
{{- if eq .mode "single" }}
{{- range $tier := list "core" "bridge" }}
{{- $of := get $.values $tier }}
{{- if or $of.pods $of.coreUrls (not $of.enabled) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "%s is set, and mode is single: set mode to two-tier, or write what is about pods under `pods`" $tier)) }}
{{- end }}
{{- end }}
{{- else }}
{{- if and (eq .store.kind "sqlite") .core.enabled }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "mode is two-tier with store.kind sqlite: an embedded store belongs to one process, and cores are several; set store.kind to postgres, or mode to single") }}
{{- end }}
{{- if not (or .core.enabled .bridge.enabled) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "core.enabled and bridge.enabled are both false, so nothing would run: set one of them to true") }}
{{- end }}
{{- if and .bridge.enabled (not .core.enabled) (not .bridge.coreUrls) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "a bridge without a core: set core.enabled to true, or bridge.coreUrls to where the cores of another release are, as https://cancel-cores.inside.example:50051") }}
{{- end }}
{{- if and .bridge.coreUrls .core.enabled .bridge.enabled }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "bridge.coreUrls is set, and this release has cores of its own: take bridge.coreUrls out, or set core.enabled to false") }}
{{- end }}
{{- if .allowPlaintextGrpc }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "allowPlaintextGrpc with mode two-tier: a bridge calls its cores by mTLS alone; take allowPlaintextGrpc out and set settings.grpc.tls and settings.bridge.core_tls") }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.validate.store" -}}
{{- $found := .found }}
{{- with .values }}
{{- if not (include "alipayplus-cancel.roleOf" (dict "root" $.root "front" "grpc")) }}
{{- else if eq .store.kind "sqlite" }}
{{- if gt (int .pods.replicas) 1 }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "pods.replicas is %d with store.kind sqlite: an embedded store belongs to one process; set pods.replicas to 1, or store.kind to postgres" (int .pods.replicas))) }}
{{- end }}
{{- if .pods.autoscaling.enabled }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "pods.autoscaling with store.kind sqlite: an embedded store belongs to one process; set pods.autoscaling.enabled to false, or store.kind to postgres") }}
{{- end }}
{{- with .store.postgres }}
{{- if or .hosts .database .user .password .sslrootcert .sslcert .sslkey }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "store.postgres is set, and store.kind is sqlite: set store.kind to postgres, or take store.postgres out") }}
{{- end }}
{{- end }}
{{- else }}
{{- with .store.postgres }}
{{- range $name := list "hosts" "database" "user" }}
{{- if not (get $.values.store.postgres $name) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "store.kind is postgres without store.postgres.%s: set it" $name)) }}
{{- end }}
{{- end }}
{{- if not (or .password .sslcert) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "store.kind is postgres, and nothing proves who we are: set store.postgres.password to a reference, as { secret: { name: cancel-database, key: password } }, or sslcert and sslkey") }}
{{- end }}
{{- if ne (empty .sslcert) (empty .sslkey) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "of store.postgres.sslcert and sslkey one is set: they belong together; set both, or neither") }}
{{- end }}
{{- if and (eq .sslmode "verify-full") (not .sslrootcert) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "store.postgres.sslmode is verify-full without sslrootcert, so no server could be believed: set sslrootcert to a reference to their authorities, or sslmode to disable on a network nobody else is on") }}
{{- end }}
{{- if and (eq .sslmode "disable") (or .sslrootcert .sslcert) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "store.postgres has certificates, and sslmode is disable: set sslmode to verify-full, or take the certificates out") }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.validate.keys" -}}
{{- $found := .found }}
{{- $root := .root }}
{{- with .values.settings }}
{{- if include "alipayplus-cancel.roleOf" (dict "root" $root "front" "json") }}
{{- $active := list }}
{{- $versions := list }}
{{- range .identity.keys }}
{{- if eq (.state | default "active") "active" }}{{ $active = append $active .version }}{{ end }}
{{- if has .version $versions }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "settings.identity.keys has version %q twice: each key needs its own" .version)) }}
{{- end }}
{{- $versions = append $versions .version }}
{{- if and (empty .file) (empty .pkcs11) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "settings.identity.keys, version %q, is nowhere: set `file` to a reference, as { secret: { name: wallet-signing, key: wallet-1.private.pem } }, or `pkcs11` for a key that stays in its token" .version)) }}
{{- else if and .file .pkcs11 }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "settings.identity.keys, version %q, has both `file` and `pkcs11`, but is in one place only: take one out" .version)) }}
{{- end }}
{{- end }}
{{- if not .identity.keys }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "settings.identity.keys is empty: without a signing key no answer can be signed. Make one with `alipayplus-cancel keys generate --out wallet-1`, put it into a Secret (`kubectl create secret generic wallet-signing --from-file=wallet-1.private.pem`), and name it: [{ version: \"1\", file: { secret: { name: wallet-signing, key: wallet-1.private.pem } } }]") }}
{{- else if not $active }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "no key of settings.identity.keys is active: set `state: active` for the one that signs") }}
{{- else if gt (len $active) 1 }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "settings.identity.keys has the active versions %s, but only one signs: set `state` of the others to staged or retired" (join ", " $active))) }}
{{- end }}
{{- end }}
{{- if and (include "alipayplus-cancel.roleOf" (dict "root" $root "front" "grpc")) (not .tokens.hash_key_files) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "settings.tokens.hash_key_files is empty: tokens are only kept as hashes under such a key. Make one with `openssl rand -hex 32 > token-hash-1.hex`, keep it as long as the store, put it into a Secret, and name it: [{ secret: { name: wallet-token-hash, key: token-hash-1.hex } }]") }}
{{- end }}
{{- $ids := list }}
{{- range .clients }}
{{- $id := .id }}
{{- if has .id $ids }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "settings.clients has %s twice: give all keys to one entry, and take the other out" .id)) }}
{{- end }}
{{- $ids = append $ids .id }}
{{- if not .keys }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "settings.clients, %s, has no keys: without Alipay+'s public key no request of it can be verified; set keys to [{ version: \"1\", public_key_file: { pem: … } }]" .id)) }}
{{- end }}
{{- $versions := list }}
{{- range .keys }}
{{- if has .version $versions }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "settings.clients, %s, has the key version %q twice: each key needs its own" $id .version)) }}
{{- end }}
{{- $versions = append $versions .version }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.validate.tls" -}}
{{- $found := .found }}
{{- $values := .values }}
{{- $grpc := include "alipayplus-cancel.roleOf" (dict "root" .root "front" "grpc") }}
{{- $json := include "alipayplus-cancel.roleOf" (dict "root" .root "front" "json") }}
{{- with .values.settings }}
{{- range $way, $files := dict "grpc.tls" (list "cert_file" "key_file" "client_ca_file") "bridge.tls" (list "cert_file" "key_file") "bridge.core_tls" (list "ca_file" "cert_file" "key_file") }}
{{- $tls := $values.settings }}
{{- range splitList "." $way }}{{ $tls = get $tls . | default dict }}{{ end }}
{{- $missing := list }}
{{- range $files }}{{ if empty (get $tls .) }}{{ $missing = append $missing . }}{{ end }}{{ end }}
{{- if and $tls $missing }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "settings.%s is half configured: set %s, too, to a reference, as { secret: { name: cancel-tls, key: tls.crt } }, or take settings.%s out" $way (join " and " $missing) $way)) }}
{{- end }}
{{- end }}
{{- if and $grpc (not .grpc.tls) (not $values.allowPlaintextGrpc) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "settings.grpc.tls is not set: without it whoever reaches the gRPC port may cancel payments. Set settings.grpc.tls, or allowPlaintextGrpc to true where a mesh does mTLS or networkPolicy admits your services alone") }}
{{- end }}
{{- if and .grpc.tls $values.allowPlaintextGrpc }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "settings.grpc.tls and allowPlaintextGrpc are both set, and the port speaks one of the two: take one out") }}
{{- end }}
{{- if and (eq $values.mode "two-tier") $json (not .bridge.core_tls) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "mode is two-tier without settings.bridge.core_tls: a bridge and its cores know each other by certificate; set its ca_file, cert_file and key_file to references") }}
{{- end }}
{{- if and (eq $values.mode "single") .bridge.core_tls }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "settings.bridge.core_tls is set, and mode is single, where the core is in the same process: take it out, or set mode to two-tier") }}
{{- end }}
{{- with .telemetry }}
{{- if and .otlp_ca_file (not (hasPrefix "https://" (.otlp_endpoint | default ""))) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "settings.telemetry.otlp_ca_file is set, and otlp_endpoint is not https://…: set otlp_endpoint to the collector's https address, or take otlp_ca_file out") }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.validate.callers" -}}
{{- $found := .found }}
{{- $values := .values }}
{{- $grpc := include "alipayplus-cancel.roleOf" (dict "root" .root "front" "grpc") }}
{{- with .values.settings.grpc }}
{{- if and .callers (not .tls) $grpc }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "settings.grpc.callers without settings.grpc.tls: callers are known by their certificates, so without TLS nobody could call anything; set settings.grpc.tls, or take settings.grpc.callers out") }}
{{- end }}
{{- $bridges := false }}
{{- range .callers }}{{ if .bridge }}{{ $bridges = true }}{{ end }}{{ end }}
{{- if and (eq $grpc "core") (not $bridges) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "mode is two-tier, and no entry of settings.grpc.callers is a bridge: without it the cores believe no bridge which client of Alipay+'s asks. Add { sans: [the name in the bridges' certificate], methods: [\"CancelService/*\"], bridge: true }") }}
{{- end }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.validate.pods" -}}
{{- $found := .found }}
{{- $values := .values }}
{{- $groups := dict "pods" .values.pods }}
{{- if eq .values.mode "two-tier" }}
{{- range $role := list "core" "bridge" }}
{{- $pods := deepCopy $values.pods }}
{{- include "alipayplus-cancel.merge" (dict "base" $pods "over" (get $values $role).pods) }}
{{- $_ := set $groups (printf "%s.pods" $role) $pods }}
{{- end }}
{{- $_ := unset $groups "pods" }}
{{- end }}
{{- range $name, $pods := $groups }}
{{- with $pods }}
{{- include "alipayplus-cancel.validate.resources" (dict "found" $found "name" $name "resources" .resources) }}
{{- $needed := include "alipayplus-cancel.drainSeconds" $.root | int }}
{{- $given := int .terminationGracePeriodSeconds }}
{{- if and $given (lt $given $needed) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "%s.terminationGracePeriodSeconds is %d, but a drain takes up to %d (settings.shutdown.drain_delay + grace + 10): set it to %d or more, or to 0 for that" $name $given $needed $needed)) }}
{{- end }}
{{- with .autoscaling }}
{{- if .enabled }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "%s.autoscaling.minReplicas is %d and maxReplicas %d: make the first the smaller one" $name (int .minReplicas) (int .maxReplicas))) }}
{{- end }}
{{- if not (or .cpuPercent .inFlight) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "%s.autoscaling looks at nothing: set cpuPercent or inFlight" $name)) }}
{{- end }}
{{- if and .cpuPercent (not (($pods.resources).requests).cpu) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "%s.autoscaling.cpuPercent is a share of %s.resources.requests.cpu, which is not set: set it, or cpuPercent to 0" $name $name)) }}
{{- end }}
{{- end }}
{{- end }}
{{- range .extraVolumes }}
{{- if hasKey . "hostPath" }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "%s.extraVolumes, %s, is a hostPath, which no restricted namespace admits: use a persistentVolumeClaim, a csi volume or an image volume" $name .name)) }}
{{- end }}
{{- end }}
{{- range .extraEnv }}
{{- if hasKey . "value" }}
{{- if or (regexMatch "(?i)(password|passwd|secret|token|credential|_headers|private)" .name) (regexMatch "(PRIVATE KEY|://[^/@ ]*:[^/@ ]*@)" (toString .value)) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "%s.extraEnv, %s, looks like a secret in clear: take it from a Secret with valueFrom.secretKeyRef" $name .name)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- include "alipayplus-cancel.validate.resources" (dict "found" $found "name" "migration" "resources" .values.migration.resources) }}
{{- end }}

{{/* Takes found, name, resources. */}}
{{- define "alipayplus-cancel.validate.resources" -}}
{{- $c := . }}
{{- range $kind := list "requests" "limits" }}
{{- range $what, $quantity := get ($c.resources | default dict) $kind | default dict }}
{{- if not (kindIs "string" $quantity) }}
{{- include "alipayplus-cancel.problem" (dict "found" $c.found "text" (printf "%s.resources.%s.%s is a number, %v, and a text is due, since a number may come out in another form: write it in quotes with its unit, as \"500m\", \"2\" or \"256Mi\"" $c.name $kind $what $quantity)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.validate.network" -}}
{{- $found := .found }}
{{- $json := include "alipayplus-cancel.roleOf" (dict "root" .root "front" "json") }}
{{- $grpc := include "alipayplus-cancel.roleOf" (dict "root" .root "front" "grpc") }}
{{- with .values }}
{{- if and .service.grpc.headless (ne .service.grpc.type "ClusterIP") }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "service.grpc.headless with service.grpc.type %s: a headless Service has no address of its own to give; set the type to ClusterIP, or headless to false" .service.grpc.type)) }}
{{- end }}
{{- if .ingress.enabled }}
{{- if not $json }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "ingress.enabled without bridges: this release has no JSON front to lead to; set ingress.enabled to false, or bridge.enabled to true") }}
{{- end }}
{{- if not .ingress.hosts }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "ingress.enabled without ingress.hosts: name the host that Alipay+ calls") }}
{{- end }}
{{- range $annotation, $_ := .ingress.annotations }}
{{- if regexMatch "(rewrite|strip-?prefix|backend-path-prefix|app-root|use-regex|configuration-snippet|server-snippet)" $annotation }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "ingress.annotations, %s, may change the path that a request was signed with, and then no signature verifies: take it out, and set settings.bridge.path_prefixes to the paths that Alipay+ calls" $annotation)) }}
{{- end }}
{{- end }}
{{- if and .networkPolicy.enabled (not .networkPolicy.jsonFrom) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "ingress.enabled, and networkPolicy.jsonFrom admits nobody: name the ingress controller's pods there, as [{ namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: ingress-nginx } } }]") }}
{{- end }}
{{- end }}
{{- range $front, $serves := dict "json" $json "grpc" $grpc }}
{{- with get $.values.gateway $front }}
{{- if .enabled }}
{{- if not $serves }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "gateway.%s.enabled, and this release has no %s front to lead to: set it to false" $front $front)) }}
{{- end }}
{{- if not .parentRefs }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "gateway.%s.enabled without gateway.%s.parentRefs: name the Gateway, as [{ name: public, namespace: gateways }]" $front $front)) }}
{{- end }}
{{- if not .hostnames }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "gateway.%s.enabled without gateway.%s.hostnames: name the hosts" $front $front)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "alipayplus-cancel.validate.rest" -}}
{{- $found := .found }}
{{- $root := .root }}
{{- with .values }}
{{- $volumes := dict }}
{{- range .csi.volumes }}
{{- $_ := set $volumes .name true }}
{{- if eq (empty .secretProviderClass) (empty .provider) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "csi.volumes, %s: set either secretProviderClass, to one that is there, or provider and parameters, to have one made" .name)) }}
{{- end }}
{{- end }}
{{- $roles := splitList " " (include "alipayplus-cancel.roles" $root) }}
{{- $tiers := list }}
{{- range $roles }}
{{- if . }}
{{- $tier := dict "root" $root "role" . }}
{{- include "alipayplus-cancel.tier" $tier }}
{{- $tiers = append $tiers $tier }}
{{- end }}
{{- end }}
{{- $made := dict }}
{{- range .externalSecrets }}{{ $_ := set $made .name true }}{{ end }}
{{- if and (eq .store.kind "postgres") .migration.enabled (include "alipayplus-cancel.roleOf" (dict "root" $root "front" "grpc")) }}
{{- $tier := dict "root" $root "role" "migrate" "least" 1 "has" (dict "json" false "grpc" false) }}
{{- include "alipayplus-cancel.settings" $tier }}
{{- $tiers = append $tiers $tier }}
{{- $classes := dict }}
{{- range .csi.volumes }}{{ if .provider }}{{ $_ := set $classes .name true }}{{ end }}{{ end }}
{{- range $tier.files }}
{{- if or (and (eq .kind "secret") (hasKey $made .name)) (and (eq .kind "csi") (hasKey $classes .name)) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "the migration Job needs %s, which this release makes, but a hook before the install runs before the release is there: make it beforehand, or set migration.enabled to false, so that pods bring the schema up to date at their start" .name)) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $tiers }}
{{- range .files }}
{{- if and (eq .kind "csi") (not (hasKey $volumes .name)) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "a reference names the CSI volume %s, and csi.volumes has none of that name: add it there, with its secretProviderClass" .name)) }}
{{- end }}
{{- end }}
{{- end }}
{{- if .tests.call.enabled }}
{{- range $name := list "clientId" "key" "pspId" "acquirerId" }}
{{- if not (get $.values.tests.call $name) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" (printf "tests.call.enabled without tests.call.%s: set it, or tests.call.enabled to false" $name)) }}
{{- end }}
{{- end }}
{{- if not (include "alipayplus-cancel.roleOf" (dict "root" $root "front" "json")) }}
{{- include "alipayplus-cancel.problem" (dict "found" $found "text" "tests.call.enabled without bridges: this release has no JSON front to call; set it to false") }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
