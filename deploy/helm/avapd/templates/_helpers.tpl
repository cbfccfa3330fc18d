{{- define "avapd.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end }}
{{- end }}

{{- define "avapd.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "avapd.labels" -}}
{{ include "avapd.selector" . }}
app.kubernetes.io/part-of: avap
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "avapd.metadata" -}}
name: {{ include "avapd.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "avapd.labels" . | nindent 2 }}
{{- end }}

{{- define "avapd.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* Settings that name a file, and the key of the Secret that is that file. */}}
{{- define "avapd.secretKeys" -}}
DATABASE_URL_FILE: database-url
{{- range $value, $file := dict
      "apiKey" "API_KEY_FILE: api-key"
      "apiKeysFile" "AVAPD_API_KEYS_FILE: api-keys.toml"
      "signing" "SIGNING_KEY_FILE: signing-key"
      "databaseCa" "AVAPD_DATABASE_CA_FILE: database-ca.pem"
      "auditSinkUrl" "AVAPD_AUDIT_SINK_URL_FILE: audit-sink-url"
      "auditSinkToken" "AVAPD_AUDIT_SINK_TOKEN_FILE: audit-sink-token" }}
{{- if get $.Values $value }}
{{ $file }}
{{- end }}
{{- end }}
{{- end }}

{{- define "avapd.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "avapd.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
{{- end }}

{{- define "avapd.probePort" -}}
{{ .Values.tls.enabled | ternary .Values.tls.healthPort 50051 }}
{{- end }}

{{- define "avapd.appProtocol" -}}
{{ .Values.tls.enabled | ternary "https" "kubernetes.io/h2c" }}
{{- end }}
