{{- define "kaito-ray.serviceAccount" -}}
{{ .Values.serviceAccount.name | default .Release.Name }}
{{- end }}

{{- define "kaito-ray.selector" -}}
app.kubernetes.io/name: kaito-ray
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kaito-ray.labels" -}}
{{ include "kaito-ray.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{/* What the operator does inside each namespace that it watches. */}}
{{- define "kaito-ray.rules" -}}
- apiGroups: [kaito.sh]
  resources: [workspaces]
  verbs: [list, watch, patch]
- apiGroups: [kaito.sh]
  resources: [workspaces/status]
  verbs: [patch]
# Clusters that enforce permissions on owner references ask for this.
- apiGroups: [kaito.sh]
  resources: [workspaces/finalizers]
  verbs: [update]
- apiGroups: [ray.io]
  resources: [rayservices, rayjobs]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [ray.io]
  resources: [rayclusters]
  verbs: [list, watch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch]
# Ray's pods are KubeRay's; those that judge training data are ours.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, create, delete]
- apiGroups: [""]
  resources: [configmaps, secrets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}
