{{- define "alipayplus-cancel.validate" -}}{{- end }}
