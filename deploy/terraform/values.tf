# The values of the chart. Where clear text is chosen, avapd wants to be told so.
locals {
  # As the chart calls what it makes.
  service = strcontains(var.release, "avapd") ? var.release : "${var.release}-avapd"

  values = {
    image          = { repository = var.image_repository, digest = var.image_digest }
    secretName     = var.secret_name
    apiKey         = var.api_key
    apiKeysFile    = var.api_keys_file
    signing        = var.signing
    databaseCa     = var.database_ca
    auditSinkUrl   = var.audit_sink_url
    auditSinkToken = var.audit_sink_token
    tls            = { enabled = var.tls_secret_name != null, secretName = coalesce(var.tls_secret_name, "none") }
    settings       = merge(var.tls_secret_name == null ? { AVAPD_INSECURE = "1" } : {}, var.settings)
    resources      = { cpu = var.cpu, memory = var.memory }
    autoscaling = {
      enabled     = true
      minReplicas = var.min_replicas
      maxReplicas = var.max_replicas
    }
    zoneSpread = var.zone_spread
    networkPolicy = {
      clientLabels        = var.client_labels
      monitoringNamespace = var.monitoring_namespace
      databasePort        = var.database_port
      databaseCidrs       = var.database_cidrs
      extraEgress         = var.extra_egress
    }
    # An attribute of null is an error, which leaves out what it is part of.
    route = merge(
      { enabled = var.route != null },
      try({ gateway = var.route.gateway, gatewayNamespace = var.route.gateway_namespace }, {}),
      try({ hostnames = var.route.hostnames, caConfigMap = var.route.ca_config_map }, {}),
      try({ canary = { service = var.route.canary.service, weight = var.route.canary.weight } }, {}),
    )
    serviceMonitor = var.monitoring
    prometheusRule = var.monitoring
  }
}
