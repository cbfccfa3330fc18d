# avapd on Kubernetes: the chart beside this folder, so that there is one description of what runs.

resource "kubernetes_namespace_v1" "avapd" {
  count = var.create_namespace ? 1 : 0

  metadata {
    name = var.namespace
    labels = {
      "app.kubernetes.io/part-of"          = "avap"
      "pod-security.kubernetes.io/enforce" = "restricted"
      "pod-security.kubernetes.io/warn"    = "restricted"
    }
  }
}

resource "helm_release" "avapd" {
  name      = var.release
  namespace = var.create_namespace ? kubernetes_namespace_v1.avapd[0].metadata[0].name : var.namespace
  chart     = "${path.module}/../helm/avapd"
  values    = [yamlencode(local.values)]

  # A roll-out that does not come to serve is rolled back as a whole.
  atomic          = true
  cleanup_on_fail = true
  max_history     = 5
  timeout         = var.timeout_seconds
}
