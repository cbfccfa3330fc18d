# The values of the chart. Where clear text is chosen, avapd wants to be told so.
locals {
  values = {
    image      = { repository = var.image_repository, digest = var.image_digest }
    secretName = var.secret_name
    signing    = var.signing
    tls        = { enabled = var.tls_secret_name != null, secretName = coalesce(var.tls_secret_name, "none") }
    settings   = merge(var.tls_secret_name == null ? { AVAPD_INSECURE = "1" } : {}, var.settings)
    resources  = { cpu = var.cpu, memory = var.memory }
    autoscaling = {
      enabled     = true
      minReplicas = var.min_replicas
      maxReplicas = var.max_replicas
    }
    zoneSpread     = var.zone_spread
    networkPolicy  = { clientLabels = var.client_labels, databaseCidrs = var.database_cidrs }
    serviceMonitor = var.monitoring
    prometheusRule = var.monitoring
  }
}
