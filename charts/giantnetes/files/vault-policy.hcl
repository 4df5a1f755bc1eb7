# What the controller manager may do in Vault: make, use and remove the certificate authorities of guests, and nothing else.
# Each of them is a PKI engine of its own, mounted at giantnetes/GUEST/AUTHORITY; AUTHORITY is kubernetes, etcd or front-proxy.
# Beside them, at giantnetes/GUEST/escrow, is a KV engine with the keys of those that can be exported.
# With another `prefix` in the settings, another word stands here for the first one.
#
#   vault policy write giantnetes vault-policy.hcl

# An authority comes and goes with its guest. Nothing but PKI engines can be mounted, but at one place.
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

# Authorities that come with their keys: imported from another guest, or spec.pki.exportable. Without the rest of this file there are none.
path "giantnetes/+/+/issuers/import/bundle" {
  capabilities       = ["update"]
  allowed_parameters = {
    "pem_bundle" = []
  }
}

# Where keys of spec.pki.exportable are written down. It goes with its guest. Nothing but KV engines can be mounted.
path "sys/mounts/giantnetes/+/escrow" {
  capabilities       = ["read", "update", "delete"]
  allowed_parameters = {
    "type" = ["kv"]
    "*"    = []
  }
}

# A key is written once, never over another, and not read: that is for escrow officers, by vault-escrow-policy.hcl.
path "giantnetes/+/escrow/data/+/+" {
  capabilities = ["create"]
}

# Whether it is written down already.
path "giantnetes/+/escrow/metadata/+/+" {
  capabilities = ["read"]
}
