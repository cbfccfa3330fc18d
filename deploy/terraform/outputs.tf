output "target" {
  description = "host:port for clients inside the cluster."
  value       = "${local.service}.${helm_release.avapd.namespace}.svc:50051"
}

output "namespace" {
  description = "Where it runs."
  value       = helm_release.avapd.namespace
}

output "image" {
  description = "What runs, by digest."
  value       = "${var.image_repository}@${var.image_digest}"
}

output "revision" {
  description = "Revision of the Helm release, for `helm rollback`."
  value       = helm_release.avapd.metadata.revision
}
