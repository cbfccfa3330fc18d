variable "namespace" {
  description = "Namespace of avapd."
  type        = string
  default     = "avapd"

  validation {
    condition     = can(regex("^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", var.namespace))
    error_message = "A namespace is a DNS label: lower-case letters, digits and dashes, 63 at most."
  }
}

variable "create_namespace" {
  description = "Whether the namespace is made here, held to the Pod Security Standard `restricted`."
  type        = bool
  default     = true
}

variable "release" {
  description = "Name of the Helm release, and so of Deployment and Service, to which the chart adds -avapd where that is no part of it."
  type        = string
  default     = "avapd"

  validation {
    condition     = can(regex("^[a-z]([-a-z0-9]{0,51}[a-z0-9])?$", var.release))
    error_message = "A release begins with a letter and has lower-case letters, digits and dashes, 53 at most."
  }
}

variable "image_repository" {
  description = "Where the image is, without tag or digest."
  type        = string

  validation {
    condition     = !strcontains(var.image_repository, "@") && !can(regex(":[^/]*$", var.image_repository))
    error_message = "The repository has neither a tag nor a digest; the digest is image_digest."
  }
}

variable "image_digest" {
  description = "Digest of the image. A tag can be moved, so there is no variable for one."
  type        = string

  validation {
    condition     = can(regex("^sha256:[0-9a-f]{64}$", var.image_digest))
    error_message = "A digest is sha256: and 64 hexadecimal digits."
  }
}

variable "secret_name" {
  description = "A Secret of the namespace with database-url, and what the variables below say. It is never made here: the state would hold it."
  type        = string
  default     = "avapd"
}

variable "api_key" {
  description = "Whether the Secret has an api-key: keys without names, separated by commas."
  type        = bool
  default     = true
}

variable "api_keys_file" {
  description = "Whether the Secret has an api-keys.toml: keys with names."
  type        = bool
  default     = false

  validation {
    condition     = var.api_key || var.api_keys_file
    error_message = "Clients need keys: api_key, api_keys_file, or both."
  }
}

variable "signing" {
  description = "Whether the Secret has a signing-key, with which code is signed."
  type        = bool
  default     = false
}

variable "database_ca" {
  description = "Whether the Secret has a database-ca.pem: the authority of the database's certificate."
  type        = bool
  default     = false
}

variable "audit_sink_url" {
  description = "Whether the Secret has an audit-sink-url, to which the audit goes too. extra_egress has to let it through."
  type        = bool
  default     = false
}

variable "audit_sink_token" {
  description = "Whether the Secret has an audit-sink-token for it."
  type        = bool
  default     = false
}

variable "tls_secret_name" {
  description = "A Secret with tls.crt, tls.key and ca.crt. Null serves in clear text, which is for development or behind a mesh."
  type        = string
  default     = "avapd-tls"
}

variable "settings" {
  description = "What `avapd settings` lists, and the standard OTEL_ variables, by name, without secrets."
  type        = map(string)
  default     = {}

  validation {
    condition = alltrue([
      for name in keys(var.settings) :
      can(regex("^(AVAPD|OTEL)_[A-Z_]+$", name)) && !can(regex("^AVAPD_AUDIT_SINK_|^OTEL_.*HEADERS$", name))
    ])
    error_message = "Settings are called AVAPD_… or OTEL_…; secrets go into the Secret, ports and paths belong to the chart."
  }
}

variable "cpu" {
  description = "CPUs of a pod, whole ones, request and limit. One worker for each."
  type        = number
  default     = 2

  validation {
    condition     = var.cpu >= 1 && floor(var.cpu) == var.cpu
    error_message = "CPUs are whole, and at least one."
  }
}

variable "memory" {
  description = "Memory of a pod, request and limit. `avapd check` says what the table needs."
  type        = string
  default     = "1Gi"

  validation {
    condition     = can(regex("^[1-9][0-9]*[MG]i$", var.memory))
    error_message = "Memory is a number of Mi or Gi."
  }
}

variable "min_replicas" {
  description = "Fewest pods. Two is the least with which one may go."
  type        = number
  default     = 2

  validation {
    condition     = var.min_replicas >= 2
    error_message = "With fewer than two pods each change of node is an outage."
  }
}

variable "max_replicas" {
  description = "Most pods."
  type        = number
  default     = 6

  validation {
    condition     = var.max_replicas >= var.min_replicas
    error_message = "max_replicas is at least min_replicas."
  }
}

variable "zone_spread" {
  description = "DoNotSchedule rather has a pod wait than all of them in one zone."
  type        = string
  default     = "ScheduleAnyway"

  validation {
    condition     = contains(["ScheduleAnyway", "DoNotSchedule"], var.zone_spread)
    error_message = "ScheduleAnyway or DoNotSchedule."
  }
}

variable "client_labels" {
  description = "Labels of the pods that may call avapd, in any namespace."
  type        = map(string)
  default     = { avapd-client = "true" }

  validation {
    condition     = length(var.client_labels) > 0
    error_message = "Without a label everyone could call."
  }
}

variable "database_cidrs" {
  description = "Networks of the database. Empty: its port anywhere."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.database_cidrs : can(cidrhost(cidr, 0))])
    error_message = "Networks look like 10.0.0.0/24."
  }
}

variable "database_port" {
  description = "Port of the database."
  type        = number
  default     = 5432

  validation {
    condition     = var.database_port >= 1 && var.database_port <= 65535 && floor(var.database_port) == var.database_port
    error_message = "A port is a whole number from 1 to 65535."
  }
}

variable "extra_egress" {
  description = "More rules, as the egress of a NetworkPolicy has them: to the audit sink, to an OTLP collector."
  type        = any
  default     = []

  validation {
    condition     = alltrue([for rule in var.extra_egress : length(rule) > 0 && length(setsubtract(keys(rule), ["to", "ports"])) == 0])
    error_message = "A rule has `to`, `ports`, or both."
  }
}

variable "monitoring_namespace" {
  description = "Namespace of Prometheus, which may read the metrics."
  type        = string
  default     = "monitoring"

  validation {
    condition     = can(regex("^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", var.monitoring_namespace))
    error_message = "A namespace is a DNS label: lower-case letters, digits and dashes, 63 at most."
  }
}

variable "route" {
  description = "The way through a Gateway (Gateway API 1.4), and the share of a second release in percent. Null: there is none."
  default     = null
  type = object({
    gateway           = optional(string, "gateway")
    gateway_namespace = optional(string, "gateway")
    hostnames         = optional(list(string), [])
    ca_config_map     = optional(string, "avapd-ca")
    canary            = optional(object({ service = string, weight = number }))
  })

  validation {
    condition     = try(var.route.canary.weight, 1) >= 1 && try(var.route.canary.weight, 1) <= 100
    error_message = "The weight of the canary is 1 to 100 percent; without a canary leave it out."
  }
}

variable "monitoring" {
  description = "Whether the Prometheus operator is there to take a ServiceMonitor and the alerts."
  type        = bool
  default     = true
}

variable "timeout_seconds" {
  description = "How long a roll-out may take before it is rolled back."
  type        = number
  default     = 900

  validation {
    condition     = var.timeout_seconds >= 120
    error_message = "Two pods, one after the other, need two minutes."
  }
}
