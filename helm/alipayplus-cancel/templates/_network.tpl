{{/* Rules of network policies that more than one of them has. */}}

{{/* Takes port and from; nobody, if from is empty. */}}
{{- define "alipayplus-cancel.admit" -}}
{{- if .from -}}
- from:
    {{- toYaml .from | nindent 4 }}
  ports:
    - port: {{ .port }}
      protocol: TCP
{{- end }}
{{- end }}

{{/* Takes the policy's values. */}}
{{- define "alipayplus-cancel.egressDns" -}}
- {{- with .dnsTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end }}

{{/* Takes the root. */}}
{{- define "alipayplus-cancel.egressDatabase" -}}
{{- if eq .Values.store.kind "postgres" }}
{{- include "alipayplus-cancel.egress" (dict "urls" .Values.store.postgres.hosts "to" .Values.networkPolicy.databaseTo) }}
{{- end }}
{{- end }}

{{/* To the ports that stand at the end of urls. Takes urls and to; any address, if to is empty. */}}
{{- define "alipayplus-cancel.egress" -}}
{{- $ports := list }}
{{- range .urls }}{{ $ports = append $ports (regexFind "[0-9]+/?$" . | trimSuffix "/" | default "4317") }}{{ end -}}
- {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    {{- range uniq $ports }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- end }}
