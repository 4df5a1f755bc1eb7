# What the controller manager may do in Vault: make, use and remove the certificate authorities of guests, and nothing else.
# Each of them is a PKI engine of its own, mounted at giantnetes/GUEST/AUTHORITY; AUTHORITY is kubernetes, etcd or front-proxy.
# With another `prefix` in the settings, another word stands here for the first one.
#
#   vault policy write giantnetes vault-policy.hcl

# An authority comes and goes with its guest. Nothing but PKI engines can be mounted.
path "sys/mounts/giantnetes/+/+" {
  capabilities       = ["read", "update", "delete"]
  allowed_parameters = {
    "type" = ["pki"]
    "*"    = []
  }
}

# When what has expired is thrown away.
path "giantnetes/+/+/config/auto-tidy" {
  capabilities = ["update"]
}

# The authority's key is made inside Vault and cannot leave it: there is no right to root/generate/exported.
path "giantnetes/+/+/root/generate/internal" {
  capabilities = ["update"]
}

# Which authority there is, to tell one that was lost from one that was never made.
path "giantnetes/+/+/issuers" {
  capabilities = ["list"]
}

path "giantnetes/+/+/cert/ca" {
  capabilities = ["read"]
}

# A role for each certificate.
path "giantnetes/+/+/roles/+" {
  capabilities = ["create", "update", "delete"]
}

# Keys are made where they are used, or by who asks inside a guest, and Vault sees the requests alone: there is no right to issue/, nor to sign-verbatim.
path "giantnetes/+/+/sign/+" {
  capabilities = ["update"]
}
