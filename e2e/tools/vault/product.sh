module=github.com/hashicorp/vault
binaries=(vault=github.com/hashicorp/vault)
