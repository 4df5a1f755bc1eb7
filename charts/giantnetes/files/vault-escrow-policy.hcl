# What an escrow officer may do in Vault: read the keys of guests' authorities that can be exported (spec.pki.exportable), for
# `giantnetes pki export`, and nothing else. A key lies at giantnetes/GUEST/escrow/data/AUTHORITY/FINGERPRINT. For the keys of one guest, its
# id takes the place of the first +.
#
#   vault policy write giantnetes-escrow vault-escrow-policy.hcl

path "giantnetes/+/escrow/data/+/+" {
  capabilities = ["read"]
}
