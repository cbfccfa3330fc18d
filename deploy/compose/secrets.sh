#!/bin/sh
# Makes the secrets that compose.yaml mounts, at random; those that are there stay. Run it again after removing one.
#
# The folder is closed to others on this machine. The files are not, since each is mounted for another user than yours.
set -eu
cd "$(dirname "$0")"
mkdir -p -m 700 secrets

random() {
    head -c 24 /dev/urandom | base64 | tr '+/' '-_'
}

keep() {
    [ -s "secrets/$1" ] || printf '%s' "$2" >"secrets/$1"
    chmod 644 "secrets/$1"
}

for name in api-key postgres-password reader-password grafana-password; do
    keep "$name" "$(random)"
done
# Follows the password, always.
rm -f secrets/database-url
keep database-url "postgresql://avapd_reader:$(cat secrets/reader-password)@postgres/avap"
